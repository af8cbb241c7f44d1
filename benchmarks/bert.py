"""What holds of a merge of two small BERTs, which are post-norm: prints accuracies in percent, a mean of both orders.

    python benchmarks/bert.py [--texts 16] [--seeds 1] [--out runs/bert]

The originals are two `BertModel` of transformers with random weights of different seeds, each trained on one of the
tasks of texts. They stay in the folder --out, and a second run uses them.
"""
import argparse
from itertools import permutations
from pathlib import Path

import pandas as pd
import torch
from transformers import BertConfig, BertModel

import fsmerge_lite as fsm
from fsmerge_lite.bench.methods import (
    LR_DISTILL_TEXT,
    OFF_TASK,
    Cell,
    align_regmean,
    distillation,
    fs_merge,
    paper,
    untrained,
    without_images,
)
from fsmerge_lite.bench.runner import compare
from fsmerge_lite.compare.baselines import average, ensemble, regmean

LENGTH = 24  # tokens of a text
CONFIG = {"vocab_size": 258, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
          "intermediate_size": 384, "max_position_embeddings": LENGTH, "type_vocab_size": 1}
METHODS = {
    "originals (2 models)": untrained(without_images(ensemble)),
    "average": untrained(without_images(average)),
    "regmean": untrained(regmean),
    "align, then regmean": untrained(align_regmean),
    "distillation": distillation(LR_DISTILL_TEXT),
    "FS-Merge (paper)": paper(),
    "FS-Merge from model 1, our losses": fs_merge(init="first", shared=True, off_task=OFF_TASK),
    "distillation, same time": distillation(LR_DISTILL_TEXT, as_long_as="FS-Merge (paper)"),
}


def original(name: str, folder: Path, steps: int) -> fsm.Original:
    """The BERT of a task, trained in `steps` steps if the folder has none."""
    if not (folder / f"{name}.safetensors").is_file():
        torch.manual_seed({"language": 1, "kind": 2}[name])
        trained = fsm.train_on(fsm.task(name, LENGTH), BertModel(BertConfig(**CONFIG)), steps, lr=1e-3,
                               checkpoint=folder / f"{name}.training")
        trained.save(folder / name)
    return fsm.load_original(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16, help="unlabeled texts of each task")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000, help="of the training of each original")
    parser.add_argument("--out", type=Path, default=Path("runs/bert"))
    given = parser.parse_args()
    originals = {name: original(name, given.out, given.steps) for name in ("language", "kind")}
    records = []
    for seed in range(given.seeds):
        for order in permutations(originals):
            cell = Cell(order, given.texts, seed)
            for record in compare(cell, METHODS, *cell.prepare([originals[name] for name in order])):
                print(order, seed, record["method"], f"{record['mean']:.1f} / {record['joint']:.1f}", flush=True)
                records.append(record)
    print(pd.DataFrame(records).groupby("method", sort=False)[["mean", "joint", "seconds"]].mean().round(1))


if __name__ == "__main__":
    main()
