"""Running a recipe: its checks and plan, then its cells, then what is written about them.

A cell is one combination of the sweep's values with one seed. It gives one record a method in records.json, and the
merged model in a folder of its own. What is there is not run again, so a killed run goes on where it was.
"""
import json
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..bench import methods, runner
from ..bench.machine import pick_device
from ..bench.methods import Cell, Method, Outcome
from ..compare.baselines import align, average, ensemble, regmean, slerp
from ..compare.rotation import align_orthogonal
from ..engine import processes
from ..engine.files import check_writable, fingerprint, write_whole
from ..engine.fitting import History, hidden_bar
from ..engine.images import Calibration
from ..engine.running import to_device
from ..models import Merged, Original
from ..start import fit_subspaces
from ..supernet import SuperNet
from ..training import train_global, train_local
from . import checks
from .recipe import Recipe, RecipeError
from .sources import into, load_all, pictures

FOLD_BOUND = 1e-4  # of the folded model's features, over their root mean square, in fp32
POINTS = 300  # of a training curve that a record keeps


@dataclass
class Results:
    """What a recipe gave: the records of all methods and cells, the folder, the files worth opening."""

    recipe: Recipe
    records: list[dict]
    files: list[Path]

    def frame(self):
        """A pandas frame, one row for each record: values of the sweep, seed, method, accuracies, seconds."""
        from .report import frame  # pandas is an extra
        return frame(self.recipe, self.records)


# ---------------------------------------------------------------- the merge itself

def supernet(recipe: Recipe, originals: Sequence[Original], seed: int) -> SuperNet:
    """The SuperNet of a recipe, before a fitted start."""
    own = recipe.supernet
    shared = own.structure == "diagonal_low_rank" if own.shared is None else own.shared
    init = "first" if own.start == "fitted" else own.start
    return SuperNet(originals, own.rank, own.structure, init, into(recipe, originals), seed, shared)


def depths_of(recipe: Recipe, net: SuperNet) -> list[int]:
    """After how many blocks inner features are rebuilt: as the recipe says, or after each quarter of the blocks."""
    if recipe.training.depths != "quarters":
        return list(recipe.training.depths)
    blocks = len(net.graph.readouts)
    return sorted({blocks * quarter // 4 for quarter in (1, 2, 3)} - {0})


def train(recipe: Recipe, net: SuperNet, images: Calibration, seed: int, file: Path, progress: bool | None
          ) -> list[History]:
    """Train a SuperNet as the recipe says; a killed run resumes from `file` and what begins with its name."""
    own, histories = recipe.training, []
    options = {"batch_size": own.batch_size, "seed": seed, "weight_decay": own.weight_decay, "warmup": own.warmup,
               "anneal": own.anneal, "clip": own.clip, "precision": own.precision, "progress": progress}
    if own.how in ("local", "both"):
        histories += train_local(net, images, own.local_steps, own.lr, checkpoint=f"{file}.local", **options)
    if own.how in ("global", "both"):
        histories.append(train_global(net, images, own.steps, own.lr, depths=depths_of(recipe, net), inner=own.inner,
                                      off_task=own.off_task, scaled=own.scaled, checkpoint=f"{file}.global", **options))
    return histories


@torch.no_grad()
def fold_error(net: SuperNet, merged: Merged, x: torch.Tensor) -> float:
    """The largest difference between the features of the unfolded SuperNet and of the folded model, in true fp32.

    It is in units of the features' root mean square.
    """
    with torch.backends.cudnn.flags(allow_tf32=False):  # by default, convolutions on a GPU keep 10 of 23 bits
        return max(((a - b).abs().max() / a.square().mean().sqrt()).item()
                   for a, b in zip(net(x, unfolded=True), merged.features(x)))


class Merge:
    """The recipe's own method on one cell. It keeps the model, the training curves and the error of the fold."""

    def __init__(self, recipe: Recipe, folder: Path, progress: bool | None):
        self.recipe, self.folder, self.progress = recipe, folder, progress

    def __call__(self, originals: Sequence[Original], images: Calibration, cell: Cell, seconds: dict) -> Outcome:
        net = supernet(self.recipe, originals, cell.seed)
        if self.recipe.supernet.start == "fitted":
            fit_subspaces(net, images, **asdict(self.recipe.start), progress=self.progress)
        self.histories = train(self.recipe, net, images, cell.seed, self.folder / "training", self.progress)
        self.merged, like = net.fold(), next(net.parameters())
        self.fold_error = fold_error(net, self.merged, to_device(images.images[:64], like))
        if not self.fold_error < FOLD_BOUND:
            raise ArithmeticError(f"the folded model differs from its SuperNet by {self.fold_error:.1e}, more than "
                                  f"{FOLD_BOUND:.0e} of the size of its features")
        self.provenance = net.provenance
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad) if self.histories else 0
        return Outcome(self.merged, trained, sum(len(history.loss) for history in self.histories))

    def save(self, record: dict, originals: Sequence[Original]) -> None:
        """Write the merged model with all that it came from in its card, and remove the checkpoints of its training."""
        self.merged.save(self.folder / "merged", recipe=self.recipe.plain(), provenance=self.provenance,
                         tasks=[original.task.name for original in originals],
                         classes=[list(original.task.classes) for original in originals],
                         normalization=[[original.mean, original.std] for original in originals],
                         accuracy=record["per_task"], joint=record["joint"], hashes=record["settings"]["hashes"])
        for file in self.folder.glob("training.*"):
            file.unlink(missing_ok=True)  # several processes may do so


# ---------------------------------------------------------------- what it is held against

def baselines(recipe: Recipe, originals: Sequence[Original], depths: Sequence[int]) -> dict[str, Method]:
    """The baselines of a recipe by name: methods of the benchmarks, with the recipe's rates."""
    lr, off_task = recipe.training.lr_distillation, recipe.training.off_task
    losses = {"off_task": off_task, "depths": list(depths)}
    made = {
        "average": methods.untrained(methods.without_images(average)),
        "slerp": methods.untrained(methods.without_images(slerp)),
        "regmean": methods.untrained(regmean),
        "align": methods.untrained(align),
        "align, then regmean": methods.untrained(methods.align_regmean),
        "align, orthogonal": methods.untrained(align_orthogonal),
        "align, orthogonal, then regmean": methods.untrained(methods.align_orthogonal_regmean),
        "distillation": methods.distillation(lr),
        "distillation, our losses": methods.all_weights(lr, "first", **losses),
        "all weights from the fitted start": methods.all_weights(lr, **losses),
        "FS-Merge (fitted), untrained": methods.fs_merge(
            globally=False, start=asdict(recipe.start), into=into(recipe, originals)),
        "distillation, same time": methods.distillation(lr, as_long_as=recipe.label),
    }
    return {name: made[name] for name in recipe.baselines}


def all_methods(recipe: Recipe, merge: "Merge", originals: Sequence[Original], images: Calibration
                ) -> dict[str, Method]:
    """All methods of a cell by name, in the order in which they run: what needs another's seconds runs last."""
    depths = depths_of(recipe, supernet(recipe, originals, 0))
    held_against = baselines(recipe, originals, depths)
    last = {name: held_against.pop(name) for name in list(held_against) if "same time" in name}
    chosen = {"originals (k models)": methods.untrained(methods.without_images(ensemble)), **held_against,
              recipe.label: Method(merge, {}), **last}
    hashes = {"images": images.hash(), "originals": [fingerprint(o.state_dict()) for o in originals]}
    settings = {"recipe": json.loads(json.dumps(recipe.plain())), "hashes": hashes}
    return {name: Method(method.run, {"method": name, **settings}) for name, method in chosen.items()}


# ---------------------------------------------------------------- cells

def cell_folder(recipe: Recipe, values: dict) -> Path:
    """The folder of a cell's model: that of the results, or one in it named by the cell's values."""
    if not recipe.sweep and len(recipe.run.seeds) == 1:
        return recipe.out
    name = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
    return recipe.out / re.sub(r"[^\w=,. +-]", "_", name)


def run_cell(recipe: Recipe, values: dict, folder: Path, known: Sequence[dict], overwrite: bool, threads: int
             ) -> list[dict]:
    """The records of one cell, in a process of its own: those that are known, and what was missing."""
    torch.set_num_threads(threads)
    return list(_records(recipe, values, folder, known, overwrite, load_all(recipe), False))


def _records(recipe: Recipe, values: dict, folder: Path, known: Sequence[dict], overwrite: bool,
             originals: Sequence[Original], progress: bool | None) -> Iterator[dict]:
    """The records of one cell: those that are known, then the new ones as they come."""
    originals = [original.to(pick_device(recipe.run.device)) for original in originals]
    images, merge, own = pictures(recipe, originals), Merge(recipe, folder, progress), recipe.training
    chosen = all_methods(recipe, merge, originals, images)
    there = [r for r in known if r["values"] == values and r["method"] in chosen
             and r["settings"] == chosen[r["method"]].settings]
    yield from there
    done = {record["method"]: record["seconds"] for record in there}
    if (folder / "merged.safetensors").exists() and recipe.label not in done and not overwrite:
        raise RecipeError(f"{folder} holds the model of another run, which this one would replace; give another "
                          "run.out, or --overwrite")
    cell = Cell(tuple(o.name for o in originals), recipe.calibration.images, values["seed"], own.steps,
                len(images) // len(originals), False, own.precision, own.batch_size)
    for record in runner.compare(cell, chosen, originals, images, [o.task for o in originals], done):
        record |= {"recipe": recipe.name, "values": values}
        if record["method"] == recipe.label:
            record |= {"fold_error": merge.fold_error, "curves": [_curve(history) for history in merge.histories]}
            merge.save(record, originals)
        yield json.loads(json.dumps(record))  # as it is read again


def _curve(history: History) -> dict:
    """A training curve of at most so many points."""
    every = math.ceil(len(history.loss) / POINTS)
    return {"name": history.name, "loss": history.loss[::every], "lr": history.lr[::every],
            "seconds": history.seconds[::every]}


def merge(recipe: Recipe, dry_run: bool = False, overwrite: bool = False, jobs: int = 1, executor: str | None = None,
          progress: bool | None = None, say: Callable[[str], None] = print) -> Results:
    """Check a recipe and all that it names, then run what is missing of it, and write what came out.

    Args:
        recipe: from `read_recipe`.
        dry_run: check and plan only; nothing is written.
        overwrite: let this run replace the models that another run left in the same folder.
        jobs: cells at a time, each in its own process with its share of the cores, >= 1.
        executor: "dask" for two or more local workers, or the address of a Dask scheduler; its workers need to see the
            same files.
        progress: show bars; None shows them in a terminal or notebook.
        say: called with each line of text.

    Returns:
        the `Results`; of a dry run without records.

    Raises:
        RecipeError, ValueError, TypeError: what is wrong with the recipe, the models or the pictures.
        OSError: a folder that cannot be written to.
        ArithmeticError: a folded model that differs from its SuperNet, or a loss that is no longer finite.
    """
    if jobs < 1:
        raise RecipeError(f"jobs must be >= 1, got {jobs}")
    if len(processes.gather()) > 1 and (jobs > 1 or executor):
        raise RecipeError("several processes train one model together; cells side by side need one process to start "
                          "from: leave out --jobs and --executor, or the launcher")
    if not dry_run:
        check_writable(recipe.out / "records.json")
    said: list[str] = []
    originals, images, net = _checked(recipe, lambda line: (said.append(line), say(line)))
    if dry_run:
        checks.estimate(recipe, images, net, say)
        return Results(recipe, [], [])
    file, options = recipe.out / "records.json", {"overwrite": overwrite, "jobs": jobs, "executor": executor}
    known, current = runner.load_records(file) if file.is_file() else [], []
    processes.gather()  # nothing is written before all have read
    for record in _all_records(recipe, known, originals, progress, **options):
        current.append(record)
        if record not in known:
            known.append(record)
            write_whole(file, (json.dumps(known, indent=0) + "\n").encode())
    from . import report  # draws figures: an extra
    say(report.scores(recipe, current).to_string(float_format="%.1f"))
    largest = max(record["fold_error"] for record in current if "fold_error" in record)
    say(f"folded and SuperNet: equal (largest difference {largest:.1e} of the features' size)")
    return Results(recipe, current, [*report.write(recipe, current, originals, said), file])


def _checked(recipe: Recipe, say: Callable[[str], None]) -> tuple[list[Original], Calibration, SuperNet]:
    """The originals, the images of the first cell and a SuperNet, after all checks and with the plan printed."""
    originals, (_, first) = load_all(recipe), next(recipe.cells())
    images = pictures(first, originals)
    checks.inspect(first, originals, images, say)
    net = supernet(first, originals, 0)
    checks.possible(recipe, originals, net)
    checks.plan(recipe, originals, images, net, say)
    return originals, images, net


def _all_records(recipe: Recipe, known: Sequence[dict], originals: Sequence[Original], progress: bool | None,
                 overwrite: bool, jobs: int, executor: str | None) -> Iterator[dict]:
    """The records of all cells; those that run side by side come by cell."""
    places = [(one, values, cell_folder(recipe, values)) for values, one in recipe.cells()]
    if jobs == 1 and executor is None:
        for place in tqdm(places, desc="cells", disable=len(places) == 1 or hidden_bar(progress)):
            yield from _records(*place, list(known), overwrite, originals, progress)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with _pool(jobs, executor) as pool:
        futures = [pool.submit(run_cell, *place, list(known), overwrite, threads) for place in places]
        for future in tqdm(as_completed(futures), desc="cells", total=len(places), disable=hidden_bar(progress)):
            yield from future.result()


def _pool(jobs: int, executor: str | None) -> Executor:
    """What runs cells side by side: processes of this machine, or the workers of Dask."""
    if executor is None:
        return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--executor needs Dask: pip install 'fsmerge_lite[cluster]'") from None
    local = LocalCluster(n_workers=jobs, threads_per_worker=1) if executor == "dask" else executor
    return Client(local).get_executor()
