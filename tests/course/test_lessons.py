"""The tests of the exercises: solutions pass, stubs and mistakes are named, and no answer of a reader breaks them."""
import re
from pathlib import Path

import nbformat
import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.course import exercises, lessons
from fsmerge_lite.course.exercises.testing import Exercise

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.S)
EXERCISES = lessons.all_exercises()
FOLD = Exercise(lambda g: tuple([torch.randn(*shape, generator=g) for _ in range(2)]
                                for shape in ((4, 3), (3, 2), (2, 5), (3,))),
                lambda Ms, Ws, Us, bs: (sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)),
                                        sum(M @ b for M, b in zip(Ms, bs))))


def printed(capsys, function, name: str) -> str:
    function.__name__ = name
    lessons.test(function)
    return capsys.readouterr().out


def solutions(path: Path) -> dict:
    """What the solutions of a lesson define, all in one scope."""
    cells = nbformat.read(path, as_version=4).cells
    scope = {"torch": torch, "fsm": fsm}
    for solution in SOLUTION.findall("\n".join(c.source for c in cells if c.cell_type == "markdown")):
        exec(solution, scope)
    return scope


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_solutions_are_correct_and_the_stubs_are_not(path, capsys):
    tested = re.findall(r"lessons\.test\((\w+)\)", path.read_text())
    scope = solutions(path)
    assert len(tested) >= 3
    for name in tested:
        assert printed(capsys, scope[name], name).startswith("correct: "), name
    cells = nbformat.read(path, as_version=4).cells
    stubs = [c for c in cells if c.cell_type == "code" and "lessons.test(" in c.source]
    assert all("".join(output.text for output in stub.outputs).startswith("not yet: ") for stub in stubs)


def test_every_exercise_is_in_one_lesson():
    used = [name for path in NOTEBOOKS for name in re.findall(r"lessons\.test\((\w+)\)", path.read_text())]
    assert sorted(used) == sorted(EXERCISES)


def test_every_lesson_has_its_own_file_of_exercises():
    modules = {path.stem for path in Path(exercises.__file__).parent.glob("*.py")} - {"__init__", "testing"}
    assert modules == {path.stem[3:] for path in NOTEBOOKS}


@pytest.mark.parametrize("name, mistake", [(name, mistake) for name, e in EXERCISES.items() for mistake in e.mistakes])
def test_a_common_mistake_is_named(name, mistake, capsys):
    assert printed(capsys, EXERCISES[name].mistakes[mistake], name) == f"not yet: {mistake}\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_an_empty_answer_is_not_correct(name, capsys):
    for answer in (None, 0, "x", []):
        assert printed(capsys, lambda *_, answer=answer: answer, name).startswith("not yet: ")


@pytest.mark.parametrize("function, match", [
    (lambda *_: None, "the result of fold is None, expected 2 results"),
    (lambda *inputs: (FOLD.solution(*inputs)[0], None), "result 2 of fold is None, expected a"),
    (lambda *_: (torch.ones(5, 4), torch.ones(4)), "result 1 of fold is a tensor of shape (5, 4), expected a"),
    (lambda *_: (torch.ones(4, 5), torch.ones(4)), "result 1 of fold has the right shape, but wrong values"),
    (lambda *_: "W", "the result of fold is a str, expected 2 results"),
    (lambda Ms, Ws, Us, bs: Ms[0] @ Us[0], "fold raised RuntimeError: "),
    (lambda *_: [torch.ones(4, 5)], "the result of fold is a list of length 1, expected 2 results"),
    (lambda Ms, Ws, Us, bs: Ms.clear(), "the result of fold is None"),
    (lambda *inputs: tuple(part.double() for part in FOLD.solution(*inputs)), None),
])
def test_a_wrong_result_is_described(function, match):
    function.__name__ = "fold"
    problem = FOLD.problem(function, seed=0)
    assert problem is None if match is None else match in problem


def test_one_seed_is_not_enough(capsys, monkeypatch):
    exercise = Exercise(lambda g: (torch.randn(3, generator=g),), lambda x: x.abs())
    lucky = exercise.solution(*exercise.inputs(torch.Generator().manual_seed(0)))
    monkeypatch.setattr(lessons, "all_exercises", lambda: {"absolute": exercise})
    assert printed(capsys, lambda x: lucky, "absolute") == "not yet: the result of absolute has the right shape, but " \
        "wrong values\n"


def test_a_function_of_another_name():
    with pytest.raises(ValueError, match="'folded'; the exercises are "):
        printed(None, lambda: None, "folded")


def test_a_claim_is_printed_with_a_mark(capsys):
    lessons.check("two is more than one", 2 > 1)
    lessons.check("one is more than two", torch.tensor(1) > 2)
    assert capsys.readouterr().out == "✓ two is more than one\n✗ one is more than two\n"
