"""Tasks: labeled pictures in [-1, 1] to train and to test on.

Four tasks need no download (`drawing` makes their pictures): real handwritten digits, and letters, shapes and
textures that are drawn. Each has ten classes of 3 x 32 x 32 pictures (or larger). `pictures` makes tasks of your own.
"""
import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine import given
from . import drawing
from .drawing import SIZE

Draw = Callable[[int, torch.Generator, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A classification problem that pictures can be drawn from.

    Args:
        name: what tables and figures call it.
        classes: the names of the classes; label c is `classes[c]`. None of them: the images have no labels.
        draw: `draw(n, generator, split)` gives images (n, C, H, W) in [-1, 1] and labels (n,).
        size: H = W in pixels.
        test_size: how many held-out images `test()` gives.
        train_size: how many real training images there are; None where they are drawn without end.
        channels: C of the images.
    """

    name: str
    classes: tuple[str, ...]
    draw: Draw
    size: int = SIZE
    test_size: int = 1000
    train_size: int | None = None
    channels: int = 3

    def sample(self, n: int, seed: int = 0, split: str = "train") -> tuple[Tensor, Tensor]:
        """Draw `n` images (n, C, H, W) and their labels (n,); the same seed gives the same ones.

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
        grey = ", grey" if self.channels == 1 else ""
        return f"Task({self.name!r}, {len(self.classes)} classes, {self.size} x {self.size}{grey})"


CACHE_BYTES = 2 ** 30  # of test images that are kept, over all tasks
_test_sets: dict[Task, tuple[Tensor, Tensor]] = {}  # the task that was asked for last stands last


def _test_set(task: Task) -> tuple[Tensor, Tensor]:
    """The test images of a task, kept in memory as long as there is room."""
    images, labels = _test_sets.pop(task, None) or task.sample(task.test_size, seed=0, split="test")
    _test_sets[task] = images, labels
    while len(_test_sets) > 1 and sum(images.nbytes for images, _ in _test_sets.values()) > CACHE_BYTES:
        del _test_sets[next(iter(_test_sets))]
    return images, labels


DIGITS_TEST = 500  # of the 1,797 real digits, held out for good


def _draw_digits(n: int, generator: torch.Generator, split: str, size: int) -> tuple[Tensor, Tensor]:
    images, labels = drawing.digits(size)
    start, stop = (0, DIGITS_TEST) if split == "test" else (DIGITS_TEST, len(labels))
    return pick(n, start, stop, generator, f"digits ({split})", lambda rows: (images[rows], labels[rows]))


def _draw_new(n: int, generator: torch.Generator, split: str, draw: Callable, size: int) -> tuple[Tensor, Tensor]:
    return draw(n, generator, size)


def pick(n: int, start: int, stop: int, generator: torch.Generator, what: str, get: Callable) -> tuple[Tensor, Tensor]:
    """n of the real images start..stop, none twice."""
    if n > stop - start:
        raise ValueError(f"{what} has {stop - start} images, {n} were asked for; ask for fewer")
    return get(start + torch.randperm(stop - start, generator=generator)[:n])


@functools.lru_cache(maxsize=32)
def _embedded(name: str, size: int) -> Task:
    if name == "digits":
        return Task(name, tuple("0123456789"), functools.partial(_draw_digits, size=size), size,
                    test_size=DIGITS_TEST, train_size=1797 - DIGITS_TEST)
    classes, draw = {"letters": (drawing.LETTERS, drawing.letters), "shapes": (drawing.SHAPES, drawing.shapes),
                     "textures": (tuple(drawing.TEXTURES), drawing.textures)}[name]
    return Task(name, classes, functools.partial(_draw_new, draw=draw, size=size), size)


EMBEDDED = {name: _embedded(name, SIZE) for name in ("digits", "letters", "shapes", "textures")}


def task(name: str, size: int = SIZE) -> Task:
    """The embedded task of that name, of size x size pictures: digits, letters, shapes or textures.

    Raises:
        ValueError: there is none of that name, or size < 8.
    """
    if name not in list(EMBEDDED):
        raise ValueError(f"no embedded task {name!r}; there are {', '.join(EMBEDDED)}, "
                         "and folder_task or torchvision_task for your own pictures")
    given.whole(8, size=size)
    return _embedded(name, size)
