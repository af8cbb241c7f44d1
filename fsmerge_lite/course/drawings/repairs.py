"""Drawings for the lesson on errors in the fitted start, and what they show, measured on models."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...bench.palette import DARK, GREEN, GREY, LINES, MARKERS
from ...compare.evaluation import logits
from ...engine.running import inputs_of
from ...supernet import SuperNet
from .parts import bare
from .start import PAIR, accuracies, share_of

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
VARIANTS = ("start, equal heads", "start, tokens alike", "start, not corrected", "start, no off-task",
            "start, none of these")


# ---------------------------------------------------------------- charts of measured numbers

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
        for (way, lines), color in zip(ways.items(), (GREEN, DARK)):
            for (where, line), style in zip(lines.items(), LINES):
                ax.plot(range(1, len(line) + 1), line, color=color, ls=style, marker="o",
                        mfc=color if style == "-" else "white", label=f"{way}, {where}")
        ax.set(title=title, xlabel="after block", xticks=range(1, len(line) + 1))
        bare(ax)
    axes[0].set(ylabel="error of the share, %", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def off_task(found: Mapping[tuple[float, float], tuple[Sequence[Tensor], Mapping[str, float]]], q: float = 0.2,
             inner: float = 0.02) -> Figure:
    """The largest logits of both heads without off-task terms and with chosen ones, and joint accuracy against both.

    Args:
        found: (q, inner weight) -> what `largest_logits` gives, and accuracies in percent, `mean` and `joint`.
        q, inner: the chosen weights, which are in `found`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4), layout="constrained")
    high = max(x.max().item() for each, _ in found.values() for x in each) + 1
    for ax, weights in zip(axes, ((0.0, 0.0), (q, inner))):
        tasks, accuracy = found[weights]
        for i, x in enumerate(tasks):
            ax.plot(*x.T, ls="", marker="o", ms=3, alpha=0.6, color=PAIR[i], label=f"images of task {i + 1}")
        ax.axline((0, 0), slope=1, color=DARK, lw=1, ls=":")
        ax.set(title="$q = {:g}$, inner weight {:g}\nper task {mean:.0f} %, joint {joint:.0f} %".format(
            *weights, **accuracy), xlabel="largest logit, head 1", ylabel="largest logit, head 2", xlim=(-1, high),
            ylim=(-1, high))
        bare(ax)
    axes[0].legend(frameon=False, loc="lower left", handletextpad=0.2, borderpad=0)
    inners, qs = (list(dict.fromkeys(each[at] for each in found)) for at in (1, 0))
    for each, style, marker in zip(inners, LINES, MARKERS):
        axes[2].plot(range(len(qs)), [found[x, each][1]["joint"] for x in qs], color=DARK, ls=style, marker=marker,
                     mfc="white", label=f"inner weight {each:g}")
    axes[2].plot(qs.index(q), found[q, inner][1]["joint"], color=GREEN, marker="D", ms=11)
    axes[2].set_xticks(range(len(qs)), [f"{value:g}" for value in qs])
    axes[2].set(title="joint accuracy", xlabel="off-task weight $q$ at the output", ylabel="test accuracy, %")
    axes[2].yaxis.get_major_locator().set_params(integer=True)
    axes[2].legend(frameon=False, loc="lower right")
    bare(axes[2])
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
                ax.plot(change[tasks, seed], np.arange(len(change)) + 0.2 * (j - 1), ls="", color=DARK,
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
    accuracies(ax, scores)
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
    """The error of the share of original i after each block, on all tokens.

    After the last block only the class token is counted, because nothing else is used.
    """
    *inner, (there, own) = zip(streams(net.fold().backbone, x), streams(net.backbones[i], x))
    return [_share_error(net, i, *pair) for pair in (*inner, (there[:, :1], own[:, :1]))]


def errors_by_token(net: SuperNet, i: int, x: Tensor, block: int) -> dict[str, float]:
    """The error of the share of original i after a block (from 1), on the class token and on the patches."""
    there, own = (streams(backbone, x)[block - 1] for backbone in (net.fold().backbone, net.backbones[i]))
    return {"class token": _share_error(net, i, there[:, :1], own[:, :1]),
            "patches": _share_error(net, i, there[:, 1:], own[:, 1:])}


def _share_error(net: SuperNet, i: int, there: Tensor, own: Tensor) -> float:
    """How far a share in the merged stream is from M0_i z_i, in percent of the variance of M0_i z_i.

    Args:
        there: the merged stream (n, tokens, d*).
        own: z_i, the stream of original i (n, tokens, d).
    """
    merge = share_of(net, i)
    onto_share, wanted = merge @ torch.linalg.pinv(merge, rtol=1e-3), own @ merge.T  # B_i B_i^T, M0_i z_i
    wrong = there @ onto_share.T - wanted
    return 100 * (wrong.square().sum() / (wanted - wanted.mean(0)).square().sum()).item()


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
