"""The tests of the exercises: solutions pass, common mistakes are named, and no answer of a reader breaks them."""
import re
from pathlib import Path

import nbformat
import pytest
import torch

from fsmerge_lite.course import lessons
from fsmerge_lite.course.lessons import EXERCISES

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.S)


def printed(capsys, function, name: str) -> str:
    function.__name__ = name
    lessons.test(function)
    return capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_solution_is_correct_and_the_stub_is_not(path, capsys):
    cells = nbformat.read(path, as_version=4).cells
    solution, = SOLUTION.findall("\n".join(c.source for c in cells if c.cell_type == "markdown"))
    scope = {"torch": torch}
    exec(solution, scope)
    name, = scope.keys() & EXERCISES.keys()
    assert printed(capsys, scope[name], name).startswith("correct: ")
    stub, = (c for c in cells if c.cell_type == "code" and f"lessons.test({name})" in c.source)
    assert "".join(output.text for output in stub.outputs).startswith("not yet: ")


def test_every_exercise_is_in_one_lesson():
    used = [name for path in NOTEBOOKS for name in re.findall(r"lessons\.test\((\w+)\)", path.read_text())]
    assert sorted(used) == sorted(EXERCISES)


@pytest.mark.parametrize("name, mistake", [(name, mistake) for name, e in EXERCISES.items() for mistake in e.mistakes])
def test_a_common_mistake_is_named(name, mistake, capsys):
    assert printed(capsys, EXERCISES[name].mistakes[mistake], name) == f"not yet: {mistake}\n"


@pytest.mark.parametrize("function, match", [
    (lambda *_: None, "the result of fold is None, expected 2 results"),
    (lambda *inputs: (EXERCISES["fold"].solution(*inputs)[0], None), "result 2 of fold is None, expected a"),
    (lambda *_: (torch.ones(5, 4), torch.ones(4)), "result 1 of fold is a tensor of shape (5, 4), expected a"),
    (lambda *_: (torch.ones(4, 5), torch.ones(4)), "result 1 of fold has the right shape, but wrong values"),
    (lambda *_: "W", "the result of fold is a str, expected 2 results"),
    (lambda Ms, Ws, Us, bs: Ms[0] @ Us[0], "fold raised RuntimeError: "),
    (lambda *_: [torch.ones(4, 5)], "the result of fold is a list of length 1, expected 2 results"),
    (lambda Ms, Ws, Us, bs: Ms.clear(), "the result of fold is None"),
])
def test_a_wrong_result_is_described(function, match, capsys):
    message = printed(capsys, function, "fold")
    assert message.startswith("not yet: ") and match in message


def test_a_function_of_another_name():
    with pytest.raises(ValueError, match="'folded'; the exercises are joint_accuracy, "):
        printed(None, lambda: None, "folded")


def test_a_claim_is_printed_with_a_mark(capsys):
    lessons.check("two is more than one", 2 > 1)
    lessons.check("one is more than two", torch.tensor(1) > 2)
    assert capsys.readouterr().out == "✓ two is more than one\n✗ one is more than two\n"
