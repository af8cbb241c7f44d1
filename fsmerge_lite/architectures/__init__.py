"""The architectures that can be merged, and what must be equal in two models of a merge."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..engine import given
from ..engine.running import inputs_of, without_padding
from .bert import Berts
from .graph import Architecture, Graph
from .mlp import MLPs
from .text import Texts
from .vit import ViTs

ARCHITECTURES: tuple[Architecture, ...] = (ViTs(), MLPs(), Texts(), Berts())
# Entries of a description that two models of a merge may have different: the widths, which M and U take care of.
WIDTHS = {"embed_dim", "num_heads", "mlp_ratio", "sizes",
          "hidden_size", "num_attention_heads", "intermediate_size"}


def architecture(model: nn.Module) -> Architecture:
    """The architecture of a model. Raises TypeError for one that is not known."""
    for known in ARCHITECTURES:
        if known.owns(model):
            return known
    parts = "; give its parts, Original(model.bert, model.classifier)" if hasattr(model, "bert") else ""
    raise TypeError("a backbone must be fsmerge_lite's MLP or TextEncoder, transformers' BertModel or timm's "
                    f"VisionTransformer, got {type(model).__name__}{parts}")


def describe(backbone: nn.Module) -> dict:
    """The architecture of a backbone as plain values; TypeError or ValueError for what is not supported, by name."""
    return architecture(backbone).describe(backbone)


def build(config: dict) -> nn.Module:
    """A fresh backbone from what `describe` wrote down, in eval mode. Raises ValueError for an unknown kind."""
    for known in ARCHITECTURES:
        if known.kind == config.get("kind"):
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on undisturbed
                return known.build(config).eval()
    raise ValueError(f"a model description must be of kind {' or '.join(repr(known.kind) for known in ARCHITECTURES)}, "
                     f"got {config.get('kind')!r}")


def graph_of(backbone: nn.Module) -> Graph:
    """The spaces, layers and vectors of a backbone. Raises ValueError for a parameter that the graph does not name."""
    graph = architecture(backbone).graph(backbone)
    known = {f"{layer.name}.{part}" for layer in graph.layers for part in ("weight", "bias")}
    known |= {vector.name for vector in graph.vectors}
    for name, _ in backbone.named_parameters():
        if name not in known:
            raise ValueError(f"this {type(backbone).__name__} has a parameter {name} that the graph of its "
                             "architecture does not name; a merge would leave it out")
    return graph


def reads(backbone: nn.Module, layer: str | None, x: Tensor) -> Tensor:
    """What a layer of a backbone reads for inputs x, zero at padding; None: the features of the backbone."""
    known, names = architecture(backbone), [] if layer is None else [layer]
    seen = inputs_of(backbone, names, lambda: known.features(backbone, x), stop=True)[layer]
    return without_padding(seen, known.counted(backbone, x))


def check_originals(backbones: Sequence[nn.Module]) -> None:
    """Refuse originals that cannot be merged, saying which differs in what.

    Raises TypeError or ValueError for fewer than two, an unsupported class or variant, train mode, forward hooks,
    weights that are not finite, or another depth, token count, input or device than the first one's.
    """
    if len(backbones) < 2:
        raise ValueError(f"a merge needs at least two originals, got {len(backbones)}")
    first, like = describe(backbones[0]), next(backbones[0].parameters())
    for i, backbone in enumerate(backbones, 1):
        check_same(describe(backbone), first, f"original {i}")
        given.at_rest(backbone, f"original {i}")
        for name, p in backbone.named_parameters():
            given.usable(p, like, f"{name} of original {i}", "original 1")


def check_same(config: dict, first: dict, who: str) -> None:
    """Refuse a description that differs from original 1's in more than widths."""
    if config["kind"] != first["kind"]:
        raise TypeError(f"{who} is of kind {config['kind']!r}, original 1 of kind {first['kind']!r}")
    for key in first:
        if key not in WIDTHS and config[key] != first[key]:
            raise ValueError(f"{who} has {key} = {config[key]}, original 1 has {first[key]}; only widths may differ")
