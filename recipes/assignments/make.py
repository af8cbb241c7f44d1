"""Make the assignments of a class from their master files: python recipes/assignments/make.py --number 2026

Writes for each assignment `OUT`/NAME/student/NAME.ipynb (for students), `OUT`/NAME/autograder/NAME.ipynb (the solution)
and `OUT`/NAME/autograder.zip (for `otter run` and `otter grade`). README.md in this folder is the instructor's guide.
"""
import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from otter.assign import main as otter_assign

HERE = Path(__file__).resolve().parent
MASTERS = sorted((HERE / "masters").glob("*.py"))
STUDENT = HERE.parents[1] / "notebooks" / "assignments"  # the committed student versions, of class NUMBER
NUMBER = 2026


def master_of(name: str) -> Path:
    """The master file of an assignment.

    Raises:
        ValueError: no assignment has this name.
    """
    masters = {path.stem: path for path in MASTERS}
    if name not in masters:
        raise ValueError(f"no assignment is called {name!r}; there are {', '.join(masters)}")
    return masters[name]


def notebook_of(name: str, number: int, seconds: float) -> nbformat.NotebookNode:
    """The master as a notebook, with the number of the class and the time limit of a test in it."""
    text = master_of(name).read_text(encoding="utf-8")
    for pattern, line in ((r"^CLASS = \d+", f"CLASS = {number}"), (r"^#( +)seconds: \d+", rf"#\1seconds: {seconds:g}")):
        text, found = re.subn(pattern, line, text, flags=re.M)
        if found != 1:
            raise ValueError(f"{name}.py has {found} lines like {pattern}, expected 1")
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def make(name: str, out: Path, number: int = NUMBER, seconds: float = 60, requirements: Path | None = None) -> Path:
    """Make one assignment in `out`/NAME, which is made anew. Returns that folder.

    Args:
        name: of the assignment.
        out: an existing folder or a new one.
        number: of the class, >= 0: sizes, data and tasks follow from it.
        seconds: the limit of one test.
        requirements: a file for pip with what an image of Docker or Gradescope has to install.
    """
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    master = folder / f"{name}.ipynb"
    notebook = notebook_of(name, number, seconds)
    if requirements is not None:
        notebook.cells[0].source += f"\nrequirements: {requirements.resolve()}"
    nbformat.write(notebook, master)
    otter_assign(str(master), str(folder), no_run_tests=True)
    for version in ("student", "autograder"):
        _tidy(folder / version / f"{name}.ipynb")
    archive, = (folder / "autograder").glob("*.zip")  # its name has the time in it
    archive.rename(folder / "autograder.zip")
    master.unlink()
    return folder


def _tidy(file: Path) -> None:
    """Cells get ids that are the same each time, so that versions can be compared."""
    notebook = nbformat.read(file, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"c{number:02}"
    nbformat.write(notebook, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    names = [path.stem for path in MASTERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=names, help="of assignments (default: all)")
    parser.add_argument("--number", type=int, default=NUMBER, help="of the class, >= 0 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="limit of one test (default: %(default)s)")
    parser.add_argument("--requirements", type=Path, help="file for pip, for an image of Docker or Gradescope")
    parser.add_argument("--out", type=Path, default=Path("runs/assignments"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    for name in given.names:
        folder = make(name, given.out.resolve(), given.number, given.seconds, given.requirements)
        print(folder)
        if given.number == NUMBER:
            shutil.copy(folder / "student" / f"{name}.ipynb", STUDENT)


if __name__ == "__main__":
    main()
