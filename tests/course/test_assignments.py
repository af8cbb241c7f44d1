"""The assignments: versions agree, nothing is given away, and every answer gets the points that it should."""
import re
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch

pytest.importorskip("otter", reason="no otter-grader: pip install 'fsmerge_lite[assignments]'")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "assignments"))

import grade  # noqa: E402
import make  # noqa: E402

from fsmerge_lite.course.grading import Variant, call, largest, same, shaped  # noqa: E402

NAMES = [path.stem for path in make.MASTERS]
NUMBERS = (make.NUMBER, 2027)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes an assignment for the class of a number, each once: the folder in which its own folder stands."""
    done: dict[tuple[str, int], Path] = {}

    def folder_of(name: str, number: int) -> Path:
        if (name, number) not in done:
            done[name, number] = tmp_path_factory.mktemp(f"class-{number}")
            make.make(name, done[name, number], number, grade.SECONDS)
        return done[name, number]
    return folder_of


def content(notebook: nbformat.NotebookNode) -> list:
    return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


def test_there_are_five_each_with_wrong_answers():
    assert len(NAMES) == 5
    assert sorted(path.stem for path in (make.HERE / "wrong").glob("*.py")) == NAMES
    assert sorted(path.stem for path in make.STUDENT.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_student_version_is_made_from_the_master(name, tmp_path):
    folder = make.make(name, tmp_path)
    committed, made_anew = (nbformat.read(place / f"{name}.ipynb", as_version=4)
                            for place in (make.STUDENT, folder / "student"))
    assert content(committed) == content(made_anew)
    assert committed.metadata.otter == made_anew.metadata.otter


def test_requirements_of_an_image_come_into_the_archive(tmp_path):
    (tmp_path / "own.txt").write_text("fsmerge_lite @ git+https://example.org/mine\n")
    folder = make.make(NAMES[0], tmp_path, requirements=tmp_path / "own.txt")
    with zipfile.ZipFile(folder / "autograder.zip") as archive:
        assert "example.org/mine" in archive.read("environment.yml").decode()


@pytest.mark.parametrize("name", NAMES)
def test_students_get_no_solution_and_no_hidden_test(name, made):
    folder = made(name, make.NUMBER) / name
    student = (folder / "student" / f"{name}.ipynb").read_text()
    master = make.master_of(name).read_text()
    blocks = re.findall(r"^ +# BEGIN SOLUTION\n(.*?)\n +# END SOLUTION", master, re.M | re.S)
    lines = {line.strip() for block in blocks for line in block.splitlines() if len(line.strip()) > 45}
    assert lines and not [line for line in lines if line.replace('"', '\\"') in student]
    assert "hidden=True" not in student and "hidden: true" not in student
    with zipfile.ZipFile(folder / "autograder.zip") as archive:
        tests = "".join(archive.read(file).decode() for file in archive.namelist() if file.startswith("tests/"))
    assert "hidden=True" in tests


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_what_a_student_must_know(name):
    cells = nbformat.read(make.STUDENT / f"{name}.ipynb", as_version=4).cells
    head = next(cell.source for cell in cells if cell.cell_type == "markdown")
    for part in ("**Aim.**", "**Time:**", "**Points:**", "**Given**", "**Do not use**"):
        assert part in head, part


@pytest.mark.parametrize("name", NAMES)
def test_every_version_gets_its_points(name, made):
    """The solution gets all, the untouched version none, and each wrong answer loses what it should.

    Only of the second class, and only a few of the wrong answers, to save time: `make grade` has all of the first.
    """
    folder = made(name, NUMBERS[1])
    solution, untouched, *wrong = grade.submissions(name, folder)
    for submission in (solution, untouched, *(each for each in wrong[1::9] if "never ends" not in each.title)):
        row = submission.graded(folder, quick=True)
        assert row["right"], f"{submission.title}: {row['points']}, expected {row['expected']}"


@pytest.mark.parametrize("name", [name for name in NAMES if "open_study" not in name])
def test_numbers_of_another_class_do_not_fit(name, made):
    """What students write down as a number is taken from another class's solution."""
    other, folder = made(name, NUMBERS[1]), made(name, make.NUMBER)
    solution, *_ = grade.submissions(name, other)
    theirs = dict(grade.values_of(solution.notebook))
    ours, *_ = grade.submissions(name, folder)
    numbers = {names: values for names, values in theirs.items() if all(isinstance(v, int | float) for v in values)}
    if not numbers:
        pytest.skip("this assignment asks for functions only")
    for names, values in numbers.items():
        code = "\n".join(f"{each} = {value!r}" for each, value in zip(names, values))
        changed = grade.Submission(name, "another class", grade.with_answer(ours.notebook, code), {})
        row = changed.graded(folder, quick=True)
        assert sum(row["points"].values()) < sum(row["of"].values()), names


def test_the_kernel_of_otter_run_gives_the_same_points_and_stops_what_does_not_end(made):
    """One real `otter run`, in which the answer to the first question is an endless loop outside any function."""
    name = NAMES[0]
    folder = made(name, make.NUMBER)
    solution, *_ = grade.submissions(name, folder)
    first = grade.answer_cells(solution.notebook)[0]
    first.source = "while True:\n    pass"
    found = grade.points_of(solution.notebook, folder / name / "autograder.zip")
    assert found == grade.quick_points_of(solution.notebook, folder / name / "autograder.zip")
    lost = [question for question, (score, possible) in found.items() if score < possible]
    assert len(found) > 2 and len(lost) == 1 and found[lost[0]][0] == 0


# ---------------------------------------------------------------- what students install

def test_a_variant_is_the_same_for_a_class_and_another_for_the_next():
    picks = [[Variant(n).pick(f"size {i}", range(10)) for i in range(20)] for n in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]
    draws = [torch.randn(5, generator=Variant(n).generator("x")) for n in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("answer, words", [
    (None, "not there: run the cell"), (..., "not there: run the cell"), (lambda: None, "replace the three dots"),
    (lambda: ..., "replace the three dots"), (lambda: 1 / 0, "ZeroDivisionError: division by zero")])
def test_an_answer_that_cannot_be_called_is_told_kindly(answer, words):
    with pytest.raises(AssertionError, match=words):
        call(answer)


@pytest.mark.parametrize("found, words", [
    (None, "not there yet: replace the three dots"), (torch.zeros(4, 2), "did you multiply from the other side"),
    (torch.ones(2, 4), "right shape, but wrong values"), (torch.full((2, 4), 2.0), "that is twice too much"),
    (torch.zeros(2, 4).double(), "float64, expected torch.float32"), ("text", "a str")])
def test_a_wrong_result_is_told_what_is_wrong(found, words):
    with pytest.raises(AssertionError, match=words):
        same(found, torch.zeros(2, 4), "the result", {"that is twice too much": torch.full((2, 4), 2.0)})
    if isinstance(found, torch.Tensor) and found.shape == (2, 4):
        shaped(found, (2, 4), "the result")
    else:
        with pytest.raises(AssertionError):
            shaped(found, (2, 4), "the result")
    same(torch.zeros(2, 4), torch.zeros(2, 4), "the result")


@pytest.mark.parametrize("function, numbers", [
    (lambda x: x * 2, 5), (lambda x: (x[:, None] * x).sum(1), 25), (lambda x: x.expand(1000, 5).sum(), 5)])
def test_the_largest_tensor_that_a_function_makes_is_counted(function, numbers):
    x = torch.ones(5)
    result, most = largest(function, x)
    assert torch.equal(result, function(x)) and most == numbers
