"""The graph of spaces: all that the method knows of an architecture.

An architecture says once which *spaces* its channels form, which *layers* read and write them, and which *vectors*
(norms, tokens) live in them. The SuperNet, the fitted start, the alignment and RegMean read nothing else. A parameter
that the graph does not name is an error. An architecture is one file with one subclass of `Architecture`.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..engine import given

Segment = Callable[[Tensor, Tensor | None], Tensor]  # of what it reads, and of which tokens count, (B, T), or None


@dataclass(frozen=True)
class Space:
    """A set of channels that only make sense together.

    Spaces of different widths match by head and unit. For a wider model to compute what a narrower one does, its
    channels must be (unit* / unit)^growth times as large.

    - A wider stream holds x* = c (x - mean x), c = (d* / d)^(1/2), and zeros. x* has mean 0 and the variance of x, so
      that a LayerNorm of it gives c LN(x); the norm's weight takes c back. LayerNorm ignores the mean of x.
    - Attention divides q k by unit^(1/2). So q and k both get the factor (unit* / unit)^(1/4).

    It is only a start where the stream is narrower, passes through a norm itself, or is read without a norm or by its
    maximum, and for wider norms inside attention and MLP.
    """

    name: str  # such as "features" or "blocks.0.hidden"
    kind: str  # "residual" (many layers write to it), "heads" (inside attention), "hidden" (from one layer to the next)
    size: int  # number of channels, >= 1
    heads: int = 1  # number of equal parts, one for each head of attention
    group: str = ""  # spaces of one group have their heads in one order
    seen: tuple[str, ...] = ()  # modules whose input holds the space; "" stands for the output of the model
    growth: float = 0.0
    centered: bool = False  # whether the norms that read it ignore its mean

    @property
    def unit(self) -> int:
        """Channels of one head."""
        return self.size // self.heads

    def match(self, other: "Space") -> tuple[Tensor, Tensor]:
        """Which channels of the two, (n,) and (n,), stand for each other; what does not fit into both is left out."""
        head = torch.arange(min(self.heads, other.heads))[:, None]
        unit = torch.arange(min(self.unit, other.unit))
        return (head * self.unit + unit).flatten(), (head * other.unit + unit).flatten()

    def resized(self, x: Tensor, own: "Space", dim: int) -> Tensor:
        """What is written to a space `own` of another width, along `dim`, as it is to be written to this one."""
        ratio = self.unit / own.unit
        if self.kind == "residual" and ratio <= 1:
            return x
        return ratio ** self.growth * (x - x.mean(dim, keepdim=True) if self.centered else x)


@dataclass(frozen=True)
class Layer:
    """A linear layer that is merged: its module, the space it reads and the spaces its rows write, in their order."""

    name: str
    reads: str | None  # None: it reads the input of the model itself, and has no U
    writes: tuple[str, ...]  # all of one size
    kind: str = "linear"  # one of `layers.KINDS`
    adds_to: str | None = None  # the module that reads the residual stream before this layer's output is added to it
    norm: str | None = None  # in a post-norm model: the norm that the stream passes through next

    @property
    def axis(self) -> int:
        """The axis of the weight along which it writes: a table of embeddings (V, o) has it last."""
        return 1 if self.kind == "embedding" else 0


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

    def read_of(self, name: str) -> Space:
        """The space of that name. If no layer reads it, the one of its group that is read: for queries, the values."""
        space, read = self.spaces[name], {layer.reads for layer in self.layers}
        if name in read or not space.group:
            return space
        return next(other for other in self.spaces.values() if other.name in read and other.group == space.group)

    @property
    def post_norm(self) -> bool:
        """Whether the stream itself passes through a norm after each layer that writes to it."""
        return any(layer.norm for layer in self.layers)

    @property
    def norms(self) -> list[Vector]:
        """The norms, which do not fold."""
        return [vector for vector in self.vectors if vector.role in ("norm", "on_stream", "per_head")]

    @property
    def tokens(self) -> list[Vector]:
        """The tensors that go through the first layer's M."""
        return [vector for vector in self.vectors if vector.role == "token"]


class Architecture:
    """All that the method asks of an architecture.

    A subclass has `kind`, the name of its descriptions; `model`, the exact class; and the methods describe(model), a
    dict of plain values, or ValueError for an unsupported variant; build(config), a fresh model from it; graph(model),
    its `Graph`; input_shape(model), that of one input; segments(model), the parts of its forward in their order,
    functions of what they read and of what `counted` gives, under the prefix of their layers' names. The others have
    defaults, for models without pictures, padding or scales.
    """

    def owns(self, model: nn.Module) -> bool:
        """Whether a model is of this architecture."""
        return type(model) is self.model

    def check_inputs(self, model: nn.Module, x: Tensor) -> None:
        """Raises TypeError or ValueError for a batch that the model does not read."""
        given.batch(x, next(model.parameters()).dtype, self.input_shape(model))

    def counted(self, model: nn.Module, x: Tensor) -> Tensor | None:
        """Which tokens of a batch are no padding, (B, T); None: all."""
        return None

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        """The features (B, d) of a batch."""
        return model(x)

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """The features (B, d) of a batch, which is checked."""
        self.check_inputs(model, x)
        return self.run(model, x)

    def absorb_scales(self, model: nn.Module) -> nn.Module:
        """The same function with all vectors of role "scale" at one."""
        return model

    def absorb_normalization(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Let a model of (picture - mean) / std, with pictures in [0, 1], read pictures in [-1, 1] instead."""
        raise ValueError(f"mean and std are for models that read pictures, not for {type(model).__name__}; "
                         "normalize its inputs before they are given to it")
