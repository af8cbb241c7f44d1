"""Lesson 04: where M and U are placed in a Vision Transformer, and what attention and LayerNorm do to them."""
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ...bench.figures import arrow, box
from ...bench.palette import BLUE_ORANGE, DARK, GREY, LEARNED, MERGED, MODELS
from ...supernet import SuperNet
from .parts import bare, bracket, canvas, chain

# ---------------------------------------------------------------- the stream and a block


def residual_stream() -> Figure:
    """The merged residual stream of a ViT: layers write to it through M and read it through a norm and U."""
    figure, ax = canvas(17.6, 5.4, (11.5, 3.7))
    for left, right in ((0.6, 12.4), (13.3, 16.4)):
        ax.plot([left, right], [2.7, 2.7], color=MERGED, lw=6, solid_capstyle="butt")
    ax.text(12.85, 2.7, "$\\cdots$", ha="center", va="center", fontsize=20)
    arrow(ax, (16.4, 2.7), (17.1, 2.7))
    ax.text(0.25, 2.7, "$x^*$", ha="center", va="center", fontsize=14)
    for x, name, matrix in ((1.7, "patches, class token,\npositions", "$M^{in}$"), (6.3, "attn.proj", "$M^o$"),
                            (11.2, "mlp.fc2", "$M^{fc2}$")):
        ax.text(x, 4.85, name, ha="center", va="center", fontsize=11)
        box(ax, x, 3.85, matrix, LEARNED, 1.2)
        arrow(ax, (x, 3.5), (x, 2.83))
    for x, norm, matrix, name in ((3.2, "norm1", "$U$", "attn.qkv"), (8.1, "norm2", "$U$", "mlp.fc1"),
                                  (13.7, "norm", "$U_{out}$", "classification head")):
        arrow(ax, (x, 2.57), (x, 2.1))
        box(ax, x, 1.75, norm, MERGED, 1.2)
        arrow(ax, (x + 0.65, 1.75), (x + 1.0, 1.75))
        box(ax, x + 1.65, 1.75, matrix, LEARNED, 1.2)
        arrow(ax, (x + 1.65, 1.4), (x + 1.65, 1.0))
        ax.text(x + 1.65, 0.75, name, ha="center", va="center", fontsize=11)
    bracket(ax, 2.6, 12.0, 0.3, "block 1")
    ax.text(14.9, 3.85, "blocks 2, 3, 4\nlook the same", ha="center", va="center", fontsize=10, color=DARK)
    return figure


# One half of a block: height, norm, (U, frozen layer, M) before the nonlinearity, its name, (U, frozen, M) after it.
HALVES = (
    (5.0, "norm1", ("$U^{qkv}_{X}$", "qkv", "$M^q_{X}\\ M^k_{X}\\ M^v_{X}$"), "attention\n(softmax)",
     ("$U^o_{X}$", "proj", "$M^o_{X}$"), ("$s$", "$s_1$")),
    (0.9, "norm2", ("$U^{fc1}_{X}$", "fc1", "$M^{fc1}_{X}$"), "GELU",
     ("$U^{fc2}_{X}$", "fc2", "$M^{fc2}_{X}$"), ("$s_1$", "$s_2$")))


def block() -> Figure:
    """A ViT block in a SuperNet of two originals. Each frozen layer is between its U and its M, below the stream."""
    figure, ax = canvas(20.8, 8.9, (13.4, 6.4))
    for y, norm, before, middle, after, (start, end) in HALVES:
        ax.plot([0.95, 19.1], [y + 2.8] * 2, color=MERGED, lw=6, solid_capstyle="butt")
        for x, text in ((0.5, start), (19.4, "$+$"), (20.4, end)):
            ax.text(x, y + 2.8, text, ha="center", va="center", fontsize=15)
        arrow(ax, (19.65, y + 2.8), (20.1, y + 2.8))
        arrow(ax, (1.7, y + 2.65), (1.7, y + 1.4))
        box(ax, 1.7, y + 1.0, norm, MERGED, 1.4)
        box(ax, 10.6, y + 1.0, middle, GREY, 1.8)
        _lanes(ax, y, before, (3.5, 5.5, 7.8), (2.4, 9.1))
        ax.text(9.25, y + 1.0, "$+$", ha="center", va="center", fontsize=15)
        arrow(ax, (9.4, y + 1.0), (9.68, y + 1.0))
        _lanes(ax, y, after, (12.6, 14.6, 16.7), (11.52, 17.85))
        ax.text(18.0, y + 1.0, "$+$", ha="center", va="center", fontsize=15)
        ax.plot([18.2, 19.4], [y + 1.0] * 2, color=DARK, lw=1.2)
        arrow(ax, (19.4, y + 0.95), (19.4, y + 2.6))
    ax.text(10, 8.3, "attention half:  $s_1 = s + $ output of attention", ha="center", fontsize=12)
    ax.text(10, 4.2, "MLP half:  $s_2 = s_1 + $ output of the MLP", ha="center", fontsize=12)
    ax.text(10.2, 0.3, "dashed: frozen      green: M and U, learned      pink: the merged model's own stream and norms"
                       "      grey: nonlinear", ha="center", fontsize=10)
    return figure


def _lanes(ax: Axes, y: float, names: tuple[str, str, str], xs: tuple[float, ...], ends: tuple[float, float]) -> None:
    """U, frozen layer and M of both originals, one above the other, from one point to one point."""
    widths = (0.9, 2.3, 1.6 if "q" in names[2] else 1.0)
    for i, lane in ((1, y + 1.6), (2, y + 0.4)):
        texts = [names[0].replace("{X}", str(i)), f"{names[1]} of original {i}", names[2].replace("{X}", str(i))]
        chain(ax, lane, [(x, text, MODELS[i - 1] if n == 1 else LEARNED, "--" if n == 1 else "-", width)
                         for n, (x, text, width) in enumerate(zip(xs, texts, widths))])
        arrow(ax, (ends[0], y + 1.0), (xs[0] - 0.52, lane))
        arrow(ax, (xs[2] + widths[2] / 2 + 0.06, lane), (ends[1], y + 1.0))


# ---------------------------------------------------------------- one layer with its shapes

# Layer -> what it reads, U, the M, what it writes to, and how many times the stream's width it reads and writes.
PLACES = {
    "qkv": ("the stream,\nthrough norm1", "U^{qkv}", ("M^q", "M^k", "M^v"), "the attention\nheads", 1, 1),
    "proj": ("the attention\nheads", "U^o", ("M^o",), "the stream", 1, 1),
    "fc1": ("the stream,\nthrough norm2", "U^{fc1}", ("M^{fc1}",), "the hidden\nunits", 1, 4),
    "fc2": ("the hidden\nunits", "U^{fc2}", ("M^{fc2}",), "the stream", 4, 1)}
WIDTHS = (96, 64, 128, 48)  # of four originals, invented


def one_layer(layer: str = "qkv", originals: int = 2, merged_width: int = 96) -> Figure:
    """One layer of a block in a SuperNet: U, frozen layer and M of every original with their shapes, and the fold.

    Args:
        layer: one of `PLACES`.
        originals: from 1 to 4; their streams have the widths `WIDTHS`.
        merged_width: width of the merged model's stream.

    Raises:
        ValueError: no such layer, or another number of originals.
    """
    if layer not in PLACES or not 1 <= originals <= len(WIDTHS):
        raise ValueError(f"layer must be one of {', '.join(PLACES)} and originals 1 to 4, got {layer}, {originals}")
    reads, _, Ms, writes, wide_in, wide_out = PLACES[layer]
    figure, ax = canvas(17.4, 1.5 * originals + 2.3, (11.4, 0.95 * originals + 1.4))
    middle = 2.1 + 0.75 * originals
    for x, text, width in ((1.2, reads, wide_in), (16.1, writes, wide_out)):
        each = "3 x " if x > 2 and len(Ms) > 1 else ""
        ax.text(x, middle, f"{text}\n{each}{width * merged_width} channels", ha="center", va="center", fontsize=11)
    ax.text(14.1, middle, "$+$", ha="center", va="center", fontsize=15)
    arrow(ax, (14.3, middle), (14.9, middle))
    learned = sum(_lane(ax, 2.1 + 1.5 * (originals - i) - 0.65, i, layer, merged_width, middle)
                  for i in range(originals))
    _fold_of(ax, layer, merged_width, learned)
    return figure


def _lane(ax: Axes, y: float, i: int, layer: str, merged: int, middle: float) -> int:
    """U, W and M of original i with their shapes below. Returns how many entries U and M have."""
    _, U, Ms, _, wide_in, wide_out = PLACES[layer]
    own, n, places = WIDTHS[i], len(Ms), ((4.2, 1.3), (7.7, 3.0), (11.6, 2.8 if len(Ms) > 1 else 1.5))
    shapes = ((wide_in * own, wide_in * merged), (n * wide_out * own, wide_in * own),
              (wide_out * merged, wide_out * own))
    names = f"${U}_{i + 1}$", f"{layer} of original {i + 1}", "  ".join(f"${M}_{i + 1}$" for M in Ms)
    chain(ax, y, [(x, name, MODELS[i] if j == 1 else LEARNED, "--" if j == 1 else "-", width)
                  for j, ((x, width), name) in enumerate(zip(places, names))])
    for j, ((x, _), (rows, columns)) in enumerate(zip(places, shapes)):
        each = "each " if n > 1 and j == 2 else ""
        ax.text(x, y - 0.42, f"{each}{rows} x {columns}", ha="center", va="top", fontsize=9.5, color=DARK)
    (first, wide), *_, (last, wide_M) = places
    arrow(ax, (2.4, middle), (first - wide / 2 - 0.06, y))
    arrow(ax, (last + wide_M / 2 + 0.06, y), (13.9, middle))
    return own * merged * (wide_in ** 2 + n * wide_out ** 2)


def _fold_of(ax: Axes, layer: str, merged: int, learned: int) -> None:
    """The bottom row: the folded layer, and how many numbers it and all M and U have."""
    _, _, Ms, _, wide_in, wide_out = PLACES[layer]
    shape = len(Ms) * wide_out * merged, wide_in * merged
    box(ax, 5.2, 0.85, f"folded: one plain {layer}", MERGED, 4.6)
    ax.text(5.2, 0.43, f"{shape[0]} x {shape[1]}", ha="center", va="top", fontsize=9.5, color=DARK)
    ax.text(8.2, 0.85, f"all $M$ and $U$ of this layer: {learned:,} numbers\n"
                       f"the folded layer: {shape[0] * shape[1]:,} weights", va="center", fontsize=11)


# ---------------------------------------------------------------- norms and attention

def norm_outputs() -> Figure:
    """All outputs of a LayerNorm of two channels and their images under U, without and with a shift c."""
    cases = (("$c = (0, 0)$: the images stay opposite", ((1, -1), (-1, 1)), ((4, 0), (0, -6))),
             ("$c = (1, 1)$: $U$ sends both to (5, 7)", ((2, 0), (0, 2)), ((2.5, 2.5), (3.5, 3.5))))
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.3), sharex=True, sharey=True, layout="constrained")
    for ax, (title, outputs, U) in zip(axes, cases):
        outputs = np.array(outputs)
        images = outputs @ np.transpose(U)
        ax.axline(*outputs, color=GREY, lw=1.5, zorder=0)
        for start, end in zip(outputs, images):
            arrow(ax, start, end)
        ax.plot(*outputs.T, "o", ms=9, color=MERGED, label="outputs of LN")
        ax.plot(*images.T, "s", ms=9, color=LEARNED, label="their images under $U$")
        ax.plot(0, 0, "+", color="black", ms=13, mew=2, label="0")
        ax.set(title=title, xlabel="channel 0", xlim=(-6, 8), ylim=(-7.5, 8), aspect="equal")
        bare(ax)
    axes[0].set_ylabel("channel 1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def attention_patterns(patterns: Mapping[str, tuple[Tensor, str]]) -> Figure:
    """Attention weights with their numbers: title -> (weights (tokens, tokens), color). Row: the token that looks."""
    figure, axes = plt.subplots(1, len(patterns), figsize=(2.2 * len(patterns), 2.9), layout="constrained")
    for ax, (title, (weights, color)) in zip(axes, patterns.items()):
        shades = LinearSegmentedColormap.from_list(title, ["white", color])
        ax.imshow(weights, cmap=shades, vmin=0, vmax=1.5)
        for (i, j), value in np.ndenumerate(weights):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center")
        tokens = range(len(weights))
        ax.set(xticks=tokens, yticks=tokens, xlabel="token looked at")
        ax.set_title(title, fontsize=11)
    axes[0].set_ylabel("token that looks")
    return figure


# ---------------------------------------------------------------- whose heads

@torch.no_grad()
def head_shares(net: SuperNet, images: Tensor) -> Tensor:
    """Original 2's share of the variance of q, k and v in every attention head: (blocks, 3, heads), in percent."""
    plain, found = net.fold().backbone, []
    stream = plain.patch_embed(images)
    stream = torch.cat([plain.cls_token.expand(len(images), -1, -1), stream], 1) + plain.pos_embed
    for block, merged in zip(plain.blocks, net.body.blocks):
        layer, read = merged.attn.qkv, block.norm1(stream)
        parts = [M(F.linear(U(read), W, b)) for M, U, (W, b) in zip(layer.merges, layer.unmerges, layer.frozen())]
        one, two = (part.var((0, 1)).view(3, block.attn.num_heads, -1).sum(-1) for part in parts)
        found.append(100 * two / (one + two))
        stream = block(stream)
    return torch.stack(found)


def whose_heads(shares: Mapping[str, Tensor]) -> Figure:
    """Original 2's share in every attention head, as tables of numbers: net -> (blocks, 3, heads), in percent."""
    figure, axes = plt.subplots(len(shares), 3, figsize=(9.5, 2.7 * len(shares)), squeeze=False, layout="constrained")
    for line, (name, share) in zip(axes, shares.items()):
        for ax, values, what in zip(line, share.unbind(1), ("queries", "keys", "values")):
            image = ax.imshow(values, cmap=BLUE_ORANGE, vmin=0, vmax=100, alpha=0.75)
            for (i, j), value in np.ndenumerate(values):
                ax.text(j, i, f"{value:.0f}", ha="center", va="center")
            blocks, heads = map(range, values.shape)
            ax.set(title=what, xlabel="attention head", xticks=heads, xticklabels=[h + 1 for h in heads],
                   yticks=blocks, yticklabels=[b + 1 for b in blocks])
        line[0].set_ylabel(f"{name}\n\nblock")
    figure.colorbar(image, ax=axes, shrink=0.6, label="original 2's share, %")
    return figure
