"""Plain MLPs: W*_l = M_l blockdiag(W_l^1, ..., W_l^k) U_{l-1}. The first layer reads the input, the same for all."""

from ..engine.modules import MLP, activation, describe_activation
from .graph import Architecture, Graph, Layer, Segment, Space


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

    def segments(self, model: MLP) -> dict[str, Segment]:
        return {f"layers.{i}": lambda x, _, layer=layer: model.act(layer(x.flatten(1)))
                for i, layer in enumerate(model.layers)}

    def input_shape(self, model: MLP) -> tuple[int, ...]:
        return (model.layers[0].in_features,)
