"""Tasks: labeled pictures in [-1, 1], or texts as token ids, to train and to test on.

`embedded` has those that need no download, `pictures` and `texts` make tasks of your own.
"""
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine import given
from .drawing import SIZE

Draw = Callable[[int, torch.Generator, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A classification problem that pictures or texts can be drawn from.

    Args:
        name: what tables and figures call it.
        classes: the names of the classes; label c is `classes[c]`. None of them: the images have no labels.
        draw: `draw(n, generator, split)` gives images (n, C, H, W) in [-1, 1], or token ids (n, size), and labels (n,).
        size: H = W in pixels; the number of tokens of a text.
        test_size: how many held-out images `test()` gives.
        train_size: how many real training images there are; None where they are drawn without end.
        channels: C of the images; 0 for texts.
    """

    name: str
    classes: tuple[str, ...]
    draw: Draw
    size: int = SIZE
    test_size: int = 1000
    train_size: int | None = None
    channels: int = 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (C, H, W), or of one text, (size,)."""
        return (self.channels, self.size, self.size) if self.channels else (self.size,)

    def sample(self, n: int, seed: int = 0, split: str = "train") -> tuple[Tensor, Tensor]:
        """Draw `n` images (n, C, H, W) or texts (n, size) and their labels (n,); the same seed gives the same ones.

        Raises:
            ValueError: n < 1, an unknown split, or more real images asked for than there are.
        """
        given.whole(1, n=n)
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        # One stream for each task, split and seed: no test image is drawn for training.
        key = zlib.crc32(f"{self.name}/{split}/{seed}".encode())
        return self.draw(n, torch.Generator().manual_seed(key), split)

    def test(self) -> tuple[Tensor, Tensor]:
        """The held-out images (test_size, C, H, W) and labels: the same at every call, as copies of its own.

        Raises:
            ValueError: the task has none, as one of `unlabeled_task`.
        """
        if self.test_size < 1:
            raise ValueError(f"{self.name} has no labeled images to test on; it is for calibration alone, and "
                             "folder_task reads pictures with classes")
        images, labels = _test_set(self)
        return images.clone(), labels.clone()

    def __deepcopy__(self, memo: dict) -> "Task":
        """Nothing of a task changes, so that its pictures need not be copied along with a model."""
        return self

    def __repr__(self) -> str:
        kinds = {0: f"texts of {self.size} tokens", 1: f"{self.size} x {self.size}, grey"}
        inputs = kinds.get(self.channels, f"{self.size} x {self.size}")
        return f"Task({self.name!r}, {len(self.classes)} classes, {inputs})"


CACHE_BYTES = 2 ** 30  # of test images that are kept, over all tasks
_test_sets: dict[Task, tuple[Tensor, Tensor]] = {}  # the task that was asked for last stands last


def _test_set(task: Task) -> tuple[Tensor, Tensor]:
    """The test images of a task, kept in memory as long as there is room."""
    images, labels = _test_sets.pop(task, None) or task.sample(task.test_size, seed=0, split="test")
    _test_sets[task] = images, labels
    while len(_test_sets) > 1 and sum(images.nbytes for images, _ in _test_sets.values()) > CACHE_BYTES:
        del _test_sets[next(iter(_test_sets))]
    return images, labels


def pick(n: int, start: int, stop: int, generator: torch.Generator, what: str, get: Callable) -> tuple[Tensor, Tensor]:
    """n of the real images start..stop, none twice."""
    if n > stop - start:
        raise ValueError(f"{what} has {stop - start} images, {n} were asked for; ask for fewer")
    return get(start + torch.randperm(stop - start, generator=generator)[:n])
