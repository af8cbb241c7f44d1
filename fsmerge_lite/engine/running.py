"""Running a model: what its modules read meanwhile, and where its inputs are."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class _AllSeen(Exception):
    """Every module has been seen, so that the rest of the forward need not run."""


@contextmanager
def watching(model: nn.Module, names: Iterable[str], watch: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Meanwhile, `watch(name, x)` is called with what a named module of `model` is about to read."""
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
             for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inputs_of(model: nn.Module, names: Iterable[str], run: Callable[[], Tensor], stop: bool = False
              ) -> dict[str | None, Tensor]:
    """What each of the named modules of `model` reads while `run` runs and, under None, what `run` returns.

    With `stop` it runs no further than needed, and then returns nothing.
    """
    seen, names = {}, set(names)

    def watch(name: str, x: Tensor) -> None:
        seen[name] = x
        if stop and len(seen) == len(names):
            raise _AllSeen
    try:
        with watching(model, names, watch):
            seen[None] = run()
    except _AllSeen:
        pass
    return seen


def to_device(x: Tensor, like: Tensor) -> Tensor:
    """A batch on the device of `like`. Floats get its dtype too, token ids stay integers."""
    return x.to(like.device, like.dtype if x.is_floating_point() else None)


def without_padding(x: Tensor, counted: Tensor | None) -> Tensor:
    """x (B, T, d) with zeros at tokens that do not count, (B, T). None: all count. Features (B, d) stay as they are."""
    return x if counted is None or x.dim() < 3 else x * counted[..., None]


def rows_of(x: Tensor, counted: Tensor | None) -> Tensor:
    """The rows (n, d) of x (B, ..., d), without those of tokens that do not count."""
    return x.flatten(0, -2) if counted is None or x.dim() < 3 else x[counted]
