"""benchmarks/step.py: what it counts, and ratios by hand."""
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "step.py"


@pytest.fixture(scope="module")
def step():
    spec = importlib.util.spec_from_file_location("step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(step, **more) -> dict:
    return step.asdict(step.Setting("B")) | {
        "memory_mb": {"distillation": 100, "folded": 80, "unfolded": 250},
        "operations": {"distillation": 1000, "folded": 1200, "unfolded": 2000},
        "seconds": {"distillation": [1.0, 2.0, 4.0], "folded": [1.5, 2.2, 6.0], "unfolded": [3.0, 2.2, 12.0]},
        "latency": {"merged": [1.0, 3.0], "original": [1.0, 2.0]}} | more


def test_ratios_are_taken_round_by_round(step):
    times = record(step)["seconds"]
    assert step.ratios(times, "folded", "distillation") == pytest.approx([1.1, 1.5, 1.5])
    row = step.table([record(step, matmul_rate=2000)]).splitlines()[-1]
    assert row == ("| B | 2 | 12 | 8 | 224 | cpu fp32 | 2 | 1.50 (1.10 to 1.50) | 1.20 | 3.00 (1.10 to 3.00) "
                   "| 2.00 (1.00 to 2.00) | 0.80 | 2.50 | 1.25 (1.00 to 1.50) | 25 | 27 |")
    assert "- ViT-B, cpu fp32: k = 2: 1.50 (1.20), k = 8: 1.50 (1.20)" in step.growth([record(step), record(step, k=8)])


def test_sharing_a_and_b_saves_most_of_the_fold_of_many_originals(step):
    """With A and B of each original a fold has one product with A for each, shared just one."""
    small = step.Setting("tiny", k=8, batch=4, pixels=16)
    operations = step.measure(small, 1, 1)["operations"]
    own, shared = (operations[kind] - operations["distillation"] for kind in ("folded", "shared"))
    assert own / 8 < shared < 0.6 * own


def test_an_unfolded_run_that_does_not_fit_is_left_out(step, monkeypatch):
    monkeypatch.setattr(step.os, "sysconf", {"SC_PAGE_SIZE": 2 ** 20, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert step.fits_unfolded(step.Setting("B", k=2), 380) and not step.fits_unfolded(step.Setting("B", k=2), 390)
    assert step.fits_unfolded(step.Setting("B", k=8), float("nan"))  # not known: tried


def test_what_is_written_can_be_read_and_drawn(step, tmp_path):
    records = [record(step, k=k) for k in (2, 4)]
    assert step.table(records) in step.write(records, tmp_path)
    assert json.loads((tmp_path / "step.json").read_text()) == records
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_the_cost_of_the_fold_grows_with_k_and_not_with_the_images(step):
    small = step.Setting("tiny", batch=4, pixels=16)
    found = {(k, batch): step.measure(replace(small, k=k, batch=batch), 1, 1)["operations"]
             for k, batch in ((2, 4), (4, 4), (2, 8))}
    fold = {at: operations["folded"] - operations["distillation"] for at, operations in found.items()}
    assert fold[2, 8] == pytest.approx(fold[2, 4], rel=0.02)  # but for the output matrices
    assert fold[4, 4] == pytest.approx(2 * fold[2, 4], rel=0.02)
    assert found[2, 8]["distillation"] == 2 * found[2, 4]["distillation"]
    unfolded = found[4, 4]["unfolded"] - 2 * found[2, 4]["unfolded"]  # attention runs once, whatever k
    assert abs(unfolded) < 0.2 * found[4, 4]["unfolded"]


def test_committed_table_is_what_the_committed_records_say(step):
    results = FILE.parent / "results"
    assert step.table(json.loads((results / "step.json").read_text())) in (results / "step.md").read_text()
