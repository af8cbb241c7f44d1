"""Recipes: what they may say, what is refused by name, what a sweep expands to; the committed ones."""
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmerge_lite.recipes.commands import main
from fsmerge_lite.recipes.entries import SECTIONS
from fsmerge_lite.recipes.recipe import RecipeError, describe_entries, read_recipe, recipe_of

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
PAIR = {"originals": [{"shipped": "digits"}, {"shipped": "letters"}]}
OWN = {"timm": "vit_tiny_patch16_224", "checkpoint": "a.safetensors", "folder": "a"}
CASES = [  # a recipe, and words of what it is refused with
    ({}, "two or more tables [[originals]]"),
    ({"originals": [{"shipped": "digits"}]}, "two or more tables [[originals]], one for each trained model; it has 1"),
    ({"originals": {"shipped": "digits"}}, "two or more tables [[originals]]"),
    ({"orginals": []}, "a recipe has no entry 'orginals'; did you mean 'originals'?"),
    ({"originals": [{"shipped": "digits"}, {"shiped": "letters"}]}, "originals 2 has no entry 'shiped'; did you mean "
                                                                   "'shipped'?"),
    ({"originals": [{"shipped": "digits"}, {}]}, "originals 2 needs one of shipped, file, timm; it has none"),
    ({"originals": [{"shipped": "digits"}, 5]}, "originals 2 is 5, expected a table"),
    ({"originals": [{"shipped": "digits"}, {"shipped": "letters", "file": "x"}]}, "it has shipped and file"),
    ({"originals": [{"shipped": "digits"}, {"shipped": 3}]}, "originals 2.shipped is 3, expected a text"),
    ({"originals": [{"shipped": "digits"}, {"shipped": " "}]}, "originals 2.shipped is ' ', expected a text"),
    ({"originals": [{"shipped": "digits"}, {"timm": "x", "folder": "a"}]}, "originals 2 needs checkpoint"),
    ({"originals": [{"shipped": "digits"}, OWN | {"pretrained": True}]}, "originals 2 needs checkpoint"),
    ({"originals": [{"shipped": "digits"}, OWN | {"torchvision": "MNIST"}]}, "it has folder and torchvision"),
    ({"originals": [{"shipped": "digits"}, {"timm": "x", "checkpoint": "y"}]}, "needs the pictures of its task"),
    ({"originals": [{"shipped": "digits"}, {"timm": "x", "checkpoint": "y", "torchvision": "MNIST"}]}, "needs root"),
    ({"originals": [{"shipped": "digits"}, OWN | {"mean": [0.5]}]}, "needs both mean and std"),
    ({"originals": [{"shipped": "digits"}, OWN | {"mean": [0.5], "std": [0.0]}]}, "expected a list of numbers > 0"),
    ({"originals": [{"shipped": "digits"}, OWN | {"classes": ["a", "a"]}]}, "a list of texts, none twice"),
    ({"originals": [{"shipped": "digits"}, OWN | {"size": 4}]}, "2.size is 4, expected a whole number >= 8"),
    ({"originals": [{"shipped": "digits"}, OWN | {"transform": "tim"}]}, "did you mean 'timm'?"),
    ({"originals": [{"shipped": "digits"}, {"shipped": "letters", "arguments": {"a": 3}}]}, "which go with timm"),
    ({"originals": [{"shipped": "digits"}, {"shipped": "letters", "mean": [0.5], "std": [0.5]}]}, "absorbed already"),
    (PAIR | {"method": "papr"}, "method is 'papr', expected one of fitted, paper; did you mean 'paper'?"),
    (PAIR | {"baselines": "average"}, "baselines is 'average', expected a list"),
    (PAIR | {"baselines": ["averge"]}, "did you mean 'average'?"),
    (PAIR | {"baselines": ["average", "average"]}, "none twice"),
    (PAIR | {"baselines": ["distillation, same time"]}, "needs distillation beside it"),
    (PAIR | {"calibration": 5}, "calibration is 5, expected a table"),
    (PAIR | {"calibration": {"images": 0}}, "calibration.images is 0, expected a whole number >= 1"),
    (PAIR | {"calibration": {"images": 1.5}}, "calibration.images is 1.5, expected a whole number"),
    (PAIR | {"calibration": {"images": True}}, "calibration.images is True, expected a whole number"),
    (PAIR | {"calibration": {"image": 4}}, "calibration has no entry 'image'; did you mean 'images'?"),
    (PAIR | {"calibration": {"augmented": -1}}, "calibration.augmented is -1, expected a whole number >= 0"),
    (PAIR | {"calibration": {"augmentation": "ligth"}}, "did you mean 'light'?"),
    (PAIR | {"calibration": {"augmentation": []}}, "or a list of tables with a name"),
    (PAIR | {"calibration": {"augmentation": [{"p": 1}]}}, "or a list of tables with a name"),
    (PAIR | {"supernet": {"rank": "12"}}, "supernet.rank is '12', expected a whole number >= 1"),
    (PAIR | {"supernet": {"structure": "diag"}}, "expected one of diagonal_low_rank, diagonal, low_rank, full"),
    (PAIR | {"supernet": {"structure": "diagonal", "shared": True}}, "supernet.shared goes with structure"),
    (PAIR | {"supernet": {"start": "frist"}}, "did you mean 'first'?"),
    (PAIR | {"supernet": {"start": "first"}, "start": {"ridge": 0.1}}, "[start] is of the fitted start, but"),
    (PAIR | {"supernet": {"start": "first"}, "training": {"how": "none"}}, "only the fitted start gives a model"),
    (PAIR | {"start": {"ridge": 0}}, "start.ridge is 0, expected a number > 0"),
    (PAIR | {"start": {"ridge": math.nan}}, "start.ridge is nan, expected a number > 0"),
    (PAIR | {"start": {"floor": 1.5}}, "start.floor is 1.5, expected a number >= 0 and <= 1"),
    (PAIR | {"start": {"heads": [1, 2, 3]}}, "start.heads has 3 shares, there are 2 originals"),
    (PAIR | {"training": {"lr": -1}}, "training.lr is -1, expected a number > 0"),
    (PAIR | {"training": {"lr": math.inf}}, "training.lr is inf, expected a number > 0"),
    (PAIR | {"training": {"steps": 0}}, "training.steps is 0, expected a whole number >= 1"),
    (PAIR | {"training": {"depths": 3}}, "training.depths is 3, expected quarters, or a list"),
    (PAIR | {"training": {"depths": [1, 1]}}, "none twice"),
    (PAIR | {"training": {"precision": "fp16"}}, "expected one of fp32, bf16"),
    (PAIR | {"training": {"scaled": 1}}, "training.scaled is 1, expected true or false"),
    (PAIR | {"run": {"seeds": 0}}, "run.seeds is 0, expected a list of one or more whole numbers >= 0"),
    (PAIR | {"run": {"seeds": []}}, "run.seeds is [], expected a list of one or more"),
    (PAIR | {"run": {"device": "gpu"}}, "run.device is 'gpu', expected one of auto, cpu, cuda"),
    (PAIR | {"run": {"chance": "ask"}}, "run.chance is 'ask', expected one of stop, go"),
    (PAIR | {"sweep": {"rank": [4]}}, "sweep has no entry 'rank'; did you mean 'supernet.rank'?"),
    (PAIR | {"sweep": {"run.seeds": [4]}}, "sweep has no entry 'run.seeds'"),
    (PAIR | {"sweep": {"supernet.rank": 4}}, "sweep.supernet.rank is 4, expected a list of one or more values"),
    (PAIR | {"sweep": {"supernet.rank": []}}, "expected a list of one or more values, none twice"),
    (PAIR | {"sweep": {"supernet.rank": [4, "x"]}}, "supernet.rank is 'x', expected a whole number >= 1"),
    (PAIR | {"sweep": {"supernet.rank": [4, 4]}}, "none twice"),
    (PAIR | {"sweep": 4}, "sweep is 4, expected a table"),
]


@pytest.mark.parametrize(("recipe", "words"), CASES, ids=range(len(CASES)))
def test_what_is_wrong_is_refused_by_name(recipe, words):
    with pytest.raises(RecipeError) as refused:
        recipe_of(recipe)
    assert words in str(refused.value)


def test_every_entry_has_a_default_and_two_models_are_enough():
    recipe = recipe_of(PAIR)
    assert recipe.supernet.rank == 12 and recipe.label == "FS-Merge (fitted)" and recipe.out == Path("runs/recipe")
    assert [values for values, _ in recipe.cells()] == [{"seed": 0}]
    assert len("[[originals]]\nshipped = 'digits'\n[[originals]]\nshipped = 'letters'\n".splitlines()) <= 6


def test_the_published_method_sets_defaults_that_can_be_changed():
    paper = recipe_of(PAIR | {"method": "paper"})
    assert paper.supernet.start == "paper_first" and paper.training.clip == math.inf and not paper.training.scaled
    assert paper.training.depths == () and paper.label == "FS-Merge (paper)"
    assert recipe_of(PAIR | {"method": "paper", "training": {"lr": 0.5}}).training.lr == 0.5


def test_a_sweep_is_every_combination_with_every_seed():
    recipe = recipe_of(PAIR | {"sweep": {"supernet.rank": [4, 8], "method": ["fitted", "paper"]},
                               "run": {"seeds": [1, 2]}})
    cells = list(recipe.cells())
    assert len(cells) == 8 and cells[0][0] == {"supernet.rank": 4, "method": "fitted", "seed": 1}
    values, last = cells[-1]
    assert (last.supernet.rank, last.method, last.run.seeds) == (8, "paper", (2,)) and values["seed"] == 2
    assert last.supernet.start == "paper_first" and not last.sweep


def test_all_entries_are_described():
    text = describe_entries()
    for section, kind in SECTIONS.items():
        assert f"[{section}]" in text and all(f"  {name}" in text for name in kind.__dataclass_fields__)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_committed_recipes_are_read(path):
    recipe = read_recipe(path)
    assert recipe.name == path.stem and len(recipe.originals) >= 2


def test_there_are_six_committed_recipes():
    assert {path.stem for path in FOLDER.glob("*.toml")} >= {
        "tour", "two_folders", "mnist_cifar10", "vit_b", "four_models", "sweep"}


@pytest.mark.parametrize(("text", "words"), [
    ("originals = [", "is not TOML"), ("x = 1\nx = 2", "is not TOML"), ("\xff", "two or more"), ("", "two or more")])
def test_a_file_that_is_no_recipe(text, words, tmp_path, capsys):
    (tmp_path / "r.toml").write_text(text, encoding="latin-1" if text == "\xff" else "utf-8")
    assert main(["merge", str(tmp_path / "r.toml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and (words in error or "is not TOML" in error)


def test_no_recipe_at_all(tmp_path, capsys):
    assert main(["merge", str(tmp_path / "none.toml")]) == 2
    assert "there is no recipe" in capsys.readouterr().err


PLAIN = st.one_of(st.booleans(), st.integers(-3, 30), st.floats(-2, 2), st.text(max_size=6), st.just([]),
                  st.lists(st.integers(0, 3), max_size=3))
NAMES = [name for kind in SECTIONS.values() for name in kind.__dataclass_fields__]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*SECTIONS, "sweep", "method", "baselines", "orignals"]), st.one_of(
    PLAIN, st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), PLAIN, max_size=3)), max_size=3))
def test_any_table_is_a_recipe_or_refused_with_a_message(drawn):
    try:
        recipe = recipe_of(PAIR | drawn)
    except RecipeError as error:
        assert len(str(error)) > 20 and "\n" not in str(error)[:20]
    else:
        assert list(recipe.cells())
