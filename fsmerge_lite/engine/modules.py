"""A plain MLP, and what modules are as plain values and made of them again."""
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import timm.layers
from torch import Tensor, nn

from . import given


class MLP(nn.Module):
    """Linear layers of these widths (inputs, hidden, ..., features), each followed by an activation.

    Raises ValueError for fewer than two sizes. `act_layer` is a class or a partial of one.
    """

    def __init__(self, sizes: Sequence[int], act_layer: type[nn.Module] = nn.GELU):
        super().__init__()
        if len(given.several("sizes", sizes)) < 2:
            raise ValueError(f"an MLP needs at least an input and one layer, got sizes {tuple(sizes)}")
        given.whole(1, **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        if not callable(act_layer) or isinstance(act_layer, nn.Module):
            raise TypeError(f"act_layer must be a class, such as torch.nn.GELU, got {act_layer!r}")
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.act, self.num_features = act_layer(), sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) flattened to (B, inputs); gives (B, features)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.act(layer(x))
        return x


def layer_class(name: str, *homes: object) -> type[nn.Module]:
    """A norm or activation class by its name, from the first of these modules that has one, else ValueError."""
    layer = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"no layer {name!r} in timm.layers or torch.nn")
    return layer


def norm(config: dict) -> Callable[[int], nn.Module]:
    """What makes the norm that a description names; timm's classes come first."""
    return partial(layer_class(config["norm_layer"], timm.layers, nn), eps=config["norm_eps"])


def mlp_ratio(hidden: int, dim: int) -> float:
    """hidden / dim, such that int(dim * ratio), which timm computes, is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def describe_activation(act: nn.Module) -> dict:
    """The class of an activation and its options, such as GELU's approximate="tanh"."""
    options = {name: getattr(act, name) for name in getattr(act, "__constants__", ())}
    return {"act_layer": type(act).__name__, "act_options": options}


def activation(config: dict) -> Callable[[], nn.Module]:
    """What makes the activation that `describe_activation` wrote down; torch's classes come first."""
    return partial(layer_class(config.get("act_layer", "GELU"), nn, timm.layers), **config.get("act_options", {}))


def outline(model: nn.Module) -> Iterator[tuple[str, object]]:
    """What must be equal in two models of one description: classes, shapes, and options that are plain values."""
    # The function does not depend on these, or only on what became of them.
    changing = ("training", "num_classes", "grad_checkpointing", "fused_attn", "init_values")
    for name, module in model.named_modules():
        if name.startswith("head") or ("drop" in name and name != "patch_drop"):
            continue
        yield name, type(module).__name__
        for option, value in sorted(vars(module).items()):
            if isinstance(value, bool | int | float | str | tuple) and option not in changing and option[0] != "_":
                yield f"{name}.{option}".lstrip("."), value
    yield from ((name, tuple(p.shape)) for name, p in model.named_parameters() if not name.startswith("head"))


def linear_shape(head: nn.Module) -> list[int] | None:
    """In and out features of a linear head, None for the identity. Raises ValueError for any other head."""
    if isinstance(head, nn.Identity):
        return None
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(f"only linear heads with a bias can be saved, got {head}")
    return [head.in_features, head.out_features]


def linear(shape: list[int] | None) -> nn.Module:
    """A head of that shape, all zero."""
    head = nn.Identity() if shape is None else nn.utils.skip_init(nn.Linear, *shape)
    for p in head.parameters():
        nn.init.zeros_(p)
    return head
