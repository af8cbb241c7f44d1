"""The wiring: which tensors of an architecture are merged, and where its M and U stand.

Every merged layer has Merge matrices of its own behind it and, unless it reads the picture itself,
Unmerge matrices of its own before it. What a layer's M writes is the merged stream that a later layer's
U reads; between the two stands a nonlinearity (LayerNorm, softmax, GELU), which timm's forward applies.
Tensors that are added to the stream directly (class token, positions) go through the first layer's M.
Norms do not fold: the merged model owns one of each, learned.
"""
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .models import MLP, describe


@dataclass(frozen=True)
class Wire:
    """One merged layer: its name in the model, whether U stands before it, and how many blocks its M has."""

    layer: str
    unmerge: bool = True
    blocks: int = 1


@dataclass(frozen=True)
class Wiring:
    """All merged layers of an architecture.

    Args:
        wires: the layers, in the order of the forward.
        tokens: parameters that go through the first layer's M.
        dim: the stream's width, against which the rank is scaled inside the MLP; None: no scaling.
        depths: depth d -> the layer that reads the features after d blocks.
    """

    wires: tuple[Wire, ...]
    tokens: tuple[str, ...]
    dim: int | None
    depths: dict[int, str]


def wiring(backbone: nn.Module) -> Wiring:
    """The wiring of an `MLP` or a timm `VisionTransformer`."""
    return _mlp(backbone) if isinstance(backbone, MLP) else _vit(backbone)


def _mlp(mlp: MLP) -> Wiring:
    # W*_l = M_l blockdiag(W_l^1, ..., W_l^k) U_{l-1}; the first layer reads the input, the same for all.
    names = [f"layers.{i}" for i in range(len(mlp.layers))]
    wires = (Wire(names[0], unmerge=False), *map(Wire, names[1:]))
    return Wiring(wires, (), None, dict(enumerate(names[1:], 1)))


def _vit(vit: VisionTransformer) -> Wiring:
    wires = [Wire("patch_embed.proj", unmerge=False)]
    for i in range(len(vit.blocks)):
        block = f"blocks.{i}"
        wires += [
            Wire(f"{block}.attn.qkv", blocks=3),  # one U after norm1; M_q, M_k, M_v
            Wire(f"{block}.attn.proj"),           # U_o before, M_o behind
            Wire(f"{block}.mlp.fc1"),             # U after norm2; M_1
            Wire(f"{block}.mlp.fc2"),             # U_1 after the activation; M_2
        ]
    tokens = [name for name in ("cls_token", "reg_token", "pos_embed") if getattr(vit, name) is not None]
    return Wiring(tuple(wires), tuple(tokens), vit.embed_dim,
                  {i: f"blocks.{i}.attn.qkv" for i in range(len(vit.blocks))})


def absorb_layer_scale(backbone: nn.Module) -> nn.Module:
    """The same function with every LayerScale at one: gamma * (W x + b) = (gamma W) x + gamma b. A copy, if need be."""
    if not any(isinstance(module, LayerScale) for module in backbone.modules()):
        return backbone
    backbone = copy.deepcopy(backbone)
    for block in backbone.blocks:
        for layer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            if isinstance(scale, LayerScale):
                layer.weight.data = layer.weight.data * scale.gamma.data[:, None]
                if layer.bias is not None:
                    layer.bias.data = layer.bias.data * scale.gamma.data
                scale.gamma.data = torch.ones_like(scale.gamma)
    return backbone


# Entries of a description that two originals may have different: the widths, which M and U take care of.
WIDTHS = {"embed_dim", "mlp_ratio", "sizes"}


def check_originals(backbones: Sequence[nn.Module]) -> None:
    """Refuse originals that cannot be merged, saying which differs in what.

    Raises:
        TypeError, ValueError: fewer than two, an unsupported class or variant, train mode, weights that are
            not finite, or another depth, head count, token count, input or device than the first one's.
    """
    if len(backbones) < 2:
        raise ValueError(f"a merge needs at least two originals, got {len(backbones)}")
    first, like = describe(backbones[0]), next(backbones[0].parameters())
    for i, backbone in enumerate(backbones, 1):
        config = describe(backbone)
        if backbone.training:
            raise ValueError(f"original {i} is in train mode; call .eval() on it first")
        for name, p in backbone.named_parameters():
            if not torch.isfinite(p).all():
                raise ValueError(f"original {i} has weights that are not finite, in {name}")
            if (p.device, p.dtype) != (like.device, like.dtype):
                raise ValueError(f"original {i} has {name} as {p.dtype} on {p.device}, "
                                 f"original 1 is {like.dtype} on {like.device}; bring them to one")
        if config["kind"] != first["kind"]:
            raise TypeError(f"original {i} is of kind {config['kind']!r}, original 1 of kind {first['kind']!r}")
        for key in first:
            if key not in WIDTHS and config[key] != first[key]:
                raise ValueError(f"original {i} has {key} = {config[key]}, original 1 has {first[key]}; "
                                 "only widths may differ")
        if first["kind"] == "mlp" and config["sizes"][0] != first["sizes"][0]:
            raise ValueError(f"original {i} reads {config['sizes'][0]} inputs, original 1 {first['sizes'][0]}")


def input_shape(backbone: nn.Module) -> tuple[int, ...] | None:
    """(C, H, W) that a ViT reads; None for an MLP, which flattens what it gets."""
    if isinstance(backbone, MLP):
        return None
    return backbone.in_chans, *backbone.patch_embed.img_size


def check_images(x: Tensor, shape: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    """Refuse images of another size or type than the model reads."""
    if x.dtype != dtype:
        raise TypeError(f"the model computes in {dtype}, the images are {x.dtype}; convert them (pictures in [-1, 1])")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"the model reads images (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def inputs_of(model: nn.Module, layers: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """What each of the named layers of `model` reads while `run` runs."""
    seen: dict[str, Tensor] = {}
    hooks = [model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, name=name: seen.__setitem__(name, args[0])) for name in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen
