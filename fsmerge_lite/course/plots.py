"""Figures that only the lessons show."""
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..bench.figures import BLUE, BLUE_ORANGE, COLOURS, GREY, MARKERS, png


def show(drawn: Figure | Axes, alt: str) -> None:
    """Display a figure as PNG with a description. JupyterLab drops the alt text, so the words can be opened below."""
    words = HTML(f"<details><summary>In words</summary>{escape(alt)}</details>")
    display(Image(png(drawn.get_figure()), alt=alt), words)


def heat_maps(rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Matrices as images on one colour scale: blue is negative, orange positive. Small ones show their numbers.

    Args:
        rows: row name -> title -> matrix (out, in).
    """
    columns, matrices = max(map(len, rows.values())), [m for row in rows.values() for m in row.values()]
    widths = [max([list(row.values())[j].shape[1] for row in rows.values() if len(row) > j]) for j in range(columns)]
    figure, axes = plt.subplots(len(rows), columns, figsize=(1 + 1.9 * columns, 0.5 + 1.9 * len(rows)), squeeze=False,
                                width_ratios=widths, layout="constrained")
    size = max(m.abs().max().item() for m in matrices)
    for line, (name, row) in zip(axes, rows.items()):
        for ax, (title, matrix) in zip(line, row.items()):
            image = ax.imshow(matrix.detach().cpu(), cmap=BLUE_ORANGE, vmin=-size, vmax=size)
            ax.set(title=title, xticks=[], yticks=[])
            for (i, j), value in np.ndenumerate(matrix.detach().cpu() if matrix.numel() <= 16 else np.empty(0)):
                ax.text(j, i, f"{value:.2g}", ha="center", va="center")
        line[0].set_ylabel(name)
    figure.colorbar(image, ax=axes, shrink=0.8, label="entry")
    return figure


def by_layer(series: Mapping[str, Mapping[str, float]], label: str, bounds: Sequence[float] = ()) -> Figure:
    """One number for each layer on a horizontal log scale: name -> layer -> number. Bounds are dotted lines."""
    layers = list(next(iter(series.values())))
    figure, ax = plt.subplots(figsize=(7.5, 0.25 * len(layers) + 1.2), layout="constrained")
    for j, (name, values) in enumerate(series.items()):
        ax.plot([values[layer] for layer in layers], range(len(layers)), MARKERS[j], color=COLOURS[j], label=name)
    for bound in bounds:
        ax.axvline(bound, color="black", ls=":", lw=1)
    ax.set_yticks(range(len(layers)), layers)
    ax.set(xscale="log", xlabel=label)
    ax.invert_yaxis()
    ax.grid(axis="y", color=GREY, lw=0.4)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def first_and_second(accuracies: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Accuracy on the task of model 2 against that of model 1, one point per merge: method -> pairs in percent."""
    figure, ax = plt.subplots(figsize=(7.8, 4.6), layout="constrained")
    low = min(value for pairs in accuracies.values() for pair in pairs for value in pair) - 3
    ax.plot([low, 101], [low, 101], color=GREY, lw=1, ls=":")
    for j, (name, pairs) in enumerate(accuracies.items()):
        ax.plot(*zip(*pairs), MARKERS[j % len(MARKERS)], ms=7, mec="white", color=COLOURS[j % len(COLOURS)], label=name)
    ax.set(xlabel="accuracy on the task of model 1, %", ylabel="accuracy on the task of model 2, %",
           xlim=(low, 101), ylim=(low, 101))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def token(picture: Tensor, patch: int, side: int, sizes: Mapping[str, Sequence[float]],
          cosines: Mapping[str, Sequence[float]]) -> Figure:
    """An image (3, H, W) with one patch framed, and two properties of the token of that patch at each depth.

    Args:
        picture, patch, side: the image, the index of the patch (row by row), and its side in pixels.
        sizes: model -> norm of the token in the residual stream, depth by depth.
        cosines: SuperNet -> cosine between the features of original 2 and their reconstruction, depth by depth.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), width_ratios=(1, 1.7, 1.7), layout="constrained")
    axes[0].imshow((picture.movedim(0, -1).cpu() / 2 + 0.5).clamp(0, 1))
    row, column = divmod(patch, picture.shape[-1] // side)
    axes[0].add_patch(Rectangle((column * side - 0.5, row * side - 0.5), side, side, fill=False, ec=COLOURS[5], lw=3))
    axes[0].set(title=f"patch {patch}", xticks=[], yticks=[])
    for ax, lines, label in ((axes[1], sizes, "norm in the residual stream"),
                             (axes[2], cosines, "cosine with original 2's features")):
        for j, (name, line) in enumerate(lines.items()):
            ax.plot(line, marker=MARKERS[j], color=COLOURS[j if ax is axes[1] else j + 3], label=name)
        ax.set(xlabel="depth (number of blocks)", ylabel=label, xticks=range(len(line)))
        ax.set_ylim(min(0, ax.get_ylim()[0]))
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def shares(groups: Mapping[str, Sequence[float]], names: Sequence[str]) -> Figure:
    """Bars of shares, one group per entry and one bar per name. The dotted line is 1, all of it."""
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for j, name in enumerate(names):
        x, heights = np.arange(len(groups)) + 0.4 * j - 0.2, [row[j] for row in groups.values()]
        bars = ax.bar(x, heights, 0.38, color=COLOURS[j], hatch="/" * j, label=name)
        ax.bar_label(bars, [f"{100 * height:.0f} %" for height in heights], fontsize=9)
    ax.axhline(1, color="black", ls=":", lw=1)
    ax.set_xticks(range(len(groups)), groups)
    ax.set(yscale="log", ylabel="trained parameters / weights (log)", ylim=(0.01, 15))
    ax.legend(frameon=False, loc="upper left", ncols=len(names))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def spectra(singular_values: Mapping[str, Tensor], shown: int) -> Axes:
    """The first `shown` singular values of each matrix, largest first."""
    ax = plt.figure(figsize=(6.5, 3.2), layout="constrained").gca()
    for j, (name, values) in enumerate(singular_values.items()):
        ax.plot(range(1, shown + 1), values[:shown].cpu(), marker=MARKERS[j], color=COLOURS[j], label=name)
    ax.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def correlations(matrices: Mapping[str, Tensor]) -> Figure:
    """Correlation matrices side by side on one scale from -1 to 1: title -> (channels, channels)."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(3.2 * len(matrices) + 0.8, 3.3), layout="constrained")
    for ax, (title, matrix) in zip(axes, matrices.items()):
        image = ax.imshow(matrix.detach().cpu(), cmap=BLUE_ORANGE, vmin=-1, vmax=1, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[], xlabel="channel of the second", ylabel="channel of the first")
    figure.colorbar(image, ax=axes, label="correlation", shrink=0.8)
    return figure


def explained(fractions: Mapping[str, float]) -> Figure:
    """Horizontal bars of explained variance, as fractions from 0 to 1."""
    names, values = list(fractions)[::-1], [float(value) for value in fractions.values()][::-1]
    figure, ax = plt.subplots(figsize=(7, 0.5 * len(names) + 1.1), layout="constrained")
    bars = ax.barh(names, values, 0.6, color=BLUE)
    ax.bar_label(bars, [f"{100 * value:.0f} %" for value in values], padding=3)
    ax.set(xlim=(0, 1.1), xlabel="explained fraction of the variance")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
