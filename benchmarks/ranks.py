"""Merges at every rank, for lesson 04's slider: python benchmarks/ranks.py [--steps N] [--seeds N] [--out FILE].

About ten minutes on one core; `--out data/lessons/ranks.json` renews what the lesson shows.
Digits and letters, 16 images a task, from the paper's start `first` and from ours, `fit_subspaces`, with M and U as
diagonals alone and as diagonal plus low rank. Prints a table, writes ranks.json: accuracies, accuracy by class,
loss curves, the singular values of a trained low-rank part, and what is read in a few test pictures.
"""
import argparse
import json
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import fsmerge_lite as fsm
from fsmerge_lite.evaluation import logits
from fsmerge_lite.experiments import BATCH, DEPTHS, LR_FIRST, LR_SUBSPACES, QUIET, Cell
from fsmerge_lite.files import write_whole

RANKS = (1, 2, 4, 8, 12, 16, 24, 32)
SHOWN = 12  # test pictures a task of which the answer is kept
WHERE = "blocks.3.mlp.fc2"  # whose M_2 is looked at


def merge(start: str, rank: int | None, cell: Cell) -> dict:
    """One merge, and all that is kept of it; rank None: diagonals alone."""
    originals, images, tasks = cell.load("cpu")
    torch.manual_seed(cell.seed)  # for the noise in the low-rank parts
    net = fsm.SuperNet(originals, *((12, "diagonal") if rank is None else (rank,)))
    how = {"steps": cell.steps, "batch_size": BATCH, "seed": cell.seed, "progress": False}
    if start == "first":
        history = fsm.train_global(net, images, lr=LR_FIRST, **how)
    else:
        fsm.fit_subspaces(net, images, progress=False)
        history = fsm.train_global(net, images, lr=LR_SUBSPACES, depths=DEPTHS, quiet=QUIET, **how)
    heads = [(logits(fold, task.test()[0]), task.test()[1]) for fold in (net.fold(),) for task in tasks]
    width = heads[0][0][0].shape[1]
    joint = [torch.cat(h, 1).argmax(1) == y + width * i for i, (h, y) in enumerate(heads)]
    return {
        "rank": rank or 0, "trained": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "per_task": [percent(h[i].argmax(1) == y) for i, (h, y) in enumerate(heads)],
        "joint": percent(torch.cat(joint)), "loss": curve(history.loss), "singular": singular(net),
        "by_class": [[percent(h[i].argmax(1)[y == c] == c) for c in range(width)] for i, (h, y) in enumerate(heads)],
        "read": [h[i].argmax(1)[:SHOWN].tolist() for i, (h, _) in enumerate(heads)],
    }


def percent(right: torch.Tensor) -> float:
    return round(100 * right.float().mean().item(), 1)


def curve(loss: list[float], points: int = 30) -> list[float]:
    """The loss, each point the mean of a stretch."""
    return [float(f"{part.mean():.3g}") for part in torch.tensor(loss).tensor_split(min(points, len(loss)))]


def singular(net: fsm.SuperNet) -> list[float]:
    """The singular values of A B in the second original's M_2; none where M is a diagonal."""
    m = net.body.get_submodule(WHERE).merges[1]
    values = [] if m.A is None else torch.linalg.svdvals(m.A[0] @ m.B[0])[:m.rank].tolist()
    return [float(f"{value:.3g}") for value in values]


def mean(runs: list[dict]) -> dict:
    """The mean over seeds of what has one; of the rest the first seed's, and each seed's accuracies."""
    def middle(*values: float | list) -> float | list:
        return list(map(middle, *values)) if isinstance(values[0], list) else round(statistics.fmean(values), 4)
    means = {key: middle(*(run[key] for run in runs)) for key in ("per_task", "joint", "loss", "by_class")}
    return runs[0] | means | {"seeds": [[*run["per_task"], run["joint"]] for run in runs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="training steps a merge (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds from first; ours, which takes longer, has one "
                        "(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ranks.json"), help="file (default: %(default)s)")
    given = parser.parse_args()
    cells = {"first": [Cell(("digits", "letters"), 16, seed, given.steps) for seed in range(given.seeds)]}
    cells["subspaces"] = cells["first"][:1]
    cell = cells["first"][0]
    found = {"settings": {"tasks": cell.tasks, "images": cell.images, "total": cell.total, "steps": cell.steps,
                          "batch": BATCH, "seeds": {start: len(each) for start, each in cells.items()},
                          "lr": {"first": LR_FIRST, "subspaces": LR_SUBSPACES}, "quiet, of subspaces": QUIET,
                          "inner depths, of subspaces": DEPTHS, "singular values of AB in M_2 of": WHERE},
             "first": [], "subspaces": []}
    for start in cells:
        for rank in tqdm((None, *RANKS), desc=start):
            made = mean([merge(start, rank, cell) for cell in cells[start]])
            found[start].append(made)
            tqdm.write(f"{start:<12}{made['rank']:>4}{made['trained']:>11,}   {made['per_task']}   {made['joint']:.1f}")
            write_whole(given.out, (json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
