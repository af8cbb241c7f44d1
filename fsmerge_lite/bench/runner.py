"""Running benchmarks: every method on the same originals, the same images and the same number of steps.

A result is one record in a JSON file, written when its cell is done. Records that are there are not run again, so a
killed benchmark resumes and a finished one can be extended. `experiments` lists what is compared.
"""
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..compare.evaluation import evaluate
from ..engine import given, processes
from ..engine.files import check_writable, write_whole
from ..engine.fitting import hidden_bar
from ..engine.images import Calibration
from ..models import Original, feature_size
from ..tasks.task import Task
from .experiments import EXPERIMENTS
from .machine import environment
from .methods import Cell, Method, cell_of


def run_cell(cell: Cell, methods: Mapping[str, Method], device: str = "cpu", done: Mapping[str, float] | None = None
             ) -> Iterator[dict]:
    """Run the methods that are not `done` (name -> seconds) on a cell of shipped originals: one record each."""
    return compare(cell, methods, *cell.load(device), done)


def compare(cell: Cell, methods: Mapping[str, Method], originals: Sequence[Original], images: Calibration,
            tasks: Sequence[Task], done: Mapping[str, float] | None = None) -> Iterator[dict]:
    """Like `run_cell`, for given originals, images and tasks. Accuracies are in percent."""
    seconds, measured_on = dict(done or {}), environment(next(originals[0].parameters()).device)
    for name in [name for name in methods if name not in seconds]:
        start = time.perf_counter()
        outcome = methods[name](originals, images, cell, seconds)
        seconds[name] = processes.gather(time.perf_counter() - start)[0]  # all processes go by the first one's clock
        scores = evaluate(outcome.model, tasks)
        backbone = getattr(outcome.model, "backbone", originals[0].backbone)
        yield {**asdict(cell), "k": len(originals), "width": feature_size(backbone), "method": name,
               "per_task": scores.per_task, "mean": scores.mean, "joint": scores.joint,
               "seconds": round(seconds[name], 2), "trained": outcome.trained,
               "training_steps": outcome.steps, "settings": methods[name].settings, **measured_on}


def up_to_date(records: Sequence[dict], cells: Sequence[Cell], methods: Mapping[str, Method]) -> list[dict]:
    """The records without those of edited methods: on these cells, with other settings than the method has now.

    Records of version 0.1 have no settings and are kept.
    """
    def edited(record: dict) -> bool:
        method = methods.get(record["method"])
        return method is not None and record.get("settings", method.settings) != method.settings
    return [record for record in records if not (edited(record) and cell_of(record) in cells)]


def done_of(records: Sequence[dict], cell: Cell) -> dict[str, float]:
    """The methods that have a record on a cell, and their seconds."""
    return {record["method"]: record["seconds"] for record in records if cell_of(record) == cell}


def run(name: str, out: str | Path = "runs/bench", device: str = "auto", jobs: int = 1, small: bool = False,
        progress: bool | None = None) -> list[dict]:
    """Run the missing part of a benchmark, and write `out`/NAME.json after every cell.

    Args:
        name: one of `EXPERIMENTS`.
        out: folder of the results.
        device: auto, cpu or cuda.
        jobs: number of cells that run at a time, each in its own process with its share of the cores, >= 1.
        small: a few steps on one or two cells, as a trial.
        progress: show a bar; None shows it in a terminal or notebook.

    Raises:
        ValueError: an unknown benchmark, jobs < 1, or a results file that cannot be read.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(EXPERIMENTS)}")
    given.whole(1, jobs=jobs)
    file, experiment = Path(out) / f"{name}.json", EXPERIMENTS[name](small)
    check_writable(file)
    records = load_records(file) if file.is_file() else []
    records = up_to_date(records, experiment.cells, experiment.methods)
    places = [(cell, method) for cell in experiment.cells for method in experiment.methods]
    order = {place: n for n, place in enumerate(places)}
    missing = [(cell, done_of(records, cell)) for cell in experiment.cells]
    missing = [(cell, done) for cell, done in missing if experiment.methods.keys() - done.keys()]
    with tqdm(total=len(missing), desc=f"bench {name}", disable=hidden_bar(progress)) as bar:
        for new in _run_cells(name, small, missing, device, jobs):
            records += new  # cells may finish in any order
            records.sort(key=lambda record: order.get((cell_of(record), record["method"]), len(order)))
            write_whole(file, (json.dumps(records, indent=0) + "\n").encode())
            bar.update()
    return records


def load_records(file: str | Path) -> list[dict]:
    """The records of a results file.

    Raises:
        ValueError: a file that `run` did not write.
    """
    try:
        records = json.loads(Path(file).read_text())
        for record in records:
            _check(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} does not hold benchmark records ({error!r}); move it away to start anew") from None
    return records


def _check(record: dict) -> None:
    """Raise a KeyError if a record lacks an entry that every record has."""
    cell_of(record)
    for name in ("method", "seconds", "mean", "joint"):
        if name not in record:
            raise KeyError(name)


Missing = list[tuple[Cell, dict[str, float]]]


def _run_cells(name: str, small: bool, missing: Missing, device: str, jobs: int) -> Iterator[list[dict]]:
    """The new records of each cell, as soon as it is done."""
    if jobs == 1:
        for cell, done in missing:
            yield _run_cell(name, small, cell, done, device)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_run_cell, name, small, cell, done, device, threads) for cell, done in missing]
        for future in as_completed(futures):
            yield future.result()


def _run_cell(name: str, small: bool, cell: Cell, done: dict[str, float], device: str, threads: int | None = None
              ) -> list[dict]:
    """`run_cell` for one cell of a benchmark, also in a process of its own."""
    if threads:
        torch.set_num_threads(threads)
    return list(run_cell(cell, EXPERIMENTS[name](small).methods, device, done))
