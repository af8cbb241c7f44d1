"""Accuracy by task and joint, as tables; loss and accuracy along a path between two models."""
import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import given
from ..engine.images import other_order, task_names
from ..engine.running import to_device


class Task(Protocol):
    """What is scored: labeled test images with a name."""

    name: str

    def test(self) -> tuple[Tensor, Tensor]:
        """Images (n, ...) and labels (n,): the same at every call."""


@dataclass(frozen=True, repr=False)
class Scores:
    """Accuracies in percent. `per_task`: the right head is given. `joint`: argmax over all heads, task unknown."""

    per_task: dict[str, float]
    joint: float

    @property
    def mean(self) -> float:
        """Mean of the per-task accuracies."""
        return sum(self.per_task.values()) / len(self.per_task)

    def row(self) -> dict[str, float]:
        return {**self.per_task, "mean": self.mean, "joint": self.joint}

    def __str__(self) -> str:
        return str(Table({"accuracy %": self}))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return Table({"accuracy %": self})._repr_html_()


class Table(dict):
    """Method -> `Scores`, printed as text in a terminal and as HTML in a notebook or report."""

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        columns = list(dict.fromkeys(name for scores in self.values() for name in scores.row()))
        rows = [[method, *(f"{s.row()[c]:.1f}" if c in s.row() else "" for c in columns)] for method, s in self.items()]
        return ["", *columns], rows

    def __str__(self) -> str:
        head, rows = self._cells()
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

        def line(cells: Sequence[str]) -> str:
            return "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))])
        return "\n".join([line(head), line(["-" * w for w in widths]), *map(line, rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, rows = self._cells()

        def line(cells: Sequence[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{c}</{kind}>" for c in cells) + "</tr>"
        return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor | list[Tensor]], images: Tensor, batch_size: int = 256) -> list[Tensor]:
    """The logits of every head for images (n, ...): a list of (n, classes_i) on the CPU."""
    like = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    batches = []
    for batch in images.split(batch_size):
        out = model(batch if like is None else to_device(batch, like))
        batches.append([out] if isinstance(out, Tensor) else out)
    return [torch.cat([batch[i] for batch in batches]).float().cpu() for i in range(len(batches[0]))]


def evaluate(model: Callable[[Tensor], Tensor | list[Tensor]], tasks: Sequence[Task],
             limit: int | None = None) -> Scores:
    """Per-task and joint test accuracy of whatever gives logits for each of k tasks.

    Joint: all heads' logits are put side by side and the largest wins, whichever task it belongs to.

    Args:
        model: maps images (B, C, H, W) to k logit tensors (B, classes_i), or to one tensor when k = 1.
        tasks: the k tasks, in the order of the heads.
        limit: use only the first so many test images of a task, >= 1.

    Raises:
        ValueError: not as many heads as tasks, a head with other than as many outputs as its task has classes, labels
            that a head has no output for, logits that are not finite, or tasks in another order than the model's.
    """
    names = _names(model, tasks, limit)
    right, joint_right, total = {}, 0, 0
    for i, name in enumerate(names):
        heads, labels = _test(model, tasks, i, limit)
        right[name] = _percent(heads[i], labels)
        offset = sum(head.shape[1] for head in heads[:i])
        joint_right += (torch.cat(heads, 1).argmax(1) == labels + offset).sum().item()
        total += len(labels)
    return Scores(right, 100 * joint_right / total)


def _test(model: Callable, tasks: Sequence[Task], i: int, limit: int | None) -> tuple[list[Tensor], Tensor]:
    """The logits of all heads for the test images of task i, and their labels."""
    images, labels = (part[:limit] for part in tasks[i].test())
    if not len(labels):
        raise ValueError(f"task {tasks[i].name} has no test images")
    heads = logits(model, images)
    if len(heads) != len(tasks):
        raise ValueError(f"the model has {len(heads)} heads, but {len(tasks)} tasks were given")
    broken = [j for j, head in enumerate(heads, 1) if not head.isfinite().all()]
    if broken:
        raise ValueError(f"the logits of head {broken[0]} for the images of {tasks[i].name} are not finite; look for "
                         "NaN, infinite or very large numbers in the weights and the images")
    _check_classes(tasks[i], i, heads[i].shape[1], labels)
    return heads, labels


def _check_classes(task: Task, i: int, outputs: int, labels: Tensor) -> None:
    """Refuse a task that head i has too few or too many outputs for."""
    classes = getattr(task, "classes", ())
    if classes and outputs != len(classes):
        raise ValueError(f"head {i + 1} has {outputs} outputs, but its task {task.name} has {len(classes)} classes; "
                         "give the tasks in the order of the heads, each the one that its head was trained on")
    if labels.min() < 0 or labels.max() >= outputs:
        raise ValueError(f"task {task.name} has labels from {labels.min()} to {labels.max()}, but head {i + 1} has "
                         f"outputs 0 to {outputs - 1}")


def _percent(head: Tensor, labels: Tensor) -> float:
    return 100 * (head.argmax(1) == labels).float().mean().item()


def _names(model: Callable, tasks: Sequence[Task], limit: int | None) -> list[str]:
    """What tables call the tasks, each name once."""
    if not callable(model):
        raise TypeError(f"a model is needed, which gives logits of images, got {model!r}; load_merged reads a file")
    for part in getattr(model, "originals", [model]):
        given.usable_now(getattr(part, "backbone", None), "the model")
    if limit is not None:  # None: all
        given.whole(1, limit=limit)
    tasks = given.several("tasks", tasks)
    if not tasks or any(task is None for task in tasks):
        raise ValueError("evaluate needs a task for every head; an Original made without task= has none")
    for task in tasks:
        given.task(task)
    named, own = [task.name for task in tasks], task_names(model)
    if other_order(named, own):
        raise ValueError(f"the tasks are {', '.join(named)}, but the model's heads are for {', '.join(own)}; both need "
                         "the same order")
    names: list[str] = []
    for task in tasks:
        names.append(_unique(task.name, names))
    return names


def _unique(name: str, taken: Collection[str]) -> str:
    return name if name not in taken else _unique(name + "'", taken)


# ---------------------------------------------------------------- along a path

@dataclass(frozen=True, repr=False)
class Path:
    """What a model does along the straight line W(t) = (1 - t) W(0) + t W(1), an entry for every t.

    `losses`: cross-entropy of the right head by task. `accuracies`: of the right head by task, in percent.
    """

    t: list[float]
    losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]

    @property
    def loss(self) -> list[float]:
        """L(t), the mean of the tasks' losses."""
        return torch.tensor(list(self.losses.values()), dtype=torch.float64).mean(0).tolist()

    @property
    def chord(self) -> list[float]:
        """(1 - t) L(0) + t L(1), the straight line between the losses of the two ends."""
        start, *_, end = self.loss
        return [(1 - t) * start + t * end for t in self.t]

    @property
    def barrier(self) -> float:
        """max_t L(t) - (1 - t) L(0) - t L(1), how far the loss rises above the line between its ends; >= 0."""
        return max(loss - line for loss, line in zip(self.loss, self.chord))

    def __repr__(self) -> str:
        return (f"Path({len(self.t)} steps, loss {self.loss[0]:.2f} -> {self.loss[-1]:.2f}, "
                f"highest {max(self.loss):.2f}, barrier {self.barrier:.2f})")


def path(start: nn.Module, end: nn.Module, tasks: Sequence[Task], steps: int = 11, limit: int | None = None) -> Path:
    """Test loss and accuracy along W(t) = (1 - t) W_start + t W_end, output matrices and heads included.

    Args:
        start, end: models with logits for each of k tasks and weights of equal names and shapes: two `Merged`
            (`alone` makes one of a single original), or two `Original` of one task.
        tasks: the k tasks, in the order of the heads.
        steps: how many t, evenly from 0 to 1, >= 2.
        limit: use only the first so many test images of a task, >= 1.

    Raises:
        ValueError: weights that do not fit together, steps < 2, or as for `evaluate`.
    """
    if not isinstance(start, nn.Module) or not isinstance(end, nn.Module):
        raise TypeError(f"a path needs two models, got {type(start).__name__} and {type(end).__name__}")
    given.whole(2, steps=steps)
    names, first, last = _names(start, tasks, limit), start.state_dict(), end.state_dict()
    unlike = [n for n in first | last if n not in first or n not in last or first[n].shape != last[n].shape]
    if unlike:
        raise ValueError(f"no straight line between models that differ in {unlike[0]} ({len(unlike)} tensors in all); "
                         "a path needs equal names and shapes, as two Merged of the same originals have")
    ts, model = [step / (steps - 1) for step in range(steps)], copy.deepcopy(start)
    losses, accuracies = {name: [] for name in names}, {name: [] for name in names}
    for t in ts:
        model.load_state_dict({name: p.lerp(last[name].to(p), t) for name, p in first.items()})
        for i, name in enumerate(names):
            heads, labels = _test(model, tasks, i, limit)
            losses[name].append(F.cross_entropy(heads[i], labels).item())
            accuracies[name].append(_percent(heads[i], labels))
    return Path(ts, losses, accuracies)
