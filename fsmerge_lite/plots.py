"""Every figure. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#BBBBBB"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#D55E00")


def pictures(rows: Mapping[str, Tensor], columns: int = 12) -> Figure:
    """One row of pictures (n, 3, H, W) in [-1, 1] for each name."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 0.95 * len(rows)), squeeze=False)
    for ax, (name, images) in zip(axes[:, 0], rows.items()):
        strip = np.concatenate([np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=1)
                                for image in (images[:columns].movedim(1, -1).cpu().numpy() / 2 + 0.5)], axis=1)
        ax.imshow(strip.clip(0, 1))
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines[:].set_visible(False)
    figure.tight_layout()
    return figure


def histories(runs: Sequence, ax: Axes | None = None) -> Axes:
    """Loss against step of each `History`, log scale; the learning rate of the first in grey behind them."""
    ax = ax or plt.figure(figsize=(6, 3.5), layout="constrained").gca()
    behind = ax.twinx()
    behind.fill_between(range(len(runs[0].lr)), runs[0].lr, color=GREY, alpha=0.35, lw=0)
    behind.set(yticks=[], ylim=(0, 1.05 * max(runs[0].lr)))
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)
    for run, colour in zip(runs, COLOURS):
        ax.semilogy(run.loss, color=colour, lw=1, label=f"{run.name}, {run.seconds[-1]:.0f} s")
    ax.set(xlabel="step (grey: learning rate)", ylabel="reconstruction loss")
    ax.legend(frameon=False)
    return ax


def accuracies(table: Mapping) -> Figure:
    """Bars of per-task and joint accuracy from a `Table`, a group a method; chance for one of ten classes dotted."""
    columns = list(dict.fromkeys(c for s in table.values() for c in s.row() if c != "mean"))
    figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
    width = 0.8 / len(columns)
    for j, column in enumerate(columns):
        values = [scores.row().get(column, float("nan")) for scores in table.values()]
        places = np.arange(len(table)) + (j - (len(columns) - 1) / 2) * width
        bars = ax.bar(places, values, 0.94 * width, color=COLOURS[j % len(COLOURS)],
                      label=column if column == "joint" else f"{column} (head given)")
        ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.axhline(10, color="black", ls=":", lw=1)
    ax.set_xticks(range(len(table)), table)
    ax.set(ylabel="test accuracy, %", ylim=(0, 118), yticks=range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(columns), loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 1.5, style: str = "-") -> None:
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.32), width, 0.64, boxstyle="round,pad=0.02,rounding_size=0.12",
                                fc=colour + "33", ec=colour, lw=1.6, ls=style))
    ax.text(x, y, text, ha="center", va="center", fontsize=11)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#444444", lw=1.2))


def layer_diagram() -> Figure:
    """One layer of a SuperNet of two originals, and the plain layer that it folds into."""
    figure, ax = plt.subplots(figsize=(9.6, 2.9), layout="constrained")
    ax.set(xlim=(-0.5, 13.6), ylim=(-0.15, 3.2))
    ax.axis("off")
    for y, i, colour in ((2.2, 1, BLUE), (0.9, 2, ORANGE)):
        _box(ax, 1.9, y, f"$U_{i}$", GREEN, 1.0)
        _box(ax, 3.9, y, f"$W_{i},\\ b_{i}$", colour, 1.7, "--")
        _box(ax, 5.9, y, f"$M_{i}$", GREEN, 1.0)
        for start, end in ((2.45, 3.0), (4.8, 5.35)):
            _arrow(ax, (start, y), (end, y))
        _arrow(ax, (0.35, 1.55), (1.35, y))
        _arrow(ax, (6.45, y), (7.25, 1.62 if y > 1.5 else 1.48))
    ax.text(0.05, 1.55, "$x^*$", ha="center", va="center", fontsize=13)
    ax.text(7.5, 1.55, "$+$", ha="center", va="center", fontsize=15)
    _arrow(ax, (7.75, 1.55), (8.3, 1.55))
    ax.text(8.6, 1.55, "$y^*$", ha="center", va="center", fontsize=13)
    ax.text(9.6, 1.5, "$=$", ha="center", va="center", fontsize=18)
    _box(ax, 11.75, 1.55, r"$W^*=\sum_i M_i W_i U_i$" "\n" r"$b^*=\sum_i M_i b_i$", PINK, 3.1)
    ax.patches[-1].set(y=1.0, height=1.1)
    ax.text(3.9, 3.0, "SuperNet layer: frozen (dashed) between learned (green)", ha="center", fontsize=10)
    ax.text(11.75, 3.0, "folded: one plain layer", ha="center", fontsize=10)
    ax.text(3.9, 0.05, "trained to give each original's features on a few unlabeled images", ha="center", fontsize=9)
    ax.text(11.75, 0.05, "the size and cost of one original", ha="center", fontsize=9)
    return figure
