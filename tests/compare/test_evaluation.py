"""Accuracies against a count by hand, paths against closed forms."""
import math

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import mlps, pictures, vits
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.bench import figures as plots


def task(name, x, y, classes=2):
    return fsm.Task(name, tuple("abcd"[:classes]), lambda n, g, split: (x[:n], y[:n]), test_size=len(x))


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


# ---------------------------------------------------------------- paths

class Square(nn.Module):
    """Logits (w^2, 0) for every image: the loss of label 0 is log(1 + exp(-w^2))."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return torch.stack([self.w ** 2, 0 * self.w]).expand(len(x), 2)


ZERO = task("zero", torch.zeros(4, 1), torch.tensor([0, 0, 0, 0]))


def pair() -> tuple[list[fsm.Original], list[fsm.Task]]:
    generator = torch.Generator().manual_seed(1)
    originals, tasks = [], []
    for i, vit in enumerate(vits([8, 8])):
        head, x = nn.Linear(8, 3 + i).double(), pictures(10 + i)
        labels = torch.randint(3, (10 + i,), generator=generator)
        originals.append(fsm.Original(vit, head))
        tasks.append(task("same name", x, labels, 3 + i))
    return originals, tasks


def test_a_path_by_hand():
    path = fsm.path(Square(-2.0), Square(2.0), [ZERO], steps=5)
    assert path.t == [0, 0.25, 0.5, 0.75, 1]
    by_hand = [math.log(1 + math.exp(-w * w)) for w in (-2, -1, 0, 1, 2)]
    assert path.loss == path.losses["zero"] == pytest.approx(by_hand, rel=1e-5)
    assert path.barrier == pytest.approx(math.log(2) - by_hand[0], rel=1e-5)
    assert path.accuracies == {"zero": [100.0] * 5}
    # Between unequal ends the barrier is what rises above the straight line between them: here nothing.
    path = fsm.path(Square(2.0), Square(0.0), [ZERO], steps=3)
    assert path.chord == pytest.approx([by_hand[4], (by_hand[4] + by_hand[2]) / 2, by_hand[2]], rel=1e-5)
    assert path.barrier == 0
    assert "barrier 0." in repr(path) and "3 steps" in repr(path)


def test_a_path_has_the_models_at_its_ends_and_their_average_between():
    originals, tasks = pair()
    ends = [fsm.alone(originals, i) for i in (0, 1)]
    before = [p.clone() for p in ends[0].state_dict().values()]
    path = fsm.path(*ends, tasks, steps=3)
    assert list(path.losses) == list(path.accuracies) == ["same name", "same name'"]
    for j, model in enumerate([ends[0], fsm.average(originals), ends[1]]):
        scores = fsm.evaluate(model, tasks)
        for i, (name, each) in enumerate(zip(path.losses, tasks)):
            x, labels = each.test()
            assert path.losses[name][j] == pytest.approx(F.cross_entropy(model(x)[i], labels).item(), rel=1e-5)
            assert path.accuracies[name][j] == scores.per_task[name]
        assert path.loss[j] == pytest.approx(sum(losses[j] for losses in path.losses.values()) / 2)
    assert all(torch.equal(p, q) for p, q in zip(before, ends[0].state_dict().values()))  # the ends stay as they are


def test_a_path_goes_through_output_matrices():
    originals, tasks = pair()
    start, end = fsm.alone(originals, 0), fsm.alone(originals, 0)
    for output in end.outputs:
        output.data *= -1
    path = fsm.path(start, end, tasks, steps=3)  # half way the heads read zeros
    for i, (name, each) in enumerate(zip(path.losses, tasks)):
        labels = each.test()[1]
        bias = originals[i].head.bias.float()
        assert path.losses[name][1] == pytest.approx(F.cross_entropy(bias.expand(len(labels), -1), labels).item(), 1e-5)


def test_a_path_to_itself_is_flat():
    originals, tasks = pair()
    path = fsm.path(fsm.alone(originals, 1), fsm.alone(originals, 1), tasks, steps=4, limit=5)
    assert path.loss == pytest.approx([path.loss[0]] * 4) and path.barrier == pytest.approx(0, abs=1e-12)


def test_paths_draw_themselves():
    path = fsm.path(Square(-2.0), Square(2.0), [ZERO], steps=5)
    ax = plots.path({"over the hill": path, "again": path})
    line, chord = ax.get_lines()[:2]
    assert line.get_xdata().tolist() == path.t and line.get_ydata().tolist() == path.loss
    assert chord.get_ydata().tolist() == path.chord
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        f"{name}, barrier {path.barrier:.2f}" for name in ("over the hill", "again")]


def test_no_path():
    with pytest.raises(ValueError, match="steps must be a whole number >= 2, got 1"):
        fsm.path(Square(0.0), Square(1.0), [ZERO], steps=1)
    with pytest.raises(ValueError, match=r"differ in layers.0.weight \(6 tensors"):
        fsm.path(*mlps([4, 5]), [ZERO])
    with pytest.raises(ValueError, match="differ in w"):
        fsm.path(Square(0.0), mlps([4])[0], [ZERO])
    with pytest.raises(ValueError, match="1 heads, but 2 tasks"):
        fsm.path(Square(0.0), Square(1.0), [ZERO, ZERO])
    with pytest.raises(ValueError, match="needs a task for every head"):
        fsm.path(Square(0.0), Square(1.0), [])
