"""What a caller gives is refused by its name, with what is expected, unless it fits."""
import sys
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn


def whole(least: int = 0, most: int | None = None, **numbers: object) -> None:
    """Refuse what is no whole number in a range. True, 2.0 and "2" are none."""
    expected = f">= {least}" if most is None else f"from {least} to {most}"
    for name, number in numbers.items():
        right = isinstance(number, Integral) and not isinstance(number, bool) and number >= least
        if not right or (most is not None and number > most):
            raise ValueError(f"{name} must be a whole number {expected}, got {number!r}")


def number(most: float = sys.float_info.max, above: bool = False, **numbers: object) -> None:
    """Refuse what is no number from 0 to `most`, or `above` 0: NaN, a text, True; without `most`, infinity too."""
    expected = ("> 0" if above else ">= 0") if most >= sys.float_info.max else f"from 0 to {most:g}"
    for name, each in numbers.items():
        right = isinstance(each, Real) and not isinstance(each, bool) and 0 <= each <= most
        if not right or (above and each == 0):
            raise ValueError(f"{name} must be a number {expected}, got {each!r}")


def multiple(**pair: object) -> None:
    """Refuse two that are no whole numbers >= 1, or of which the second does not divide the first."""
    whole(1, **pair)
    (name, number), (part, size) = pair.items()
    if number % size:
        raise ValueError(f"{name} must be a multiple of {part}, got {number} and {size}")


def together(**pair: object) -> None:
    """Refuse one of two without the other."""
    if len({each is None for each in pair.values()}) > 1:
        shown = ", ".join(f"{name}={each}" for name, each in pair.items())
        raise ValueError(f"give {' and '.join(pair)}, or neither; got {shown}")


def choice(known: Collection[str], **names: object) -> None:
    """Refuse what is none of the known names."""
    for name, each in names.items():
        if each not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {each!r}")


def several(name: str, things: object) -> list:
    """Things as a list. Refuses a single one and a text."""
    if isinstance(things, str | bytes) or not isinstance(things, Iterable):
        shown = repr(things) if isinstance(things, str | Real) else type(things).__name__
        raise TypeError(f"{name} must be a list, got {shown}")
    return list(things)


def distinct(name: str, things: object) -> list:
    """Things as a list. Refuses what `several` does, and one of them twice."""
    things = several(name, things)
    if any(things.count(each) > 1 for each in things):
        raise ValueError(f"{name} must be a list without repetitions, got {things}")
    return things


def shares(heads: Sequence[float] | None, k: int) -> None:
    """Refuse what is neither None nor one share > 0 for each of k originals."""
    if heads is None:
        return
    try:
        number(above=True, **dict(zip(map(str, range(k)), several("heads", heads), strict=True)))
    except (ValueError, TypeError):
        raise ValueError(f"heads must be {k} shares > 0, one for each original, got {heads!r}") from None


def batch(x: object, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is no batch of this dtype and of inputs of this shape, or flattened."""
    if not isinstance(x, Tensor) or x.dtype != dtype:
        found = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"the model computes in {dtype}, got {found}; convert the inputs (pictures to [-1, 1])")
    if x.dim() < 2 or shape not in (x.shape[1:], (x.shape[1:].numel(),)):
        raise ValueError(f"the model reads inputs (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def token_ids(x: object, vocab_size: int, max_length: int, pad: int) -> None:
    """Refuse what is no batch of token ids (B, T) of this vocabulary, with a first token that is no padding."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.dim() != 2:
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"the model reads token ids (B, T) in torch.int64, with {pad} for padding, got {found}")
    if not 1 <= x.shape[1] <= max_length:
        raise ValueError(f"the model reads 1 to {max_length} tokens, got {x.shape[1]}")
    if x.numel() and not (x.min() >= 0 and x.max() < vocab_size):
        raise ValueError(f"token ids must be from 0 to {vocab_size - 1}, got {x.min()} to {x.max()}; are they of "
                         "another vocabulary?")
    if (x[:, 0] == pad).any():
        raise ValueError(f"{(x[:, 0] == pad).sum()} of the texts begin with padding, {pad}; padding comes last, and a "
                         "text has one token or more")


def task(each: object, name: object = "") -> None:
    """Refuse what is neither None nor a task, which has a name and test images; and a name that is no text."""
    text(name=name)
    if each is not None and not (hasattr(each, "name") and hasattr(each, "test")):
        raise TypeError(f"task must be a Task, such as task('digits') or folder_task(...), got {each!r}")


def text(**texts: object) -> None:
    """Refuse what is no text."""
    for name, each in texts.items():
        if not isinstance(each, str):
            raise TypeError(f"{name} must be a text, got {each!r}")


def head(module: object, backbone: nn.Module) -> None:
    """Refuse what cannot stand after a backbone, on its device and in its dtype."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"the head must be a torch module, got {type(module).__name__}; None takes the model's own")
    like, size = next(backbone.parameters()), getattr(backbone, "num_features", None)
    if isinstance(module, nn.Linear) and size not in (None, module.in_features):
        raise ValueError(f"the head reads {module.in_features} features, but the backbone gives {size}")
    for name, p in module.named_parameters():
        usable(p, like, f"{name} of the head", "the backbone")


def usable(p: Tensor, like: Tensor, name: str, other: str) -> None:
    """Refuse a weight that is not finite, or of another device or dtype than `like`, which belongs to the `other`."""
    if (p.device, p.dtype) != (like.device, like.dtype):
        raise ValueError(f"{name} is {p.dtype} on {p.device}, {other} is {like.dtype} on {like.device}; bring them to "
                         "one")
    finite(p, name)


def device(name: object) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(f"device must be one that torch has here, such as cpu, got {name!r}") from None


def in_eval_mode(model: nn.Module, name: str) -> None:
    """Refuse a model whose dropout would run."""
    if model.training:
        raise ValueError(f"{name} is in train mode; call .eval() on it first")


def usable_now(model: object, name: str) -> None:
    """Refuse a module in train mode, or on the meta device. What is no module passes."""
    if isinstance(model, nn.Module):
        in_eval_mode(model, name)
        for tensor in model.state_dict().values():
            on_a_device(tensor, name)


def at_rest(model: nn.Module, name: str) -> None:
    """Refuse train mode and forward hooks, which a merge would lose."""
    in_eval_mode(model, name)
    for place, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name} has a forward hook on {place or 'itself'}; remove it, a fold loses it")


def on_a_device(tensor: Tensor, name: str) -> None:
    """Refuse the meta device."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, without numbers; load its weights first")


def finite(tensor: Tensor, name: str) -> None:
    """Refuse a tensor with NaN or infinity in it, or on the meta device, where it has no numbers."""
    on_a_device(tensor, name)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
