"""The figures of benchmarks and tour. `palette` says what each color means."""
import io
from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from .palette import (
    BLUE,
    COLOURS,
    DARK,
    GREEN,
    GREY,
    LABELS,
    LINES,
    MARKERS,
    ORANGE,
    PINK,
    style_of,
)


def png(figure: Figure) -> bytes:
    """The figure as PNG. Closes the figure."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    plt.close(figure)
    return buffer.getvalue()


def pictures(rows: Mapping[str, Tensor], columns: int = 12) -> Figure:
    """Images (n, 3, H, W) in [-1, 1], one row for each name."""
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


def texts(rows: Mapping[str, Sequence[str]]) -> Figure:
    """Some texts of every name, one column a name."""
    figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 2.4), squeeze=False)
    for ax, (name, some) in zip(axes[0], rows.items()):
        ax.text(0, 1, "\n".join(some), va="top", transform=ax.transAxes, parse_math=False)
        ax.set_title(name, loc="left")
        ax.set_axis_off()
    figure.tight_layout()
    return figure


def plain_log(ax: Axes) -> None:
    """Plain numbers 1, 2, 5, 10, ... on a logarithmic vertical axis."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def histories(runs: Sequence, ax: Axes | None = None) -> Axes:
    """Loss against step for each `History` (log scale), and the learning rate of the first in grey."""
    ax = ax or plt.figure(figsize=(6, 3.5), layout="constrained").gca()
    background = ax.twinx()
    background.fill_between(range(len(runs[0].lr)), runs[0].lr, color=GREY, alpha=0.35, lw=0)
    background.set(yticks=[], ylim=(0, 1.05 * max(runs[0].lr)))
    ax.set_zorder(background.get_zorder() + 1)
    ax.patch.set_visible(False)
    for run, color, line in zip(runs, COLOURS, LINES):
        run.plot(ax, color=color, ls=line, lw=1.2)
    plain_log(ax)
    ax.set_xlabel("step (grey: learning rate)")
    return ax


def accuracies(table: Mapping, chance: float | None = 10) -> Figure:
    """Bars of per-task and joint accuracy from a `Table`, grouped by method. Dotted: `chance` in percent."""
    columns = list(dict.fromkeys(c for s in table.values() for c in s.row() if c != "mean"))
    tasks = [column for column in columns if column != "joint"]
    figure, ax = plt.subplots(figsize=(max(8, 1.5 * len(table)), 3.8), layout="constrained")
    width = 0.8 / len(columns)
    for j, column in enumerate(columns):
        values = [scores.row().get(column, float("nan")) for scores in table.values()]
        positions = np.arange(len(table)) + (j - (len(columns) - 1) / 2) * width
        look = ({"color": COLOURS[tasks.index(column) % len(COLOURS)], "label": f"{column} (head given)"}
                if column in tasks else {"color": GREY, "hatch": "//", "label": column})
        drawn = ax.bar(positions, values, 0.94 * width, **look)
        ax.bar_label(drawn, fmt="%.0f", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 0.3})
    if chance is not None:
        ax.axhline(chance, color="black", ls=":", lw=1, zorder=0, label="guessing, head given")
    ax.set_xticks(range(len(table)), [name.replace(", ", ",\n") for name in table])
    ax.set(ylabel="test accuracy, %", ylim=(0, 118), yticks=range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(columns) + 1, loc="upper left", columnspacing=1.2)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def path(paths: Mapping, ax: Axes | None = None) -> Axes:
    """Test loss against t along each `Path`. Dotted: the straight line between the losses of its two ends."""
    ax = ax or plt.figure(figsize=(6.5, 3.8), layout="constrained").gca()
    for (name, line), color in zip(paths.items(), COLOURS):
        ax.plot(line.t, line.loss, color=color, lw=1.8, marker="o", markevery=[0, -1], ms=7,
                label=f"{name}, barrier {line.barrier:.2f}")
        ax.plot(line.t, line.chord, color=color, lw=1, ls=":")
    ax.set(xlabel="$t$ in $W(t) = (1 - t)\\,W_{start} + t\\,W_{end}$", ylabel="test loss, mean of the tasks")
    ax.set_ylim(0, 1.25 * max(max(line.loss) for line in paths.values()))  # room for the legend
    ax.legend(frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def against(scores: pd.DataFrame, label: str, log: bool = False) -> Figure:
    """Per-task and joint accuracy of each method against a number, with standard deviations over cells.

    Args:
        scores: from `results.summary`, or some of its methods: `scores.loc[["FS-Merge", "distillation"]]`.
        label: of the horizontal axis.
        log: whether that axis is logarithmic.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    values, methods = sorted(scores.index.unique(1)), scores.index.unique(0).size
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task (head given)", "joint (task unknown)")):
        for j, (method, rows) in enumerate(scores.groupby(level=0, sort=False)):
            beside = 1.1 ** (j / methods - 0.5)  # so that error bars do not cover each other
            ax.errorbar(rows.index.get_level_values(1) * beside, rows[column], rows[f"{column}_std"], capsize=3, lw=1.5,
                        label=method, **style_of(method, j))
        if log:
            ax.set_xscale("log")
        ax.set_xticks(values, values)
        ax.minorticks_off()
        ax.set(title=title, xlabel=label, ylim=(0, 102))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def parameters(scores: pd.DataFrame) -> Figure:
    """Accuracy against the number of trained parameters (log scale): columns `trained`, `mean` and `joint`."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for j, (name, row) in enumerate(scores.iterrows()):
        ax.plot(row["trained"], (row["mean"] + row["joint"]) / 2, ls="", ms=9, label=name, **style_of(name, j))
    ax.set(xscale="log", xlabel="numbers trained", ylabel="mean of per-task and joint accuracy, %")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def panels(scores: pd.DataFrame, label: str = "", y: str = "per-task accuracy, %") -> Figure:
    """Panels with lines: index (title of the panel, line), one column for each point on the horizontal axis."""
    titles = scores.index.unique(0)
    columns = len(titles) if len(titles) < 5 else 3
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns + 2, 3.4 * rows), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")
    for ax in axes.flat[len(titles):]:
        ax.set_visible(False)
    for ax, title in zip(axes.flat, titles):
        for j, (name, line) in enumerate(scores.loc[title].iterrows()):
            ax.plot(list(line.dropna().index), line.dropna(), label=name, **style_of(name, j))
        ax.set(title=title, xlabel=label)
        ax.margins(x=0.2)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_xticks(list(scores.columns))
    axes[0, 0].yaxis.get_major_locator().set_params(integer=y.endswith("%"))
    figure.supylabel(y, fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def growth(costs: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """The cost of a step against k: title of the panel -> line -> k -> ratio to distillation."""
    figure, axes = plt.subplots(1, len(costs), figsize=(3 * len(costs) + 2, 3.6), sharey=True, squeeze=False,
                                layout="constrained")
    names = list(dict.fromkeys(name for lines in costs.values() for name in lines))
    drawn = {}  # for the legend, because not every panel has every line
    for ax, (title, lines) in zip(axes[0], costs.items()):
        for name, line in lines.items():
            j = names.index(name)
            drawn[name], = ax.plot(list(line), list(line.values()), marker=MARKERS[j], color=COLOURS[j],
                                   ls=":" if "operations" in name else "-")
        ax.axhline(1, color="black", lw=1)
        ax.set(title=title, xlabel="originals $k$", yscale="log")
        ax.set_xticks(list(line))
        ax.set_yticks([1, 2, 5, 10, 20], [1, 2, 5, 10, 20])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("time of a step / distillation's")
    figure.legend(drawn.values(), drawn, frameon=False, loc="outside right center")
    return figure


def bars(scores: pd.DataFrame) -> Figure:
    """Horizontal bars of accuracy in percent: one row for each method, columns `mean` and `joint`."""
    return bar_panels(pd.concat({"": scores}), "%.1f", 8)


def bar_panels(scores: pd.DataFrame, digits: str = "%.0f", wide: float = 4) -> Figure:
    """`bars` in panels side by side: index (title of the panel, method), columns `mean` and `joint`."""
    titles, names = scores.index.unique(0), scores.index.unique(1)
    figure, axes = plt.subplots(1, len(titles), figsize=(wide + 3.1 * (len(titles) - 1), 0.42 * len(names) + 1.2),
                                sharey=True, squeeze=False, layout="constrained")
    positions = np.arange(len(names))[::-1]
    for ax, title in zip(axes[0], titles):
        rows = scores.loc[title].reindex(names)
        colors = [style_of(name, 4)["color"] for name in names]
        for shift, column, look in ((0.2, "mean", {"color": colors}),
                                    (-0.2, "joint", {"color": "white", "edgecolor": colors, "hatch": "////"})):
            drawn = ax.barh(positions + shift, rows[column], 0.38, **look)
            ax.bar_label(drawn, fmt=digits, fontsize=8, padding=2)
        ax.set_yticks(positions, names)
        ax.set(title=title, xlim=(0, 115), xlabel="test accuracy, %")
        ax.spines[["top", "right"]].set_visible(False)
    solid, hatched = (Patch(ec=DARK, label=LABELS["mean"], fc=DARK),
                      Patch(ec=DARK, label=LABELS["joint"], fc="white", hatch="////"))
    figure.legend(handles=[solid, hatched], frameon=False, loc="outside lower center", ncols=2)
    return figure


def room(kept: pd.DataFrame, costs: pd.Series) -> Figure:
    """What does it cost to keep more? Percent of the originals' accuracy against operations, a panel for each merge.

    Args:
        kept: from `results.kept_of`: index (tasks, method), a column for each width of the merged model.
        costs: width -> operations of one forward, in those of one original.
    """
    titles = kept.index.unique(0)
    figure, axes = plt.subplots(1, len(titles), figsize=(3.1 * len(titles) + 1, 3.8), sharey=True, squeeze=False,
                                layout="constrained")
    for ax, tasks in zip(axes[0], titles):
        k = len(tasks.split(", "))
        for j, (name, line) in enumerate(kept.loc[tasks].iterrows()):
            ax.plot(costs[line.index] / k, line, label=name, **style_of(name, j))
        for width, percent in kept.loc[tasks].max().items():
            ax.annotate(str(width), (costs[width] / k, percent), (0, 6), textcoords="offset points", ha="center",
                        fontsize=8)
        ax.axhline(99, color="black", lw=1, ls=":", label="99 %")
        ax.axvline(1, color="black", lw=1, ls="--", label="the originals themselves")
        ax.set(title=f"{fill(tasks, 18)}\n{k} models", xlim=(0, None))
        ax.margins(y=0.1)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("kept of the originals' accuracy, %")
    figure.supxlabel("operations of the merged model / operations of the k originals (numbers at points: its width)",
                     fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper center",
                  ncols=2 if len(titles) < 3 else 4)
    return figure


def gaps(scores: pd.DataFrame, label: str) -> Figure:
    """The lead of a method in points: index (title of the panel, row), columns `mean` and `joint`."""
    titles, names = scores.index.unique(0), scores.index.unique(1)
    figure, axes = plt.subplots(1, len(titles), figsize=(2.6 * len(titles) + 2.4, 0.42 * len(names) + 1.5),
                                sharex=True, sharey=True, squeeze=False, layout="constrained")
    for ax, title in zip(axes[0], titles):
        ax.axvline(0, color="black", lw=1)
        for j, column in enumerate(LABELS):
            ax.plot(scores.loc[title].reindex(names)[column], range(len(names)), ls="", label=LABELS[column],
                    marker=MARKERS[j], color=DARK, mfc=DARK if column == "mean" else "white")
        ax.set(title=title, xlabel=label)
        ax.grid(axis="y", color=GREY, lw=0.4)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].margins(y=0.1)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    return figure


# ---------------------------------------------------------------- a drawing

def box(ax: Axes, x: float, y: float, text: str, color: str, width: float = 1.5, style: str = "-") -> None:
    """A rounded box with text, in data units."""
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.32), width, 0.64, boxstyle="round,pad=0.02,rounding_size=0.12",
                                fc=color + "33", ec=color, lw=1.6, ls=style))
    ax.text(x, y, text, ha="center", va="center", fontsize=11)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow between two points, in data units."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=DARK, lw=1.2))


def layer_diagram() -> Figure:
    """One layer of a SuperNet with two originals, and the plain layer that it folds into."""
    figure, ax = plt.subplots(figsize=(9.6, 2.9), layout="constrained")
    ax.set(xlim=(-0.5, 13.6), ylim=(-0.15, 3.2))
    ax.axis("off")
    for y, i, color in ((2.2, 1, BLUE), (0.9, 2, ORANGE)):
        box(ax, 1.9, y, f"$U_{i}$", GREEN, 1.0)
        box(ax, 3.9, y, f"$W_{i},\\ b_{i}$", color, 1.7, "--")
        box(ax, 5.9, y, f"$M_{i}$", GREEN, 1.0)
        for start, end in ((2.45, 3.0), (4.8, 5.35)):
            arrow(ax, (start, y), (end, y))
        arrow(ax, (0.35, 1.55), (1.35, y))
        arrow(ax, (6.45, y), (7.25, 1.62 if y > 1.5 else 1.48))
    ax.text(0.05, 1.55, "$x^*$", ha="center", va="center", fontsize=13)
    ax.text(7.5, 1.55, "$+$", ha="center", va="center", fontsize=15)
    arrow(ax, (7.75, 1.55), (8.3, 1.55))
    ax.text(8.6, 1.55, "$y^*$", ha="center", va="center", fontsize=13)
    ax.text(9.6, 1.5, "$=$", ha="center", va="center", fontsize=18)
    box(ax, 11.75, 1.55, r"$W^*=\sum_i M_i W_i U_i$" "\n" r"$b^*=\sum_i M_i b_i$", PINK, 3.1)
    ax.patches[-1].set(y=1.0, height=1.1)
    ax.text(3.9, 3.0, "SuperNet layer: frozen (dashed) between learned (green)", ha="center", fontsize=10)
    ax.text(11.75, 3.0, "folded: one plain layer", ha="center", fontsize=10)
    ax.text(3.9, 0.05, "trained to give each original's features on a few unlabeled images", ha="center", fontsize=9)
    ax.text(11.75, 0.05, "the size and cost of one original", ha="center", fontsize=9)
    return figure
