"""One committed cell run again: the code of today gives the numbers of the records."""
from pathlib import Path

import pytest

from fsmerge_lite.bench.experiments import lowdata
from fsmerge_lite.bench.methods import Cell, cell_of
from fsmerge_lite.bench.runner import load_records, run_cell

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "lowdata.json"
CELL = Cell(("letters", "digits"), 16)
METHODS = ("align, then regmean", "align, orthogonal, then regmean", "FS-Merge (fitted), untrained",
           "FS-Merge (fitted)")


def test_a_committed_cell_runs_again_to_the_same_numbers():
    committed = {r["method"]: r for r in load_records(RECORDS) if cell_of(r) == CELL}
    methods = {name: method for name, method in lowdata().methods.items() if name in METHODS}
    for record in run_cell(CELL, methods):
        for column in ("mean", "joint"):
            assert record[column] == pytest.approx(committed[record["method"]][column], abs=1), record["method"]
        assert record["trained"] == committed[record["method"]]["trained"]
