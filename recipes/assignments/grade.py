"""Grade solutions, untouched versions and typical wrong answers: python recipes/assignments/grade.py [--number 2026]

Makes the assignments, hands in every version, grades it, and prints the table of points. Exit code 1 if a version got
other points than it should. `wrong/NAME.py` has the wrong answers and the points that they should get. The solution,
the untouched version and the first wrong answers are graded with `otter run`, which starts a kernel for each; the rest
by the same tests without a kernel. --all grades everything with `otter run`, --quick nothing.
"""
import argparse
import contextlib
import copy
import io
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from otter.run import main as otter_run
from otter.test_files import ExceptionTestFile
from tqdm import tqdm

from fsmerge_lite.course.grading import GRADED, limit_time

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make import HERE, MASTERS, NUMBER, make

SECONDS = 12  # the limit of one call here, so that endless loops do not take long; the longest takes 2 on an idle core
FIRST = 1  # so many wrong answers are graded with `otter run`, and those that never end or raise an error
Points = Mapping[str, float]  # by question


@dataclass(frozen=True)
class Wrong:
    """A wrong answer: what is wrong, the code of the answer's cell, and the points of the questions that it changes."""

    title: str
    code: str
    points: Points


def wrong_answers(name: str) -> list[Wrong]:
    """From `wrong/NAME.py`: cells like `# %% the bias is forgotten | fold_layer 1, fold_mlp 3`, then the code."""
    text = (HERE / "wrong" / f"{name}.py").read_text(encoding="utf-8")
    cells = re.findall(r"^# %% (.+?) \| (.+)\n((?:(?!^# %%).*\n)*)", text, re.M)
    return [Wrong(title, code.strip(), {question: float(points) for question, points in
                                        (each.rsplit(" ", 1) for each in scores.split(", "))})
            for title, scores, code in cells]


def names_in(code: str) -> set[str]:
    """The names that code defines at its top level: functions, classes and variables."""
    return set(re.findall(r"^(?:def |class )?(\w+)(?=\(| = |:)", code, re.M))


def answer_cells(notebook: nbformat.NotebookNode, tag: str = "otter_answer_cell") -> list[nbformat.NotebookNode]:
    """The cells with this tag. Otter marks a student's answers with the default, the solution's otherwise."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def solved(student: nbformat.NotebookNode, solution: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The student version with the answers of the solution."""
    changed = copy.deepcopy(student)
    for cell, right in zip(answer_cells(changed), answer_cells(solution, "otter_assign_solution_cell"), strict=True):
        cell.source = right.source
    return changed


def with_answer(submission: nbformat.NotebookNode, code: str) -> nbformat.NotebookNode:
    """The submission with another answer in the cell that defines the same names.

    Raises:
        ValueError: there is not exactly one such cell.
    """
    changed = copy.deepcopy(submission)
    cells = [cell for cell in answer_cells(changed) if names_in(code) & names_in(cell.source)]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} answer cells define {', '.join(names_in(code))}, expected 1")
    cells[0].source = code
    return changed


def points_of(notebook: nbformat.NotebookNode, archive: Path) -> dict[str, tuple[float, float]]:
    """The points of a submission and the possible ones, by question, from `otter run`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / f"{archive.parent.name}.ipynb"
        nbformat.write(notebook, file)
        results = otter_run(str(file), autograder=str(archive), output_dir=None, no_logo=True)
    return {question: (result.score, result.possible) for question, result in results.results.items()}


def executed(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """The names that the cells define, run in this process. A cell that fails or takes too long stops there."""
    os.environ[GRADED], names = "1", {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "grader" not in cell.source:
            with _limited(), contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, names)
    return names


def values_of(notebook: nbformat.NotebookNode) -> dict[tuple[str, ...], tuple]:
    """The values that the answer cells give to their names, for cells that define no function."""
    names, cells = executed(notebook), [cell for cell in answer_cells(notebook) if "def " not in cell.source]
    defined = [tuple(sorted(names_in(cell.source))) for cell in cells]
    return {each: tuple(names[name] for name in each) for each in defined if each}


def quick_points_of(notebook: nbformat.NotebookNode, archive: Path) -> dict[str, tuple[float, float]]:
    """The same as `points_of` without a kernel: the cells and then the tests of the archive, in this process."""
    names = executed(notebook)
    with zipfile.ZipFile(archive) as files:
        sources = [files.read(name).decode() for name in files.namelist() if re.fullmatch(r"tests/\w+\.py", name)]
    found = {}
    for test in map(ExceptionTestFile.from_string, sources):
        with _limited(), contextlib.redirect_stdout(io.StringIO()):
            test.run(names)
        found[test.name] = (test.score, test.possible)
    return found


@contextlib.contextmanager
def _limited():
    """Give what is inside the time of one cell."""
    limit_time(SECONDS)
    try:
        yield
    finally:
        limit_time(0)


@dataclass(frozen=True)
class Submission:
    """A version that is handed in. It should get the `points` that are named, and all points of other questions."""

    name: str
    title: str
    notebook: nbformat.NotebookNode
    points: Points

    def graded(self, folder: Path, quick: bool = False) -> dict:
        """A row of the table, with points by question and those that it should get."""
        start, grade = time.perf_counter(), quick_points_of if quick else points_of
        found = grade(self.notebook, folder / self.name / "autograder.zip")
        points, possible = ({question: pair[i] for question, pair in found.items()} for i in (0, 1))
        expected = {question: self.points.get(question, all_of_it) for question, all_of_it in possible.items()}
        return {"assignment": self.name, "version": self.title, "by": "tests alone" if quick else "otter run",
                "points": points, "of": possible, "expected": expected, "seconds": time.perf_counter() - start,
                "right": len(points) > 0 and points == expected and set(self.points) <= set(points)}


def submissions(name: str, folder: Path) -> list[Submission]:
    """The solution, the untouched version and the wrong answers of an assignment that was made in `folder`."""
    student, solution = (nbformat.read(folder / name / version / f"{name}.ipynb", as_version=4)
                         for version in ("student", "autograder"))
    solution, nothing = solved(student, solution), dict.fromkeys(student.metadata.otter["tests"], 0.0)
    wrong = [Submission(name, wrong.title, with_answer(solution, wrong.code), wrong.points)
             for wrong in wrong_answers(name)]
    return [Submission(name, "solution", solution, {}), Submission(name, "untouched", student, nothing), *wrong]


def in_full(number: int, title: str) -> bool:
    """Whether a version is graded with `otter run` if not all are: the solution and the untouched one come first."""
    return number < 2 + FIRST or "never ends" in title or "raises" in title


def table(rows: Sequence[dict]) -> str:
    """The points of all versions in Markdown."""
    lines = ["| assignment | version | graded by | points | of | questions that lost points | s |",
             "|---|---|---|---:|---:|---|---:|"]
    for row in rows:
        total, of, expected = (f"{sum(row[column].values()):g}" for column in ("points", "of", "expected"))
        lost = ", ".join(f"{question} {points:g}" for question, points in row["points"].items()
                         if points < row["of"][question])
        wrong = "" if row["right"] else f" **expected {expected}**"
        lines.append(f"| {row['assignment']} | {row['version']} | {row['by']} | {total}{wrong} | {of} | {lost} "
                     f"| {row['seconds']:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    names = [path.stem for path in MASTERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=names, help="of assignments (default: all)")
    parser.add_argument("--number", type=int, default=NUMBER, help="of the class (default: %(default)s)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="no `otter run`")
    how.add_argument("--all", action="store_true", help="`otter run` for every version")
    parser.add_argument("--jobs", type=int, default=2, help="submissions at a time (default: %(default)s)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(given.jobs) as pool:
        for name in given.names:
            make(name, Path(folder), given.number, SECONDS)
        folders, quick, handed_in = [], [], []
        for name in given.names:
            versions = submissions(name, Path(folder))
            handed_in += versions
            folders += [Path(folder)] * len(versions)
            quick += [given.quick or not (given.all or in_full(i, each.title)) for i, each in enumerate(versions)]
        graded = pool.map(Submission.graded, handed_in, folders, quick)
        rows = list(tqdm(graded, "grading", len(handed_in), disable=None))
    print(table(rows))
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
