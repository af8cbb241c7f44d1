"""The plain models: what goes into a merge (`Original`) and what comes out (`Merged`).

A model here is a backbone, which gives features (B, d), and behind it one or more heads, each with an output
matrix before it: an `Original` has one head and the identity, a `Merged` one of each for every original. Both
have `backbone`, `outputs`, `heads` and `names`, so a `Merged` can be merged again. A backbone is timm's
`VisionTransformer` without classifier or the `MLP` below. `describe` writes an architecture down as a small
dict and `build` makes it again; that is how two models are compared and how files are loaded.
"""
import copy
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import timm.layers
import torch
from timm.layers import LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from .files import load_files, save_files
from .tasks import EMBEDDED, SIZE, Task, task


class MLP(nn.Module):
    """Linear layers, each followed by an activation; the last activation gives the features.

    Args:
        sizes: widths (inputs, hidden, ..., features), at least two.
        act_layer: the class of the activation.
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


def vit(dim: int = 96, depth: int = 4, num_heads: int = 4, patch_size: int = 8, img_size: int = 32,
        **options) -> VisionTransformer:
    """A small timm `VisionTransformer` without classifier.

    Args:
        dim, depth, num_heads: width of the stream, number of blocks, heads in each (timm's `embed_dim`, ...).
        patch_size, img_size: in pixels; a picture becomes (img_size / patch_size)^2 tokens and a class token.
        options: go to timm as they are.
    """
    return VisionTransformer(img_size=img_size, patch_size=patch_size, embed_dim=dim, depth=depth,
                             num_heads=num_heads, num_classes=0, **options)


# ---------------------------------------------------------------- architectures as dicts

def describe(backbone: nn.Module) -> dict:
    """The architecture of a backbone as a dict of plain values, from which `build` makes it again.

    Raises:
        TypeError: neither an `MLP` nor a timm `VisionTransformer`.
        ValueError: a variant of the `VisionTransformer` that is not supported, by name.
    """
    if type(backbone) is MLP:
        sizes = [backbone.layers[0].in_features, *(layer.out_features for layer in backbone.layers)]
        act = type(backbone.act).__name__
        return {"kind": "mlp", "depth": len(backbone.layers), "sizes": sizes, "act_layer": act}
    if type(backbone) is not VisionTransformer:
        raise TypeError("a backbone must be fsmerge_lite's MLP or timm's VisionTransformer, "
                        f"got {type(backbone).__name__}")
    _refuse(backbone)
    block, patch, norms = backbone.blocks[0], backbone.patch_embed, [
        m for m in (backbone.norm, backbone.fc_norm) if not isinstance(m, nn.Identity)]
    config = {
        "kind": "vit", "depth": len(backbone.blocks), "num_heads": block.attn.num_heads,
        "embed_dim": backbone.embed_dim, "mlp_ratio": _ratio(block.mlp.fc1.out_features, backbone.embed_dim),
        "img_size": list(patch.img_size), "patch_size": list(patch.patch_size), "in_chans": backbone.in_chans,
        "class_token": backbone.cls_token is not None, "reg_tokens": backbone.num_reg_tokens,
        "pos_embed": "none" if backbone.pos_embed is None else "learn", "no_embed_class": backbone.no_embed_class,
        "global_pool": backbone.global_pool, "pool_include_prefix": backbone.pool_include_prefix,
        "pre_norm": not isinstance(backbone.norm_pre, nn.Identity), "final_norm": bool(norms),
        "fc_norm": not isinstance(backbone.fc_norm, nn.Identity),
        "qkv_bias": block.attn.qkv.bias is not None, "proj_bias": block.attn.proj.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(block.attn.norm, nn.Identity),
        "scale_mlp_norm": not isinstance(block.mlp.norm, nn.Identity),
        "init_values": 1.0 if isinstance(block.ls1, LayerScale) else None,
        "norm_layer": type(block.norm1).__name__, "norm_eps": block.norm1.eps,
        "act_layer": type(block.mlp.act).__name__,
    }
    _check_rebuilt(backbone, config)
    return config


def _ratio(hidden: int, dim: int) -> float:
    """hidden / dim, such that int(dim * ratio), which timm computes, is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _refuse(model: VisionTransformer) -> None:
    """Name what of timm's VisionTransformer is not supported."""
    refused = {
        f"global_pool={model.global_pool!r} (use 'token', 'avg', 'max' or 'avgmax')":
            model.global_pool in ("", "map", "prr"),
        "dynamic_img_size (build the model for one image size)": model.dynamic_img_size,
        "a hybrid patch embedding": type(model.patch_embed) is not PatchEmbed,
        "embed_norm_layer": type(model.patch_embed) is PatchEmbed and type(model.patch_embed.norm) is not nn.Identity,
        "patch dropout": type(model.patch_drop) is not nn.Identity,
    }
    for block in model.blocks:
        refused |= {f"the block class {type(block).__name__}": type(block) is not Block}
        if type(block) is Block:
            attn, mlp = block.attn, block.mlp
            refused |= {
                f"the attention class {type(attn).__name__}": type(attn) is not Attention,
                f"the MLP class {type(mlp).__name__}": type(mlp) is not Mlp,
                "gated attention": getattr(attn, "gate", None) is not None,
                "a head size other than embed_dim / num_heads":
                    type(attn) is Attention and attn.head_dim * attn.num_heads != model.embed_dim,
            }
    for what, here in refused.items():
        if here:
            raise ValueError(f"this VisionTransformer has {what}, which SuperNet does not support")


def _check_rebuilt(model: VisionTransformer, config: dict) -> None:
    """The last net: a model that its own description does not rebuild has something we do not know of."""
    def outline(m: nn.Module) -> list:
        modules = [(name, type(part).__name__) for name, part in m.named_modules()
                   if "drop" not in name and not name.startswith("head")]
        return modules + [(name, tuple(p.shape)) for name, p in m.named_parameters() if not name.startswith("head")]
    with torch.device("meta"):
        rebuilt = outline(build(config))
    for ours, given in zip(rebuilt, outline(model)):
        if ours != given:
            raise ValueError(f"this VisionTransformer has {given[0]} = {given[1]}, where {ours} was expected: "
                             "a variant that SuperNet does not support")


def _lookup(name: str) -> type[nn.Module]:
    """A norm or activation class by its name, timm's first."""
    found = getattr(timm.layers, name, None) or getattr(nn, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"no layer {name!r} in timm.layers or torch.nn")
    return found


def build(config: dict) -> nn.Module:
    """A fresh backbone of the architecture that `describe` wrote down, in eval mode.

    Raises:
        ValueError: the description is of no kind that is known.
    """
    config = dict(config)
    kind, act = config.pop("kind", None), config.pop("act_layer", "GELU")
    if kind == "mlp":
        return MLP(config["sizes"], _lookup(act)).eval()
    if kind != "vit":
        raise ValueError(f"a model description must be of kind 'mlp' or 'vit', got {kind!r}")
    norm = partial(_lookup(config.pop("norm_layer")), eps=config.pop("norm_eps"))
    act = getattr(nn, act, None) or _lookup(act)
    return VisionTransformer(**config, num_classes=0, norm_layer=norm, act_layer=act).eval()


def feature_size(backbone: nn.Module) -> int:
    """d of the features (B, d) that a backbone gives."""
    return getattr(backbone, "embed_dim", None) or backbone.layers[-1].out_features


# ---------------------------------------------------------------- what goes in, what comes out

class Original(nn.Module):
    """A trained model to be merged: a backbone (B, 3, H, W) -> (B, d) and its head (B, d) -> (B, classes).

    It is frozen: its parameters ask for no gradient any more.

    Args:
        backbone: an `MLP` or a timm `VisionTransformer`; one with a classifier is split into the two.
        head: a linear head; none gives the features themselves.
        name: what tables and figures call it.
        task: the task it was trained on, if known.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None, name: str = "", task: Task | None = None):
        super().__init__()
        classifier = getattr(backbone, "head", None)
        if head is None and isinstance(classifier, nn.Linear):
            head, backbone = classifier, copy.deepcopy(backbone)
            backbone.reset_classifier(0)
        self.backbone, self.head = backbone, head if head is not None else nn.Identity()
        self.name, self.task, self.card = name, task, {}
        self.requires_grad_(False)

    @property
    def outputs(self) -> list[Tensor]:
        """The matrix between features and head, as `Merged` has one for each head: here the identity (d, d)."""
        like = next(self.backbone.parameters())
        return [torch.eye(feature_size(self.backbone), dtype=like.dtype, device=like.device)]

    @property
    def heads(self) -> list[nn.Module]:
        return [self.head]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.backbone(x))

    def save(self, path: str | Path) -> None:
        """Write `path`.safetensors and `path`.json, the card, with the entries of `self.card` in it."""
        save_files(path, self.state_dict(), self.card | {
            "format": "fsmerge_lite.Original", "name": self.name, "task": self.task.name if self.task else None,
            "size": self.task.size if self.task else None,
            "backbone": describe(self.backbone), "head": _linear_shape(self.head)})


def load_original(path: str | Path) -> Original:
    """Read an `Original` that was saved as `path`.safetensors and `path`.json.

    Raises:
        FileNotFoundError, ValueError: no such files, or they are not whole or not of this format.
    """
    state, card = load_files(path, "fsmerge_lite.Original")
    own = task(card["task"], card.get("size", SIZE)) if card["task"] in EMBEDDED else None
    original = Original(build(card["backbone"]), _linear(card["head"]), card["name"], own)
    _load_state(original, state, path)
    original.card = card
    return original.eval()


class Merged(nn.Module):
    """One plain backbone that serves k tasks: features f*, an output matrix and a head for each original.

    logits_i = head_i(U_out,i f*(x)),       U_out,i (d_i, d*)       (paper, section 2)

    Args:
        backbone: a plain model of the originals' class.
        outputs: k output matrices (d_i, d*).
        heads: k heads.
        names: the originals' names.
    """

    def __init__(self, backbone: nn.Module, outputs: Sequence[Tensor], heads: Sequence[nn.Module],
                 names: Sequence[str] = ()):
        super().__init__()
        self.backbone = backbone
        self.outputs = nn.ParameterList([nn.Parameter(o.detach().clone(), requires_grad=False) for o in outputs])
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
        self.names = tuple(names) or tuple(f"model {i + 1}" for i in range(len(heads)))
        self.history = None  # of the training that made it, where there was one

    def features(self, x: Tensor) -> list[Tensor]:
        """The k originals' features, reconstructed: U_out,i f*(x), each (B, d_i)."""
        f = self.backbone(x)
        return [f @ output.T for output in self.outputs]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits of all k heads, each (B, classes_i)."""
        return [head(f) for head, f in zip(self.heads, self.features(x))]

    def save(self, path: str | Path, **card) -> None:
        """Write `path`.safetensors and `path`.json; `card` adds entries to the JSON card."""
        save_files(path, self.state_dict(), {
            "format": "fsmerge_lite.Merged", "names": list(self.names), "backbone": describe(self.backbone),
            "outputs": [list(o.shape) for o in self.outputs], "heads": [_linear_shape(h) for h in self.heads], **card})


def load_merged(path: str | Path) -> Merged:
    """Read a `Merged` that was saved as `path`.safetensors and `path`.json.

    Raises:
        FileNotFoundError, ValueError: no such files, or they are not whole or not of this format.
    """
    state, card = load_files(path, "fsmerge_lite.Merged")
    merged = Merged(build(card["backbone"]), [torch.zeros(*shape) for shape in card["outputs"]],
                    [_linear(shape) for shape in card["heads"]], card["names"])
    _load_state(merged, state, path)
    return merged.requires_grad_(False).eval()


class Ensemble(nn.Module):
    """The originals side by side, each with its own head: the upper row, at k times the cost."""

    def __init__(self, originals: Sequence[Original]):
        super().__init__()
        self.originals = nn.ModuleList(originals)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [original(x) for original in self.originals]


def _linear_shape(head: nn.Module) -> list[int] | None:
    if isinstance(head, nn.Identity):
        return None
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(f"only linear heads with a bias can be saved, got {head}")
    return [head.in_features, head.out_features]


def _linear(shape: list[int] | None) -> nn.Module:
    return nn.Identity() if shape is None else nn.Linear(*shape)


def _load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights at {path} do not fit the architecture in their card: {error}") from None
