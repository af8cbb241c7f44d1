"""Every figure. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#BBBBBB"
MARKERS, LINES = "osD^vPX*<>", ("-", "--", "-.", ":", (0, (6, 1)), (0, (1, 2)))
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#D55E00")
BLUE_ORANGE = LinearSegmentedColormap.from_list("blue, white, orange", [BLUE, "white", ORANGE])


def png(figure: Figure) -> bytes:
    """The figure as PNG; it is closed."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    plt.close(figure)
    return buffer.getvalue()


def show(drawn: Figure | Axes, alt: str) -> None:
    """Display a figure as PNG, and what it shows in words: as alt text, which JupyterLab drops, and to unfold."""
    words = HTML(f"<details><summary>In words</summary>{escape(alt)}</details>")
    display(Image(png(drawn.get_figure()), alt=alt), words)


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


def plain_log(ax: Axes) -> None:
    """Numbers at 1, 2, 5, 10, ... on a logarithmic vertical axis, written out."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def histories(runs: Sequence, ax: Axes | None = None) -> Axes:
    """Loss against step of each `History`, log scale; the learning rate of the first in grey behind them."""
    ax = ax or plt.figure(figsize=(6, 3.5), layout="constrained").gca()
    behind = ax.twinx()
    behind.fill_between(range(len(runs[0].lr)), runs[0].lr, color=GREY, alpha=0.35, lw=0)
    behind.set(yticks=[], ylim=(0, 1.05 * max(runs[0].lr)))
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)
    for run, colour, line in zip(runs, COLOURS, LINES):
        ax.semilogy(run.loss, color=colour, ls=line, lw=1.2, label=f"{run.name}, {run.seconds[-1]:.0f} s")
    plain_log(ax)
    ax.set(xlabel="step (grey: learning rate)", ylabel="reconstruction loss")
    ax.legend(frameon=False)
    return ax


def accuracies(table: Mapping) -> Figure:
    """Bars of per-task and joint accuracy from a `Table`, a group a method; guessing one of ten classes dotted."""
    columns = list(dict.fromkeys(c for s in table.values() for c in s.row() if c != "mean"))
    figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
    width = 0.8 / len(columns)
    for j, column in enumerate(columns):
        values = [scores.row().get(column, float("nan")) for scores in table.values()]
        places = np.arange(len(table)) + (j - (len(columns) - 1) / 2) * width
        bars = ax.bar(places, values, 0.94 * width, color=COLOURS[j % len(COLOURS)],
                      label=column if column == "joint" else f"{column} (head given)")
        ax.bar_label(bars, fmt="%.0f", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 0.3})
    ax.axhline(10, color="black", ls=":", lw=1, zorder=0, label="guessing, head given")
    ax.set_xticks(range(len(table)), [name.replace(", ", ",\n") for name in table])
    ax.set(ylabel="test accuracy, %", ylim=(0, 118), yticks=range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(columns) + 1, loc="upper left", columnspacing=1.2)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def path(paths: Mapping, ax: Axes | None = None) -> Axes:
    """Test loss against t along each `Path`, its ends marked; dotted from end to end, what a barrier rises above."""
    ax = ax or plt.figure(figsize=(6.5, 3.8), layout="constrained").gca()
    for (name, line), colour in zip(paths.items(), COLOURS):
        ax.plot(line.t, line.loss, color=colour, lw=1.8, marker="o", markevery=[0, -1], ms=7,
                label=f"{name}, barrier {line.barrier:.2f}")
        ax.plot(line.t, line.chord, color=colour, lw=1, ls=":")
    ax.set(xlabel="$t$ in $W(t) = (1 - t)\\,W_{start} + t\\,W_{end}$", ylabel="test loss, mean of the tasks")
    ax.set_ylim(0, 1.25 * max(max(line.loss) for line in paths.values()))  # room for the legend
    ax.legend(frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def against(found: Mapping, label: str, log: bool = False) -> Figure:
    """Per-task and joint accuracy of each method against a number, with standard deviations over cells.

    Args:
        found: method -> value -> {"mean": (mean, deviation), "joint": (mean, deviation)}, from `results.summary`.
        label: of the horizontal axis.
        log: whether that axis is logarithmic.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task (head given)", "joint (task unknown)")):
        for j, (method, rows) in enumerate(found.items()):
            middle, spread = zip(*(row[column] for row in rows.values()))
            ax.errorbar(list(rows), middle, spread, marker=MARKERS[j % len(MARKERS)], capsize=3, lw=1.5,
                        ls="-" if j < len(COLOURS) else "--", color=COLOURS[j % len(COLOURS)], label=method)
        if log:
            ax.set_xscale("log")
        values = sorted({value for rows in found.values() for value in rows})
        ax.set_xticks(values, values)
        ax.minorticks_off()
        ax.set(title=title, xlabel=label, ylim=(0, 102))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def parameters(found: Mapping[str, tuple[float, float]]) -> Figure:
    """Accuracy against how many numbers are trained (log scale): name -> (numbers, accuracy in percent)."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for j, (name, (numbers, accuracy)) in enumerate(found.items()):
        ax.plot(numbers, accuracy, MARKERS[j % len(MARKERS)], ms=9, color=COLOURS[j % len(COLOURS)], label=name)
    ax.set(xscale="log", xlabel="numbers trained", ylabel="mean of per-task and joint accuracy, %")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def panels(found: Mapping[str, Mapping[str, Mapping]], label: str = "", y: str = "per-task accuracy, %") -> Figure:
    """Lines side by side: title -> method -> place on the axis `label` -> what `y` says, as a rule in percent."""
    columns = len(found) if len(found) < 5 else 3
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns + 2, 3.4 * rows), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")
    for ax in axes.flat[len(found):]:
        ax.set_visible(False)
    for ax, (title, methods) in zip(axes.flat, found.items()):
        for j, (method, line) in enumerate(methods.items()):
            ax.plot(list(line), list(line.values()), marker=MARKERS[j % len(MARKERS)],
                    color=COLOURS[j % len(COLOURS)], label=method)
        ax.set(title=title, xlabel=label)
        ax.margins(x=0.2)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_xticks(list({place: 0 for methods in found.values() for line in methods.values() for place in line}))
    axes[0, 0].yaxis.get_major_locator().set_params(integer=y.endswith("%"))
    figure.supylabel(y, fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def growth(found: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """The cost of a step against k, as a multiple of distillation's: title -> line -> k -> ratio."""
    figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found) + 2, 3.6), sharey=True, squeeze=False,
                                layout="constrained")
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    drawn = {}  # one legend: not every panel has every line
    for ax, (title, lines) in zip(axes[0], found.items()):
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


def bars(found: Mapping[str, tuple[float, float]]) -> Figure:
    """Per-task and joint accuracy as horizontal bars, one pair a row: name -> (per task, joint) in percent."""
    return bar_panels({"": found}, "%.1f", 8)


def bar_panels(found: Mapping[str, Mapping[str, tuple[float, float]]], digits: str = "%.0f", wide: float = 4) -> Figure:
    """`bars` in panels side by side: title -> name -> (per task, joint) in percent."""
    rows = len(next(iter(found.values())))
    figure, axes = plt.subplots(1, len(found), figsize=(wide + 3.1 * (len(found) - 1), 0.42 * rows + 1.2), sharey=True,
                                squeeze=False, layout="constrained")
    for ax, (title, pairs) in zip(axes[0], found.items()):
        places = np.arange(rows)[::-1]
        for shift, column, colour, label in ((0.2, 0, BLUE, "per task"), (-0.2, 1, ORANGE, "joint")):
            drawn = ax.barh(places + shift, [pair[column] for pair in pairs.values()], 0.38, color=colour, label=label,
                            hatch="/" * column)
            ax.bar_label(drawn, fmt=digits, fontsize=8, padding=2)
        ax.set_yticks(places, pairs)
        ax.set(title=title, xlim=(0, 115), xlabel="test accuracy, %")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def heat_maps(rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Matrices as pictures on one scale, blue below zero and orange above; small ones with their numbers in them.

    Args:
        rows: name of the row -> title -> matrix (out, in).
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


def by_layer(found: Mapping[str, Mapping[str, float]], label: str, bounds: Sequence[float] = ()) -> Figure:
    """One number for each layer, on a log scale from left to right: name -> layer -> number; bounds dotted."""
    layers = list(next(iter(found.values())))
    figure, ax = plt.subplots(figsize=(7.5, 0.25 * len(layers) + 1.2), layout="constrained")
    for j, (name, values) in enumerate(found.items()):
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


def first_and_second(found: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Accuracy on model 2's task against that on model 1's, a point a merge: method -> pairs in percent."""
    figure, ax = plt.subplots(figsize=(7.8, 4.6), layout="constrained")
    low = min(value for pairs in found.values() for pair in pairs for value in pair) - 3
    ax.plot([low, 101], [low, 101], color=GREY, lw=1, ls=":")
    for j, (name, pairs) in enumerate(found.items()):
        ax.plot(*zip(*pairs), MARKERS[j % len(MARKERS)], ms=7, mec="white", color=COLOURS[j % len(COLOURS)], label=name)
    ax.set(xlabel="accuracy on the task of model 1, %", ylabel="accuracy on the task of model 2, %",
           xlim=(low, 101), ylim=(low, 101))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def gaps(found: Mapping[str, Mapping[str, tuple[float, float]]], label: str) -> Figure:
    """By how many points one method is ahead (right of 0) or behind: title -> row -> (per task, joint)."""
    rows = list(next(iter(found.values())))
    figure, axes = plt.subplots(1, len(found), figsize=(2.6 * len(found) + 2.4, 0.42 * len(rows) + 1.5), sharex=True,
                                sharey=True, squeeze=False, layout="constrained")
    for ax, (title, gap) in zip(axes[0], found.items()):
        ax.axvline(0, color="black", lw=1)
        for j, name in enumerate(("per task", "joint")):
            ax.plot([gap[row][j] for row in rows], range(len(rows)), MARKERS[j], color=COLOURS[j], label=name)
        ax.set(title=title, xlabel=label)
        ax.grid(axis="y", color=GREY, lw=0.4)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].margins(y=0.1)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    return figure


def token(picture: Tensor, patch: int, side: int, sizes: Mapping[str, Sequence[float]],
          cosines: Mapping[str, Sequence[float]]) -> Figure:
    """A picture (3, H, W) with one patch framed, and of that patch's token two things at each depth.

    Args:
        picture, patch, side: the picture, the patch's number row by row, and its side in pixels.
        sizes: model -> the token's size in the residual stream, depth by depth.
        cosines: SuperNet -> cosine between an original's features and their reconstruction, depth by depth.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), width_ratios=(1, 1.7, 1.7), layout="constrained")
    axes[0].imshow((picture.movedim(0, -1).cpu() / 2 + 0.5).clamp(0, 1))
    row, column = divmod(patch, picture.shape[-1] // side)
    axes[0].add_patch(Rectangle((column * side - 0.5, row * side - 0.5), side, side, fill=False, ec=COLOURS[5], lw=3))
    axes[0].set(title=f"patch {patch}", xticks=[], yticks=[])
    for ax, lines, label in ((axes[1], sizes, "size of its residual stream"),
                             (axes[2], cosines, "cosine: original 2 read back")):
        for j, (name, line) in enumerate(lines.items()):
            ax.plot(line, marker=MARKERS[j], color=COLOURS[j if ax is axes[1] else j + 3], label=name)
        ax.set(xlabel="depth (blocks passed)", ylabel=label, xticks=range(len(line)))
        ax.set_ylim(min(0, ax.get_ylim()[0]))
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def shares(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> Figure:
    """Bars of shares (1 = all of it, dotted), a group for each entry with one bar for each of `names`."""
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for j, name in enumerate(names):
        places = np.arange(len(found)) + 0.4 * j - 0.2
        drawn = ax.bar(places, [row[j] for row in found.values()], 0.38, color=COLOURS[j], hatch="/" * j, label=name)
        ax.bar_label(drawn, [f"{100 * row[j]:.0f} %" for row in found.values()], fontsize=9)
    ax.axhline(1, color="black", ls=":", lw=1)
    ax.set_xticks(range(len(found)), found)
    ax.set(yscale="log", ylabel="trained / weights (log)", ylim=(0.01, 15))
    ax.legend(frameon=False, loc="upper left", ncols=len(names))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def spectra(found: Mapping[str, Tensor], shown: int) -> Axes:
    """The first so many singular values of each matrix, largest first."""
    ax = plt.figure(figsize=(6.5, 3.2), layout="constrained").gca()
    for j, (name, values) in enumerate(found.items()):
        ax.plot(range(1, shown + 1), values[:shown].cpu(), marker=MARKERS[j], color=COLOURS[j], label=name)
    ax.set(xlabel="number of the singular value", ylabel="its size", ylim=(0, None))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def correlations(found: Mapping[str, Tensor]) -> Figure:
    """Matrices of correlations side by side, all on the scale from -1 to 1: title -> (channels, channels)."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found) + 0.8, 3.3), layout="constrained")
    for ax, (title, matrix) in zip(axes, found.items()):
        image = ax.imshow(matrix.detach().cpu(), cmap=BLUE_ORANGE, vmin=-1, vmax=1, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[], xlabel="channel of the second", ylabel="channel of the first")
    figure.colorbar(image, ax=axes, label="correlation", shrink=0.8)
    return figure


def explained(found: Mapping[str, float]) -> Figure:
    """Horizontal bars of shares of a variance, from 0 to 1."""
    figure, ax = plt.subplots(figsize=(7, 0.5 * len(found) + 1.1), layout="constrained")
    drawn = ax.barh(list(found)[::-1], [float(share) for share in found.values()][::-1], 0.6, color=BLUE)
    ax.bar_label(drawn, [f"{100 * share:.0f} %" for share in [*found.values()][::-1]], padding=3)
    ax.set(xlim=(0, 1.1), xlabel="share of the variance that is explained")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
