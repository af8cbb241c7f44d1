"""Loss along the straight line between models: python benchmarks/paths.py [--tasks A B] [--out FOLDER].

The paths run between two originals, before and after alignment, and from original 1 to the merge of each method.
Prints a table, writes paths.json and paths.png.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path

import fsmerge_lite as fsm
from fsmerge_lite.bench import figures
from fsmerge_lite.bench.methods import LR_DISTILL, LR_FIRST, Cell, fs_merge
from fsmerge_lite.engine.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs=2, default=["digits", "letters"], metavar="TASK")
    parser.add_argument("--steps", type=int, default=300, help="training steps a method (default: %(default)s)")
    parser.add_argument("--points", type=int, default=15, help="points on each path (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder (default: %(default)s)")
    given = parser.parse_args()
    cell = Cell(tuple(given.tasks), 100, 0, given.steps)
    originals, images, tasks = cell.load("auto")
    aligned = [fsm.permuted(o, p) for o, p in zip(originals, fsm.alignment(originals, images))]
    first, paper = fsm.alone(originals), fs_merge(LR_FIRST, "first", off_task=0.0, depths=())
    ends = {
        "1 to 2": (first, fsm.alone(originals, 1)),
        "1 to 2, aligned": (fsm.alone(aligned), fsm.alone(aligned, 1)),
        "1 to average": (first, fsm.average(originals)),
        "1 to distillation": (first, fsm.distill(originals, images, given.steps, LR_DISTILL)),
        "1 to FS-Merge, first": (first, paper(originals, images, cell, {}).model),
        "1 to FS-Merge": (first, fs_merge()(originals, images, cell, {}).model),
    }
    paths = {name: fsm.path(start, end, tasks, given.points) for name, (start, end) in ends.items()}
    for name, line in paths.items():
        by_task = ", ".join(f"{task} {losses[0]:.2f} to {losses[-1]:.2f}" for task, losses in line.losses.items())
        print(f"{name:<22}barrier {line.barrier:5.2f}   loss {by_task}")
    curves = {name: asdict(line) | {"barrier": line.barrier} for name, line in paths.items()}
    text = json.dumps({"tasks": given.tasks, "steps": given.steps, "paths": curves}, indent=0) + "\n"
    write_whole(given.out / "paths.json", text.encode())
    write_whole(given.out / "paths.png", figures.png(figures.path(paths).figure))


if __name__ == "__main__":
    main()
