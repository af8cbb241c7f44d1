"""How a reader's function is tested: against an independent solution, on several seeds, with words for mistakes."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Exercise:
    """How a reader's function is tested. One of `solution` and `judge` is given.

    Args:
        inputs: makes the arguments from a generator of random numbers. It is called anew for every seed.
        solution: an independent function with the correct result (a number, a tensor, or a list or tuple of them).
        mistakes: message to the reader -> a function that makes this common mistake.
        judge: for results without one right answer: maps the reader's result and the inputs to a message, or to None
            if it is right.
    """

    inputs: Callable[[torch.Generator], tuple]
    solution: Callable | None = None
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    judge: Callable[..., str | None] | None = None

    def problem(self, student: Callable, seed: int) -> str | None:
        """What is wrong with the reader's function on the inputs of a seed. None: nothing."""
        name = student.__name__
        try:
            result = student(*self._inputs(seed))
        except NotImplementedError:
            return f"{name} is not written yet"
        except Exception as error:
            return f"{name} raised {type(error).__name__}: {error}"
        if self.judge is not None:
            return f"{name} returned None" if result is None else self.judge(result, *self._inputs(seed))
        found = difference(result, self.solution(*self._inputs(seed)), name)
        return (found and self._named(result, seed, name)) or found

    def _inputs(self, seed: int) -> tuple:
        """Fresh inputs, which a function may modify."""
        return self.inputs(torch.Generator().manual_seed(seed))

    def _named(self, result: object, seed: int, name: str) -> str | None:
        """The message of the common mistake that gives this result."""
        for message, mistake in self.mistakes.items():
            if difference(result, mistake(*self._inputs(seed)), name) is None:
                return message
        return None


def difference(result: object, expected: object, name: str, number: int | None = None) -> str | None:
    """How the result of function `name`, or one of its results, differs from the expected one. None: equal."""
    what = f"the result of {name}" if number is None else f"result {number} of {name}"
    if isinstance(expected, tuple | list):
        if not isinstance(result, tuple | list) or len(result) != len(expected):
            return f"{what} is {_kind(result)}, expected {len(expected)} results"
        problems = (difference(*pair, name, i) for i, pair in enumerate(zip(result, expected), 1))
        return next((problem for problem in problems if problem), None)
    expected = torch.as_tensor(expected)
    if not isinstance(result, Tensor | float | int):
        return f"{what} is {_kind(result)}, expected {_kind(expected)}"
    result = torch.as_tensor(result).detach().to(expected.dtype)
    if result.shape != expected.shape:
        turned = ": did you multiply from the other side?" if result.shape == expected.shape[::-1] else ""
        return f"{what} is {_kind(result)}, expected {_kind(expected)}{turned}"
    if not torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
        return f"{what} has the right shape, but wrong values"
    return None


def _kind(thing: object) -> str:
    """What a result is, in a few words."""
    if thing is None:
        return "None"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of length {len(thing)}"
    if isinstance(thing, Tensor) and thing.dim():
        return f"a tensor of shape {tuple(thing.shape)}"
    return "one number" if isinstance(thing, Tensor | float | int) else f"a {type(thing).__name__}"
