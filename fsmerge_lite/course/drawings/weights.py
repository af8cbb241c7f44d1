"""The drawings of lesson 01: units that change places, lines between models, and what an average keeps."""
import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge
from torch import Tensor, nn

from ...architectures import graph_of
from ...bench.palette import BLUE_ORANGE, GREY, METHODS, MODELS
from ...compare.evaluation import Path
from ...models import Original
from ...tasks.task import Task
from . import parts

UNITS = MODELS[2:]  # the two hidden units of the smallest network, wherever they stand
INPUTS, HIDDEN, OUTPUT = ((0.3, 2.0), (0.3, 0.4)), ((2.0, 2.0), (2.0, 0.4)), ((3.7, 1.2),)


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
    for name, center in zip(("$x_0$", "$x_1$", "$y$"), (*INPUTS, *OUTPUT)):
        ax.add_patch(Circle(center, 0.28, fc="white", ec="black"))
        ax.text(*center, name, ha="center", va="center")
    for place, (share, center) in enumerate(zip(shares, HIDDEN)):
        for look, start, end in ((UNITS[0], 360 * share, 360), (UNITS[1], 0, 360 * share)):
            ax.add_patch(Wedge(center, 0.28, start + 90, end + 90, fc=look, ec="none"))
        ax.text(*center, f"$h_{place}$", ha="center", va="center")


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


@torch.no_grad()
def along(t: float, path: Path, model: nn.Module, tasks: Sequence[Task], n: int = 8) -> Figure:
    """The accuracies on a line, and what the model at a point t of it answers for n test pictures of each task.

    Args:
        t: from 0 to 1.
        path: the whole line.
        model: the model at t, which gives the logits of every task's head.
        tasks: in the order of the heads.
        n: pictures of each task.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.2), width_ratios=(1, 1.9), layout="constrained")
    _accuracies(left, path)
    left.axvline(t, color="black", lw=2)
    left.set_title(f"$t = {t:.1f}$")
    left.set_xticks((0, 1), [f"{x}\n{task} model" for x, task in enumerate(path.accuracies)])
    left.legend(frameon=False, fontsize=8, loc="center left")
    for i, task in enumerate(tasks):
        images, labels = (part[:n] for part in task.test())
        _answered(right, -1.5 * i, images, model(images)[i].argmax(1), labels, task.classes)
    right.set(xlim=(0, n), ylim=(1 - 1.5 * len(tasks), 1), aspect="equal",
              title="test pictures, and what they are taken for (head given; bold: right)")
    right.axis("off")
    return figure


def _answered(ax: Axes, y: float, images: Tensor, given: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """A row of pictures with the class that each is taken for."""
    for x, (image, answer, label) in enumerate(zip(images.movedim(1, -1).cpu() / 2 + 0.5, given, labels)):
        ax.imshow(image.clamp(0, 1), extent=(x, x + 0.92, y, y + 0.92))
        right = answer == label
        ax.text(x + 0.46, y - 0.22, f"{classes[answer]} {'✓' if right else '✗'}", ha="center", va="center",
                color="black" if right else "grey", fontweight="bold" if right else "normal")


def by_depth(accuracy: Mapping[tuple[int, int], Sequence[tuple[float, float]]],
             sizes: Mapping[tuple[int, int], Sequence[Tensor]]) -> Figure:
    """How far a network falls when it is averaged with its own copy in another order, by depth; and how signals fade.

    Args:
        accuracy: (width, hidden layers) -> (network, average) in percent, one pair for each seed.
        sizes: the same keys -> the size of each layer's outputs in the average, % of the network's, for each seed.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5), layout="constrained")
    widths, depths = (sorted({key[i] for key in accuracy}) for i in (0, 1))
    for color, width in zip(("black", "grey"), widths):
        own, average = np.array([accuracy[width, depth] for depth in depths]).transpose(2, 0, 1)  # (depths, seeds)
        left.plot(depths, own.mean(1), ls=":", color=color)
        _with_seeds(left, depths, average, f"width {width}", color)
        _with_seeds(right, range(1, depths[-1] + 2), torch.stack(list(sizes[width, depths[-1]]), 1).numpy(),
                    f"width {width}", color)
    left.set(xlabel="hidden layers", ylabel="test accuracy, %", xticks=depths, ylim=(0, 105),
             title="dotted: the networks\nsolid: the network averaged with its copy")
    right.set(xlabel="layer of the deepest networks", ylabel="size, % of the network's", ylim=(0, 105),
              xticks=range(1, depths[-1] + 2), title="outputs of each layer of the average\n(points: each seed)")
    for ax in (left, right):
        parts.bare(ax).legend(frameon=False, loc="lower left")
    return figure


def _with_seeds(ax: Axes, x: Sequence[int], values: np.ndarray, label: str, color: str) -> None:
    """The mean over seeds as a line, and every seed as a point. `values`: (len(x), seeds)."""
    ax.plot(x, values, "o", ms=4, alpha=0.4, color=color)
    ax.plot(x, values.mean(1), color=color, label=label)


def correlations(matrices: Mapping[str, Tensor], high: float = 0.95) -> Figure:
    """Correlation matrices side by side on one scale: title -> (channels, channels). Circles: above `high`."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(3.2 * len(matrices) + 0.8, 3.3), layout="constrained")
    for ax, (title, matrix) in zip(axes, matrices.items()):
        image = ax.imshow(matrix.detach().cpu(), cmap=BLUE_ORANGE, vmin=-1, vmax=1, interpolation="nearest")
        rows, columns = np.nonzero(matrix.detach().cpu().numpy() > high)
        ax.plot(columns, rows, "o", ms=3.5, mfc="none", mec="black", mew=0.7)
        ax.set(title=f"{title}\n{len(rows)} above {high:g}", xticks=[0, 95], yticks=[0, 95],
               xlabel="channel of model 2", ylabel="channel of model 1")
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
