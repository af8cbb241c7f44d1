"""What the assignments use: numbers that change with the class, comparisons that say what is wrong, a time limit.

Students install this file. It holds no solution and no hidden test; both come from `recipes/assignments`.
"""
import os
import random
import signal
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import nbformat
import torch
from otter.plugins import AbstractOtterPlugin
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..architectures.vit import vit
from ..models import Original
from ..tasks.embedded import task
from .exercises.testing import difference

Option = TypeVar("Option")


class Variant:
    """Sizes and data that follow from one number, so that the numbers of another class do not fit.

    Args:
        number: the class, for example its year.
    """

    def __init__(self, number: int):
        self.number = number

    def pick(self, name: str, options: Sequence[Option]) -> Option:
        """One of the options, the same for everyone in the class. Another name is another draw."""
        return random.Random(f"{self.number} {name}").choice(options)

    def generator(self, name: str) -> torch.Generator:
        """A generator of random numbers, which starts anew at each call."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.number} {name}".encode()))


def call(function: Callable | None, *arguments: object) -> object:
    """What a student's function returns.

    Raises:
        AssertionError: it is not there, raises an error, or returns nothing, in words for the student.
    """
    if not callable(function):
        raise AssertionError("the function is not there: run the cell that defines it")
    _start_time_anew()
    try:
        result = function(*arguments)
    except TimeoutError:
        raise
    except Exception as error:
        raise AssertionError(f"{function.__name__} raised {type(error).__name__}: {error}") from error
    if result is None or result is ...:
        raise AssertionError(f"{function.__name__} returned nothing: replace the three dots, and end with `return`")
    return result


def same(found: object, expected: object, what: str, mistakes: Mapping[str, object] | None = None) -> None:
    """Compare a student's result with the expected one: a number, a tensor, or several of them.

    Args:
        found: the student's result.
        expected: the right one. Tensors must have its dtype too.
        what: the name of the function or of the answer, for messages.
        mistakes: message -> what this common mistake gives.

    Raises:
        AssertionError: they differ, with what is wrong in words.
    """
    if found is None or found is ...:
        raise AssertionError(f"{what} is not there yet: replace the three dots")
    problem = difference(found, expected, what)
    if problem and what.startswith(("the ", "what ")):
        problem = problem.replace("the result of ", "", 1)
    named = [message for message, wrong in (mistakes or {}).items() if difference(found, wrong, what) is None]
    if problem:
        raise AssertionError(named[0] if named else problem)
    if isinstance(found, Tensor) and isinstance(expected, Tensor) and found.dtype != expected.dtype:
        raise AssertionError(f"{what} is {found.dtype}, expected {expected.dtype}, the dtype of what was given")


def shaped(found: object, shape: Sequence[int], what: str) -> None:
    """Raise AssertionError, in words for the student, unless `found` is a tensor of this shape."""
    found = torch.zeros(found.shape) if isinstance(found, Tensor) else found
    same(found, torch.zeros(*shape), what)


def largest(function: Callable | None, *arguments: object) -> tuple[object, int]:
    """What a student's function returns, as from `call`, and how many numbers the largest tensor has that it makes.

    The result and all that is made on the way count, what is given does not, nor what is expanded without memory.
    """
    with _Watch() as watch:
        result = call(function, *arguments)
    return result, watch.most


class _Watch(TorchDispatchMode):
    """Sees the result of every operation of torch."""

    most = 0

    def __torch_dispatch__(self, operation: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        result = operation(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor) and made.layout == torch.strided:
                held = made.untyped_storage().nbytes() // made.element_size()
                self.most = max(self.most, min(held, made.numel()))
        return result


@torch.no_grad()
def small_original(name: str, dim: int = 16, depth: int = 2, seed: int = 0) -> Original:
    """An original of a shipped task that is quick to merge: a small random ViT, and a head by least squares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, head, own = vit(dim, depth, 4).eval(), nn.Linear(dim, 10), task(name)
    images, labels = own.sample(200)
    rows = torch.cat([backbone(images), torch.ones(len(images), 1)], 1)
    weight = torch.linalg.lstsq(rows, torch.eye(10)[labels]).solution.T
    head.load_state_dict({"weight": weight[:, :-1], "bias": weight[:, -1]})
    return Original(backbone, head, name, own)


# ---------------------------------------------------------------- when the submission is graded

GRADED = "FSMERGE_GRADED"  # in the environment


def graded() -> bool:
    """Whether the notebook runs because it is graded. Cells that take minutes are left out then."""
    return GRADED in os.environ


class TimeLimit(AbstractOtterPlugin):
    """Otter's plugin that stops what takes too long, so that an endless loop costs its own question only.

    Its configuration has one entry, `seconds`: see `limit_time`. Each cell has this time, and within the tests of a
    question each call of a student's function.
    """

    def before_execution(self, submission: nbformat.NotebookNode) -> nbformat.NotebookNode:
        """Put a cell before all others."""
        seconds = float(self.plugin_config["seconds"])
        source = f"from fsmerge_lite.course.grading import limit_cells\nlimit_cells({seconds})"
        submission.cells.insert(0, nbformat.v4.new_code_cell(source))
        return submission


def limit_cells(seconds: float) -> None:
    """From the next cell on, each cell has so many seconds, see `limit_time`."""
    from IPython import get_ipython

    os.environ[GRADED], events = "1", get_ipython().events
    events.register("pre_run_cell", lambda info: limit_time(seconds))
    events.register("post_run_cell", lambda result: limit_time(0))


def limit_time(seconds: float) -> None:
    """Raise TimeoutError when this process has computed for so many seconds, or ten times as many have passed.

    It is raised again after as many more, so that code that catches it is stopped too. 0 means no limit. It works by
    signals, so not on Windows.
    """
    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds:g} seconds: is there a loop that never ends?")
    for clock, number, limit in ((signal.ITIMER_VIRTUAL, signal.SIGVTALRM, seconds),
                                 (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds)):
        signal.signal(number, stop)
        signal.setitimer(clock, limit, limit)


def _start_time_anew() -> None:
    """Give the next call the whole limit, if there is one."""
    if hasattr(signal, "setitimer"):
        for clock in (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
            limit = signal.getitimer(clock)[1]
            signal.setitimer(clock, limit, limit)
