"""Accuracies against a count by hand."""
import pytest
import torch

import fsmerge_lite as fsm


def task(name, x, y):
    return fsm.Task(name, ("a", "b"), lambda n, g, split: (x[:n], y[:n]), test_size=len(x))


# Two tasks of two classes; an image's values ARE the logits of the two heads, side by side.
ONE = task("one", torch.tensor([[3., 1, 0, 0], [0, 3, 1, 0], [1, 0, 5, 0]]), torch.tensor([0, 1, 0]))
TWO = task("two", torch.tensor([[0., 0, 2, 1], [9, 0, 0, 1], [0, 1, 2, 5]]), torch.tensor([1, 1, 1]))


def model(x):
    return [x[:, :2], x[:, 2:]]


def test_per_task_and_joint_by_hand():
    scores = fsm.evaluate(model, [ONE, TWO])
    assert scores.per_task == pytest.approx({"one": 100, "two": 200 / 3})  # within the right head: 3 of 3, 2 of 3
    assert scores.joint == pytest.approx(50)  # over all four classes: images 1 and 2 of task one, 3 of task two
    assert scores.mean == pytest.approx(250 / 3)


def test_one_model_one_task_and_limit():
    scores = fsm.evaluate(lambda x: x[:, :2], [ONE], limit=2)
    assert scores.per_task == {"one": 100.0} and scores.joint == 100.0


def test_tables():
    scores = fsm.evaluate(model, [ONE, TWO])
    table = fsm.Table({"FS-Merge": scores, "other": fsm.Scores({"one": 1.25}, 0.0)})
    lines = str(table).splitlines()
    assert lines[0].split() == ["one", "two", "mean", "joint"]
    assert lines[2].split() == ["FS-Merge", "100.0", "66.7", "83.3", "50.0"]
    assert len({len(line) for line in lines}) == 1
    assert "<td>FS-Merge</td><td>100.0</td>" in table._repr_html_() and "<th>joint</th>" in scores._repr_html_()
    assert "83.3" in str(scores)


def test_bad_arguments():
    with pytest.raises(ValueError, match="2 heads, but 1 tasks"):
        fsm.evaluate(model, [ONE])
    with pytest.raises(ValueError, match="needs a task for every head"):
        fsm.evaluate(model, [ONE, None])
    with pytest.raises(ValueError, match="needs a task"):
        fsm.evaluate(model, [])
