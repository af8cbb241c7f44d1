"""The graph of spaces: all that the method knows of an architecture.

An architecture says once which *spaces* its channels form, which *layers* read and write them, and which *vectors*
(norms, tokens) live in them. The SuperNet, the fitted start, the alignment and RegMean read nothing else. A parameter
that the graph does not name is an error.

An architecture is one file with one subclass of `Architecture`. `vit.py` and `mlp.py` are there. A text encoder such as
BERT needs nothing more:

- *Token ids.* `check_inputs` asks for integers, and `to_device` moves a batch without turning it into floats. The word
  table is a layer that reads None, as the patch embedding is: y* = sum_i M_i E_i[ids]. `layers` gets one kind for it.
- *Attention mask.* A batch is one tensor (B, 2, T), ids and mask. `features` unpacks it for the model's own forward.
- *Separate q, k, v.* Three layers read the residual stream. Query and key write the space "qk", value writes "v", and
  both are of one `group`, so that their heads stay in one order.
- *Norms on the stream.* Their role is "on_stream". They do not fold, so that the merged model owns them as it owns all
  norms. The fitted start, which gives every original channels of its own, refuses them by name.
- *Positions and types* are vectors of role "token". They go through the M of the first layer, like ViT's.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import timm.layers
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Space:
    """A set of channels that only make sense together."""

    name: str  # such as "features" or "blocks.0.hidden"
    kind: str  # "residual" (many layers write to it), "heads" (inside attention), "hidden" (from one layer to the next)
    size: int  # number of channels, >= 1
    heads: int = 1  # number of equal parts, one for each head of attention
    group: str = ""  # spaces of one group have their heads in one order
    seen: tuple[str, ...] = ()  # modules whose input holds the space; "" stands for the output of the model

    @property
    def unit(self) -> int:
        """Channels of one head."""
        return self.size // self.heads

    def match(self, other: "Space") -> tuple[Tensor, Tensor]:
        """Which channels of the two, (n,) and (n,), stand for each other: unit j of head h for unit j of head h.

        What does not fit into both is left out.
        """
        head = torch.arange(min(self.heads, other.heads))[:, None]
        unit = torch.arange(min(self.unit, other.unit))
        return (head * self.unit + unit).flatten(), (head * other.unit + unit).flatten()


@dataclass(frozen=True)
class Layer:
    """A linear layer that is merged: its module, the space it reads and the spaces its rows write, in their order.

    A layer that reads None reads the input of the model itself and has no U. All spaces of `writes` are of one size.
    Its kind is one of `layers.KINDS`: "linear" or "conv2d".
    """

    name: str
    reads: str | None
    writes: tuple[str, ...]
    kind: str = "linear"


@dataclass(frozen=True)
class Vector:
    """Any other parameter, whose last axis lies in a space.

    Its role says what it does there: "norm" (a norm through which the space is read), "on_stream" (a norm whose output
    is the space), "per_head" (a norm that all heads share), "scale" (one factor a channel, absorbed into the layers
    before a merge) or "token" (is added to the space or stands in it, and goes through the first layer's M).
    """

    name: str
    space: str
    role: str

    @property
    def module(self) -> str:
        """The module that owns it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Graph:
    """Spaces, layers and vectors of one model."""

    spaces: dict[str, Space]
    layers: tuple[Layer, ...]  # in the order of the forward
    vectors: tuple[Vector, ...]
    output: str  # the space of the features
    readouts: dict[int, str] = field(default_factory=dict)  # depth d -> the layer that reads what d blocks give

    @property
    def residual(self) -> Space | None:
        """The residual stream, where there is one."""
        return next((space for space in self.spaces.values() if space.kind == "residual"), None)

    @property
    def norms(self) -> list[Vector]:
        """The norms, which do not fold."""
        return [vector for vector in self.vectors if vector.role in ("norm", "on_stream", "per_head")]

    @property
    def tokens(self) -> list[Vector]:
        """The tensors that go through the first layer's M."""
        return [vector for vector in self.vectors if vector.role == "token"]

    @property
    def narrowest(self) -> int:
        """The smallest width that limits the rank: the residual stream's, or without one the narrowest space's."""
        return self.residual.size if self.residual else min(space.size for space in self.spaces.values())

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        return next(layer for layer in self.layers if layer.name == name)

    def reader(self, space: str) -> Layer | None:
        """The first layer that reads a space; None where only the output of the model does."""
        return next((layer for layer in self.layers if layer.reads == space), None)

    def checked(self, model: nn.Module) -> "Graph":
        """This graph. Raises ValueError for a parameter of the model that is neither in a layer nor a vector."""
        known = {f"{layer.name}.{part}" for layer in self.layers for part in ("weight", "bias")}
        known |= {vector.name for vector in self.vectors}
        for name, _ in model.named_parameters():
            if name not in known:
                raise ValueError(f"this {type(model).__name__} has a parameter {name} that the graph of its "
                                 "architecture does not name; a merge would leave it out")
        return self


class Architecture:
    """All that the method asks of an architecture; the defaults are for one without pictures, scales and classifier."""

    kind: str  # how a description names it
    model: type[nn.Module]  # the class itself; subclasses are not it

    def describe(self, model: nn.Module) -> dict:
        """The architecture as a dict of plain values. Raises ValueError for a variant that is not supported."""
        raise NotImplementedError

    def build(self, config: dict) -> nn.Module:
        """A fresh model from a description."""
        raise NotImplementedError

    def graph(self, model: nn.Module) -> Graph:
        """Spaces, layers and vectors of a model."""
        raise NotImplementedError

    def check_inputs(self, model: nn.Module, x: Tensor) -> None:
        """Raises TypeError or ValueError for a batch that the model does not read."""
        raise NotImplementedError

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """The features (B, d) of a batch."""
        return model(x)

    def take_classifier(self, model: nn.Module) -> nn.Module | None:
        """Take the classifier off a model, and give it; None where there is none."""
        return None

    def absorb_scales(self, model: nn.Module) -> nn.Module:
        """The same function with all vectors of role "scale" at one."""
        return model

    def absorb_normalization(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """The same function of pictures in [-1, 1] instead of (picture - mean) / std with pictures in [0, 1]."""
        raise ValueError(f"mean and std are for models that read pictures, not for {type(model).__name__}; "
                         "normalise its inputs before they are given to it")

    def resized(self, model: nn.Module, into: nn.Module) -> nn.Module:
        """Weights that compute the same function in a model of other widths, with their channels at `Space.match`."""
        return model


def layer_class(name: str, *homes: object) -> type[nn.Module]:
    """A norm or activation class by its name, from the first of these modules that has one, else ValueError."""
    layer = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"no layer {name!r} in timm.layers or torch.nn")
    return layer


def norm(config: dict) -> Callable[[int], nn.Module]:
    """What makes the norm that a description names; timm's classes come first."""
    return partial(layer_class(config["norm_layer"], timm.layers, nn), eps=config["norm_eps"])


def describe_activation(act: nn.Module) -> dict:
    """The class of an activation and its options, such as GELU's approximate="tanh"."""
    options = {name: getattr(act, name) for name in getattr(act, "__constants__", ())}
    return {"act_layer": type(act).__name__, "act_options": options}


def activation(config: dict) -> Callable[[], nn.Module]:
    """What makes the activation that `describe_activation` wrote down; torch's classes come first."""
    return partial(layer_class(config.get("act_layer", "GELU"), nn, timm.layers), **config.get("act_options", {}))


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
