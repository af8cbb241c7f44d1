"""Merges at every rank, for lesson 05's slider: python benchmarks/ranks.py [--steps N] [--seeds N] [--out FILE].

Takes about ten minutes on one core; `--out data/lessons/ranks.json` renews what the lesson shows.
Digits and letters, 16 images a task, from the start at model 1 (`first`) and from the fitted start (`fit_subspaces`),
with M and U diagonal, or diagonal plus low rank. Prints a table and writes ranks.json: accuracies, accuracy by class,
loss curves, the singular values of a trained low-rank part, and the predictions for a few test images.
"""
import argparse
import json
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import fsmerge_lite as fsm
from fsmerge_lite.bench.methods import BATCH, DEPTHS, LR_FIRST, LR_SUBSPACES, OFF_TASK, Cell
from fsmerge_lite.compare.evaluation import logits
from fsmerge_lite.engine.files import write_whole

RANKS = (None, 1, 2, 4, 8, 12, 16, 24, 32)  # None: diagonal alone
SHOWN = 12  # test images a task whose predictions are kept
LAYER = "blocks.3.mlp.fc2"  # the layer whose M_2 is measured


def merge(start: str, rank: int | None, cell: Cell) -> dict:
    """One merge: number of trained parameters, loss curve, singular values and scores."""
    originals, images, tasks = cell.load("cpu")
    if rank is None:
        net = fsm.SuperNet(originals, structure="diagonal", seed=cell.seed)
    else:
        net = fsm.SuperNet(originals, rank, seed=cell.seed)
    history = train(net, start, images, cell)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return {"rank": rank or 0, "trained": trained, "loss": curve(history.loss), "singular": singular(net),
            **scores(net.fold(), tasks)}


def train(net: fsm.SuperNet, start: str, images: fsm.Calibration, cell: Cell) -> fsm.History:
    """Train globally from the start at model 1, or from the fitted start with its losses."""
    options = {"steps": cell.steps, "batch_size": BATCH, "seed": cell.seed, "progress": False}
    if start == "first":
        return fsm.train_global(net, images, lr=LR_FIRST, **options)
    fsm.fit_subspaces(net, images, progress=False)
    return fsm.train_global(net, images, lr=LR_SUBSPACES, depths=DEPTHS, off_task=OFF_TASK, **options)


def scores(model: fsm.Merged, tasks: list[fsm.Task]) -> dict:
    """Accuracy per task, joint and by class, and the first predictions for each task."""
    per_task, by_class, read, joint = [], [], [], []
    for i, task in enumerate(tasks):
        images, labels = task.test()
        heads = logits(model, images)
        classes = heads[i].shape[1]  # the same for every task
        predicted = heads[i].argmax(1)
        per_task.append(percent(predicted == labels))
        by_class.append([percent(predicted[labels == c] == c) for c in range(classes)])
        read.append(predicted[:SHOWN].tolist())
        joint.append(torch.cat(heads, 1).argmax(1) == labels + classes * i)
    return {"per_task": per_task, "joint": percent(torch.cat(joint)), "by_class": by_class, "read": read}


def percent(correct: torch.Tensor) -> float:
    return round(100 * correct.float().mean().item(), 1)


def curve(loss: list[float], points: int = 30) -> list[float]:
    """The loss, averaged over stretches of steps."""
    return [float(f"{part.mean():.3g}") for part in torch.tensor(loss).tensor_split(min(points, len(loss)))]


def singular(net: fsm.SuperNet) -> list[float]:
    """The singular values of A B in the second original's M_2; none if M is diagonal."""
    m = net.body.get_submodule(LAYER).merges[1]
    values = [] if m.A is None else torch.linalg.svdvals(m.A[0] @ m.B[0])[:m.rank].tolist()
    return [float(f"{value:.3g}") for value in values]


def mean(runs: list[dict]) -> dict:
    """Means over seeds, the accuracies of each seed, and the other entries of the first seed."""
    def average(*values: float | list) -> float | list:
        return list(map(average, *values)) if isinstance(values[0], list) else round(statistics.fmean(values), 4)
    means = {key: average(*(run[key] for run in runs)) for key in ("per_task", "joint", "loss", "by_class")}
    return runs[0] | means | {"seeds": [[*run["per_task"], run["joint"]] for run in runs]}


def settings_of(cells: dict[str, list[Cell]]) -> dict:
    """The settings that ranks.json begins with."""
    cell = cells["first"][0]
    return {"tasks": cell.tasks, "images": cell.images, "total": cell.total, "steps": cell.steps, "batch": BATCH,
            "seeds": {start: len(each) for start, each in cells.items()},
            "lr": {"first": LR_FIRST, "subspaces": LR_SUBSPACES}, "off-task weight, of subspaces": OFF_TASK,
            "inner depths, of subspaces": DEPTHS, "singular values of AB in M_2 of": LAYER}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="training steps a merge (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds from model 1; the fitted start, which takes "
                        "longer, has one (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ranks.json"), help="file (default: %(default)s)")
    given = parser.parse_args()
    cells = {"first": [Cell(("digits", "letters"), 16, seed, given.steps) for seed in range(given.seeds)]}
    cells["subspaces"] = cells["first"][:1]
    results = {"settings": settings_of(cells), "first": [], "subspaces": []}
    for start in cells:
        for rank in tqdm(RANKS, desc=start):
            run = mean([merge(start, rank, cell) for cell in cells[start]])
            results[start].append(run)
            tqdm.write(f"{start:<12}{run['rank']:>4}{run['trained']:>11,}   {run['per_task']}   {run['joint']:.1f}")
            write_whole(given.out, (json.dumps(results) + "\n").encode())


if __name__ == "__main__":
    main()
