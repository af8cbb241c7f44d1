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

from .matrices import Place
from .models import MLP, describe


@dataclass(frozen=True)
class Wire:
    """One merged layer: its name in the model, what it reads through U and writes through M, how many blocks M has.

    A layer reads and writes the residual "stream", the channels of attention "heads", or the "units" behind a
    nonlinearity; it reads None where it reads the picture itself, without U.
    """

    layer: str
    reads: str | None = "units"
    writes: str = "units"
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
    wires = (Wire(names[0], None), *map(Wire, names[1:]))
    return Wiring(wires, (), None, dict(enumerate(names[1:], 1)))


def _vit(vit: VisionTransformer) -> Wiring:
    wires = [Wire("patch_embed.proj", None, "stream")]
    for i in range(len(vit.blocks)):
        block = f"blocks.{i}"
        wires += [
            Wire(f"{block}.attn.qkv", "stream", "heads", 3),  # one U after norm1; M_q, M_k, M_v
            Wire(f"{block}.attn.proj", "heads", "stream"),    # U_o before, M_o behind
            Wire(f"{block}.mlp.fc1", "stream"),               # U after norm2; M_1
            Wire(f"{block}.mlp.fc2", "units", "stream"),      # U_1 after the activation; M_2
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


# Entries of a description that two models of a merge may have different: the widths, which M and U take care of.
WIDTHS = {"embed_dim", "num_heads", "mlp_ratio", "sizes"}


def check_originals(backbones: Sequence[nn.Module]) -> None:
    """Refuse originals that cannot be merged, saying which differs in what.

    Raises:
        TypeError, ValueError: fewer than two, an unsupported class or variant, train mode, weights that are
            not finite, or another depth, token count, input or device than the first one's.
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
        check_alike(config, first, f"original {i}")


def check_alike(config: dict, first: dict, who: str) -> None:
    """Refuse a description that differs from original 1's in more than widths."""
    if config["kind"] != first["kind"]:
        raise TypeError(f"{who} is of kind {config['kind']!r}, original 1 of kind {first['kind']!r}")
    for key in first:
        if key not in WIDTHS and config[key] != first[key]:
            raise ValueError(f"{who} has {key} = {config[key]}, original 1 has {first[key]}; only widths may differ")
    if first["kind"] == "mlp" and config["sizes"][0] != first["sizes"][0]:
        raise ValueError(f"{who} reads {config['sizes'][0]} inputs, original 1 {first['sizes'][0]}")


def check_rank(rank: int, backbones: Sequence[nn.Module]) -> None:
    """Refuse a rank that does not fit in the narrowest stream, or the narrowest layer of an MLP."""
    width = min(min(layer.out_features for layer in b.layers) if isinstance(b, MLP) else b.embed_dim
                for b in backbones)
    if not 1 <= rank <= width:
        raise ValueError(f"rank must lie between 1 and the width {width}, got {rank} "
                         "(the narrowest of the originals and of the merged model counts)")


def place(space: str, own: nn.Module, merged: nn.Module, size: int, merged_size: int) -> Place:
    """The identity that takes an original's channels into the merged model's: M, where the two are to be the same.

    Channel j goes to channel j, in "heads" inside head h to head h; what does not fit is left out. What a wider
    merged model computes without weights comes out as in the original:
    - stream: x* = (d* / d)^(1/2) (x - mean x), zeros behind it. LayerNorm takes the mean away in any case; x* has
      mean 0 and the variance of x, so x* / std x* is (d* / d)^(1/2) (x - mean x) / std x, and the norm's weight
      takes the factor back.
    - heads: timm divides q k by head_dim^(1/2), so q gets a factor (head_dim* / head_dim)^(1/2).
    The mean is out of reach for a `diagonal` M, in a stream that is not made of M alone (pre_norm) or pooled by its
    maximum or without a norm behind, and for norms inside attention and MLP where these are wider.

    Args:
        space: what is written or read, as in `Wire`.
        own, merged: the original's backbone and the merged model's.
        size, merged_size: the widths there, d and d*.
    """
    if space == "heads":
        a, b = own.blocks[0].attn, merged.blocks[0].attn
        head, unit = torch.arange(min(a.num_heads, b.num_heads))[:, None], torch.arange(min(a.head_dim, b.head_dim))
        return Place((head * b.head_dim + unit).flatten(), (head * a.head_dim + unit).flatten(),
                     ((b.head_dim / a.head_dim) ** 0.5, 1.0, 1.0))
    n = torch.arange(min(size, merged_size))
    if space == "stream" and merged_size > size:
        return Place(n, n, ((merged_size / size) ** 0.5,), isinstance(own.blocks[0].norm1, nn.LayerNorm))
    return Place(n, n)


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


class _Seen(Exception):
    """All that was asked for has been seen: the rest of the forward need not run."""


def inputs_of(model: nn.Module, layers: Sequence[str], run: Callable[[], object], stop: bool = False
              ) -> dict[str, Tensor]:
    """What each of the named layers of `model` reads while `run` runs; with `stop`, no further than needed."""
    seen: dict[str, Tensor] = {}

    def look(name: str, x: Tensor) -> None:
        seen[name] = x
        if stop and len(seen) == len(set(layers)):
            raise _Seen
    hooks = [model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, name=name: look(name, args[0])) for name in layers]
    try:
        run()
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen
