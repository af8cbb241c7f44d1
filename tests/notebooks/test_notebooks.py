"""What strict nbval cannot see: cells that were never run, and cells that are excused from comparing."""
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parent.parent / "notebooks").glob("*.ipynb"))
# Notebook -> (the fewest outputs that nbval must compare, the most cells that may be excused).
BOUNDS = {"00_start_here": (10, 3)}


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def is_excused(cell) -> bool:
    return any(line.strip() == "# NBVAL_IGNORE_OUTPUT" for line in cell.source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_was_run_and_enough_is_compared(path):
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells), "nbval compares nothing in a cell that was never run"
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), "run in order, from a fresh kernel"
    assert not any("NBVAL_SKIP" in c.source or "NBVAL_RAISES" in c.source for c in cells)
    floor, budget = BOUNDS[path.stem]
    assert sum(bool(c.outputs) and not is_excused(c) for c in cells) >= floor
    assert sum(map(is_excused, cells)) <= budget
    assert all("NBVAL" not in c.source or is_excused(c) for c in cells), "a marker is the whole comment line"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_portable(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 15
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            assert not {"image/svg+xml", "application/pdf"} & set(output.get("data", {}))


def test_the_sanitizer_has_every_rule_that_was_written():
    text = (HERE / "sanitize.cfg").read_text()
    assert len(get_sanitize_patterns(text)) == text.count("regex") == text.count("replace") > 0
