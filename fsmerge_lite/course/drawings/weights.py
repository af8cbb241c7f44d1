"""The drawings of lessons 01 and 02: units that change places, lines between models, and what weights alone can do."""
import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge
from torch import Tensor, nn

from ...architectures import graph_of
from ...bench.palette import BLUE_ORANGE, GREY, METHODS, MODELS, style_of
from ...compare.evaluation import Path
from ...models import Original
from . import parts

UNITS = MODELS[2:]  # the two hidden units of the smallest network, wherever they stand
INPUTS, HIDDEN, OUTPUT = ((0.3, 2.0), (0.3, 0.4)), ((2.0, 2.0), (2.0, 0.4)), ((3.7, 1.2),)

# ---------------------------------------------------------------- lesson 01


def random_orders(original: Original, seed: int) -> dict[str, Tensor]:
    """A random order for every space, as `permuted` takes it: heads in one order, the units of each head in its own."""
    generator, heads, orders = torch.Generator().manual_seed(seed), {}, {}
    for space in graph_of(original.backbone).spaces.values():
        group = space.group or space.name
        if group not in heads:
            heads[group] = torch.randperm(space.heads, generator=generator)
        units = torch.stack([torch.randperm(space.unit, generator=generator) for _ in range(space.heads)])
        orders[space.name] = (heads[group][:, None] * space.unit + units).flatten()
    return orders


def shuffled(net: nn.Sequential, seed: int) -> nn.Sequential:
    """A copy of a network of linear layers, with the units of every hidden layer in a random order."""
    generator, net = torch.Generator().manual_seed(seed), copy.deepcopy(net)
    for layer, reader in pairwise(part for part in net if isinstance(part, nn.Linear)):
        order = torch.randperm(len(layer.bias), generator=generator)
        layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
        reader.weight.data = reader.weight.data[:, order]
    return net


def two_unit_networks(networks: Mapping[str, tuple[Tensor, Tensor, Sequence[float]]]) -> Figure:
    """Networks of two inputs, two hidden units a and b, and one output, side by side. A unit keeps its color.

    Args:
        networks: title -> weights (2, 2) and (1, 2), and the share of unit b in what stands at each hidden place.
    """
    figure, axes = plt.subplots(1, len(networks), figsize=(3.4 * len(networks), 2.9), layout="constrained")
    for ax, (title, network) in zip(axes, networks.items()):
        _network(ax, title, *network)
    return figure


def _network(ax: Axes, title: str, first: Tensor, second: Tensor, shares: Sequence[float]) -> None:
    ax.set(xlim=(-0.1, 4.1), ylim=(-0.05, 2.5), title=title, aspect="equal")
    ax.axis("off")
    looks = [UNITS[int(share)] if share in (0, 1) else parts.DARK for share in shares]
    for place, look in enumerate(looks):
        for j, start in enumerate(INPUTS):
            _weighted(ax, start, HIDDEN[place], first[place, j].item(), look)
        _weighted(ax, HIDDEN[place], OUTPUT[0], second[0, place].item(), look)
    for name, centre in zip(("$x_0$", "$x_1$", "$y$"), (*INPUTS, *OUTPUT)):
        ax.add_patch(Circle(centre, 0.28, fc="white", ec="black"))
        ax.text(*centre, name, ha="center", va="center")
    for place, (share, centre) in enumerate(zip(shares, HIDDEN)):
        for look, start, end in ((UNITS[0], 360 * share, 360), (UNITS[1], 0, 360 * share)):
            ax.add_patch(Wedge(centre, 0.28, start + 90, end + 90, fc=look, ec="none"))
        ax.text(*centre, f"$h_{place}$", ha="center", va="center")


def _weighted(ax: Axes, start: tuple[float, float], end: tuple[float, float], weight: float, color: str) -> None:
    """A line with its weight, written near the start, where no other line crosses. Zero is dotted and grey."""
    zero = abs(weight) < 1e-6
    ax.plot(*zip(start, end), color=GREY if zero else color, lw=1.2 if zero else 2.2, ls=":" if zero else "-", zorder=0)
    x, y = (s + 0.36 * (e - s) for s, e in zip(start, end))
    ax.text(x, y, f"{0 if zero else weight:.3g}", ha="center", va="center", fontsize=9, color="grey" if zero else color,
            bbox={"fc": "white", "ec": "none", "pad": 1})


def on_the_line(t: float, network: tuple[Tensor, Tensor, Sequence[float]], line: Sequence[tuple[float, float]]
                ) -> Figure:
    """The two-unit network at a point t between its two orders, and its place on the line of losses.

    Args:
        t: from 0 to 1.
        network: the weights at t and the shares of unit b, as for `two_unit_networks`.
        line: pairs of t and loss, from t = 0 to t = 1.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.1), width_ratios=(1.2, 1), layout="constrained")
    _network(left, f"$W(t)$ at $t = {t:.2f}$", *network)
    ts, losses = zip(*line)
    _hill(right, ts, losses)
    right.plot(t, np.interp(t, ts, losses), "o", color="black", ms=9, label="this network")
    right.legend(frameon=False, loc="upper left")
    return figure


def _hill(ax: Axes, ts: Sequence[float], losses: Sequence[float]) -> None:
    """Loss along a line, dotted the straight line between its ends, and an arrow as high as the barrier."""
    above = np.array(losses) - np.interp(ts, (0, 1), (losses[0], losses[-1]))
    top = int(np.argmax(above))
    ax.plot(ts, losses, color=parts.DARK, lw=2)
    ax.plot((0, 1), (losses[0], losses[-1]), color=parts.DARK, lw=1, ls=":")
    if above[top] > 0.02 * max(losses):
        ax.annotate("", (ts[top], losses[top]), (ts[top], losses[top] - above[top]), arrowprops={
            "arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0})
    ax.text(0.98, 0.97, f"barrier {above[top]:.2f}", transform=ax.transAxes, ha="right", va="top")
    ax.set(xlabel="$t$", ylabel="loss", ylim=(0, 1.35 * max(losses) + 1e-3))
    parts.bare(ax)


def hills(paths: Mapping[str, Path], start: str, end: str) -> Figure:
    """Loss and barrier (left) and accuracy of each task (right) on lines from one model to another, a row for each."""
    figure, axes = plt.subplots(len(paths), 2, figsize=(9.4, 2.9 * len(paths)), sharex=True, sharey="col",
                                squeeze=False, layout="constrained")
    highest = max(max(path.loss) for path in paths.values())
    for (left, right), (name, path) in zip(axes, paths.items()):
        _hill(left, path.t, path.loss)
        loss = "test loss, mean of the tasks" if len(path.losses) > 1 else "test loss"
        left.set(title=name, ylabel=loss, ylim=(0, 1.25 * highest))
        _accuracies(right, path)
    right.set_xticks((0, 0.5, 1), (f"0\n{start}", "0.5", f"1\n{end}"))
    plt.setp(axes[:-1].flat, xlabel="")
    figure.legend(*right.get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def _accuracies(ax: Axes, path: Path) -> None:
    for color, (task, values) in zip(MODELS, path.accuracies.items()):
        ax.plot(path.t, values, color=color, lw=2, label=f"{task}\n(head given)")
    ax.axhline(10, color="black", lw=1, ls=":", label="guessing")
    ax.set(xlabel="$t$", ylabel="test accuracy, %", ylim=(0, 105))
    parts.bare(ax)


def along(t: float, path: Path, pictures: Mapping[str, Tensor], answers: Mapping[str, Sequence[str]],
          truth: Mapping[str, Sequence[str]]) -> Figure:
    """What the model at a point t of a line answers for some pictures of each task, beside the accuracies.

    Args:
        t: from 0 to 1.
        path: the whole line.
        pictures, answers, truth: task -> images (n, 3, H, W) in [-1, 1], the class that each is taken for, its class.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.2), width_ratios=(1, 1.9), layout="constrained")
    _accuracies(left, path)
    left.axvline(t, color="black", lw=2)
    left.set_title(f"$t = {t:.1f}$")
    left.set_xticks((0, 1), [f"{x}\n{task} model" for x, task in enumerate(path.accuracies)])
    left.legend(frameon=False, fontsize=8, loc="center left")
    for row, name in enumerate(pictures):
        for column, image in enumerate(pictures[name].movedim(1, -1).cpu() / 2 + 0.5):
            right.imshow(image.clamp(0, 1), extent=(column, column + 0.92, -1.5 * row, 0.92 - 1.5 * row))
            given, correct = answers[name][column], answers[name][column] == truth[name][column]
            right.text(column + 0.46, -0.22 - 1.5 * row, f"{given} {'✓' if correct else '✗'}", ha="center", va="center",
                       color="black" if correct else "grey", fontweight="bold" if correct else "normal")
    right.set(xlim=(0, len(next(iter(pictures.values())))), ylim=(-2.0, 1), aspect="equal",
              title="test pictures, and what they are taken for (head given; bold: right)")
    right.axis("off")
    return figure


def by_depth(accuracy: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]], sizes: Mapping[str, Sequence[float]]
             ) -> Figure:
    """How far a network falls when it is averaged with its own copy in another order, by depth; and how signals fade.

    Args:
        accuracy: name of the width -> number of hidden layers -> (network, average) in percent, one pair for each seed.
        sizes: name of the width -> the size of each layer's outputs in the average, as a fraction of the network's.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5), layout="constrained")
    for look, (name, depths) in zip(({"color": "black"}, {"color": "grey"}), accuracy.items()):
        for depth, pairs in depths.items():
            left.plot([depth] * len(pairs), [average for _, average in pairs], "o", ms=4, alpha=0.4, **look)
        left.plot(list(depths), [np.mean([own for own, _ in pairs]) for pairs in depths.values()], ls=":", **look)
        left.plot(list(depths), [np.mean([average for _, average in pairs]) for pairs in depths.values()], **look,
                  label=name)
        right.plot(range(1, len(sizes[name]) + 1), sizes[name], marker="o", label=name, **look)
    left.set(xlabel="hidden layers", ylabel="test accuracy, %", xticks=list(depths), ylim=(0, 105),
             title="dotted: the networks\nsolid: average of both orders (points: each seed)")
    right.set(xlabel="layer (deepest networks)", ylabel="size, % of the network's", ylim=(0, 105),
              xticks=range(1, len(sizes[name]) + 1), title="outputs of each layer\nof the average")
    parts.bare(left).legend(frameon=False, loc="lower left")
    parts.bare(right)
    return figure


def correlations(matrices: Mapping[str, Tensor]) -> Figure:
    """Correlation matrices side by side on one scale from -1 to 1: title -> (channels, channels)."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(3.2 * len(matrices) + 0.8, 3.3), layout="constrained")
    for ax, (title, matrix) in zip(axes, matrices.items()):
        image = ax.imshow(matrix.detach().cpu(), cmap=BLUE_ORANGE, vmin=-1, vmax=1, interpolation="nearest")
        ax.set(title=title, xticks=[0, 95], yticks=[0, 95], xlabel="channel of model 2", ylabel="channel of model 1")
    figure.colorbar(image, ax=axes, label="correlation", shrink=0.8)
    return figure


def kept(rows: Mapping[str, tuple[float, float]]) -> Figure:
    """What an average of two models keeps: name -> per-task accuracy of the average and of the models, in percent."""
    figure, ax = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    positions = range(len(rows))[::-1]
    bars = ax.barh(positions, [average for average, _ in rows.values()], 0.6, label="their average",
                   color=METHODS["average"])
    ax.bar_label(bars, fmt="%.0f", label_type="center")
    ax.plot([own for _, own in rows.values()], positions, "|", ms=22, mew=2.5, color="black",
            label="the two models, each alone")
    ax.axvline(10, color="black", lw=1, ls=":", label="guessing")
    ax.set_yticks(positions, rows)
    ax.set(xlim=(0, 105), xlabel="test accuracy (head given, mean of both models), %")
    parts.bare(ax)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


# ---------------------------------------------------------------- lesson 02


def arc_and_chord(degrees: float = 90) -> Figure:
    """Two vectors of length 1, so many degrees apart; their average on the chord between them, and SLERP on the arc."""
    figure, ax = plt.subplots(figsize=(7.2, 2.9), layout="constrained")
    arc = np.radians(90 + degrees * np.linspace(0.5, -0.5))
    ends, length = np.stack([np.cos(arc), np.sin(arc)], 1)[[0, -1]], np.sin(arc[0])
    ax.plot(*ends.T, color=METHODS["average"], ls=":", lw=1.5)
    ax.plot(np.cos(arc), np.sin(arc), color=METHODS["slerp"], ls=":", lw=1.5)
    for end, color, name in zip((*ends, (0, length), (0, 1)), (*MODELS[:2], METHODS["average"], METHODS["slerp"]),
                                ("$w_1$", "$w_2$", f"average: length {length:.2f}", "SLERP: length 1.00")):
        width = 8 if "average" in name else 2.5
        ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": width, "shrinkB": 0})
        ax.plot([], [], color=color, lw=width, label=name)
    ax.set(xlim=(-1.1, 1.1), ylim=(-0.1, 1.1), aspect="equal", title=f"{degrees:.0f} degrees apart")
    ax.axis("off")
    figure.legend(frameon=False, loc="outside right center")
    return figure


def bowls(weights: Tensor, grams: Tensor, points: Mapping[str, Tensor]) -> Figure:
    """The squared error of each original's layer as a bowl over two weights, seen from above, and what methods choose.

    Args:
        weights: (2, 2), the weights of both originals, where the bowls are zero.
        grams: (2, 2, 2), the Gram matrices of what both read, which give the bowls their shapes.
        points: method -> two weights.
    """
    figure, ax = plt.subplots(figsize=(6.6, 4.1), layout="constrained")
    grid = torch.stack(torch.meshgrid(torch.linspace(-1.5, 6, 151), torch.linspace(-1.5, 6, 151), indexing="xy"), -1)
    for i, (own, gram, color) in enumerate(zip(weights, grams, MODELS), 1):
        error = torch.einsum("xya, ab, xyb -> xy", grid - own, gram, grid - own)
        rings = ax.contour(*grid.unbind(-1), error, levels=(0.1, 0.3, 0.6, 1), colors=color, linewidths=1.2)
        ax.clabel(rings, [1], fmt="error 1")
        ax.plot(*own, "o", color=color, ms=9, label=f"$W_{i}$ and its error")
    for name, point in points.items():
        ax.plot(*point, ls="", ms=10, mec="black", label=name, **style_of(name))
    ax.set(xlabel="weight of input 0", ylabel="weight of input 1", aspect="equal")
    figure.legend(frameon=False, loc="outside right center")
    parts.bare(ax)
    return figure


def errors_by_layer(errors: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> Figure:
    """The error of merged layers, in percent: task -> method -> "blocks.0.mlp.fc1", ... -> (alone, in the model)."""
    figure, axes = plt.subplots(1, len(errors), figsize=(10.8, 4), sharey=True, layout="constrained")
    for ax, (task, methods) in zip(axes, errors.items()):
        for name, layers in methods.items():
            look, (alone, inside) = style_of(name), zip(*layers.values())
            ax.plot(alone, ls="--", mfc="white", label=f"{name}: reads what the original reads", **look)
            ax.plot(inside, label=f"{name}: in the merged model", **look)
        parts.bare(ax).axhline(100, color="black", lw=1, ls=":", label="as wrong as a constant")
        ax.set_xticks(range(len(layers)), [f"{int(place[7]) + 1} {place.rpartition('.')[2]}" for place in layers])
        ax.set(title=task, xlabel="block and layer")
    axes[0].set(ylabel="error, % of the output's variance", ylim=(0, None))
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def matching(table: Tensor, orders: Mapping[str, Sequence[int]]) -> Figure:
    """A table of correlations with the pairs that orders choose, and their sums, one picture for each order."""
    figure, axes = plt.subplots(1, len(orders), figsize=(3.3 * len(orders), 3.2), layout="constrained")
    for ax, (name, order) in zip(axes, orders.items()):
        ax.imshow(table, cmap=BLUE_ORANGE, vmin=-1.5, vmax=1.5)
        for (i, j), value in np.ndenumerate(table.numpy()):
            chosen = order[i] == j
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontweight="bold" if chosen else "normal")
            if chosen:
                ax.add_patch(Circle((j, i), 0.36, fill=False, lw=2.5))
        total = sum(table[i, j].item() for i, j in enumerate(order))
        ax.set(title=f"{name}: sum {total:.1f}", xticks=range(len(table)), yticks=range(len(table)),
               xlabel="unit of model 2", ylabel="unit of model 1")
    return figure


def allowed_maps() -> Figure:
    """A block of a ViT, and the matrices that change the coordinates of a space but not the function."""
    figure, ax = parts.canvas(15.4, 6.2, (10.6, 4.3))
    rows = ((4.8, ("$W_q,\\ W_k,\\ W_v$", "attention", "$W_o$")), (1.7, ("$W_{fc1}$", "GELU", "$W_{fc2}$")))
    for y, (first, middle, last) in rows:
        parts.chain(ax, y, [(0.9, "stream", GREY, ":", 1.3), (3.2, "norm", GREY, "-", 1.2),
                            (6.0, first, MODELS[0], "--", 2.2), (9.0, middle, GREY, "-", 1.6),
                            (11.6, last, MODELS[0], "--", 1.3), (14.2, "+ stream", GREY, ":", 1.6)])
    for y in (4.0, 0.9):
        parts.bracket(ax, 0.3, 4.0, y, "stream: a rotation $Q$ that keeps\n$(1, ..., 1)$, norm weights absorbed")
    parts.bracket(ax, 6.0, 11.6, 4.0, "inside each attention head: $q$ and $k$ by $A$ and $A^{-T}$;\n$v$ by any "
                  "invertible matrix, which $W_o$ undoes\n(we use rotations); attention heads may change places")
    parts.bracket(ax, 6.0, 11.6, 0.9, "hidden units: only a new order $P$,\nbecause GELU works unit by unit")
    return figure


def spread(records: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Accuracy of every merge as a point, per task and joint, with mean and standard deviation: a row for each method.

    Args:
        records: from `results.frame`, with columns `method`, `mean` and `joint`.
        methods: which, from above.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(methods) + 1.3), sharey=True, layout="constrained")
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task (head given)", "joint (task unknown)")):
        for row, name in enumerate(methods[::-1]):
            values, color = records.loc[records["method"] == name, column], style_of(name)["color"]
            beside = row + np.linspace(-0.25, 0.25, len(values))
            ax.plot(values, beside, "o", ms=4, alpha=0.5, color=color, mfc=color if column == "mean" else "white")
            ax.errorbar(values.mean(), row, xerr=values.std(), fmt="D", ms=7, capsize=4, color=color, mec="black")
            ax.text(107, row, f"{values.mean():.0f}", ha="center", va="center")
        ax.set_yticks(range(len(methods)), methods[::-1])
        ax.set(title=title, xlabel="test accuracy, % (number: mean)", xlim=(0, 112), xticks=range(0, 101, 20))
        parts.bare(ax)
    return figure


def explained(shares: pd.DataFrame) -> Axes:
    """How much of one model's features another one explains: a column for each kind of map, a row for each pair."""
    ax = plt.figure(figsize=(8, 0.55 * len(shares.columns) + 1.1), layout="constrained").gca()
    rows = range(len(shares.columns))[::-1]
    ax.barh(rows, shares.mean(), 0.62, color=GREY)
    for row, column in zip(rows, shares):
        ax.plot(shares[column], row + np.linspace(-0.2, 0.2, len(shares)), "o", ms=4, color="black", alpha=0.5)
        ax.text(shares[column].max() + 2, row, f"{shares[column].mean():.0f} %", va="center")
    ax.set_yticks(rows, shares.columns)
    ax.set(xlim=(0, 108), xlabel="explained variance on held-out images, % (points: pairs of models)")
    return parts.bare(ax)
