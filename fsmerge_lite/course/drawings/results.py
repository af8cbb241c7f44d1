"""Records of the benchmarks as tables and figures, for lessons 11 and 12, and the other drawings of lesson 11."""
from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.stats import t as student_t

from ...bench import results as tables
from ...bench import runner
from ...bench.palette import DARK, GREY, LEARNED, MERGED, METHODS, MODELS, style_of
from ...tasks.embedded import EMBEDDED, task
from ...tasks.originals import DATA
from .parts import arrow, bare, canvas, chain

FOLDER = DATA.parents[1] / "benchmarks" / "results"  # what this project has measured
OURS, PAPER = "FS-Merge (fitted)", "FS-Merge (paper)"
SAME_TIME = "distillation, same time"


def load(name: str) -> list[dict]:
    """The records of a benchmark: one for each run of a method on a merge, without those that chose settings."""
    return [r for r in runner.load_records(FOLDER / f"{name}.json") if not r.get("validate")]


# ---------------------------------------------------------------- tables

def lead(records: Sequence[dict], method: str, other: str, images: int) -> pd.DataFrame:
    """By how many points `method` is ahead of `other`: one row for each merge, columns `mean` and `joint`."""
    return tables.ahead([r for r in records if r["images"] == images], method, other)


def all_methods(records: Sequence[dict], by: str = "images") -> str:
    """Per-task / joint accuracy of every method in Markdown, with a column for each number of images, or of `by`."""
    means = tables.summary(records, by)
    cells = means["mean"].map("{:.1f}".format) + " / " + means["joint"].map("{:.1f}".format)
    return tables.markdown(cells.unstack(by).loc[means.index.unique(0)].add_suffix(f" {by}"))


def interval(leads: pd.DataFrame) -> pd.DataFrame:
    """Rows `mean`, `low` and `high`: the mean lead and its 95 % interval over the ordered pairs (means of seeds)."""
    pairs = leads.groupby("tasks").mean()
    half = student_t.ppf(0.975, len(pairs) - 1) * pairs.std() / len(pairs) ** 0.5
    return pd.DataFrame({"mean": pairs.mean(), "low": pairs.mean() - half, "high": pairs.mean() + half}).T


def _in_words(ends: pd.Series) -> str:
    return f"{ends['mean']:+.1f} ({ends['low']:+.1f} to {ends['high']:+.1f})"


def leads(records: Sequence[dict], comparisons: dict[str, str], numbers: Sequence[int] = (16, 50, 100)) -> str:
    """Mean leads with 95 % intervals in Markdown, for each method and its rival and each number of images."""
    rows = []
    for (method, rival), n in product(comparisons.items(), numbers):
        found = lead(records, method, rival, n)
        per_task, joint = (_in_words(ends) for _, ends in interval(found).items())
        rows.append({"lead of": method, "over": rival, "images": n, "per task": per_task, "jointly": joint,
                     "ahead in": f"{' and '.join(map(str, (found > 0).sum()))} of {len(found)}"})
    return tables.markdown(pd.DataFrame(rows).set_index(["lead of", "over", "images"]))


def parts_of_joint(records: Sequence[dict], methods: Sequence[str]) -> pd.DataFrame:
    """Joint accuracy, taken apart: per task (mean of tasks, mean of images), less what other heads take away."""
    rows = []
    for r in [r for r in records if r["method"] in methods]:
        sizes = {name: task(name).test_size for name in r["tasks"]}
        weighted = sum(n * r["per_task"][name] for name, n in sizes.items()) / sum(sizes.values())
        rows.append({"method": r["method"], "images": r["images"], "mean of tasks": r["mean"],
                     "mean of images": weighted, "lost to another head": weighted - r["joint"], "joint": r["joint"]})
    return pd.DataFrame(rows).groupby(["method", "images"]).mean().loc[list(methods)]


def sides(records: Sequence[dict], method: str, other: str, images: int) -> pd.DataFrame:
    """The lead of a method on the task of model 1, on that of model 2 and jointly: means over seeds, a row a pair."""
    rows = [{"model 1 → model 2": " → ".join(r["tasks"]), "method": r["method"], "joint": r["joint"],
             **{f"task {i}": r["per_task"][name] for i, name in enumerate(r["tasks"], 1)}}
            for r in records if r["images"] == images and r["method"] in (method, other)]
    values = pd.DataFrame(rows).groupby(["method", "model 1 → model 2"], sort=False).mean()
    return (values.loc[method] - values.loc[other])[["task 1", "task 2", "joint"]]


def order_effect(records: Sequence[dict], methods: Sequence[str], images: int) -> pd.DataFrame:
    """Per-task accuracy of each pair in both orders: index (method, pair), columns `first` and `second` order."""
    rows = tables.frame([r for r in records if r["images"] == images and r["method"] in methods])
    rows["pair"] = [", ".join(sorted(names.split(", "))) for names in rows["tasks"]]
    rows["order"] = (rows["pair"] == rows["tasks"]).map({True: "first", False: "second"})
    return rows.pivot_table("mean", ["method", "pair"], "order").loc[list(methods)]


def better_orders(records: Sequence[dict], method: str, other: str, numbers: Sequence[int]) -> str:
    """The mean per-task lead over the orders, and where each method has its better order of a pair, in Markdown."""
    rows = []
    for n in numbers:
        both = order_effect(records, (method, other), n)
        mean, best = (each.groupby("method").mean() for each in (both.mean(axis=1), both.max(axis=1)))
        rows.append({"images": n, "lead, mean of both orders": mean[method] - mean[other],
                     "lead, better order of each": best[method] - best[other]})
    return tables.markdown(pd.DataFrame(rows).set_index("images"))


# ---------------------------------------------------------------- figures

def algorithm() -> Figure:
    """The whole algorithm from left to right, and below it what the two methods do at each step."""
    figure, ax = canvas(21, 6.3, (11.5, 3.6))
    xs = [4.9 + 2.95 * j for j in range(6)]
    steps = (("originals", MODELS[0], "--"), ("SuperNet", LEARNED, "-"), ("start", LEARNED, "-"),
             ("train", LEARNED, "-"), ("fold", MERGED, "-"), ("merged", MERGED, "-"))
    chain(ax, 4.9, [(x, name, color, style, 1.9) for x, (name, color, style) in zip(xs, steps)])
    ax.text((xs[2] + xs[3]) / 2, 6.15, "a few unlabeled images of each task", ha="center", va="top", fontsize=10)
    for x in xs[2:4]:
        arrow(ax, ((xs[2] + xs[3]) / 2, 5.75), (x, 5.28))
    lanes = {PAPER: ("M and U of rank 12,\none A and one G\nfor all originals", "at model 1:\n$M_1=I$, $M_2=0$",
                     "output features;\nnot scaled; linear rate,\nno clipping"),
             OURS: ("the same", "a share for each\noriginal, by\nleast squares",
                    "output and inner features,\nscaled; off-task term;\ncosine rate, clipped")}
    for y, (name, texts) in zip((3.1, 1.1), lanes.items()):
        ax.add_patch(Rectangle((0.1, y - 0.85), 20.8, 1.7, fc=METHODS[name] + "18", ec=METHODS[name], lw=1))
        ax.text(0.3, y, name, va="center", fontsize=10.5, weight="bold", color="black")
        shared = ("$k$ models,\nfrozen", *texts, r"$W^*=\sum_i M_iW_iU_i$", "1 backbone,\n$k$ heads")
        for x, text in zip(xs, shared):
            ax.text(x, y, text, ha="center", va="center", fontsize=9)
    return figure


def paired(records: Sequence[dict], method: str = PAPER, rival: str = "distillation", images: int = 16) -> Figure:
    """The lead of a method over a rival on each ordered pair: a dot for each seed, a bar for the mean of the seeds.

    The color says who is ahead. Below the pairs: their mean, with its 95 % interval.
    """
    found = lead(records, method, rival, images)
    every = [lead(records, method, rival, n) for n in {r["images"] for r in records}]  # one scale for all numbers
    low, high = min(each.min(axis=None) for each in every), max(each.max(axis=None) for each in every)
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharex=True, sharey=True, layout="constrained")
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task", "jointly")):
        _leads(ax, found[column], *(style_of(name)["color"] for name in (method, rival)))
        ends = interval(found)[column]
        ax.errorbar(ends["mean"], -1.3, xerr=[[ends["mean"] - ends["low"]], [ends["high"] - ends["mean"]]], fmt="D",
                    ms=7, lw=2, color="black")
        bare(ax).set(title=f"{title}: {_in_words(ends)}", xlabel="lead, in points")
        ax.set_xlim(min(low, 0) - 1, max(high, 0) + 1)
    marks = [Patch(fc=style_of(name)["color"], alpha=0.55, label=f"{name} is ahead") for name in (method, rival)]
    figure.legend(handles=marks, frameon=False, loc="outside lower center", ncols=2,
                  title=f"lead of {method} over {rival}, {images} images of a task")
    return figure


def _leads(ax: Axes, leads: pd.Series, ahead: str, behind: str) -> None:
    """A row for each ordered pair, sorted by model 2: a bar for the mean of its seeds, and a dot for each."""
    pairs = leads.groupby("tasks").mean()
    pairs = pairs[sorted(pairs.index, key=lambda tasks: tasks.split(", ")[::-1], reverse=True)]
    for y, (tasks, mean) in enumerate(pairs.items()):
        ax.barh(y, mean, 0.62, color=ahead if mean > 0 else behind, alpha=0.55)
        for value in leads.xs(tasks, level="tasks"):
            ax.plot(value, y, "o", ms=4, color=ahead if value > 0 else behind, mec="black", mew=0.4)
    ax.axvline(0, color=DARK, lw=1)
    names = [tasks.replace(", ", " → ") for tasks in pairs.index]
    ax.set_yticks([*range(len(pairs)), -1.3], [*names, "mean of the pairs"])
    ax.set_ylim(-2, len(pairs) - 0.4)


def orders(records: Sequence[dict], methods: Sequence[str], images: int) -> Figure:
    """Per-task accuracy of each pair in both orders, one panel a method. A marker's color says which model is 1."""
    effect = order_effect(records, methods, images)
    pairs, colors = list(effect.index.unique("pair")), dict(zip(EMBEDDED, MODELS))
    figure, axes = plt.subplots(1, len(methods), figsize=(10.5, 3.3), sharex=True, sharey=True, layout="constrained")
    for ax, method in zip(axes, methods):
        for y, pair in enumerate(pairs):
            ends = effect.loc[(method, pair), ["first", "second"]]
            ax.plot(ends, [y, y], color=GREY, lw=2, zorder=1)
            for x, name in zip(ends, pair.split(", ")):
                ax.plot(x, y, "o", ms=8, color=colors[name])
        bare(ax).set(title=method, xlabel="per-task accuracy, %")
        ax.grid(axis="x", color=GREY, lw=0.4)
    axes[0].set_yticks(range(len(pairs)), pairs)
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    marks = [plt.Line2D([], [], ls="", marker="o", ms=8, color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=marks, frameon=False, loc="outside right center", title="model 1 is")
    return figure


def by_pair(records: Sequence[dict], methods: Sequence[str]) -> pd.DataFrame:
    """Means over both orders of each pair: index (pair, method), columns `mean` and `joint`."""
    rows = pd.DataFrame([{"pair": " and ".join(sorted(r["tasks"])), "method": r["method"], "mean": r["mean"],
                          "joint": r["joint"]} for r in records])
    index = pd.MultiIndex.from_product([sorted(rows["pair"].unique()), list(methods)], names=["pair", "method"])
    return rows.groupby(["pair", "method"]).mean().reindex(index)


def deeper(bars: pd.DataFrame) -> Figure:
    """Bars of `by_pair`, a panel for each pair."""
    pairs, names = bars.index.unique(0), bars.index.unique(1)
    figure, axes = plt.subplots(1, len(pairs), figsize=(10.5, 3.8), sharey=True, layout="constrained")
    colors = [style_of(name)["color"] for name in names]
    for ax, pair in zip(axes, pairs):
        for shift, column, fill in ((-0.2, "mean", {"color": colors}),
                                    (0.2, "joint", {"color": "white", "edgecolor": colors, "hatch": "////"})):
            drawn = ax.barh([y + shift for y in range(len(names))], bars.loc[pair, column], 0.38, **fill)
            ax.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
        bare(ax).set(title=pair, xlim=(0, 105), xlabel="test accuracy, %")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    kinds = [Patch(ec=GREY, fc=GREY, label="per task"), Patch(ec=GREY, fc="white", hatch="////", label="joint")]
    figure.legend(handles=kinds, frameon=False, loc="outside lower center", ncols=2)
    return figure
