"""What holds of a merge of two small BERTs: python benchmarks/bert.py [--out benchmarks/results] [--models runs/bert]

BERT is post-norm. The originals are two `BertModel` of transformers (width 96, 4 layers, 24 tokens), each trained from
its own random weights on one of the two tasks of texts. They are merged in both orders, by the methods of `text`.

Writes bert.json and bert.md.
"""
import argparse
import json
from itertools import permutations, product
from pathlib import Path

import pandas as pd
import torch
from transformers import BertConfig, BertModel

import fsmerge_lite as fsm
from fsmerge_lite.bench.experiments import text
from fsmerge_lite.bench.methods import Cell
from fsmerge_lite.bench.runner import compare, done_of, load_records
from fsmerge_lite.engine.files import write_whole

LENGTH = 24  # tokens of a text
CONFIG = {"vocab_size": 258, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
          "intermediate_size": 384, "max_position_embeddings": LENGTH, "type_vocab_size": 1}
SEEDS = {"language": 1, "kind": 2}  # of the random weights
REFUSED = "align, orthogonal, then regmean"  # not for post-norm models
METHODS = {name: method for name, method in text().methods.items() if name != REFUSED}


def original(name: str, folder: Path, steps: int = 2500) -> fsm.Original:
    """The BERT of a task, from its file in the folder or trained now."""
    if not (folder / f"{name}.safetensors").is_file():
        torch.manual_seed(SEEDS[name])
        trained = fsm.train_on(fsm.task(name, LENGTH), BertModel(BertConfig(**CONFIG)), steps, lr=1e-3,
                               checkpoint=folder / f"{name}.training")
        trained.save(folder / name)
    return fsm.load_original(folder / name)


def written(records: list[dict]) -> str:
    """The table: accuracy per task / joint in percent, means over the orders and seeds."""
    frame = pd.DataFrame(records)
    means = frame.groupby(["method", "images"], sort=False)[["mean", "joint"]].mean().round(1)
    cells = (means["mean"].astype(str) + " / " + means["joint"].astype(str)).unstack()
    merges = frame.groupby("images")["method"].value_counts().min()
    head = " | ".join(f"{n} texts a task" for n in cells)
    lines = [__doc__.split("\n\n")[1], "", f"Accuracy per task / joint in percent, means of {merges} merges.", "",
             f"| method | {head} |", "|---|" + "---:|" * len(cells.columns)]
    lines += [f"| {method} | " + " | ".join(cells.loc[method]) + " |" for method in dict.fromkeys(frame["method"])]
    made = {key: records[0][key] for key in ("device", "commit", "torch") if key in records[0]}
    return "\n".join([*lines, "", ", ".join(f"{key} {value}" for key, value in made.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[16, 100], help="unlabeled texts of each task")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path("runs/bert"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    file, originals = given.out / "bert.json", {name: original(name, given.models) for name in SEEDS}
    records = load_records(file) if file.is_file() else []
    for seed, texts, order in product(range(given.seeds), given.texts, permutations(SEEDS)):
        cell, done = Cell(order, texts, seed), done_of(records, Cell(order, texts, seed))
        for record in compare(cell, METHODS, *cell.prepare([originals[name] for name in order]), done):
            records.append(record)
            write_whole(file, (json.dumps(records, indent=0) + "\n").encode())
            print(order, texts, seed, record["method"], f"{record['mean']:.1f} / {record['joint']:.1f}", flush=True)
    write_whole(given.out / "bert.md", written(records).encode())
    print(written(records))


if __name__ == "__main__":
    main()
