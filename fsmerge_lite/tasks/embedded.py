"""The tasks that need no download, each as a `Task`.

Of pictures, made by `drawing`: real handwritten digits, and letters, shapes and textures that are drawn, ten classes
each. Of texts, in `texts`: in which language is this name, and what kind of thing has it?
"""
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..engine import given
from . import drawing
from .drawing import SIZE
from .task import Task, pick
from .texts import TEXTS, named_task

DIGITS_TEST = 500  # of the 1,797 real digits, held out for good


def _draw_digits(n: int, generator: torch.Generator, split: str, size: int) -> tuple[Tensor, Tensor]:
    images, labels = drawing.digits(size)
    start, stop = (0, DIGITS_TEST) if split == "test" else (DIGITS_TEST, len(labels))
    return pick(n, start, stop, generator, f"digits ({split})", lambda rows: (images[rows], labels[rows]))


def _draw_new(n: int, generator: torch.Generator, split: str, draw: Callable, size: int) -> tuple[Tensor, Tensor]:
    return draw(n, generator, size)


@functools.lru_cache(maxsize=32)
def _embedded(name: str, size: int) -> Task:
    if name == "digits":
        return Task(name, tuple("0123456789"), functools.partial(_draw_digits, size=size), size,
                    test_size=DIGITS_TEST, train_size=1797 - DIGITS_TEST)
    classes, draw = {"letters": (drawing.LETTERS, drawing.letters), "shapes": (drawing.SHAPES, drawing.shapes),
                     "textures": (tuple(drawing.TEXTURES), drawing.textures)}[name]
    return Task(name, classes, functools.partial(_draw_new, draw=draw, size=size), size)


EMBEDDED = {name: _embedded(name, SIZE) for name in ("digits", "letters", "shapes", "textures")}
KNOWN = (*EMBEDDED, *TEXTS)  # of pictures and of texts


def task(name: str, size: int = SIZE) -> Task:
    """The embedded task of that name.

    Of size x size pictures: digits, letters, shapes or textures. Of texts of `size` tokens: language or kind.

    Raises:
        ValueError: there is none of that name, or size < 8.
    """
    if name not in KNOWN:
        raise ValueError(f"no embedded task {name!r}; there are {', '.join(KNOWN)}, and folder_task, torchvision_task "
                         "or text_task for your own pictures and texts")
    given.whole(8, size=size)
    return named_task(name, size) if name in TEXTS else _embedded(name, size)
