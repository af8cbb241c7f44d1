"""Drawings for the lesson on the fitted start, and what they show, measured on models."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor, nn

from ...bench.figures import arrow, box, plain_log
from ...bench.palette import BLUE, DARK, GREEN, GREY, LINES, MARKERS, ORANGE, PINK
from ...compare.evaluation import logits
from ...engine.running import inputs_of
from ...supernet import SuperNet
from .parts import bare, canvas

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
PAIR = (BLUE, ORANGE)  # models 1 and 2, and their tasks
VARIANTS = ("start, equal heads", "start, tokens alike", "start, not corrected", "start, no off-task",
            "start, none of these")


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
    for z, colour, name in zip(shared, PAIR, ("task 1", "task 2")):
        _cloud(axes[2], z, colour, f"images of {name}")
    for i, (end, aside) in enumerate((((4.0, 0.0), (0.0, 1.7)), ((0.0, 4.0), (1.7, 0.0)))):
        _direction(axes[2], torch.tensor(end), f"$B_{i + 1}$", PAIR[i], torch.tensor(aside))
    axes[2].set(title="merged stream: one direction each", xlabel="share of model 1", ylabel="share of model 2")
    axes[2].legend(frameon=False, loc="lower right", handletextpad=0.2, borderpad=0)
    for ax in axes:
        ax.set(xlim=(-5.4, 5.4), ylim=(-5.4, 5.4), xticks=[], yticks=[], aspect="equal")
    return figure


def _cloud(ax: Axes, z: Tensor, colour: str, label: str | None = None) -> None:
    """Points (n, 2) and the ellipse of two standard deviations."""
    ax.plot(*z.T, ls="", marker="o", ms=3, alpha=0.6, color=colour, label=label)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    angle = torch.rad2deg(torch.atan2(*vectors[:, 1].flip(0))).item()
    ax.add_patch(Ellipse((0, 0), *(4 * values.flip(0).sqrt()).tolist(), angle=angle, fc="none", ec=colour, lw=1.5))


def _direction(ax: Axes, end: Tensor, name: str, colour: str, aside: Tensor) -> None:
    """An arrow from the origin with its name beside its end."""
    ax.annotate("", end.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 2.5, "color": DARK})
    ax.text(*(end + aside).tolist(), name, color=colour, fontsize=14, ha="center", va="center", weight="bold")


def shared_block() -> Figure:
    """A ViT block of a merged model: which part of the stream, of the attention heads and hidden units is whose."""
    figure, ax = canvas(16, 6.2, (11, 4.5))
    ax.set_ylim(-0.55, 6)
    for y, colour, name in ((4.75, BLUE, "share of model 1"), (4.2, ORANGE, "share of model 2")):
        ax.add_patch(Rectangle((0.4, y), 14.9, 0.5, fc=colour + "66", ec=colour))
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
        for i, start, low, x in ((1, left, 0.0, left + 5.1), (2, left + 1.8, 0.2, left + 3.9)):
            ax.plot([start, start, x], [0.4, low, low], color=PAIR[i - 1], lw=1.6)
            ax.annotate("", (x, 1.53), (x, low), arrowprops={"arrowstyle": "-|>", "color": PAIR[i - 1], "lw": 1.6,
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
        colour = PAIR[j >= first]
        ax.add_patch(Rectangle((x + width * j / n, y), 0.9 * width / n, 0.6, fc=colour + "66", ec=colour))


# ---------------------------------------------------------------- charts of measured numbers

def units_kept(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Percent of the hidden units' mean square that is not rebuilt: panel -> way to choose -> units kept -> percent."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves) + 2, 3.5), sharey=True, squeeze=False,
                                layout="constrained")
    for ax, (title, ways) in zip(axes[0], curves.items()):
        for (name, line), marker, colour in zip(ways.items(), MARKERS, (GREEN, DARK, GREY)):
            ax.plot(list(line), list(line.values()), marker=marker, color=colour, label=name)
        ax.set(title=title, xlabel="hidden units kept", xscale="log", yscale="log")
        ax.set_xticks(list(line), list(line))
        ax.minorticks_off()
        plain_log(ax)
        bare(ax)
    axes[0, 0].set_ylabel("not rebuilt, % of the mean square\n(on the images of the fit)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def token_weights(weights: Mapping[str, Tensor]) -> Figure:
    """Weights (17,) of the class token and of 4 x 4 patches for what the layers of four blocks read."""
    layers = list(dict.fromkeys(name.split(".", 2)[2] for name in weights))
    figure, axes = plt.subplots(len(layers), 4, figsize=(9.6, 5.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.12)
    for (row, layer), block in ((pair, b) for pair in enumerate(layers) for b in range(4)):
        ax, w = axes[row, block], weights[f"blocks.{block}.{layer}"].float()
        shown = np.full((4, 6), np.nan)
        shown[0, 0], shown[:, 2:] = w[0], w[1:].reshape(4, 4)
        drawn = ax.imshow(shown, norm=PowerNorm(0.4, 0, 17), cmap="viridis")
        ax.text(0, 1, f"{w[0]:.1f}", ha="center", va="center", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if row == 0:
            ax.set_title(f"block {block + 1}")
        if block == 0:
            ax.set_ylabel(layer, rotation=0, ha="right", va="center")
    figure.colorbar(drawn, ax=axes, label="weight (mean over tokens: 1)", ticks=[0, 0.2, 1, 3, 8, 17], shrink=0.8)
    return figure


def errors_by_block(errors: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """The error of each share after each block, in percent: panel -> "corrected" or not -> images -> percents."""
    figure, axes = plt.subplots(1, len(errors), figsize=(9.5, 3.4), sharey=True, layout="constrained")
    for ax, (title, ways) in zip(axes, errors.items()):
        for (way, lines), colour in zip(ways.items(), (GREEN, DARK)):
            for (where, line), style in zip(lines.items(), LINES):
                ax.plot(range(1, len(line) + 1), line, color=colour, ls=style, marker="o",
                        mfc=colour if style == "-" else "white", label=f"{way}, {where}")
        ax.set(title=title, xlabel="after block", xticks=range(1, len(line) + 1))
        bare(ax)
    axes[0].set(ylabel="error of the share, %", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def off_task(logits_of: Mapping[float, Sequence[Tensor]], curve: pd.DataFrame) -> Figure:
    """The largest logit of each head on the images of each task, and accuracy against the off-task weight.

    Args:
        logits_of: off-task weight -> for each of two tasks (n, 2), from `largest_logits`.
        curve: index the weight, columns `mean` and `joint`.
    """
    figure, axes = plt.subplots(1, len(logits_of) + 1, figsize=(11.5, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    high = max(x.max().item() for each in logits_of.values() for x in each) + 1
    for ax, (q, tasks) in zip(axes, logits_of.items()):
        wrong = torch.cat([x[:, i] < x[:, 1 - i] for i, x in enumerate(tasks)]).double().mean()
        for i, x in enumerate(tasks):
            ax.plot(*x.T, ls="", marker="o", ms=3, alpha=0.6, color=PAIR[i], label=f"images of task {i + 1}")
        ax.axline((0, 0), slope=1, color=DARK, lw=1, ls=":")
        ax.set(title=f"$q = {q:g}$: {100 * wrong:.0f} % on the wrong side",
               xlabel="largest logit, classification head 1", xlim=(-1, high), ylim=(-1, high))
        bare(ax)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower left", ncols=2)
    places = range(len(curve))
    for column, label, face in (("mean", "per task", DARK), ("joint", "joint", "white")):
        axes[-1].plot(places, curve[column], color=DARK, marker="o", mfc=face, ls="-" if face == DARK else "--",
                      label=label)
    axes[-1].set_xticks(places, [f"{value:g}" for value in curve.index])
    axes[0].set_ylabel("largest logit, classification head 2")
    axes[-1].set(title="accuracy", xlabel="off-task weight $q$", ylabel="test accuracy, %")
    axes[-1].yaxis.get_major_locator().set_params(integer=True)
    axes[-1].legend(frameon=False, loc="lower right")
    bare(axes[-1])
    return figure


def share(errors: Mapping[int, Sequence[float]], model_1: int) -> Figure:
    """Who has which directions and hidden units, and the errors that all divisions give.

    Args:
        errors: directions of model 1 -> the error of both models in percent.
        model_1: the number of directions of model 1, one of these.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), width_ratios=(1.25, 1), layout="constrained")
    n = max(errors)
    for y, name, times in ((2.2, f"{n} stream directions", 1), (0.9, f"{2 * n} hidden units", 2)):
        _places(left, 0, y, 12, times * n, times * model_1)
        left.text(0, y + 0.75, name, fontsize=10)
    for i, (x, error) in enumerate(zip((0, 6), errors[model_1])):
        left.text(x, 0.25, f"error of model {i + 1}: {error:.1f} %", fontsize=11, color=PAIR[i], weight="bold")
    left.set(xlim=(-0.2, 12.2), ylim=(0, 3.4))
    left.axis("off")
    right.plot(*zip(*errors.values()), color=GREY, marker="o", ms=4)
    right.plot(*errors[model_1], color=GREEN, marker="D", ms=10)
    for number, aside, ha in ((0, (-8, -4), "right"), (n // 2, (6, 6), "left"), (n, (6, 6), "left")):
        right.annotate(f"{number} : {n - number}", errors[number], aside, textcoords="offset points", fontsize=9, ha=ha)
    right.set(xlabel="error of model 1, %", ylabel="error of model 2, %", xlim=(-1, None), ylim=(-1, None))
    right.margins(0.15)
    bare(right)
    return figure


def ablation(records: Sequence[dict]) -> Figure:
    """What leaving out one idea of the start changes, in points: small dots are single merges, large ones the mean."""
    rows = pd.DataFrame([{**r, "tasks": ", ".join(r["tasks"])} for r in records if r["method"].startswith("start")])
    table = rows.pivot_table(["mean", "joint"], "method", ["tasks", "seed"])
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task", "joint")):
        change = (table[column] - table[column].loc["start"]).loc[list(VARIANTS)]
        for marker, tasks in zip(MARKERS, dict.fromkeys(rows["tasks"])):
            for j, seed in enumerate(change[tasks]):
                ax.plot(change[tasks, seed], np.arange(len(change)) + 0.12 * (2 * j - 1), ls="", color=DARK,
                        marker=marker, ms=5, mfc="white", label=tasks if not j else None)
        ax.plot(change.mean(axis=1), range(len(change)), ls="", color=DARK, marker="|", ms=16, mew=3, label="mean")
        ax.axvline(0, color=DARK, lw=1)
        ax.set(title=title, xlabel="change against the whole start, points")
        ax.grid(axis="y", color=GREY, lw=0.4)
        bare(ax)
    axes[0].set_yticks(range(len(VARIANTS)), [name.removeprefix("start, ") for name in VARIANTS])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def heads_traded(records: Sequence[dict], images: int = 100) -> Figure:
    """The accuracy of both models at 1 : 3, 2 : 2 and 3 : 1 attention heads, untrained; one panel for each merge."""
    rows = [r for r in records if r["images"] == images and r["method"].endswith("untrained")]
    merges = list(dict.fromkeys(tuple(r["tasks"]) for r in rows))
    figure, axes = plt.subplots(1, len(merges), figsize=(11.5, 3.2), sharex=True, sharey=True, layout="constrained")
    for ax, tasks in zip(axes, merges):
        own = [r for r in rows if tuple(r["tasks"]) == tasks]
        points = [[r["per_task"][task] for task in tasks] for r in own]
        ax.plot(*zip(*points), color=GREEN, marker="o")
        for r, point in zip(own, points):
            shares = "{} : {}".format(*r["settings"]["start"]["heads"])
            ax.annotate(shares, point, (-4, -12), textcoords="offset points", ha="right", fontsize=9)
        ax.set(xlabel=f"model 1 ({tasks[0]}), %", ylabel=f"model 2 ({tasks[1]}), %", xlim=(76, 101.5), ylim=(86, 101.5))
        bare(ax)
    figure.suptitle("scored on labeled training images, untrained", fontsize=11)
    return figure


def few_images(scores: pd.DataFrame) -> Figure:
    """Accuracy of the start against the number of images of each task, the index; columns: tasks and `joint`."""
    ax = plt.figure(figsize=(6.5, 3.6), layout="constrained").gca()
    for column, colour in zip(scores.columns, (*PAIR, DARK)):
        joint = column == "joint"
        ax.plot(scores.index, scores[column], color=colour, marker="o", mfc="white" if joint else colour,
                ls="--" if joint else "-", label=column if joint else f"{column} (head given)")
    ax.axhline(10, color="black", ls=":", lw=1, label="guessing, head given")
    ax.set(xscale="log", xlabel="images of each task, no augmented copies", ylabel="test accuracy, %", ylim=(0, 102))
    ax.set_xticks(list(scores.index), list(scores.index))
    ax.minorticks_off()
    ax.legend(frameon=False, loc="lower right")
    return bare(ax).get_figure()


# ---------------------------------------------------------------- what is measured for them

def records(name: str) -> list[dict]:
    """The records of a benchmark of this project."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def cost_table() -> str:
    """The rows of tiny ViTs of `benchmarks/results/start.md`: seconds of the start beside those of training."""
    lines = (RESULTS / "start.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|") and not line.startswith("| ViT")]
    return "\n".join(table).replace("| images |", "| images and augmented copies |")


@torch.no_grad()
def streams(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """The residual stream of a ViT after each block, (n, tokens, channels) each."""
    places = [*(f"blocks.{b}" for b in range(1, len(backbone.blocks))), "norm"]
    seen = inputs_of(backbone, places, lambda: backbone(x))
    return [seen[place] for place in places]


def share_errors(net: SuperNet, i: int, x: Tensor) -> list[float]:
    """How far the share of original i is from M0_i z_i after each block, in percent of the variance of M0_i z_i.

    After the last block only the class token is counted, because nothing else is used.
    """
    (written, _), own = list(net.body.patch_embed.proj.frozen())[i], net.backbones[i]
    merge = written.flatten(1) @ torch.linalg.pinv(own.patch_embed.proj.weight.flatten(1))  # M0_i (d*, d)
    onto_share, errors = merge @ torch.linalg.pinv(merge, rtol=1e-3), []                    # B_i B_i^T
    *inner, (there_last, last) = zip(streams(net.fold().backbone, x), streams(own, x))
    for there, z in (*inner, (there_last[:, 0], last[:, 0])):
        wanted = z @ merge.T
        wrong = there @ onto_share.T - wanted
        errors.append(100 * (wrong.square().sum() / (wanted - wanted.mean(0)).square().sum()).item())
    return errors


def heads_of(net: SuperNet) -> pd.DataFrame:
    """How many attention heads of each block read through U0 of which original."""
    rows = {}
    for b, block in enumerate(net.body.blocks, 1):
        used = [w.unflatten(0, (3, block.attn.num_heads, -1)).abs().sum((0, 2, 3)) > 0
                for w, _ in block.attn.qkv.frozen()]
        rows[f"block {b}"] = {f"attention heads of {o.name}": int(heads.sum()) for o, heads in zip(net.originals, used)}
    return pd.DataFrame(rows).T


def largest_logits(model: nn.Module, tasks: Sequence, n: int = 150) -> list[Tensor]:
    """The largest logit of every head on n test images of each task: (n, heads) for each task."""
    return [torch.stack([head.amax(1) for head in logits(model, task.test()[0][:n])], 1) for task in tasks]
