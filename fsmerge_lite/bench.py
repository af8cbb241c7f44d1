"""Running benchmarks: every method on the same originals, the same images and the same steps, many times over.

A result is one record in a JSON file, written when its cell is done; what is there already is not run again, so a
killed benchmark resumes and a finished one can be extended. `experiments` says what is compared.
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

from .evaluation import evaluate
from .experiments import EXPERIMENTS, Cell, Method, cell_of
from .files import write_whole
from .fitting import hidden_bar
from .models import Original, feature_size
from .tasks import Calibration, Task


def run_cell(cell: Cell, methods: dict[str, Method], device: str = "cpu", done: Mapping[str, float] = {}
             ) -> Iterator[dict]:
    """One record a method that is not `done` (name -> seconds): accuracies in percent, seconds, trained numbers."""
    return compare(cell, methods, *cell.load(device), done)


def compare(cell: Cell, methods: dict[str, Method], originals: Sequence[Original], images: Calibration,
            tasks: Sequence[Task], done: Mapping[str, float] = {}) -> Iterator[dict]:
    """The same with originals, images and tasks that are at hand."""
    seconds = dict(done)
    for name, method in methods.items():
        if name in done:
            continue
        torch.manual_seed(cell.seed)  # for the noise in the low-rank parts
        start = time.perf_counter()
        made = method(originals, images, cell, seconds)
        seconds[name] = time.perf_counter() - start
        scores = evaluate(made.model, tasks)
        backbone = getattr(made.model, "backbone", originals[0].backbone)
        yield {**asdict(cell), "k": len(originals), "width": feature_size(backbone), "method": name,
               "per_task": scores.per_task, "mean": scores.mean, "joint": scores.joint,
               "seconds": round(seconds[name], 2), "trained": made.trained,
               "training_steps": made.steps}


def run(name: str, out: str | Path = "runs/bench", device: str = "auto", jobs: int = 1, small: bool = False,
        progress: bool | None = None) -> list[dict]:
    """Run what is missing of a benchmark, and write `out`/NAME.json after every cell.

    Args:
        name: one of `EXPERIMENTS`.
        out: folder of the results.
        device: auto, cpu or cuda.
        jobs: cells at a time, each in a process of its own with its share of the cores, >= 1.
        small: a few steps on one or two cells, to try the road.
        progress: show a bar; None shows it in a terminal or notebook.

    Raises:
        ValueError: no benchmark of that name, jobs < 1, or a results file that is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(EXPERIMENTS)}")
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    file = Path(out) / f"{name}.json"
    records = load_records(file) if file.is_file() else []
    todo, order, experiment = [], {}, EXPERIMENTS[name](small)
    for cell in experiment.cells:
        done = {r["method"]: r["seconds"] for r in records if cell_of(r) == cell}
        order |= {(cell, method): len(order) + n for n, method in enumerate(experiment.methods)}
        if experiment.methods.keys() - done.keys():
            todo.append((cell, done))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with tqdm(total=len(todo), desc=f"bench {name}", disable=hidden_bar(progress)) as bar:
        for made in _each(name, small, todo, device, jobs, threads):
            records += made
            records.sort(key=lambda r: order.get((cell_of(r), r["method"]), len(order)))  # not as they came
            write_whole(file, (json.dumps(records, indent=0) + "\n").encode())
            bar.update()
    return records


def load_records(file: str | Path) -> list[dict]:
    """The records of a results file.

    Raises:
        ValueError: not a file that `run` wrote.
    """
    try:
        records = json.loads(Path(file).read_text())
        for record in records:
            cell_of(record), record["method"], record["seconds"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} holds no benchmark's records ({error!r}); move it away to start anew") from None
    return records


def _each(name: str, small: bool, todo: list, device: str, jobs: int, threads: int) -> Iterator[list[dict]]:
    if jobs == 1:
        yield from (_work(name, small, cell, done, device, None) for cell, done in todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(_work, name, small, cell, done, device, threads) for cell, done in todo]
        yield from (future.result() for future in as_completed(futures))


def _work(name: str, small: bool, cell: Cell, done: dict[str, float], device: str, threads: int | None) -> list[dict]:
    if threads:
        torch.set_num_threads(threads)
    return list(run_cell(cell, EXPERIMENTS[name](small).methods, device, done))
