"""Drawings of lessons 06 and 07: local and global training, and what the loss asks for."""
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ...bench import results, runner
from ...bench.figures import arrow, box
from ...bench.palette import GREEN, GREY, LABELS, METHODS, MODELS
from ...supernet import SuperNet
from ...tasks.originals import DATA
from ...training import until
from . import parts

RUNS = DATA.parent / "lessons" / "training.json"
ABLATION = DATA.parents[1] / "benchmarks" / "results" / "ablation.json"
LOCAL, GLOBAL = "#666666", METHODS["FS-Merge (paper)"]  # global training of the paper's start is FS-Merge (paper)
DEPTHS = ("embedding", "block 1", "block 2", "block 3", "output")


# ---------------------------------------------------------------- lesson 06

def load_runs(file: Path = RUNS) -> pd.DataFrame:
    """The runs of `benchmarks/training.py`, one row each; `mean` is the mean of the per-task accuracies."""
    runs = pd.DataFrame(json.loads(Path(file).read_text())["runs"])
    return runs.assign(mean=runs["per_task"].map(np.mean), tasks=runs["tasks"].map(", ".join))


def local_and_global() -> Figure:
    """Global training with one loss at the output, local training with a loss at every depth, and their gradients."""
    figure, ax = parts.canvas(14.2, 8.6, (10.4, 6.1))
    xs = [1.2 + 2.5 * j for j in range(5)]
    for y, title, depths in ((6.4, "global: one loss, at the output; the gradient reaches all blocks", (4,)),
                             (2.2, "local: a loss at every depth, one after the other; the gradient stays in its block",
                              range(5))):
        ax.text(0.4, y + 1.5, title, fontsize=12)
        parts.chain(ax, y, [(x, "embed" if j == 0 else f"block {j}", GREEN, "-", 1.6) for j, x in enumerate(xs)])
        for j in depths:
            x = xs[j] + 1.25
            box(ax, x, y - 1.35, "norm, $U_{out}$, loss" if j == 4 else "norm, $U$, loss", GREY, 2.15)
            ax.text(x, y - 1.8, "output" if j == 4 else f"depth {j}", ha="center", va="top", fontsize=10)
            arrow(ax, (x, y) if j < 4 else (xs[4] + 0.86, y - 0.1), (x, y - 0.96))
            back = xs[0] if len(depths) == 1 else xs[j]
            ax.annotate("", (back - 0.6, y + 0.75), (x, y + 0.75),
                        arrowprops={"arrowstyle": "-|>", "color": parts.DARK, "lw": 2.6})
    ax.text(xs[4] + 1.35, 7.15, "gradient", va="center", fontsize=11)
    return figure


def local_steps(net: SuperNet) -> pd.DataFrame:
    """Which M, U and norms the step of each depth trains, and how many parameters that is."""
    rows, done = {}, set()
    for depth in (*net.graph.readouts, None):
        block = [(name, p) for name, p in until(net, depth) if name not in done and p.requires_grad]
        done |= {name for name, _ in block}
        rows["output" if depth is None else f"depth {depth}"] = {
            "M": _places(block, ".merges."), "U": _places(block, ".unmerges."),
            "norms": _places([pair for pair in block if "norm" in pair[0]], "."),
            "parameters": f"{sum(p.numel() for _, p in block):,}"}
    return pd.DataFrame(rows).T


def _places(block: Sequence[tuple], part: str) -> str:
    """The places of parameters that have `part` in their names: blocks.0.attn.qkv is 0.qkv; output matrices are out."""
    names = [name.removeprefix("body.") for name, _ in block if part in name]
    names = [name.rpartition(".")[0] if part == "." else name.split(part)[0] for name in names]
    short = {"patch_embed.proj": "patches"}
    places = [short.get(n, n.replace("blocks.", "").replace("attn.", "").replace("mlp.", "")) for n in names]
    if part == ".unmerges." and any(name.startswith("outputs.") for name, _ in block):
        places.append("out")
    return ", ".join(dict.fromkeys(places))


def one_unit(size: float = 3) -> Figure:
    """The shares that one merged unit misses, at depth 1 and at the output, for all directions of the unit.

    Depth 1 has the features (size a, b), the output the feature b.
    """
    t = np.linspace(0, 90, 181)
    a, b = np.cos(np.radians(t)), np.sin(np.radians(t))
    ax = plt.figure(figsize=(7.2, 3.4), layout="constrained").gca()
    for line, color, style, name, who, place in (
            ((size ** 2 * b ** 2 + a ** 2) / (size ** 2 + 1), LOCAL, "--", f"depth 1: features $({size:g}a,\\ b)$",
             "local training\nstops here", 60),
            (a ** 2, GLOBAL, "-", "output: feature $b$", "global training\nstops here", 8)):
        ax.plot(t, 100 * line, color=color, ls=style, lw=2, label=name)
        best = t[line.argmin()], 100 * line.min()
        ax.plot(*best, "o", color=color, ms=9, clip_on=False, zorder=3)
        beside = 9 if best[0] < 45 else 48 + place / 4
        ax.annotate(who, best, (beside, place), arrowprops={"arrowstyle": "-"}, va="center")
    ax.set(xlabel="direction $t$ of the merged unit $\\cos t\\ a + \\sin t\\ b$, degrees", ylabel="missed, %",
           xlim=(0, 90), ylim=(0, 105), xticks=range(0, 91, 15))
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return parts.bare(ax).get_figure()


RUN_NAMES = ("start", "U_out alone", "local 60", "local 120", "local 300", "global 160", "global 300", "global 800")


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and seconds of local and global training: means over seeds, and the second task in each seed."""
    of_run = runs.groupby("run")
    table = pd.DataFrame({"per task": of_run["mean"].mean(), "joint": of_run["joint"].mean(),
                          "seconds": of_run["seconds"].mean()})
    second = runs.set_index(["run", "seed"])["per_task"].map(lambda accuracies: accuracies[1]).unstack()
    task = runs["tasks"].iloc[0].split(", ")[1]
    return table.join(second.add_prefix(f"{task}, seed ")).loc[list(RUN_NAMES)].round(1)


def in_math(name: str) -> str:
    """The name of a run with its matrices as formulas."""
    return name.replace("M_2", "$M_2$").replace("U_out", "$U_{out}$")


def budgets(runs: pd.DataFrame) -> Figure:
    """Per-task and joint accuracy against seconds of training, local and global; points are seeds, lines their means.

    Args:
        runs: from `load_runs`, with `mean` and `joint` in percent.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True, layout="constrained")
    for ax, column in zip(axes, ("mean", "joint")):
        for kind, color, style in (("local", LOCAL, "--"), ("global", GLOBAL, "-")):
            some = runs[runs["run"].str.fullmatch(f"{kind} \\d+")]
            ax.plot(some["seconds"], some[column], "s" if kind == "local" else "o", color=color, ms=5,
                    mfc=color if column == "mean" else "white")
            means = some.groupby("steps")[["seconds", column]].mean()
            ax.plot(means["seconds"], means[column], color=color, ls=style, lw=1.6, label=f"{kind} training")
            for steps, row in means.iterrows():
                ax.annotate(f"{steps:,}", row, (0, 9 if kind == "global" else -15), textcoords="offset points",
                            ha="center", fontsize=9, color=color, bbox={"fc": "white", "ec": "none", "pad": 0.5})
        for name, style in (("U_out alone", "-."), ("start", ":")):
            ax.axhline(runs.loc[runs["run"] == name, column].mean(), color=GREY, ls=style, label=in_math(name))
        ax.set(xlabel="training, CPU seconds (numbers: steps in all)", title=LABELS[column], ylim=(25, 100))
        parts.bare(ax)
    axes[0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    return figure


def missed_of(runs: pd.DataFrame, name: str, images: str = "test") -> list[list[float]]:
    """The share of the features that a run misses on test or training images, a mean over seeds: by task and depth."""
    return np.mean([row[images] for row in runs.loc[runs["run"] == name, "missed"]], axis=0).round(3).tolist()


def missed(shares: Mapping[str, Sequence[Sequence[float]]], tasks: Sequence[str]) -> Figure:
    """The share of the features that is missed after each block: name of a run -> for each task, depth by depth.

    Names that begin with "local" or "global" have the color of that training; others are grey.
    """
    figure, axes = plt.subplots(1, len(tasks), figsize=(10, 3.8), sharey=True, layout="constrained")
    looks = {"local": (LOCAL, "--", "os"), "global": (GLOBAL, "-", "os"), "start": (GREY, ":", "D"),
             "U_out": (GREY, "-.", "^")}
    kinds = [name.split()[0] for name in shares]
    for place, (name, by_task) in enumerate(shares.items()):
        color, style, markers = looks[kinds[place]]
        marker = markers[kinds[:place].count(kinds[place])]
        for ax, line in zip(axes, by_task):
            ax.plot(DEPTHS, 100 * np.array(line), color=color, ls=style, marker=marker,
                    mfc="white" if marker == "s" else color, label=in_math(name))
    for ax, task in zip(axes, tasks):
        ax.axhline(100, color="black", lw=0.8, ls=":", zorder=0)
        ax.set(title=f"images of {task}", xlabel="features after", ylim=(0, None))
        parts.bare(ax)
    axes[0].set_ylabel("missed, % (dotted: as bad as zeros)")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(shares))
    return figure


def costs(net: SuperNet, x: Tensor, stages: Sequence, whole: object) -> pd.DataFrame:
    """MB that autograd keeps for images x, and milliseconds per step, of each stage of local training and of global.

    Args:
        net: a SuperNet; which of its parameters are learned is restored afterwards.
        x: a batch of images.
        stages, whole: what `train_local` and `train_global` returned; they hold the seconds.
    """
    rows, done, every = {}, set(), {name for name, p in net.named_parameters() if p.requires_grad}
    for depth, run in zip((*net.graph.readouts, None), stages):
        names = {name for name, _ in until(net, depth)}
        rows[run.name] = _kept(net, names - done, lambda d=depth: net.features(x, [d])), run
        done |= names
    rows["global"] = _kept(net, every, lambda: net(x)), whole
    return pd.DataFrame({name: {"MB kept": kept, "ms per step": 1000 * run.seconds[-1] / len(run.loss)}
                         for name, (kept, run) in rows.items()}).T.round(1)


def _kept(net: SuperNet, trained: Collection[str], run: Callable) -> float:
    """The MB that autograd keeps for a backward to these parameters, each tensor counted once."""
    kept: dict[int, Tensor] = {}
    learned = [p for p in net.parameters() if p.requires_grad]

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor
    for name, p in net.named_parameters():
        p.requires_grad_(name in trained)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    for p in learned:
        p.requires_grad_(True)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2 ** 20


# ---------------------------------------------------------------- lesson 07

def kept_directions(size: Tensor, kept: Mapping[str, Tensor]) -> Figure:
    """What a merged model with room for a few directions keeps, and what each original misses.

    Args:
        size: mean squared size of each direction of each original's features, (originals, directions).
        kept: loss -> which directions it keeps, of the shape of `size`.
    """
    figure, axes = plt.subplots(1, len(kept), figsize=(9.4, 3.2), sharey=True, layout="constrained")
    shares = 100 * size / size.sum(1, keepdim=True)
    for ax, (name, chosen) in zip(axes, kept.items()):
        for i, (row, keep) in enumerate(zip(shares.tolist(), chosen.tolist())):
            for j, (share, there) in enumerate(zip(row, keep)):
                ax.bar(3 * i + j, share, 0.8, fc=MODELS[i] if there else "white", ec=MODELS[i], lw=1.6)
                ax.text(3 * i + j, share + 2, "kept" if there else "lost", ha="center")
            lost = sum(share for share, there in zip(row, keep) if not there)
            ax.text(3 * i + 0.5, -23, f"original {i + 1}\nmisses {lost:.0f} %", ha="center", va="top")
        ax.set(title=name, ylim=(0, 100))
        ax.set_xticks([0, 1, 3, 4], ["$2a$", "$b$", "$20c$", "$10d$"])
        parts.bare(ax)
    axes[0].set_ylabel("share of the original's\nsquared size, %")
    return figure


def competing_heads(methods: Mapping[str, Sequence[Tensor]], labels: Sequence[int], owner: Sequence[int]) -> Figure:
    """The logits of all classification heads for a few images, and which wins.

    Args:
        methods: method -> logits (n, classes) of each classification head.
        labels, owner: of the n images, the class within the own classification head and the task.
    """
    figure, axes = plt.subplots(1, len(methods), figsize=(11, 3.4), sharey=True, layout="constrained")
    for ax, (name, heads) in zip(axes, methods.items()):
        for image, right in enumerate(zip(owner, labels)):
            logits = [(value, j, c) for j, head in enumerate(heads) for c, value in enumerate(head[image].tolist())]
            for place, (value, j, c) in enumerate(logits):
                x = image + 0.2 * (place - 1.5)
                ax.bar(x, value, 0.18, fc=MODELS[j] if (j, c) == right else "white", ec=MODELS[j], lw=1.6)
                if value == max(logits)[0]:
                    ax.text(x, value + 0.1, "✓" if (j, c) == right else "✗", ha="center", fontsize=13)
        ax.set(title=name, ylim=(0, 5.4))
        ax.set_xticks(range(len(owner)), [f"image of\ntask {own + 1}" for own in owner])
        parts.bare(ax)
    axes[0].set_ylabel("logit")
    looks = {"head 1": {"fc": "white", "ec": MODELS[0]}, "head 2": {"fc": "white", "ec": MODELS[1]},
             "filled: right class": {"fc": GREY}}
    axes[0].legend(handles=[Patch(lw=1.6, label=label, **look) for label, look in looks.items()], frameon=False,
                   loc="upper left", ncols=3, columnspacing=1, handlelength=1.2)
    return figure


def accuracies(found: Mapping[float, Sequence[tuple[float, float]]], sizes: Sequence[int]
               ) -> dict[float, tuple[float, float]]:
    """Off-task weight -> per-task accuracy, in which tasks count alike, and joint accuracy, in which images do."""
    return {q: (np.mean([each[0] for each in by_task]), np.average([each[1] for each in by_task], weights=sizes))
            for q, by_task in sorted(found.items())}


def answers(found: Mapping[float, Sequence[tuple[float, float]]], tasks: Sequence[str], sizes: Sequence[int], q: float,
            method: str = "FS-Merge (fitted)") -> Figure:
    """Who answers at one off-task weight, and per-task and joint accuracy at all of them.

    Args:
        found: off-task weight -> for each task (per-task accuracy, share that is right jointly), in percent.
        tasks, sizes: the tasks' names and numbers of test images.
        q: the weight to show.
        method: whose color the accuracies have.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.7), width_ratios=(1.15, 1), layout="constrained")
    for i, pair in enumerate(found[q]):
        _stack(left, i, *pair)
    left.set(xlim=(0, 100), ylim=(-1.85, 0.6), xlabel="test images of the task, %", title=f"$q$ = {q:g}")
    left.set_yticks([-i for i in range(len(tasks))], tasks)
    qs, color = sorted(found), METHODS[method]
    for marker, line, label in zip(("o-", "s--"), zip(*accuracies(found, sizes).values()), LABELS.values()):
        look = {"color": color, "mfc": color if label == "per task" else "white"}
        right.plot(range(len(qs)), line, marker, label=label, **look)
        right.plot(qs.index(q), line[qs.index(q)], marker[0], ms=12, **look)
    right.axvline(qs.index(q), color=GREY, lw=1, zorder=0)
    right.set_xticks(range(len(qs)), [f"{w:g}" for w in qs])
    right.set(xlabel="off-task weight $q$", ylabel="test accuracy, %", ylim=(45, 101))
    right.legend(frameon=False, loc="lower center", ncols=2)
    for ax in (left, right):
        parts.bare(ax)
    return figure


def _stack(ax: Axes, i: int, per_task: float, joint: float) -> None:
    """The test images of task i in one bar: right, lost to the other head, wrong in the own head."""
    start = 0.0
    for width, look, label in ((joint, {"fc": MODELS[i]}, "right"),
                               (per_task - joint, {"fc": "white", "hatch": "////"}, "lost to the\nother head"),
                               (100 - per_task, {"fc": "white"}, "own head\nwrong")):
        ax.barh(-i, width, 0.5, start, ec=MODELS[i], lw=1.4, **look)
        if width > 9:
            ax.text(start + width / 2, -i - 0.3, f"{label}\n{width:.0f} %", ha="center", va="top", fontsize=9)
        start += width


def off_task_runs(runs: pd.DataFrame) -> dict[float, list[tuple[float, float]]]:
    """Off-task weight -> for each task (per-task accuracy, share that is right jointly) after global training."""
    named = {0: "global 300"} | {q: f"global 300, q {q}" for q in (0.05, 0.2, 1.0)}
    found = {}
    for q, name in named.items():
        some = runs[(runs["run"] == name) & (runs["tasks"] == "digits, letters")]
        right = np.mean(some["answers"].tolist(), axis=0)[:, 0]
        found[q] = list(zip(np.mean(some["per_task"].tolist(), axis=0), right))
    return found


def load_ablation(file: Path = ABLATION) -> pd.DataFrame:
    """The runs of `bench ablation`, one row each: method, tasks, images, seed, per_task, mean, joint."""
    return results.frame(runner.load_records(file))
