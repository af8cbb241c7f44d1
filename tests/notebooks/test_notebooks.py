"""What strict nbval cannot see: cells that never ran, cells excused from comparing, lessons without a part."""
import re
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parent.parent / "notebooks").glob("*.ipynb"))
# Notebook -> (fewest outputs that nbval must compare, most cells that may be excused).
BOUNDS = {"00_start_here": (13, 3), "01_why_averaging_fails": (30, 1), "02_merge_and_unmerge": (30, 1),
          "03_supernet_of_a_vit": (26, 1), "04_low_rank": (22, 4), "05_local_vs_global": (24, 1), "06_folding": (21, 3),
          "07_full_algorithm": (26, 4), "08_beyond": (17, 1)}


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
        assert max(map(len, cell.source.splitlines())) <= 112, "JupyterLab shows no longer lines without scrolling"
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            assert not {"image/svg+xml", "application/pdf"} & set(output.get("data", {}))
            assert "✗" not in output.get("text", ""), "a claim that does not hold"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_lesson_has_all_its_parts(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    parts = ("**Question.**", "**Time:**", "**Needs:**", "](symbols.md)", "Predict", "## Exercise",
             "<summary>Hint</summary>", "<summary>Solution</summary>", "## What would break this", "## Takeaways")
    assert [part for part in parts if part not in text] == []
    first, *others = code_cells(path)
    assert first.metadata.get("tags") == ["parameters"] and not any("tags" in cell.metadata for cell in others)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_picture_has_a_text_for_those_who_cannot_see_it(path):
    shown = [output for cell in code_cells(path) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert shown and all(len(output.metadata["image/png"]["alt"]) > 20 for output in shown)
    words = [output for cell in code_cells(path) for output in cell.outputs
             if "<summary>In words" in output.get("data", {}).get("text/html", "")]
    assert len(words) == len(shown)


@pytest.mark.parametrize("path", sorted([*NOTEBOOKS, *NOTEBOOKS[0].parent.glob("*.md")]), ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_sanitizer_has_every_rule_that_was_written():
    text = (HERE / "sanitize.cfg").read_text()
    assert len(get_sanitize_patterns(text)) == text.count("regex") == text.count("replace") > 0
