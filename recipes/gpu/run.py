"""The whole comparison on larger ViTs: originals, learning rates, all methods, ranks, the cost of a step.

    python recipes/gpu/run.py S --minutes 8.5

runs what is missing and stops when the time is up; the same command goes on from there, until it says that all is done
(exit code 0; 75 means: run me again). README.md beside this file says what is run and how long it takes.
"""
import _thread
import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import torch
from tqdm.auto import tqdm

import fsmerge_lite as fsm
from fsmerge_lite import bench, experiments, plots, results
from fsmerge_lite.experiments import Cell, Method, all_weights, distillation, fs_merge, untrained
from fsmerge_lite.files import write_whole
from fsmerge_lite.machine import doctor, pick_device
from fsmerge_lite.originals import train_original
from fsmerge_lite.tasks import EMBEDDED, Task

HERE = Path(__file__).resolve().parent
AGAIN = 75  # sysexits' EX_TEMPFAIL


def load_recipe(name: str) -> dict:
    """One of the JSON files beside this one."""
    return json.loads((HERE / f"{name}.json").read_text()) | {"name": name}


def tasks_of(size: int) -> dict[str, Task]:
    """The embedded tasks in this size, and MNIST and CIFAR-10 (image folders) where `FSMERGE_DATA` has them."""
    found = {name: fsm.task(name, size) for name in EMBEDDED}
    if root := os.environ.get("FSMERGE_DATA"):
        found["mnist"] = fsm.torchvision_task("MNIST", root, size)
        found["cifar10"] = fsm.folder_task(Path(root) / "cifar10_small", size, "cifar10")
    return found


def original(name: str, recipe: dict, tasks: dict[str, Task], work: Path, device: torch.device) -> fsm.Original:
    """A trained original, from `work` or trained into it; a killed training resumes."""
    file = work / name
    if not file.with_suffix(".json").is_file():
        how = recipe | {"mixture": list(tasks)}
        train_original(tasks[name], how, mixture=list(tasks.values()), device=device, checkpoint=file).save(file)
    made = fsm.load_original(file).to(device)
    made.task = tasks[name]
    return made


# ---------------------------------------------------------------- what is compared

def inner_depths(recipe: dict) -> tuple[int, ...]:
    """A quarter, a half and three quarters of the blocks: what (1, 2, 3) is to the shipped originals."""
    return tuple(recipe["architecture"]["depth"] * j // 4 for j in (1, 2, 3))


def trainers(recipe: dict) -> dict[str, Method]:
    """Makers of the three methods whose learning rate is chosen: name -> lr -> method."""
    ours = {"depths": inner_depths(recipe), "rank": recipe["rank"]}
    return {"distillation": distillation,
            "first": lambda lr, **how: fs_merge(lr, "first", quiet=0.0, depths=(), rank=recipe["rank"], **how),
            "FS-Merge": lambda lr, **how: fs_merge(lr, **ours | how)}


def sweep(recipe: dict) -> tuple[list[Cell], dict[str, Method]]:
    """Learning rates, on labelled training images and with a seed that no other part uses."""
    images, total = next(iter(recipe["images"].items()))
    cell = Cell(tuple(recipe["pairs"][0][::-1]), int(images), 3, recipe["steps"], total, True, recipe["precision"])
    return [cell], {f"{name} {lr:g}": make(lr) for name, make in trainers(recipe).items() for lr in recipe["lr"][name]}


def chosen(records: Sequence[dict], recipe: dict) -> dict[str, float]:
    """Of each method the rate with the highest mean of per-task and joint accuracy in the sweep."""
    score = {r["method"]: r["mean"] + r["joint"] for r in records if r["validate"]}
    return {name: max(rates, key=lambda lr: score[f"{name} {lr:g}"]) for name, rates in recipe["lr"].items()}


def comparison(recipe: dict, lr: dict[str, float], pairs: Sequence) -> tuple[list[Cell], dict[str, Method]]:
    """All methods, on both orders of every pair, 16 and 100 images and every seed."""
    first, ours = (trainers(recipe)[name] for name in ("first", "FS-Merge"))
    cells = [Cell(tuple(order), int(images), seed, recipe["steps"], total, precision=recipe["precision"])
             for seed, (images, total), pair in product(recipe["seeds_of_merges"], recipe["images"].items(), pairs)
             for order in (pair, pair[::-1])]
    inner, small = {"quiet": experiments.QUIET, "depths": inner_depths(recipe)}, recipe["architecture"]
    wide = fsm.vit(**small | {"dim": 2 * small["dim"], "num_heads": 2 * small["num_heads"]})
    return cells, {
        "originals (k models)": untrained(fsm.ensemble),
        "average": untrained(fsm.average),
        "regmean": untrained(fsm.regmean, with_images=True),
        "align": untrained(fsm.align, with_images=True),
        "align, then regmean": untrained(experiments.align_regmean, with_images=True),
        "distillation": distillation(lr["distillation"]),
        "FS-Merge, first": first(lr["first"]),
        "FS-Merge, first, diagonal": first(lr["first"], structure="diagonal"),
        "FS-Merge, first, local": first(lr["first"], local=max(1, recipe["steps"] // 5), globally=False),
        "FS-Merge, untrained": ours(lr["FS-Merge"], globally=False),
        "FS-Merge, untrained, twice as wide": ours(lr["FS-Merge"], globally=False, into=wide),  # is there room?
        "FS-Merge, diagonal": ours(lr["FS-Merge"], structure="diagonal"),
        "FS-Merge": ours(lr["FS-Merge"]),
        "distillation, same time": distillation(lr["distillation"], as_long_as="FS-Merge"),
        "distillation, inner, quiet": all_weights(lr["distillation"], "first", **inner),
    }


def ranks(recipe: dict, lr: dict[str, float], cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, Method]]:
    """FS-Merge at every rank, and in fp32, on the first cell of each number of images."""
    ours = trainers(recipe)["FS-Merge"](lr["FS-Merge"])
    few = list({cell.images: cell for cell in reversed(cells)}.values())
    made = {f"FS-Merge @ {rank}": trainers(recipe)["FS-Merge"](lr["FS-Merge"], rank=rank) for rank in recipe["ranks"]}
    if recipe["precision"] != "fp32":
        made[f"FS-Merge, fp32 @ {recipe['rank']}"] = lambda originals, images, cell, seconds: ours(
            originals, images, replace(cell, precision="fp32"), seconds)
    return few, made


def parts(recipe: dict, records: Sequence[dict], tasks: dict[str, Task]) -> Iterator[tuple[list[Cell], dict]]:
    """What is run, in order; a later part may look at the records of an earlier one."""
    yield sweep(recipe)
    lr, pairs = chosen(records, recipe), [pair for pair in recipe["pairs"] if set(pair) <= set(tasks)]
    cells, methods = comparison(recipe, lr, pairs)
    yield cells, methods
    yield ranks(recipe, lr, cells)


# ---------------------------------------------------------------- running it

def run(recipe: dict, out: Path, work: Path, device: torch.device) -> list[dict]:
    """Run what is missing, writing `out`/vit-NAME.json after every method."""
    file, tasks = out / f"vit-{recipe['name']}.json", tasks_of(recipe["architecture"]["img_size"])
    records = bench.load_records(file) if file.is_file() else []
    for cells, methods in parts(recipe, records, tasks):
        for cell in tqdm(cells, desc=f"ViT-{recipe['name']}, {len(methods)} methods", disable=None):
            done = {r["method"]: r["seconds"] for r in records if bench.cell_of(r) == cell}
            if not methods.keys() - done.keys():
                continue
            ready = cell.prepare([original(name, recipe, tasks, work, device) for name in cell.tasks])
            for record in bench.compare(cell, methods, *ready, done):
                records.append(record | {"device": name_of(device)})
                write_whole(file, (json.dumps(records, indent=0) + "\n").encode())
    return records


def name_of(device: torch.device) -> str:
    """What the results say they were measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def cost_of_a_step(out: Path) -> None:
    """benchmarks/step.py for ViT-B/16 on the GPU, which writes `out`/step.json after every setting and resumes, too."""
    step = HERE.parent.parent / "benchmarks" / "step.py"
    subprocess.run([sys.executable, step, "--models", "B", "--device", "cuda", "--out", out], check=True)


def write(recipe: dict, records: Sequence[dict], out: Path) -> str:
    """The tables and figures of the records: `out`/vit-NAME.md and vit-NAME-*.png."""
    name, main = f"vit-{recipe['name']}", [r for r in records if not r["validate"] and "@" not in r["method"]]
    found = results.summary(main)
    by_rank = [r | {"rank": int(r["method"].split("@")[1])} for r in records if "@" in r["method"]]
    over_ranks = {f"{method}, {images} images": rows for images in sorted({r["images"] for r in by_rank})
                  for method, rows in results.summary([r for r in by_rank if r["images"] == images], "rank").items()}
    others = ("distillation", "distillation, same time", "distillation, inner, quiet", "FS-Merge, first", "average")
    text = (f"`python recipes/gpu/run.py {recipe['name']}` on {', '.join(sorted({r['device'] for r in records}))}, "
            f"{recipe['precision']}, torch {doctor()['torch']}; architecture {recipe['architecture']}, "
            f"learning rates {chosen(records, recipe)}\n\n{results.table(found)}\n\n"
            f"{results.comparisons(main, 'FS-Merge', others)}\n\nRanks:\n\n{results.table(over_ranks, 'rank')}\n")
    write_whole(out / f"{name}.md", text.encode())
    numbers = sorted({r["images"] for r in main})
    bars = {f"{n} images a task": {method: tuple(rows[n][column][0] for column in ("mean", "joint"))
                                   for method, rows in found.items()} for n in numbers}
    write_whole(out / f"{name}-bars.png", plots.png(plots.bar_panels(bars, "%.1f", 8)))
    write_whole(out / f"{name}-ranks.png", plots.png(plots.against(over_ranks, "rank", log=True)))
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=sorted(path.stem for path in HERE.glob("*.json")))
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then, to go on later")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="of results (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="of the trained originals (default: OUT/RECIPE)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    given = parser.parse_args(arguments)
    matplotlib.use("Agg")
    recipe, device = load_recipe(given.recipe), pick_device(given.device)
    timer = threading.Timer(60 * given.minutes, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        records = run(recipe, given.out, given.work or given.out / given.recipe, device)
        print(write(recipe, records, given.out))
        if device.type == "cuda":
            cost_of_a_step(given.out)
    except KeyboardInterrupt:
        print("not done yet: run the same command again, it goes on from here", file=sys.stderr)
        return AGAIN
    finally:
        timer.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
