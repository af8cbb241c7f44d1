"""Plain MLPs: W*_l = M_l blockdiag(W_l^1, ..., W_l^k) U_{l-1}. The first layer reads the input, the same for all."""
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..engine.modules import activation, describe_activation
from .graph import Architecture, Graph, Layer, Space


class MLP(nn.Module):
    """Linear layers of these widths (inputs, hidden, ..., features), each followed by an activation.

    Raises ValueError for fewer than two sizes. `act_layer` is a class or a partial of one.
    """

    def __init__(self, sizes: Sequence[int], act_layer: type[nn.Module] = nn.GELU):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs at least an input and one layer, got sizes {tuple(sizes)}")
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) flattened to (B, inputs); gives (B, features)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.act(layer(x))
        return x


class MLPs(Architecture):
    """The architecture of an `MLP`: one space a layer; layer l reads what layer l - 1 wrote."""

    kind, model = "mlp", MLP

    def describe(self, model: MLP) -> dict:
        sizes = [model.layers[0].in_features, *(layer.out_features for layer in model.layers)]
        return {"kind": "mlp", "depth": len(model.layers), "inputs": sizes[0], "sizes": sizes,
                **describe_activation(model.act)}

    def build(self, config: dict) -> MLP:
        return MLP(config["sizes"], activation(config))

    def graph(self, model: MLP) -> Graph:
        names = [f"layers.{i}" for i in range(len(model.layers))]
        written = [*names[:-1], "features"]  # the space that each layer writes
        readers = [*names[1:], ""]           # and where it is seen: at the next layer, or at the output
        spaces = {space: Space(space, "hidden", layer.out_features, seen=(reader,))
                  for space, layer, reader in zip(written, model.layers, readers)}
        layers = tuple(Layer(name, reads, (writes,)) for name, reads, writes in zip(names, [None, *written], written))
        return Graph(spaces, layers, (), "features", dict(enumerate(names[1:], 1)))

    def input_shape(self, model: MLP) -> tuple[int, ...]:
        return (model.layers[0].in_features,)
