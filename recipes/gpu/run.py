"""The whole comparison on larger ViTs: originals, learning rates, all methods, ranks, the cost of a step.

    python recipes/gpu/run.py S --minutes 8.5

runs what is missing and stops when the time is up. The same command goes on from there, until everything is done:
exit code 0 means done, 75 means "run me again". README.md in this folder says what is run.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from tqdm.auto import tqdm

import fsmerge_lite as fsm
from fsmerge_lite.bench import figures, results, runner
from fsmerge_lite.bench.machine import doctor, pick_device
from fsmerge_lite.bench.methods import (
    OFF_TASK,
    Cell,
    Method,
    align_orthogonal_regmean,
    align_regmean,
    all_weights,
    distillation,
    fs_merge,
    paper,
    untrained,
    without_images,
)
from fsmerge_lite.engine.files import file_of, write_whole
from fsmerge_lite.tasks.embedded import EMBEDDED
from fsmerge_lite.tasks.originals import train_original
from fsmerge_lite.tasks.task import Task

HERE = Path(__file__).resolve().parent
AGAIN = 75  # sysexits' EX_TEMPFAIL
RIVALS = ("distillation", "distillation, same time", "distillation, our losses", "FS-Merge (paper)",
          "align, orthogonal, then regmean")
Part = tuple[Sequence[Cell], dict[str, Method]]


def load_recipe(name: str) -> dict:
    """One of the JSON files in this folder."""
    return json.loads((HERE / f"{name}.json").read_text()) | {"name": name}


def tasks_of(size: int) -> dict[str, Task]:
    """The embedded tasks in this size, and MNIST and CIFAR-10 (image folders) if `FSMERGE_DATA` has them."""
    tasks = {name: fsm.task(name, size) for name in EMBEDDED}
    if root := os.environ.get("FSMERGE_DATA"):
        tasks["mnist"] = fsm.torchvision_task("MNIST", root, size)
        tasks["cifar10"] = fsm.folder_task(Path(root) / "cifar10_small", size, "cifar10")
    return tasks


# ---------------------------------------------------------------- the deadline

class OutOfTime(Exception):
    """The minutes are over, and there is still something to do."""


@dataclass(frozen=True)
class Deadline:
    """A time on the monotonic clock. It is checked before each piece of work and never interrupts one."""

    at: float

    @property
    def seconds_left(self) -> float:
        return self.at - time.monotonic()

    def check(self) -> None:
        if self.seconds_left < 0:
            raise OutOfTime

    def before(self, method: Method) -> Method:
        """The method with a check before it starts."""
        def run(*arguments):
            self.check()
            return method(*arguments)
        return Method(run, method.settings)


# ---------------------------------------------------------------- what is compared

def inner_depths(recipe: dict) -> tuple[int, ...]:
    """A quarter, a half and three quarters of the blocks, as (1, 2, 3) for the shipped originals."""
    return tuple(recipe["architecture"]["depth"] * j // 4 for j in (1, 2, 3))


def trainers(recipe: dict) -> dict[str, Callable[..., Method]]:
    """The methods with a chosen learning rate: name -> a function from lr and other settings to the method."""
    return {"distillation": distillation,
            "paper": partial(paper, rank=recipe["rank"]),
            "fitted": partial(fs_merge, depths=inner_depths(recipe), rank=recipe["rank"], shared=True)}


def sweep(recipe: dict) -> Part:
    """Learning rates on labeled training images, with a seed that no other part uses."""
    images, total = next(iter(recipe["images"].items()))
    cell = Cell(tuple(recipe["pairs"][0][::-1]), int(images), 3, recipe["steps"], total, True, recipe["precision"])
    return [cell], {f"{name} {lr:g}": make(lr) for name, make in trainers(recipe).items() for lr in recipe["lr"][name]}


def chosen(records: Sequence[dict], recipe: dict) -> dict[str, float]:
    """For each method the learning rate with the highest mean of per-task and joint accuracy in the sweep."""
    score = {r["method"]: r["mean"] + r["joint"] for r in records if r["validate"]}
    return {name: max(rates, key=lambda lr: score[f"{name} {lr:g}"]) for name, rates in recipe["lr"].items()}


def resized(recipe: dict, times: float) -> torch.nn.Module:
    """The recipe's ViT, so many times as wide, with heads of the same size."""
    sizes = {name: round(times * recipe["architecture"][name]) for name in ("dim", "num_heads")}
    return fsm.vit(**recipe["architecture"] | sizes)


def comparison(recipe: dict, lr: dict[str, float], pairs: Sequence) -> Part:
    """All methods on both orders of every pair, with every number of images and every seed."""
    cells = [Cell(tuple(order), int(images), seed, recipe["steps"], total, precision=recipe["precision"])
             for seed, (images, total), pair in product(recipe["seeds_of_merges"], recipe["images"].items(), pairs)
             for order in (pair, pair[::-1])]
    ours = partial(trainers(recipe)["fitted"], lr["fitted"])
    wider, wide = (resized(recipe, times) for times in (1.5, 2))
    return cells, {
        "originals (k models)": untrained(without_images(fsm.ensemble)),
        "average": untrained(without_images(fsm.average)),
        "regmean": untrained(fsm.regmean),
        "align, then regmean": untrained(align_regmean),
        "align, orthogonal, then regmean": untrained(align_orthogonal_regmean),
        "distillation": distillation(lr["distillation"]),
        "FS-Merge (paper)": trainers(recipe)["paper"](lr["paper"]),
        "FS-Merge (fitted), untrained": ours(globally=False),
        "FS-Merge (fitted), untrained, 1.5 times as wide": ours(globally=False, into=wider),  # is there room?
        "FS-Merge (fitted), untrained, twice as wide": ours(globally=False, into=wide),
        "FS-Merge (fitted), twice as wide": ours(into=wide),
        "fitted, diagonal": ours(structure="diagonal", shared=False),
        "FS-Merge (fitted)": ours(),
        "distillation, same time": distillation(lr["distillation"], as_long_as="FS-Merge (fitted)"),
        "distillation, our losses": all_weights(lr["distillation"], "first", OFF_TASK, inner_depths(recipe)),
    }


def ranks(recipe: dict, lr: dict[str, float], cells: Sequence[Cell]) -> Part:
    """FS-Merge (fitted) at every rank, and in fp32, on the first cell of each number of images."""
    ours = partial(trainers(recipe)["fitted"], lr["fitted"])
    first_cells = {cell.images: cell for cell in reversed(cells)}
    methods = {f"FS-Merge (fitted) @ {rank}": ours(rank=rank) for rank in recipe["ranks"]}
    if recipe["precision"] != "fp32":
        methods[f"FS-Merge (fitted), fp32 @ {recipe['rank']}"] = in_fp32(ours())
    return list(first_cells.values()), methods


def in_fp32(method: Method) -> Method:
    """The method on the same cell in fp32."""
    def run(originals, images, cell, seconds):
        return method(originals, images, replace(cell, precision="fp32"), seconds)
    return Method(run, method.settings | {"precision": "fp32"})


def parts(recipe: dict, records: Sequence[dict], tasks: dict[str, Task]) -> Iterator[Part]:
    """Cells and methods in the order in which they run. The learning rates come from the records of the sweep."""
    yield sweep(recipe)
    lr, pairs = chosen(records, recipe), [pair for pair in recipe["pairs"] if set(pair) <= set(tasks)]
    cells, methods = comparison(recipe, lr, pairs)
    yield cells, methods
    yield ranks(recipe, lr, cells)


# ---------------------------------------------------------------- running it

def run(recipe: dict, out: Path, work: Path, device: torch.device, deadline: Deadline) -> list[dict]:
    """Run what is missing, and write `out`/vit-NAME.json after every method.

    Raises:
        OutOfTime: the deadline passed; the file has all that was done.
    """
    file, tasks = out / f"vit-{recipe['name']}.json", tasks_of(recipe["architecture"]["img_size"])
    records = runner.load_records(file) if file.is_file() else []
    for cells, methods in parts(recipe, records, tasks):
        records[:] = runner.up_to_date(records, cells, methods)
        timed = {name: deadline.before(method) for name, method in methods.items()}
        for cell in tqdm(cells, desc=f"ViT-{recipe['name']}, {len(methods)} methods", disable=None):
            done = runner.done_of(records, cell)
            if not methods.keys() - done.keys():
                continue
            originals = [original(name, recipe, tasks, work, device, deadline) for name in cell.tasks]
            for record in runner.compare(cell, timed, *cell.prepare(originals), done):
                records.append(record)
                write_whole(file, (json.dumps(records, indent=0) + "\n").encode())
    return records


def original(name: str, recipe: dict, tasks: dict[str, Task], work: Path, device: torch.device, deadline: Deadline
             ) -> fsm.Original:
    """A trained original, read from `work` or trained and saved there. A killed training resumes."""
    file = file_of(work / name)
    if not file.is_file():
        deadline.check()
        config = recipe | {"mixture": list(tasks)}
        train_original(tasks[name], config, mixture=list(tasks.values()), device=device,
                       checkpoint=work / name).save(file)
    loaded = fsm.load_original(file).to(device)
    loaded.task = tasks[name]
    return loaded


def cost_of_a_step(out: Path, deadline: Deadline) -> None:
    """benchmarks/step.py for ViT-B/16 on the GPU. It writes `out`/step.json after every setting, so it can resume.

    Raises:
        OutOfTime: the deadline passed; the setting that was being measured is lost.
    """
    deadline.check()
    step = HERE.parents[1] / "benchmarks" / "step.py"
    try:
        subprocess.run([sys.executable, step, "--models", "B", "--device", "cuda", "--out", out], check=True,
                       timeout=deadline.seconds_left)
    except subprocess.TimeoutExpired:
        raise OutOfTime from None


def by_width(recipe: dict, records: Sequence[dict]) -> list[dict]:
    """The originals and FS-Merge (fitted) at every width, with the most images, as `bench room` writes its records."""
    most, dim = max(r["images"] for r in records), recipe["architecture"]["dim"]
    forms = {f"{method}{wider}": (method, times) for method in ("FS-Merge (fitted)", "FS-Merge (fitted), untrained")
             for wider, times in (("", 1), (", 1.5 times as wide", 1.5), (", twice as wide", 2))}
    forms["originals (k models)"] = "originals (k models)", 1
    chosen = [(r, *forms[r["method"]]) for r in records if r["method"] in forms and r["images"] == most]
    return [r | {"method": f"{method} @ {times * dim:g}", "width": round(times * dim), "tasks": sorted(r["tasks"])}
            for r, method, times in chosen]


def write(recipe: dict, records: Sequence[dict], out: Path) -> str:
    """The tables and figures of the records: `out`/vit-NAME.md and vit-NAME-*.png."""
    name, main = f"vit-{recipe['name']}", [r for r in records if not r["validate"] and "@" not in r["method"]]
    by_rank = [r | {"rank": int(r["method"].split(" @ ")[1]),
                    "method": f"{r['method'].split(' @ ')[0]}, {r['images']} images"}
               for r in sorted(records, key=lambda r: r["images"]) if "@" in r["method"]]
    means, over_ranks = results.summary(main), results.summary(by_rank, "rank")
    kept = results.kept_of(by_width(recipe, main))
    costs = results.costs_of({width: resized(recipe, width / kept.columns[0]) for width in kept.columns},
                             recipe["architecture"]["img_size"])
    text = (f"`python recipes/gpu/run.py {recipe['name']}` on {', '.join(sorted({r['device'] for r in records}))}, "
            f"{recipe['precision']}, torch {doctor()['torch']}; architecture {recipe['architecture']}, "
            f"learning rates {chosen(records, recipe)}\n\n{results.table(means)}\n\n"
            f"{results.comparisons(main, 'FS-Merge (fitted)', RIVALS)}\n\n"
            f"Percent of the originals' accuracy that is kept, by width:\n\n"
            f"{results.markdown(kept)}\n\nRanks:\n\n{results.table(over_ranks)}\n")
    write_whole(out / f"{name}.md", text.encode())
    bars = pd.concat({f"{n} images a task": means.xs(n, level="images")
                      for n in means.index.unique("images").sort_values()})
    write_whole(out / f"{name}-bars.png", figures.png(figures.bar_panels(bars, "%.1f", 8)))
    write_whole(out / f"{name}-room.png", figures.png(figures.room(kept, costs["operations"])))
    write_whole(out / f"{name}-ranks.png", figures.png(figures.against(over_ranks, "rank", log=True)))
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=sorted(path.stem for path in HERE.glob("*.json")))
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing new after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="of results (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="of the trained originals (default: OUT/RECIPE)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    given = parser.parse_args(arguments)
    matplotlib.use("Agg")
    recipe, device = load_recipe(given.recipe), pick_device(given.device)
    deadline = Deadline(time.monotonic() + 60 * given.minutes)
    try:
        records = run(recipe, given.out, given.work or given.out / given.recipe, device, deadline)
        print(write(recipe, records, given.out))
        if device.type == "cuda":
            cost_of_a_step(given.out, deadline)
    except OutOfTime:
        print("not done yet: run the same command again, it goes on from here", file=sys.stderr)
        return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main())
