"""Training runs of lessons 06 and 07: python benchmarks/training.py [--seeds N] [--out FILE].

Takes about fifteen minutes on one core; `--out data/lessons/training.json` renews what the lessons show. Digits and
letters, 16 images a task and 49 copies of each, batch 64, from the paper's start:

    local and global training with several numbers of steps, at the learning rate of FS-Merge (paper);
    controls: U_out alone; original 2's layers held at M_2 = 0, or taken out after training; local at other rates;
    global training with the off-task term at several weights;
    and, on shapes and textures with 100 images, the fitted start without its off-task terms, trained without and with
    the term in the loss.

Prints a line for each run and writes training.json: steps, CPU seconds, accuracies, who answers in the joint decision,
the share of the features that is missed at each depth on test and on training images, and smoothed loss curves.
"""
import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fsmerge_lite as fsm
from fsmerge_lite.bench.methods import BATCH, LR_PAPER, LR_SUBSPACES, OFF_TASK, Cell
from fsmerge_lite.compare.evaluation import logits
from fsmerge_lite.engine.files import write_whole

DEPTHS = (0, 1, 2, 3)  # of the features that are compared, besides the output's
PAPER = {"scaled": False, "warmup": 0.3, "anneal": "linear", "clip": math.inf}
MEASURED = 300  # test images of a task on which the share that is missed is measured

Train = Callable[[fsm.SuperNet, fsm.Calibration, Cell], list[fsm.History]]


def globally(net: fsm.SuperNet, images: fsm.Calibration, cell: Cell, steps: int = 300, lr: float = LR_PAPER,
             **options) -> list[fsm.History]:
    """Global training, by default as FS-Merge (paper) has it."""
    return [fsm.train_global(net, images, steps, lr, BATCH, cell.seed, progress=False, **PAPER | options)]


def locally(net: fsm.SuperNet, images: fsm.Calibration, cell: Cell, steps: int, lr: float = LR_PAPER
            ) -> list[fsm.History]:
    """Local training with so many steps for each depth."""
    return fsm.train_local(net, images, steps, lr, BATCH, cell.seed, progress=False)


def only(learns: Callable[[str], bool], net: fsm.SuperNet, images: fsm.Calibration, cell: Cell) -> list[fsm.History]:
    """Global training of the parameters with these names; the others stay at the start."""
    for name, p in net.named_parameters():
        p.requires_grad_(learns(name))
    return globally(net, images, cell)


def untrained(net: fsm.SuperNet, images: fsm.Calibration, cell: Cell) -> list[fsm.History]:
    """The start as it is."""
    return []


def of_second(name: str) -> bool:
    """Whether a parameter belongs to the M of original 2 alone; A is shared with original 1."""
    return ".merges.1." in name


def runs_of(seed: int) -> dict[str, Train]:
    """The runs from the paper's start."""
    runs: dict[str, Train] = {"start": untrained, "U_out alone": partial(only, lambda name: "outputs." in name)}
    runs |= {f"local {steps}": partial(locally, steps=steps) for steps in (60, 120, 300)}
    runs |= {f"global {steps}": partial(globally, steps=steps) for steps in (160, 300, 800)}
    runs["global 300, M_2 held at 0"] = partial(only, lambda name: not of_second(name))
    runs |= {f"global 300, q {q}": partial(globally, off_task=q) for q in (0.05, 0.2, 1.0)}
    if seed == 0:
        runs |= {f"local 60, lr {lr}": partial(locally, steps=60, lr=lr) for lr in (2e-3, 8e-3)}
    return runs


def published(originals: Sequence[fsm.Original], images: fsm.Calibration, cell: Cell) -> fsm.SuperNet:
    """The SuperNet of FS-Merge (paper), at its start."""
    return fsm.SuperNet(originals, init="paper_first", shared=True, seed=cell.seed)


def without_off_task(originals: Sequence[fsm.Original], images: fsm.Calibration, cell: Cell) -> fsm.SuperNet:
    """The fitted start without its off-task terms."""
    net = fsm.SuperNet(originals, shared=True, seed=cell.seed)
    return fsm.fit_subspaces(net, images, off_task=0.0, inner_off_task=0.0, progress=False)


def records(cell: Cell, start: Callable, runs: dict[str, Train]) -> Iterator[dict]:
    """Train and measure; the nets of two runs are measured once more without original 2's layers."""
    originals, images, tasks = cell.load("cpu")
    for name, train in runs.items():
        net = start(originals, images, cell)
        begin = time.process_time()
        histories = train(net, images, cell)
        cost = {"steps": sum(len(h.loss) for h in histories), "seconds": round(time.process_time() - begin, 1)}
        cost |= {"seed": cell.seed, "tasks": cell.tasks, "images": cell.images}
        losses = [curve(history.loss) for history in histories]
        yield {"run": name, **cost, **measured(net, images, tasks), "loss": losses}
        if name in ("global 300", "global 800"):
            for parameter, p in net.named_parameters():
                p.data *= not of_second(parameter)
            yield {"run": f"{name}, then M_2 = 0", **cost, **measured(net, images, tasks), "loss": []}


@torch.no_grad()
def measured(net: fsm.SuperNet, images: fsm.Calibration, tasks: Sequence[fsm.Task]) -> dict:
    """Accuracies, who answers in the joint decision, and the share of the features that is missed at each depth."""
    model, per_task, answers = net.fold(), [], []
    for i, task in enumerate(tasks):
        x, labels = task.test()
        heads = logits(model, x)
        per_task.append(percent(heads[i].argmax(1) == labels))
        best = torch.stack([head.amax(1) for head in heads]).argmax(0)  # the head with the largest logit
        right = (best == i) & (heads[i].argmax(1) == labels)
        answers.append([percent(right), percent((best == i) & ~right), percent(best != i)])
    sizes = [len(task.test()[1]) for task in tasks]
    joint = sum(row[0] * size for row, size in zip(answers, sizes)) / sum(sizes)
    missed = {"test": [missed_of(net, i, task.test()[0][:MEASURED]) for i, task in enumerate(tasks)],
              "training": [missed_of(net, i, images.of(i)[:MEASURED]) for i in range(len(tasks))]}
    return {"per_task": per_task, "joint": round(joint, 1), "answers": answers, "missed": missed}


def missed_of(net: fsm.SuperNet, i: int, x: Tensor) -> list[float]:
    """|| rebuilt - true ||^2 / || true ||^2 of original i's features after each depth, the output features last."""
    rebuilt, true = net.features(x, (*DEPTHS, None)), net.original_features(x, DEPTHS)
    true[None] = [original.backbone(x) for original in net.originals]
    pairs = [(rebuilt[depth][i], true[depth][i]) for depth in (*DEPTHS, None)]
    return [round(((got - right).square().sum() / right.square().sum()).item(), 4) for got, right in pairs]


def percent(chosen: Tensor) -> float:
    return round(100 * chosen.float().mean().item(), 1)


def curve(loss: Sequence[float], points: int = 30) -> list[float]:
    """The loss, averaged over stretches of steps."""
    return [float(f"{part.mean():.3g}") for part in torch.tensor(loss).tensor_split(min(points, len(loss)))]


def all_records(seeds: int) -> Iterator[dict]:
    trained = {f"trained, q {q}": partial(globally, lr=LR_SUBSPACES, off_task=q, scaled=True, warmup=0.1, anneal="cos",
                                          clip=1.0) for q in (0.0, OFF_TASK)}
    yield from records(Cell(("shapes", "textures"), 100), without_off_task, {"untrained": untrained} | trained)
    for seed in range(seeds):
        yield from records(Cell(("digits", "letters"), 16, seed), published, runs_of(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="seeds of digits and letters (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/training.json"), help="file (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"batch": BATCH, "lr": LR_PAPER, "lr of the fitted start": LR_SUBSPACES, "depths": DEPTHS}
    found: list[dict] = []
    for record in all_records(given.seeds):
        found.append(record)
        print(f"{record['run']:<28}{record['seed']:>2}{record['seconds']:>7} s", record["per_task"], record["joint"])
        write_whole(given.out, (json.dumps({"settings": settings, "runs": found}) + "\n").encode())


if __name__ == "__main__":
    main()
