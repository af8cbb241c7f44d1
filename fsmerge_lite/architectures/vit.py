"""timm's `VisionTransformer`: which variants are supported, its graph, and what is absorbed into its weights.

Block b reads the residual stream twice, each time through a norm. Attention: norm1, `attn.qkv` (queries and keys share
one space, because only their products count), `attn.proj`. MLP: norm2, `mlp.fc1`, `mlp.fc2`. Class token, register
tokens and positions are added to the stream directly (paper, appendix B).
"""
import copy
import re
from collections.abc import Sequence

import torch
from timm.layers import LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from ..engine import given
from ..engine.images import absorbed_normalization
from ..engine.modules import activation, describe_activation, mlp_ratio, norm, outline
from ..engine.running import inputs_of
from .graph import Architecture, Graph, Layer, Segment, Space, Vector

STREAM = "features"  # the residual stream; at the end of the model it holds the features
# Parameters outside the merged layers, without "blocks.N." in front: the space and the role.
VECTORS = {
    "cls_token": (STREAM, "token"), "reg_token": (STREAM, "token"), "pos_embed": (STREAM, "token"),
    "norm_pre": (STREAM, "on_stream"), "norm": (STREAM, "norm"), "fc_norm": (STREAM, "norm"),
    "norm1": (STREAM, "norm"), "norm2": (STREAM, "norm"), "ls1": (STREAM, "scale"), "ls2": (STREAM, "scale"),
    "attn.q_norm": ("qk", "per_head"), "attn.k_norm": ("qk", "per_head"), "attn.norm": ("v", "norm"),
    "mlp.norm": ("hidden", "norm"),
}


def vit(dim: int = 96, depth: int = 4, num_heads: int = 4, patch_size: int = 8, img_size: int = 32,
        **options) -> VisionTransformer:
    """A small timm `VisionTransformer` without classifier; `options` go to timm as they are.

    Args:
        dim, depth, num_heads: width of the stream, number of blocks, heads in each (timm's `embed_dim`, ...).
        patch_size, img_size: in pixels; a picture becomes (img_size / patch_size)^2 tokens and a class token.
    """
    given.whole(1, depth=depth)
    given.multiple(dim=dim, num_heads=num_heads)
    given.multiple(img_size=img_size, patch_size=patch_size)
    return VisionTransformer(img_size=img_size, patch_size=patch_size, embed_dim=dim, depth=depth,
                             num_heads=num_heads, num_classes=0, **options)


def graph_of_blocks(model: nn.Module, first: Layer) -> Graph:
    """The graph of timm's `blocks`: the residual stream, which layer `first` makes; heads and hidden units of each."""
    blocks = [f"blocks.{b}" for b in range(len(model.blocks))]
    centered = isinstance(model.blocks[0].norm1, nn.LayerNorm)
    spaces = {STREAM: Space(STREAM, "residual", model.num_features, 1, "", (*blocks, "norm"), 0.5, centered)}
    layers = [first]
    for name, block in zip(blocks, model.blocks):
        qk, v, hidden = f"{name}.qk", f"{name}.v", f"{name}.hidden"
        attn, mlp, heads = f"{name}.attn", f"{name}.mlp", block.attn.num_heads
        spaces[qk] = Space(qk, "heads", block.attn.attn_dim, heads, group=attn, growth=0.25)
        spaces[v] = Space(v, "heads", block.attn.attn_dim, heads, group=attn, seen=(f"{attn}.proj",))
        spaces[hidden] = Space(hidden, "hidden", block.mlp.fc1.out_features, seen=(f"{mlp}.fc2",))
        layers += [Layer(f"{attn}.qkv", STREAM, (qk, qk, v)),
                   Layer(f"{attn}.proj", v, (STREAM,), adds_to=f"{name}.norm1"),
                   Layer(f"{mlp}.fc1", STREAM, (hidden,)),
                   Layer(f"{mlp}.fc2", hidden, (STREAM,), adds_to=f"{name}.norm2")]
    vectors = []
    for name, _ in model.named_parameters():
        block, inside = re.fullmatch(r"(blocks\.\d+\.|)(.*)", name).groups()
        space, role = VECTORS.get(inside) or VECTORS.get(inside.rpartition(".")[0]) or (STREAM, None)
        if role:
            vectors.append(Vector(name, space if space == STREAM else block + space, role))
    return Graph(spaces, tuple(layers), tuple(vectors), STREAM,
                 {b: f"{name}.attn.qkv" for b, name in enumerate(blocks)})


class ViTs(Architecture):
    """The architecture of timm's `VisionTransformer` itself."""

    kind, model = "vit", VisionTransformer

    def describe(self, model: VisionTransformer) -> dict:
        """timm's arguments for this model."""
        _check_classes(model)
        block, patch = model.blocks[0], model.patch_embed
        there = {name for name, module in model.named_modules() if not isinstance(module, nn.Identity)}
        config = {
            "kind": "vit", "depth": len(model.blocks), "num_heads": block.attn.num_heads,
            "embed_dim": model.embed_dim, "mlp_ratio": mlp_ratio(block.mlp.fc1.out_features, model.embed_dim),
            "img_size": list(patch.img_size), "patch_size": list(patch.patch_size), "in_chans": patch.proj.in_channels,
            "class_token": model.cls_token is not None, "reg_tokens": model.num_reg_tokens,
            "no_embed_class": model.no_embed_class, "pos_embed": "none" if model.pos_embed is None else "learn",
            "global_pool": model.global_pool, "pool_include_prefix": model.pool_include_prefix,
            "pre_norm": "norm_pre" in there, "final_norm": not there.isdisjoint({"norm", "fc_norm"}),
            "fc_norm": "fc_norm" in there, "qkv_bias": block.attn.qkv.bias is not None,
            "proj_bias": block.attn.proj.bias is not None, "qk_norm": "blocks.0.attn.q_norm" in there,
            "scale_attn_norm": "blocks.0.attn.norm" in there, "scale_mlp_norm": "blocks.0.mlp.norm" in there,
            "init_values": 1.0 if isinstance(block.ls1, LayerScale) else None, "norm_layer": type(block.norm1).__name__,
            "norm_eps": block.norm1.eps, **describe_activation(block.mlp.act),
        }
        with torch.device("meta"):
            rebuilt = outline(self.build(config))
        for ours, theirs in zip(rebuilt, outline(model)):
            if ours != theirs:
                raise ValueError(f"this VisionTransformer has {theirs[0]} = {theirs[1]}, where {ours[1]} was expected: "
                                 "a variant that SuperNet does not support")
        return config

    def build(self, config: dict) -> VisionTransformer:
        ours = ("kind", "act_layer", "act_options", "norm_layer", "norm_eps")
        options = {"num_classes": 0} | {key: value for key, value in config.items() if key not in ours}
        return VisionTransformer(**options, norm_layer=norm(config), act_layer=activation(config))

    def graph(self, model: VisionTransformer) -> Graph:
        return graph_of_blocks(model, Layer("patch_embed.proj", None, (STREAM,), "conv2d"))

    def input_shape(self, model: VisionTransformer) -> tuple[int, ...]:
        return model.patch_embed.proj.in_channels, *model.patch_embed.img_size

    def segments(self, model: VisionTransformer) -> dict[str, Segment]:
        """From pictures to tokens; the blocks; from tokens to features."""
        def embed(x: Tensor, counted: Tensor | None) -> Tensor:
            return inputs_of(model, ["blocks.0"], lambda: model(x), stop=True)["blocks.0"]
        blocks = {f"blocks.{b}": block for b, block in enumerate(model.blocks)}
        return {"patch_embed": embed, **blocks, "": lambda x, _: model.forward_head(model.norm(x), pre_logits=True)}

    def absorb_scales(self, model: VisionTransformer) -> VisionTransformer:
        """LayerScale: gamma * (W x + b) = (gamma W) x + gamma b. A copy, if need be."""
        if not isinstance(model.blocks[0].ls1, LayerScale):  # all blocks are alike
            return model
        model = copy.deepcopy(model)
        for block in model.blocks:
            for layer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
                for p in layer.parameters():
                    p.data = torch.einsum("o, o... -> o...", scale.gamma.data, p.data)
                scale.gamma.data = torch.ones_like(scale.gamma)
        return model

    def absorb_normalization(self, model: VisionTransformer, mean: Sequence[float], std: Sequence[float]) -> None:
        """W t goes into the bias of the patch embedding or else into the positions; ValueError if there is neither."""
        patch = model.patch_embed.proj
        patch.weight.data, shift = absorbed_normalization(patch.weight.data, mean, std)
        if patch.bias is not None:
            patch.bias.data = patch.bias.data + shift
        elif model.pos_embed is not None:
            model.pos_embed.data[:, -model.patch_embed.num_patches:] += shift  # the first are of other tokens
        elif shift.any():
            raise ValueError("this VisionTransformer has no bias in its patch embedding and no positions: nothing can "
                             "hold the mean of its pictures; train it on pictures in [-1, 1]")


def _check_classes(model: VisionTransformer) -> None:
    """Refuse by name what `describe` could not write down."""
    for what, name, supported in (("patch embedding", "patch_embed", PatchEmbed), ("block", "blocks.0", Block),
                                  ("attention", "blocks.0.attn", Attention), ("MLP", "blocks.0.mlp", Mlp)):
        module = model.get_submodule(name)
        if type(module) is not supported:
            raise ValueError(f"the {what} of this VisionTransformer is a {type(module).__name__}, SuperNet supports "
                             f"{supported.__name__}")
    if model.grad_checkpointing:
        raise ValueError("this VisionTransformer has gradient checkpointing on, which would leave out M and U; call "
                         "set_grad_checkpointing(False) on it")
    given.choice(("token", "avg", "max", "avgmax"), global_pool=model.global_pool)
