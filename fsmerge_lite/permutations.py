"""The permutation symmetries of a model: putting its channels, heads and hidden units into another one's order.

A model whose channels change places, with the weights on both of their sides, is the same function. A *space*
is a set of channels that change places together; a permutation of it is an index p (n,), and channel p[a]
comes to stand at place a. An `MLP` has one space a layer. A ViT has "features", the residual stream from
the patch embedding to the output, and in block b "blocks.b.qk" and "blocks.b.v", heads among each other and
units inside heads, and "blocks.b.hidden". In both, "features" orders the output.
"""
import copy
from collections.abc import Iterator, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .models import MLP, Original, describe
from .tasks import Calibration
from .wiring import check_images, check_originals, input_shape, inputs_of

Permutations = dict[str, Tensor]  # space -> index; a space that is missing stays as it is


def equal_originals(originals: Sequence[nn.Module]) -> list[Original]:
    """The originals as `Original`, of which every weight has the same shape in all of them.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    originals = [o if isinstance(o, Original) else Original(o) for o in originals]
    check_originals([o.backbone for o in originals])
    heads = [describe(o.backbone).get("num_heads") for o in originals]
    for i, original in enumerate(originals[1:], 2):
        if heads[i - 1] != heads[0]:
            raise ValueError(f"original {i} has {heads[i - 1]} heads, original 1 has {heads[0]}: weights of different "
                             "heads have no average; SuperNet can merge them")
        for (name, p), q in zip(original.backbone.named_parameters(), originals[0].backbone.parameters()):
            if p.shape != q.shape:
                raise ValueError(f"original {i} has {name} of shape {tuple(p.shape)}, original 1 {tuple(q.shape)}: "
                                 "weights of different widths have no average; SuperNet can merge them")
    return originals


# ---------------------------------------------------------------- permuting

def permuted(original: nn.Module, permutations: Permutations) -> Original:
    """The same function with its channels in another order: W'[a, b] = W[p[a], q[b]] for a layer from space q to p.

    Its features come out in the new order, f'[a] = f[p[a]]; its head has its columns in that order too.

    Args:
        original: an `Original` or a bare backbone; it stays as it is.
        permutations: space -> index, for instance from `alignment`.
    """
    original = original if isinstance(original, Original) else Original(original)
    backbone = copy.deepcopy(original.backbone)
    spaces = dict(permutations) | _inside_attention(backbone, permutations)
    for name, p in backbone.named_parameters():
        for axis, space in _axes(backbone, name):
            if space in spaces:
                p.data = p.data.index_select(axis, spaces[space].to(p.device))
    made = Original(backbone, _undone(original.head, backbone, permutations), original.name, original.task)
    made.card = dict(original.card)
    return made.train(backbone.training)


def undo(backbone: nn.Module, permutations: Permutations) -> Tensor:
    """P (d, d) that brings the features of a `permuted` model back into the original's order: f = P f'."""
    like = next(backbone.parameters())
    d = getattr(backbone, "embed_dim", None) or backbone.layers[-1].out_features
    eye = torch.eye(d, dtype=like.dtype, device=like.device)
    return eye[:, permutations["features"].to(like.device)] if "features" in permutations else eye


def _undone(head: nn.Module, backbone: nn.Module, permutations: Permutations) -> nn.Module:
    back = undo(backbone, permutations)
    if isinstance(head, nn.Linear):
        head = copy.deepcopy(head)
        head.weight.data = head.weight.data @ back
        return head
    first = nn.Linear(*back.shape, bias=False)
    first.weight = nn.Parameter(back)
    return nn.Sequential(first, copy.deepcopy(head))


# The layers of a ViT: the space that the columns of the weight are in, and that of its rows and its bias.
# What is not named here (norms of the stream, LayerScale, tokens) has its last axis in "features".
LAYERS = {"patch_embed.proj": (None, "features"), "attn.qkv": ("features", "qkv"), "attn.proj": ("v", "features"),
          "mlp.fc1": ("features", "hidden"), "mlp.fc2": ("hidden", "features"), "attn.norm": (None, "v"),
          "attn.q_norm": (None, "unit"), "attn.k_norm": (None, "unit"), "mlp.norm": (None, "hidden")}


def _axes(backbone: nn.Module, name: str) -> Iterator[tuple[int, str | None]]:
    """The axes of a parameter whose order is a space's."""
    layer, _, kind = name.rpartition(".")
    if isinstance(backbone, MLP):
        spaces = _layer_spaces(backbone)
        place = int(layer.removeprefix("layers."))
        reads, writes = spaces[place - 1] if place else None, spaces[place]
    else:
        parts = layer.split(".")
        inner = parts[0] == "blocks"
        reads, writes = LAYERS.get(".".join(parts[2:]) if inner else layer, (None, "features"))
        reads, writes = (f"{parts[0]}.{parts[1]}.{s}" if inner and s not in (None, "features") else s
                         for s in (reads, writes))
    yield 0 if layer else -1, writes
    if kind == "weight" and reads:
        yield 1, reads


def _layer_spaces(mlp: MLP) -> list[str]:
    return [*(f"layers.{i}" for i in range(len(mlp.layers) - 1)), "features"]


def _inside_attention(backbone: nn.Module, permutations: Permutations) -> Permutations:
    """The order of qkv's rows, and of the units that q_norm and k_norm know: both follow from "qk" and "v"."""
    made = {}
    for b, block in enumerate(getattr(backbone, "blocks", ())):
        d, size = block.attn.attn_dim, block.attn.head_dim
        qk, v = (permutations.get(f"blocks.{b}.{part}", torch.arange(d)) for part in ("qk", "v"))
        made |= {f"blocks.{b}.qkv": torch.cat([qk, qk + d, v + 2 * d]), f"blocks.{b}.unit": qk[:size] % size}
    return made


# ---------------------------------------------------------------- matching

def alignment(originals: Sequence[nn.Module], images: Calibration, batch_size: int = 64) -> list[Permutations]:
    """For each original the permutations that bring it closest to the first, by what both compute on all images.

    In each space, p maximises sum_a corr(x_1[a], x_i[p[a]]), an assignment problem; for the residual stream the
    correlations are averaged over the depths, and heads are assigned by the sum of their best-matching units.

    Args:
        originals: k originals of equal widths.
        images: from `calibration`; every image is shown to every original.
        batch_size: images at a time.

    Returns:
        k dicts for `permuted`; the first, of an original that stays as it is, is empty.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    first, *others = (o.backbone for o in equal_originals(originals))
    return [{}, *(_match(first, correlations(first, other, images.images, batch_size)) for other in others)]


@torch.no_grad()
def correlations(first: nn.Module, other: nn.Module, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    """corr(x[a], y[b]) between the channels of two models, (n, n) for each space, averaged over where it is seen."""
    like, sums = next(first.parameters()), {}
    for batch in images.split(batch_size):
        batch = batch.to(like)
        check_images(batch, input_shape(first), like.dtype)
        for (space, x), y in zip(_activations(first, batch).items(), _activations(other, batch).values()):
            x, y = (torch.stack([part.flatten(0, -2).double() for part in parts]) for parts in (x, y))  # (places, N, n)
            new = x.shape[1], x.sum(1), y.sum(1), x.square().sum(1), y.square().sum(1), x.mT @ y
            sums[space] = [a + b for a, b in zip(sums.get(space, [0] * len(new)), new)]
    return {space: _correlation(*parts).mean(0) for space, parts in sums.items()}


def _correlation(n: int, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Pearson's, from sums over n rows; 0 for a channel that never changes, as far as rounding lets one see."""
    spread = ((xx - x.square() / n)[..., :, None] * (yy - y.square() / n)[..., None, :]).clamp(min=0).sqrt()
    together = xy - x[..., :, None] * y[..., None, :] / n
    return torch.where(spread > 1e-6 * (xx[..., :, None] * yy[..., None, :]).sqrt(), together / spread, 0.)


def _activations(backbone: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """What the channels of every space hold for images x: for each space the places where it is seen, (..., n)."""
    if isinstance(backbone, MLP):
        names = [f"layers.{i}" for i in range(1, len(backbone.layers))]
        seen: dict[str, Tensor] = {}
        found = inputs_of(backbone, names, lambda: seen.update(features=backbone(x)))
        return dict(zip(_layer_spaces(backbone), [[h] for h in [*found.values(), seen["features"]]]))
    blocks = [f"blocks.{b}" for b in range(len(backbone.blocks))]
    readers = ("", ".attn.qkv", ".attn.proj", ".mlp.fc2")
    seen = inputs_of(backbone, [*(block + reader for block in blocks for reader in readers), "norm"],
                     lambda: backbone(x))
    found = {"features": [seen[place] for place in (*blocks, "norm")]}
    for block in blocks:
        q, k, v = backbone.get_submodule(f"{block}.attn.qkv")(seen[f"{block}.attn.qkv"]).chunk(3, -1)
        found |= {f"{block}.qk": [q, k], f"{block}.v": [v, seen[f"{block}.attn.proj"]],
                  f"{block}.hidden": [seen[f"{block}.mlp.fc2"]]}
    return found


def _match(backbone: nn.Module, found: dict[str, Tensor]) -> Permutations:
    found, made = dict(found), {}
    if isinstance(backbone, VisionTransformer):
        config = describe(backbone)
        for b in range(config["depth"]):
            qk, v = (f"blocks.{b}.{part}" for part in ("qk", "v"))
            made[qk], made[v] = _assign_heads(found.pop(qk), found.pop(v), config["num_heads"], config["qk_norm"])
    return made | {space: _assign(c)[0] for space, c in found.items()}


def _assign(correlation: Tensor) -> tuple[Tensor, float]:
    """The index p with the largest sum_a correlation[a, p[a]], and that sum."""
    rows, columns = linear_sum_assignment(correlation.cpu(), maximize=True)
    return torch.as_tensor(columns), correlation[rows, columns].sum().item()


def _assign_heads(qk: Tensor, v: Tensor, num_heads: int, one_order: bool) -> tuple[Tensor, Tensor]:
    """Indices of the "qk" and "v" channels: units inside every pair of heads first, then heads by what that gains.

    q_norm and k_norm are the same for all heads, so that with them q and k need `one_order` of units in all.
    """
    size, heads = len(v) // num_heads, range(num_heads)
    qk, v = (c.unflatten(0, (-1, size)).unflatten(-1, (-1, size)).transpose(1, 2) for c in (qk, v))  # (h, h, u, u)
    v_units, qk_units = ([[_assign(c[a, b]) for b in heads] for a in heads] for c in (v, qk))
    gain = torch.tensor([[v_units[a][b][1] + qk_units[a][b][1] for b in heads] for a in heads])
    order = _assign(gain)[0].tolist()
    shared = _assign(sum(qk[a, b] for a, b in enumerate(order)))[0]
    return (torch.cat([b * size + (shared if one_order else qk_units[a][b][0]) for a, b in enumerate(order)]),
            torch.cat([b * size + v_units[a][b][0] for a, b in enumerate(order)]))
