"""Drawings for the lesson on the fitted start, and what they show, measured on models."""
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor, nn

from ...architectures import reads
from ...bench.figures import arrow, box, plain_log
from ...bench.palette import BLUE, DARK, GREEN, GREY, MARKERS, ORANGE, PINK
from ...engine import statistics
from ...engine.images import a_few
from ...supernet import SuperNet
from .parts import bare, canvas

PAIR = (BLUE, ORANGE)  # models 1 and 2, and their tasks


# ---------------------------------------------------------------- concepts

def shared_stream() -> Figure:
    """Two clouds of features, their principal directions, and the stream in which each has one direction."""
    noise = torch.randn(4, 70, 2, generator=torch.Generator().manual_seed(3))
    p, across = torch.tensor([[2.0, -1.0], [1.0, 2.0]]) / 5 ** 0.5
    own = [z @ torch.stack([2 * p, 0.5 * across]) for z in noise[:2]]  # of model i on images of task i
    says = [0.6 * noise[3, :, 0], 0.4 * noise[2, :, 0]]                # share of model i on images of the other task
    shared = [torch.stack([own[0] @ p, says[1]], 1), torch.stack([says[0], own[1] @ p], 1)]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for i, ax in enumerate(axes[:2]):
        _cloud(ax, own[i], PAIR[i])
        _direction(ax, 3 * p, f"$P_{i + 1}$", PAIR[i], 1.6 * across)
        ax.set(title=f"model {i + 1}, images of task {i + 1}", xlabel="channel 1", ylabel="channel 2")
    for z, color, name in zip(shared, PAIR, ("task 1", "task 2")):
        _cloud(axes[2], z, color, f"images of {name}")
    for i, (end, aside) in enumerate((((4.0, 0.0), (0.0, 1.7)), ((0.0, 4.0), (1.7, 0.0)))):
        _direction(axes[2], torch.tensor(end), f"$B_{i + 1}$", PAIR[i], torch.tensor(aside))
    axes[2].set(title="merged stream: one direction each", xlabel="share of model 1", ylabel="share of model 2")
    axes[2].legend(frameon=False, loc="lower right", handletextpad=0.2, borderpad=0)
    for ax in axes:
        ax.set(xlim=(-5.4, 5.4), ylim=(-5.4, 5.4), xticks=[], yticks=[], aspect="equal")
    return figure


def _cloud(ax: Axes, z: Tensor, color: str, label: str | None = None) -> None:
    """Points (n, 2) and the ellipse of two standard deviations."""
    ax.plot(*z.T, ls="", marker="o", ms=3, alpha=0.6, color=color, label=label)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    angle = torch.rad2deg(torch.atan2(*vectors[:, 1].flip(0))).item()
    ax.add_patch(Ellipse((0, 0), *(4 * values.flip(0).sqrt()).tolist(), angle=angle, fc="none", ec=color, lw=1.5))


def _direction(ax: Axes, end: Tensor, name: str, color: str, aside: Tensor) -> None:
    """An arrow from the origin with its name beside its end."""
    ax.annotate("", end.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 2.5, "color": DARK})
    ax.text(*(end + aside).tolist(), name, color=color, fontsize=14, ha="center", va="center", weight="bold")


def shared_block() -> Figure:
    """A ViT block of a merged model: which part of the stream, of the attention heads and hidden units is whose."""
    figure, ax = canvas(16, 6.2, (11, 4.5))
    ax.set_ylim(-0.55, 6)
    for y, color, name in ((4.75, BLUE, "share of model 1"), (4.2, ORANGE, "share of model 2")):
        ax.add_patch(Rectangle((0.4, y), 14.9, 0.5, fc=color + "66", ec=color))
        ax.text(0.6, y + 0.25, name, va="center", fontsize=10)
    arrow(ax, (15.3, 4.72), (15.95, 4.72))
    ax.text(7.9, 5.6, "merged residual stream: disjoint directions, side by side", ha="center", fontsize=11)
    for left, norm, units, name in ((2.6, "norm1", 4, "attention heads"), (9.2, "norm2", 16, "hidden units")):
        box(ax, left + 0.3, 3.1, norm, PINK, 1.3)
        arrow(ax, (left + 0.3, 4.15), (left + 0.3, 3.5))
        arrow(ax, (left + 0.3, 2.75), (left + 0.3, 2.3))
        box(ax, left + 0.3, 1.9, "$U^0_1,\\ U^0_2$", GREEN, 1.7)
        arrow(ax, (left + 0.3, 1.55), (left + 0.3, 1.1))
        _places(ax, left - 0.9, 0.45, 3.6, units)
        ax.text(left + 0.9, -0.4, name, ha="center", fontsize=11)
        arrow(ax, (left + 2.7, 0.75), (left + 3.6, 0.75))
        box(ax, left + 4.5, 0.75, "$U^0_1,\\ U^0_2$", GREEN, 1.7)
        for i, x in ((1, left + 5.1), (2, left + 3.9)):
            ax.annotate("", (x, 1.53), (x, 1.1), arrowprops={"arrowstyle": "-|>", "color": PAIR[i - 1], "lw": 1.6,
                                                             "shrinkA": 0, "shrinkB": 0})
            box(ax, x, 1.9, f"$M^0_{i}$", GREEN, 0.9)
            arrow(ax, (x, 2.25), (x, 4.72 if i == 1 else 4.17))
    ax.text(2.2, 3.9, "reads all", ha="right", fontsize=10)
    ax.text(6.3, 3.45, "writes to its\nown share", ha="right", va="center", fontsize=10, ma="right")
    return figure


def _places(ax: Axes, x: float, y: float, width: float, n: int, first: int | None = None) -> None:
    """A row of n places, of which the first belong to model 1 and the others to model 2."""
    first = n // 2 if first is None else first
    for j in range(n):
        color = PAIR[j >= first]
        ax.add_patch(Rectangle((x + width * j / n, y), 0.9 * width / n, 0.6, fc=color + "66", ec=color))


# ---------------------------------------------------------------- charts of measured numbers

def units_kept(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Percent of the hidden units' mean square that is not rebuilt: panel -> way to choose -> units kept -> percent."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves) + 2, 3.5), sharey=True, squeeze=False,
                                layout="constrained")
    for ax, (title, ways) in zip(axes[0], curves.items()):
        for (name, line), marker, color in zip(ways.items(), MARKERS, (GREEN, DARK, GREY)):
            ax.plot(list(line), list(line.values()), marker=marker, color=color, label=name)
        ax.set(title=title, xlabel="hidden units kept", xscale="log", yscale="log")
        ax.set_xticks(list(line), list(line))
        ax.minorticks_off()
        plain_log(ax)
        bare(ax)
    axes[0, 0].set_ylabel("not rebuilt, % of the mean square\n(on the images of the fit)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def share(scores: pd.DataFrame, directions_of_model_1: int = 48) -> Figure:
    """Who has which directions and hidden units, and the accuracy that all divisions give.

    Args:
        scores: test accuracy in percent; index the directions of model 1, of 95; columns both tasks and `joint`.
        directions_of_model_1: one of the index.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.7), width_ratios=(1.25, 1), layout="constrained")
    n, names = directions_of_model_1, scores.columns[:2]
    for y, whole, first in ((2.2, f"95 stream directions: {n} and {95 - n}", n / 95),
                            (0.9, f"384 hidden units of each block: {4 * n} and {384 - 4 * n}", n / 96)):
        _places(left, 0, y, 12, 24, round(24 * first))
        left.text(0, y + 0.75, whole, fontsize=10)
    for i, name in enumerate(names):
        left.text(6 * i, 0.25, f"{name}: {scores.loc[n, name]:.0f} %", fontsize=12, color=PAIR[i], weight="bold")
    left.set(xlim=(-0.2, 12.2), ylim=(0, 3.4))
    left.axis("off")
    accuracies(right, scores)
    for column, color in zip(scores, (*PAIR, DARK)):
        right.plot(n, scores.loc[n, column], color=color, marker="D", ms=10, ls="")
    right.set(xlabel="stream directions of model 1", ylabel="test accuracy, %", ylim=(0, 104))
    right.set_xticks(list(scores.index))
    right.legend(frameon=False, loc="lower center")
    bare(right)
    return figure


def accuracies(ax: Axes, scores: pd.DataFrame) -> None:
    """Lines of percent against the index: both tasks, and `joint`."""
    for column, color in zip(scores.columns, (*PAIR, DARK)):
        joint = column == "joint"
        ax.plot(scores.index, scores[column], color=color, marker="o", mfc="white" if joint else color,
                ls="--" if joint else "-", label=column if joint else f"{column} (head given)")


# ---------------------------------------------------------------- what is measured for them

def units_rebuilt(backbone: nn.Module, x: Tensor, blocks: Sequence[int] = (0, 3)) -> dict:
    """What `units_kept` draws: three ways to choose hidden units, and what is left over, fitted to the images x."""
    curves = {}
    for block in blocks:
        hidden = reads(backbone, f"blocks.{block}.mlp.fc2", x).flatten(0, 1).double()
        eye = torch.eye(hidden.shape[1]).double()
        moment, order = hidden.T @ hidden / len(hidden) + 1e-8 * eye, torch.Generator().manual_seed(0)
        orders = {"largest": moment.diagonal().argsort(descending=True),
                  "at random": torch.randperm(len(eye), generator=order)}
        ways = curves[f"block {block + 1}"] = {"rebuild best": {}, "largest": {}, "at random": {}}
        for n in (24, 48, 96, 192):
            ways["rebuild best"][n] = _not_rebuilt(moment, statistics.best_groups(moment, eye, 1, n))
            for way, first in orders.items():
                ways[way][n] = _not_rebuilt(moment, first[:n])
    return curves


def _not_rebuilt(moment: Tensor, kept: Tensor) -> float:
    """Percent of the units' mean square that a least-squares fit from the kept units leaves over."""
    known = torch.linalg.solve(moment[kept][:, kept], moment[kept])
    return 100 * (1 - (moment[:, kept] @ known).diagonal().sum() / moment.diagonal().sum()).item()


def channel_weights(backbone: nn.Module, layer: str, x: Tensor) -> Tensor:
    """How much the features depend on the channels that a layer reads, (d, d)."""
    return statistics.sensitivity(backbone, backbone, [layer], [x[a_few(len(x), 256)]])[layer][1]


def share_of(net: SuperNet, i: int) -> Tensor:
    """M0_i = B_i P_i (d*, d) of what original i writes to the stream."""
    (written, _), own = list(net.body.patch_embed.proj.frozen())[i], net.backbones[i]
    return written.flatten(1) @ torch.linalg.pinv(own.patch_embed.proj.weight.flatten(1))
