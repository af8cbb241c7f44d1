"""Helpers of the lessons: checks of their claims, and tests of their exercises that say what is wrong."""
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from . import exercises
from .exercises.testing import SEEDS, Exercise


def check(claim: str, holds: bool) -> None:
    """Print ✓ or ✗ and the claim. nbval compares these lines instead of measured numbers."""
    print(f"{'✓' if holds else '✗'} {claim}")


def test(student: Callable) -> None:
    """Run the reader's function on small inputs of several seeds. Print that it is correct, or what is wrong with it.

    Args:
        student: the reader's function, with the name that the exercise asks for.

    Raises:
        ValueError: no exercise has this name.
    """
    name, known = student.__name__, all_exercises()
    if name not in known:
        raise ValueError(f"no exercise is called {name!r}; the exercises are {', '.join(known)}")
    for seed in SEEDS:
        if problem := known[name].problem(student, seed):
            print(f"not yet: {problem}")
            return
    print(f"correct: {name} returns the right result for {len(SEEDS)} seeds")


test.__test__ = False  # pytest must not collect it


@lru_cache(maxsize=1)
def all_exercises() -> dict[str, Exercise]:
    """The exercises of all lessons: name of the reader's function -> exercise."""
    found: dict[str, Exercise] = {}
    for module in pkgutil.iter_modules(exercises.__path__):
        found |= getattr(import_module(f"{exercises.__name__}.{module.name}"), "EXERCISES", {})
    return found
