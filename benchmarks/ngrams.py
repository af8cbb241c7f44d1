"""How far does a bag of character sequences get on the embedded text tasks? Prints its accuracy beside the originals'.

Logistic regression on TF-IDF weights of all character sequences of length 1 to 4, which does not know their order. Its
regularization is chosen by cross-validation on the training texts. Both are scored on the same test texts.
"""
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import fsmerge_lite as fsm
from fsmerge_lite.tasks.texts import TEXTS, decode


def main() -> None:
    for name in TEXTS:
        task, original = fsm.task(name), fsm.load_originals(name)[0]
        train, test = task.sample(task.train_size), task.test()
        bag = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False),
                            LogisticRegression(max_iter=1000))
        search = GridSearchCV(bag, {"logisticregression__C": [1, 3, 10, 30]}, cv=3)
        search.fit(decode(train[0]), train[1].tolist())
        ngrams = 100 * search.score(decode(test[0]), test[1].tolist())
        own = fsm.evaluate(original, [task]).mean
        print(f"{name}: n-grams {ngrams:.1f} %, with C = {search.best_params_['logisticregression__C']}; "
              f"original {own:.1f} %, {100 * own / ngrams:.0f} % of that")


if __name__ == "__main__":
    main()
