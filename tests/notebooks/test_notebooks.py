"""What strict nbval cannot see: cells that never ran, cells excused from comparing, lessons without a part."""
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parent.parent / "notebooks").glob("*.ipynb"))
# Notebook -> (fewest outputs that nbval must compare, most cells that may be excused).
BOUNDS = {
    "00_start_here": (20, 3),
    "01_why_averaging_fails": (24, 2),
    "02_what_weights_alone_can_do": (23, 3),
    "03_merge_and_unmerge": (24, 2),
    "04_supernet_of_a_vit": (26, 3),
    "05_low_rank": (30, 4),
    "06_local_vs_global": (22, 2),
    "07_what_the_loss_asks_for": (22, 2),
    "08_the_fitted_start": (19, 3),
    "09_errors_in_the_start": (23, 6),
    "10_folding": (28, 1),
    "11_full_algorithm": (23, 2),
    "12_more_models_and_widths": (28, 2),
    "13_your_own_models": (22, 6),
    "14_text_transformers": (20, 3),
}


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def is_excused(cell) -> bool:
    return "nbval-ignore-output" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_was_run_and_enough_is_compared(path):
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells), "nbval compares nothing in a cell that was never run"
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), "run in order, from a fresh kernel"
    assert not any("NBVAL_" in c.source for c in cells), "tags say what is excused, not comments"
    floor, budget = BOUNDS[path.stem]
    assert sum(bool(c.outputs) and not is_excused(c) for c in cells) >= floor
    assert sum(map(is_excused, cells)) <= budget


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
    headings = ["**Question.**", "## Predict first", "## What would break this", "## Recap", "## Exercises",
                "### Exercise 3", "## Going further"]
    places = [text.find(heading) for heading in headings]
    assert -1 not in places, headings[places.index(-1)]
    assert places == sorted(places)
    parts = ("> **Before this lesson:**", "> **Afterwards you can:**", "> **Time:**", "> **Needs:**", "](symbols.md)",
             "> **Recap.**", "· project ·", "<summary>Hint</summary>", "<summary>Solution</summary>",
             "<summary>Answer</summary>")
    assert [part for part in parts if part not in text] == []
    first, *others = code_cells(path)
    assert first.metadata.get("tags") == ["parameters"]
    assert {tag for cell in others for tag in cell.metadata.get("tags", [])} <= {"nbval-ignore-output"}


NOT_READ = re.compile(r"<details>.*?</details>|```.*?```|\]\([^)]*\)|<[^>]+>", re.S)  # folded parts, links, tags
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.S)


def reading_minutes(path: Path) -> float:
    """Up to the exercises: a minute for 150 words (a formula is one), for 10 lines of code, and for two pictures."""
    minutes = 0.0
    for cell in nbformat.read(path, as_version=4).cells:
        text, exercises, _ = cell.source.partition("## Exercises")
        if cell.cell_type == "markdown":
            minutes += len(re.findall(r"[\w'’-]*\w", FORMULA.sub(" x ", NOT_READ.sub(" ", text)))) / 150
        else:
            minutes += sum(bool(line.strip()) for line in text.splitlines()) / 10
            minutes += sum("image/png" in output.get("data", {}) for output in cell.outputs) / 2
        if exercises:
            break
    return minutes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_lesson_says_how_long_it_takes_and_takes_at_most_40_minutes(path):
    words = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    stated = int(re.search(r"\*\*Time:\*\* (\d+) minutes", words).group(1))
    assert stated - 6 < reading_minutes(path) <= stated <= 40


@pytest.mark.parametrize("path, following", list(pairwise(NOTEBOOKS)), ids=lambda p: p.stem)
def test_a_lesson_leads_to_the_next(path, following):
    text = nbformat.read(path, as_version=4).cells[-1].source
    assert f"({following.name})" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_picture_has_a_text_for_those_who_cannot_see_it(path):
    shown = [output for cell in code_cells(path) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert shown and all(len(output.metadata["image/png"]["alt"]) > 20 for output in shown)
    words = [output for cell in code_cells(path) for output in cell.outputs
             if "<summary>In words" in output.get("data", {}).get("text/html", "")]
    assert len(words) == len(shown)


@pytest.mark.parametrize("path", sorted([*NOTEBOOKS, *NOTEBOOKS[0].parent.glob("*.md")]), ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join(c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_sanitizer_has_every_rule_that_was_written():
    text = (HERE / "sanitize.cfg").read_text()
    assert len(get_sanitize_patterns(text)) == text.count("regex") == text.count("replace") > 0
