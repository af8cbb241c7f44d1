"""Accuracy by task and joint, as tables."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .tasks import Task


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
        out = model(batch if like is None else batch.to(like.device, like.dtype))
        batches.append([out] if isinstance(out, Tensor) else out)
    return [torch.cat([batch[i] for batch in batches]).float().cpu() for i in range(len(batches[0]))]


def evaluate(model: Callable[[Tensor], Tensor | list[Tensor]], tasks: Sequence[Task],
             limit: int | None = None) -> Scores:
    """Per-task and joint test accuracy of whatever gives logits for each of k tasks.

    Joint: all heads' logits are put side by side and the largest wins, whichever task it belongs to.

    Args:
        model: maps images (B, C, H, W) to k logit tensors (B, classes_i), or to one tensor when k = 1.
        tasks: the k tasks, in the order of the heads.
        limit: use only the first so many test images of a task.

    Raises:
        ValueError: as many heads as tasks are needed.
    """
    if not tasks or any(task is None for task in tasks):
        raise ValueError("evaluate needs a task for every head; an Original made without task= has none")
    right, joint_right, total = {}, 0, 0
    for i, task in enumerate(tasks):
        images, labels = (part[:limit] for part in task.test())
        heads = logits(model, images)
        if len(heads) != len(tasks):
            raise ValueError(f"the model has {len(heads)} heads, but {len(tasks)} tasks were given")
        right[_unique(task.name, right)] = 100 * (heads[i].argmax(1) == labels).float().mean().item()
        offset = sum(head.shape[1] for head in heads[:i])
        joint_right += (torch.cat(heads, 1).argmax(1) == labels + offset).sum().item()
        total += len(labels)
    return Scores(right, 100 * joint_right / total)


def _unique(name: str, taken: Mapping[str, float]) -> str:
    return name if name not in taken else _unique(name + "'", taken)
