"""Explanatory drawings of the lessons. They show structure and contain no measured number."""
from collections.abc import Mapping
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..bench.figures import BLUE, COLOURS, GREEN, GREY, ORANGE, PINK, arrow, box
from ..layers import SuperLinear


def _canvas(width: float, height: float, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty drawing, `width` by `height` units."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def _bracket(ax: Axes, left: float, right: float, y: float, text: str) -> None:
    """A bracket from left to right with a text below it."""
    ax.plot([left, left, right, right], [y + 0.15, y, y, y + 0.15], color="#444444", lw=1.2)
    ax.text((left + right) / 2, y - 0.15, text, ha="center", va="top", fontsize=10)


def _chain(ax: Axes, y: float, boxes: list[tuple[float, str, str, str, float]]) -> None:
    """A row of boxes (x, text, colour, line style, width) with arrows between them."""
    for x, text, colour, style, width in boxes:
        box(ax, x, y, text, colour, width, style)
    for (a, *_, wide), (b, *_, next_wide) in pairwise(boxes):
        arrow(ax, (a + wide / 2 + 0.05, y), (b - next_wide / 2 - 0.05, y))


def across_nonlinearity() -> Figure:
    """Two layers of a SuperNet MLP. The nonlinearity stands between M of the first and U of the second."""
    figure, ax = _canvas(14.2, 3.9, (10, 3))
    for y, i, colour in ((3.0, 1, BLUE), (1.7, 2, ORANGE)):
        _chain(ax, y, [(1.6, f"$W_{i}^{{(1)}},\\ b_{i}^{{(1)}}$", colour, "--", 1.9),
                       (3.6, f"$M_{i}^{{(1)}}$", GREEN, "-", 1.0)])
        _chain(ax, y, [(8.4, f"$U_{i}^{{(2)}}$", GREEN, "-", 1.0),
                       (10.4, f"$W_{i}^{{(2)}},\\ b_{i}^{{(2)}}$", colour, "--", 1.9),
                       (12.4, f"$M_{i}^{{(2)}}$", GREEN, "-", 1.0)])
        arrow(ax, (0.3, 2.35), (0.6, y))
        arrow(ax, (4.15, y), (5.0, 2.35))
        arrow(ax, (7.05, 2.35), (7.85, y))
        arrow(ax, (12.95, y), (13.55, 2.35))
    box(ax, 6.0, 2.35, "$+$, then $\\sigma$", GREY, 1.7)
    ax.text(0.12, 2.35, "$x$", ha="center", va="center", fontsize=13)
    ax.text(13.85, 2.35, "$+$", ha="center", va="center", fontsize=13)
    _bracket(ax, 0.6, 4.2, 1.05, "folds into $W^{*(1)},\\ b^{*(1)}$")
    _bracket(ax, 5.15, 6.85, 1.05, "nonlinear: stays")
    _bracket(ax, 7.8, 13.0, 1.05, "folds into $W^{*(2)},\\ b^{*(2)}$")
    return figure


def what_folds() -> Figure:
    """A ViT block: which parts of the SuperNet fold into plain layers, and which stay as they are."""
    figure, ax = _canvas(16.4, 4.2, (10.4, 3.1))
    parts = ["LayerNorm", "$U$  $qkv$  $M$", "softmax", "$U$  $proj$  $M$", "LayerNorm", "$U$  $fc1$  $M$", "GELU",
             "$U$  $fc2$  $M$"]
    folded = ["LayerNorm", "$W^*_{qkv}$", "softmax", "$W^*_{proj}$", "LayerNorm", "$W^*_{fc1}$", "GELU", "$W^*_{fc2}$"]
    for y, names, colour in ((3.0, parts, GREEN), (1.1, folded, PINK)):
        _chain(ax, y, [(1.15 + 2.02 * j, name, colour if "$" in name else GREY, "-" if "$" in name else "--", 1.62)
                       for j, name in enumerate(names)])
    for j in (1, 3, 5, 7):
        arrow(ax, (1.15 + 2.02 * j, 2.6), (1.15 + 2.02 * j, 1.5))
    ax.text(0.3, 3.75, "SuperNet: $k$ frozen layers between $U$ and $M$ (solid); no $U$ or $M$ (dashed)", fontsize=10)
    ax.text(0.3, 0.25, "folded: one plain layer (solid); unchanged (dashed)", fontsize=10)
    return figure


def attention_block() -> Figure:
    """A ViT block in a SuperNet of two originals. Every frozen layer is between its U and its M, below the stream."""
    figure, ax = _canvas(17.6, 8.9, (12, 7))
    halves = ((4.95, "norm1", ("$U_{X}$", "$qkv_{X}$", "$M^q_{X}\\ M^k_{X}\\ M^v_{X}$"), "attention\n(softmax)",
               ("$U^o_{X}$", "$proj_{X}$", "$M^o_{X}$")),
              (0.85, "norm2", ("$U_{X}$", "$fc1_{X}$", "$M^{fc1}_{X}$"), "GELU",
               ("$U^{fc2}_{X}$", "$fc2_{X}$", "$M^{fc2}_{X}$")))
    for y, norm, before, middle, after in halves:
        ax.plot([0.95, 16.5], [y + 2.9] * 2, color="#444444", lw=4, solid_capstyle="butt")
        ax.text(0.5, y + 2.9, "$x^*$", ha="center", va="center", fontsize=15)
        ax.text(16.75, y + 2.9, "$+$", ha="center", va="center", fontsize=18)
        arrow(ax, (1.7, y + 2.82), (1.7, y + 1.4))
        box(ax, 1.7, y + 1.0, norm, PINK, 1.4)
        box(ax, 9.3, y + 1.0, middle, GREY, 1.6)
        ax.text(7.95, y + 1.0, "$+$", ha="center", va="center", fontsize=15)
        arrow(ax, (8.12, y + 1.0), (8.5, y + 1.0))
        ax.plot([15.75, 16.75], [y + 1.0] * 2, color="#444444", lw=1.2)
        ax.annotate("", (16.75, y + 2.65), (16.75, y + 1.0), arrowprops={
            "arrowstyle": "-|>", "color": "#444444", "lw": 1.2, "shrinkA": 0})
        ax.text(15.55, y + 1.0, "$+$", ha="center", va="center", fontsize=15)
        for i, colour in ((1, BLUE), (2, ORANGE)):
            lane = y + (1.6 if i == 1 else 0.4)
            for xs, names, ends in (((3.35, 4.95, 6.75), before, (2.4, 7.8)),
                                    ((11.1, 12.7, 14.35), after, (10.1, 15.4))):
                widths = (0.9, 1.3, 1.55 if "q" in names[2] else 0.9)
                _chain(ax, lane, [(x, name.replace("{X}", str(i)), colour if n == 1 else GREEN, "--" if n == 1 else "-",
                                   width) for n, (x, name, width) in enumerate(zip(xs, names, widths))])
                arrow(ax, (ends[0], y + 1.0), (xs[0] - 0.52, lane))
                arrow(ax, (xs[2] + widths[2] / 2 + 0.06, lane), (ends[1], y + 1.0))
        arrow(ax, (17.0, y + 2.9), (17.45, y + 2.9))
    ax.text(9.0, 0.3, "dashed: frozen    green: M and U, learned    pink: the merged model's norms, learned    "
            "grey: nonlinear, nothing learned", ha="center", fontsize=11)
    ax.text(9.0, 8.35, "the merged residual stream: $x^* + $ the output of attention", ha="center", fontsize=12)
    ax.text(9.0, 4.25, "the same stream, continued: $+$ the output of the MLP", ha="center", fontsize=12)
    return figure


def residual_stream() -> Figure:
    """The merged residual stream of a ViT. Layers write to it through M and read it through a norm and U."""
    figure, ax = _canvas(16.2, 5.2, (11, 3.8))
    ax.plot([0.6, 15.3], [2.6, 2.6], color="#444444", lw=5, solid_capstyle="butt")
    arrow(ax, (15.2, 2.6), (15.9, 2.6))
    ax.text(0.1, 2.6, "$x^*$", va="center", fontsize=14)
    writers = ((2.0, "patches,\nclass token,\npositions", "$M^{in}$"), (6.4, "attn.proj", "$M^o$"),
               (11.0, "mlp.fc2", "$M^{fc2}$"))
    readers = ((4.2, "$U$", "attn.qkv"), (8.7, "$U$", "mlp.fc1"), (14.0, "$U_{out}$", "heads"))
    for x, name, matrix in writers:
        ax.text(x, 4.65, name, ha="center", va="center", fontsize=11)
        box(ax, x, 3.75, matrix, GREEN, 1.2)
        arrow(ax, (x, 3.4), (x, 2.72))
    for x, matrix, name in readers:
        arrow(ax, (x - 0.78, 2.5), (x - 0.78, 2.05))
        box(ax, x - 0.78, 1.65, "norm", PINK, 1.2)
        arrow(ax, (x - 0.14, 1.65), (x + 0.1, 1.65))
        box(ax, x + 0.68, 1.65, matrix, GREEN, 1.0)
        arrow(ax, (x + 0.68, 1.3), (x + 0.68, 0.85))
        ax.text(x + 0.68, 0.55, name, ha="center", va="center", fontsize=11)
    ax.text(7.4, 0.05, "block 1 (of 4)", ha="center", fontsize=10)
    ax.plot([3.1, 3.1, 11.9, 11.9], [0.35, 0.25, 0.25, 0.35], color="#444444", lw=1)
    return figure


def product_shapes(layer: SuperLinear) -> Figure:
    """The matrices of a SuperNet layer as rectangles to scale: M_i, W_i and U_i of every original, and W*."""
    folded = layer.fold()[0].shape
    figure, ax = plt.subplots(figsize=(11, 3.6), layout="constrained")
    x = 0.0
    for i, (merge, (weight, _), unmerge) in enumerate(zip(layer.merges, layer.frozen(), layer.unmerges), 1):
        sizes = ((merge.out_features * merge.blocks, merge.in_features * merge.blocks), weight.shape,
                 (unmerge.out_features, unmerge.in_features))
        for name, colour, style, size in zip("MWU", (GREEN, COLOURS[i - 1], GREEN), ("-", "--", "-"), sizes):
            x = _rectangle(ax, x, f"${name}_{i}$", colour, style, size, max(folded))
        ax.text(x, 0, "$+$" if i < layer.k else "$=$", ha="center", va="center", fontsize=18)
        x += 0.16
    x = _rectangle(ax, x, "$W^*$", PINK, "-", folded, max(folded))
    ax.set(xlim=(-0.05, x), ylim=(-0.9, 0.6), aspect="equal")
    ax.axis("off")
    return figure


def _rectangle(ax: Axes, x: float, name: str, colour: str, style: str, size: tuple[int, int], unit: int) -> float:
    """Draw a matrix (rows, columns) on the middle line with its size below it. Returns x for the next one."""
    height, width = (n / unit for n in size)
    ax.add_patch(Rectangle((x, -height / 2), width, height, fc=colour + "33", ec=colour, lw=1.6, ls=style))
    ax.text(x + width / 2, 0, name, ha="center", va="center", fontsize=13)
    ax.text(x + width / 2, -0.56, f"{size[0]}\nx {size[1]}", ha="center", va="top", fontsize=10)
    return x + width + 0.16


def structures(size: int = 96, rank: int = 12) -> Figure:
    """The four structures of M and U as rectangles to scale, with the number of entries of each."""
    figure, ax = _canvas(14.3, 3.9, (11.5, 3.2))
    r = 2 * rank / size
    counts = {"diagonal": size, "low_rank": 2 * size * rank, "diagonal_low_rank": size + 2 * size * rank,
              "full": size * size}
    for (name, count), (x, parts) in zip(counts.items(), ((0.2, "D"), (3.0, "AB"), (6.4, "D+AB"), (12.1, "S"))):
        left = x
        for part in parts:
            width = {"A": r, "+": 0.4}.get(part, 2)
            if part == "+":
                ax.text(x + 0.2, 2.2, "$+$", ha="center", va="center", fontsize=16)
            elif part == "D":
                ax.add_patch(Rectangle((x, 1.2), 2, 2, fc="none", ec=GREY, ls=":"))
                ax.plot([x, x + 2], [3.2, 1.2], color=GREEN, lw=3)
            else:
                height = r if part == "B" else 2
                ax.add_patch(Rectangle((x, 3.2 - height), width, height, fc=GREEN + "66", ec=GREEN, lw=1.5))
            if part != "+":
                ax.text(x + width / 2, 3.4, f"${part}$", ha="center", fontsize=12)
            x += width + 0.08
        ax.text((left + x) / 2, 0.75, name, ha="center", fontsize=11)
        ax.text((left + x) / 2, 0.3, f"{count:,} entries", ha="center", fontsize=10)
    return figure


def algorithm() -> Figure:
    """The whole algorithm from left to right: what each step does, and which steps use images."""
    figure, ax = _canvas(17.2, 3.9, (11, 2.5))
    steps = [("originals", "$k$ models, frozen", BLUE, "--"),
             ("SuperNet", "$U_i$, $M_i$ around\nevery layer", GREEN, "-"),
             ("start", "first or\nsubspaces (fitted)", GREEN, "-"),
             ("train", "reconstruct\nthe features $f_i$", GREEN, "-"),
             ("fold", r"$W^* = \sum_i M_i W_i U_i$", PINK, "-"), ("merged", "1 backbone,\n$k$ heads", PINK, "-")]
    xs = [1.4 + 2.88 * j for j in range(len(steps))]
    _chain(ax, 2.4, [(x, name, colour, style, 1.8) for x, (name, _, colour, style) in zip(xs, steps)])
    for x, (_, note, *_) in zip(xs, steps):
        ax.text(x, 1.85, note, ha="center", va="top", fontsize=10)
    ax.text(xs[2] + 1.44, 3.65, "a few unlabeled images (first needs none)", ha="center", va="center", fontsize=10)
    for x in xs[2:4]:
        arrow(ax, (xs[2] + 1.44, 3.45), (x, 2.8))
    _bracket(ax, xs[2] - 0.9, xs[3] + 0.9, 0.6, "all learning happens here: $M$, $U$ and the norms")
    return figure


def two_unit_networks(networks: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Networks with two inputs, two hidden units and one output, side by side. Arrows carry the weights.

    Args:
        networks: title -> weights (2, 2) and (1, 2).
    """
    figure, axes = plt.subplots(1, len(networks), figsize=(3.4 * len(networks), 3.2), layout="constrained")
    inputs, hidden, output = ((0.3, 2.0), (0.3, 0.4)), ((2.0, 2.0), (2.0, 0.4)), ((3.7, 1.2),)
    for ax, (title, weights) in zip(axes, networks.items()):
        ax.set(xlim=(-0.1, 4.1), ylim=(-0.1, 2.5), title=title, aspect="equal")
        ax.axis("off")
        for left, right, weight in zip((inputs, hidden), (hidden, output), weights):
            for row, end in zip(weight.tolist(), right):
                for value, start, colour in zip(row, left, (BLUE, ORANGE)):
                    _weighted(ax, start, end, value, colour)
        for names, centres in ((("$x_0$", "$x_1$"), inputs), (("$h_0$", "$h_1$"), hidden), (("$y$",), output)):
            for name, centre in zip(names, centres):
                ax.text(*centre, name, ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white"})
    return figure


def _weighted(ax: Axes, start: tuple[float, float], end: tuple[float, float], value: float, colour: str) -> None:
    """A line with its weight, written near the start, where no other line crosses."""
    ax.plot(*zip(start, end), color=colour if value else GREY, lw=1.8, ls="-" if value else ":", zorder=0)
    x, y = (s + 0.34 * (e - s) for s, e in zip(start, end))
    ax.text(x, y, f"{value:g}", ha="center", va="center", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 1})


def local_and_global() -> Figure:
    """Global training with one loss at the end, local training with a loss at every depth, and their gradients."""
    figure, ax = _canvas(13.8, 6.8, (10.2, 4.8))
    xs = [1.2 + 2.5 * j for j in range(5)]
    for y, title, depths in ((5.4, "global: one loss at the output; its gradient flows through all blocks", (4,)),
                             (2.4, "local: a loss at every depth, one after the other; its gradient stays in its block",
                              range(5))):
        ax.text(0.2, y + 1.15, title, fontsize=11)
        _chain(ax, y, [(x, "embed" if j == 0 else f"block {j}", GREEN, "-", 1.6) for j, x in enumerate(xs)])
        for j in depths:
            x = xs[j] + 1.25
            box(ax, x, y - 1.3, "$U_{out}$, loss" if j == 4 else "$U$, loss", ORANGE, 1.7)
            ax.text(x, y - 1.85, "output" if j == 4 else f"depth {j}", ha="center", va="top", fontsize=10)
            arrow(ax, (x, y) if j < 4 else (xs[4] + 0.85, y - 0.1), (x, y - 0.92))
            back = xs[0] if len(depths) == 1 else xs[j]
            ax.annotate("", (back - 0.6, y + 0.62), (x - 0.1, y + 0.62),
                        arrowprops={"arrowstyle": "-|>", "color": PINK, "lw": 2, "ls": "--"})
    return figure


def at_once_and_in_sequence() -> Figure:
    """Three originals merged at once; and two of them merged first, then the result with the third."""
    figure, ax = _canvas(15.6, 4.2, (10.4, 2.9))
    ax.text(2.9, 3.9, "at once", ha="center", fontsize=11)
    ax.text(10.7, 3.9, "in sequence", ha="center", fontsize=11)
    originals = (("$a$", BLUE), ("$b$", ORANGE), ("$c$", GREEN))
    for y, (name, colour) in zip((3.2, 2.1, 1.0), originals):
        box(ax, 0.9, y, name, colour, 1.0, "--")
        arrow(ax, (1.5, y), (3.3, 2.1))
        box(ax, 7.4, y, name, colour, 1.0, "--")
    box(ax, 4.2, 2.1, "$a, b, c$", PINK, 1.6)
    for y in (3.2, 2.1):
        arrow(ax, (8.0, y), (9.5, 2.65))
    box(ax, 10.4, 2.65, "$a, b$", PINK, 1.6)
    arrow(ax, (11.3, 2.65), (12.9, 1.85))
    arrow(ax, (8.0, 1.0), (12.9, 1.8))
    box(ax, 13.9, 1.82, "$a, b, c$", PINK, 1.8)
    ax.text(4.2, 1.5, "output matrices\n$O_1,\\ O_2,\\ O_3$", ha="center", va="top", fontsize=10)
    ax.text(10.4, 3.45, "$O_1,\\ O_2$", ha="center", va="top", fontsize=10)
    ax.text(13.9, 1.2, "$O_1 U,\\ O_2 U,\\ O_3$", ha="center", va="top", fontsize=10)
    return figure
