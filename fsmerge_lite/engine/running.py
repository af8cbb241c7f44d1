"""Running a model: what its modules read meanwhile, and where its inputs are."""
from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn


class _AllSeen(Exception):
    """Every module has been seen, so that the rest of the forward need not run."""


def inputs_of(model: nn.Module, names: Iterable[str], run: Callable[[], object], stop: bool = False
              ) -> dict[str, Tensor]:
    """What each of the named modules of `model` reads while `run` runs; with `stop`, no further than needed."""
    seen, names = {}, set(names)

    def watch(_: nn.Module, args: tuple, name: str) -> None:
        seen[name] = args[0]
        if stop and len(seen) == len(names):
            raise _AllSeen
    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(watch, name=name)) for name in names]
    try:
        run()
    except _AllSeen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def to_device(x: Tensor, like: Tensor) -> Tensor:
    """A batch on the device of `like`. Floats get its dtype too, token ids stay integers."""
    return x.to(like.device, like.dtype if x.is_floating_point() else None)
