"""What the fitted start costs beside training: python benchmarks/start.py [--out benchmarks/results]

300 steps of 64 images see each of 1,600 images 12 times. So the start on n images stands beside n * 12 / batch steps of
training, on random models and pictures, in one process on one thread or more (OMP_NUM_THREADS). Once the start divides
the attention heads by need, and once it gives every original as many (`heads=[1, 1]`). Writes start.md.
"""
import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import fsmerge_lite as fsm
from fsmerge_lite.bench.machine import environment
from fsmerge_lite.engine.files import write_whole
from fsmerge_lite.engine.images import Calibration

TINY = {"dim": 96, "depth": 4, "num_heads": 4, "patch_size": 8, "img_size": 32}
SMALL = {"dim": 384, "num_heads": 6, "patch_size": 16, "img_size": 224}
# name, model, k, images, batch
SETTINGS = [("tiny", TINY, 2, 1600, 64), ("tiny", TINY, 4, 3200, 64),
            ("tiny, 12 blocks", TINY | {"depth": 12}, 2, 1600, 64), ("ViT-S/16", SMALL | {"depth": 12}, 2, 64, 8)]
VIEWS = 12
COLUMNS = ("model", "k", "images", "start, s", "with equal heads", "steps", "a step, s", "start / training",
           "with equal heads")


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measured(model: dict, k: int, n: int, batch: int) -> tuple[float, float, float]:
    """Seconds of the start, of the start with equal numbers of heads, and of a step."""
    originals = [fsm.vit(**model).eval() for _ in range(k)]
    images = Calibration(torch.randn(n, 3, model["img_size"], model["img_size"]), torch.arange(n) % k)
    net = fsm.SuperNet(originals)
    equal, start = (seconds_of(partial(fsm.fit_subspaces, net, images, heads=heads, progress=False))
                    for heads in ([1] * k, None))
    history = fsm.train_global(net, images, 20, 1e-6, batch, depths=(1, 2, 3), off_task=0.2, progress=False)
    steps = [b - a for a, b in zip(history.seconds[1:], history.seconds[2:])]
    return start, equal, statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="benchmarks/results")
    out, made = Path(parser.parse_args().out), environment(torch.device("cpu"))
    text = [__doc__.split("\n\n")[1], "", f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for name, model, k, n, batch in SETTINGS:
        start, equal, step = measured(model, k, n, batch)
        steps = n * VIEWS // batch
        text.append(f"| {name} | {k} | {n:,} | {start:.1f} | {equal:.1f} | {steps} | {step:.3f} "
                    f"| {start / step / steps:.1%} | {equal / step / steps:.1%} |")
        print(text[-1], flush=True)
    text += ["", ", ".join(f"{key} {value}" for key, value in made.items())]
    write_whole(out / "start.md", ("\n".join(text) + "\n").encode())


if __name__ == "__main__":
    main()
