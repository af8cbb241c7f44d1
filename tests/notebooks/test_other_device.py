"""Lessons 00 and 11 on a device that is not the CPU: every cell runs, and no tensor stays on the CPU."""
import contextlib
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
from second_device import NAME, register

import fsmerge_lite as fsm
from fsmerge_lite.bench import machine

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SHORT = {"00_start_here": {"steps": 3, "augmented": 3},
         "11_full_algorithm": {"settings": {NAME: {"steps": 3, "augmented": 1, "batch_size": 32, "precision": "bf16"}}}}


def cells_of(lesson: str) -> str:
    """Run the code of a lesson with few steps. Returns what it prints."""
    matplotlib.use("Agg")
    register()
    machine.pick_device = torch.device  # it already knows the device
    fsm.evaluate = partial(fsm.evaluate, limit=100)  # test images of each task
    parameters, *cells = (c.source for c in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells
                          if c.cell_type == "code")
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(parameters, names)
        names |= SHORT[lesson] | {"device": NAME}
        for cell in cells:
            exec(cell, names)
    used = {p.device.type for name in ("a", "b") for p in names[name].parameters()}
    assert used == {NAME}
    return printed.getvalue()


@pytest.mark.parametrize("lesson", SHORT)
def test_a_lesson_runs_elsewhere(lesson):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        printed = pool.submit(cells_of, lesson).result()
    assert "✓ unfolded run equals folded run" in printed or "✓ by hand and by the library: the same loss" in printed
