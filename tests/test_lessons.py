"""The tests of the exercises: hidden solutions pass, usual mistakes are named, nothing a reader gives breaks them."""
import re
from pathlib import Path

import nbformat
import pytest
import torch

from fsmerge_lite import lessons
from fsmerge_lite.lessons import EXERCISES

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.S)


def told(capsys, function, name: str) -> str:
    function.__name__ = name
    lessons.test(function)
    return capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_hidden_solution_solves_what_the_stub_does_not(path, capsys):
    cells = nbformat.read(path, as_version=4).cells
    solution, = SOLUTION.findall("\n".join(c.source for c in cells if c.cell_type == "markdown"))
    scope = {"torch": torch}
    exec(solution, scope)
    name, = scope.keys() & EXERCISES.keys()
    assert told(capsys, scope[name], name).startswith("correct: ")
    stub, = (c for c in cells if c.cell_type == "code" and f"lessons.test({name})" in c.source)
    assert stub.outputs[0].text.startswith("not yet: ")


def test_every_exercise_stands_in_one_lesson():
    used = [name for path in NOTEBOOKS for name in re.findall(r"lessons\.test\((\w+)\)", path.read_text())]
    assert sorted(used) == sorted(EXERCISES)


@pytest.mark.parametrize("name, mistake", [(name, told) for name, e in EXERCISES.items() for told in e.mistakes])
def test_a_usual_mistake_is_called_by_its_name(name, mistake, capsys):
    assert told(capsys, EXERCISES[name].mistakes[mistake], name) == f"not yet: {mistake}\n"


@pytest.mark.parametrize("given, match", [
    (lambda *_: None, "fold gave nothing, expected 2 things"),
    (lambda *inputs: (EXERCISES["fold"].solution(*inputs)[0], None), "number 2 of fold gave nothing, expected a"),
    (lambda *_: (torch.ones(5, 4), torch.ones(4)), "number 1 of fold gave a tensor of shape (5, 4), expected a"),
    (lambda *_: (torch.ones(4, 5), torch.ones(4)), "right shape, but other numbers"),
    (lambda *_: "W", "fold gave a str, expected 2 things"),
    (lambda Ms, Ws, Us, bs: Ms[0] @ Us[0], "fold raised RuntimeError: "),
    (lambda Ms, Ws, Us, bs: Ms.clear(), "fold gave nothing"),
])
def test_whatever_is_given_is_told_what_is_wrong_with_it(given, match, capsys):
    said = told(capsys, given, "fold")
    assert said.startswith("not yet: ") and match in said


def test_a_function_of_another_name():
    with pytest.raises(ValueError, match="'folded'; there are joint_accuracy, "):
        told(None, lambda: None, "folded")


def test_a_claim_is_printed_with_whether_it_holds(capsys):
    lessons.check("two is more than one", 2 > 1)
    lessons.check("one is more than two", torch.tensor(1) > 2)
    assert capsys.readouterr().out == "✓ two is more than one\n✗ one is more than two\n"
