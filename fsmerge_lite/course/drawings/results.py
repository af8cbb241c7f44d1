"""Records of the benchmarks as tables and figures, and the drawings of lessons 11 and 12."""
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.stats import t as student_t

from ...architectures.vit import vit
from ...bench import results as tables
from ...bench import runner
from ...bench.palette import GREEN, GREY, LEARNED, MERGED, METHODS, MODELS, style_of
from ...tasks.originals import DATA
from ...tasks.task import EMBEDDED, task
from .parts import arrow, bare, box, canvas, chain

FOLDER = DATA.parents[1] / "benchmarks" / "results"  # what this project has measured
OURS, PAPER = "FS-Merge (fitted)", "FS-Merge (paper)"
SAME_TIME = "distillation, same time"
EARLIER = ("widths", "longer", "vit-cpu")  # measured with the first version of the fitted start, and not again
FIRST_VERSION, MODEL_1 = "fitted start, first version", "from model 1 (first)"
LOOKS = {f"{FIRST_VERSION}, untrained": {"color": METHODS[f"{OURS}, untrained"], "marker": "v", "ls": ":"},
         FIRST_VERSION: {"color": METHODS[OURS], "marker": "v", "ls": ":"},
         MODEL_1: {"color": METHODS[PAPER], "marker": "<", "ls": ":"}}


def load(name: str) -> list[dict]:
    """The records of a benchmark: one for each run of a method on a merge, without those that chose settings."""
    records = [r for r in runner.load_records(FOLDER / f"{name}.json") if not r.get("validate")]
    for r in records if name in EARLIER else ():
        r["method"] = r["method"].replace("FS-Merge, first", MODEL_1).replace("FS-Merge", FIRST_VERSION)
    return records


def look_of(method: str) -> dict[str, str]:
    """The color, marker and line of a method, also of those that only lessons 11 and 12 show."""
    return next((look for name, look in LOOKS.items() if method.startswith(name)), None) or style_of(method)


# ---------------------------------------------------------------- lesson 11: tables

def lead(records: Sequence[dict], method: str, other: str, images: int) -> pd.DataFrame:
    """By how many points `method` is ahead of `other`: one row for each merge, columns `mean` and `joint`."""
    return tables.ahead([r for r in records if r["images"] == images], method, other)


def all_methods(records: Sequence[dict]) -> str:
    """Per-task and joint accuracy of every method in Markdown, with a column for each number of images."""
    means = tables.summary(records)
    cells = means["mean"].map("{:.1f}".format) + " / " + means["joint"].map("{:.1f}".format)
    return tables.markdown(cells.unstack("images").loc[means.index.unique(0)].add_suffix(" images"))


def interval(leads: pd.DataFrame) -> str:
    """The mean lead, and its 95 % interval over the ordered pairs (each the mean of its seeds)."""
    pairs = leads.groupby("tasks").mean()
    half = student_t.ppf(0.975, len(pairs) - 1) * pairs.std() / len(pairs) ** 0.5
    parts = [f"{m:+.1f} {name} ({m - h:+.1f} to {m + h:+.1f})"
             for name, m, h in zip(("per task", "jointly"), pairs.mean(), half)]
    return f"{parts[0]}, {parts[1]}; ahead in {' and '.join(map(str, (leads > 0).sum()))} of {len(leads)} merges"


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


# ---------------------------------------------------------------- lesson 11: figures

def algorithm() -> Figure:
    """The whole algorithm from left to right, and below it what the two methods do at each step."""
    figure, ax = canvas(21, 6.3, (11.5, 3.6))
    xs = [4.9 + 2.95 * j for j in range(6)]
    steps = (("originals", MODELS[0], "--"), ("SuperNet", LEARNED, "-"), ("start", LEARNED, "-"),
             ("train", LEARNED, "-"), ("fold", MERGED, "-"), ("merged", MERGED, "-"))
    chain(ax, 4.9, [(x, name, colour, style, 1.9) for x, (name, colour, style) in zip(xs, steps)])
    ax.text((xs[2] + xs[3]) / 2, 6.15, "a few unlabeled images of each task", ha="center", va="top", fontsize=10)
    for x in xs[2:4]:
        arrow(ax, ((xs[2] + xs[3]) / 2, 5.75), (x, 5.28))
    lanes = {PAPER: ("M and U of rank 12,\none A and one G\nfor all originals", "at model 1:\n$M_1=I$, $M_2=0$",
                     "output features;\nnot scaled; linear rate,\nno clipping"),
             OURS: ("the same", "a share for each\noriginal, by\nleast squares",
                    "output and inner features,\nscaled; off-task term;\ncosine rate, clipped")}
    for y, (name, texts) in zip((3.1, 1.1), lanes.items()):
        ax.add_patch(Rectangle((0.1, y - 0.85), 20.8, 1.7, fc=METHODS[name] + "18", ec=METHODS[name], lw=1))
        ax.text(0.3, y, name, va="center", fontsize=10.5, weight="bold", color=METHODS[PAPER])
        shared = ("$k$ models,\nfrozen", *texts, r"$W^*=\sum_i M_iW_iU_i$", "1 backbone,\n$k$ heads")
        for x, text in zip(xs, shared):
            ax.text(x, y, text, ha="center", va="center", fontsize=9)
    return figure


def against_images(records: Sequence[dict], methods: Sequence[str]) -> Figure:
    """Accuracy against the number of images of a task."""
    return _curves(tables.summary(records), methods, "real images of a task", 60, log=True)


def _curves(found: pd.DataFrame, methods: Sequence[str], label: str, low: float, log: bool = False) -> Figure:
    """Per-task and joint accuracy of each method against a number, from `low` % up, with deviations over merges."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharey=True, layout="constrained")
    values = sorted(found.loc[list(methods)].index.unique(1))
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task (head given)", "joint (task unknown)")):
        for j, method in enumerate(methods):
            aside = j - (len(methods) - 1) / 2
            _line(ax, found.loc[method, column], found.loc[method, f"{column}_std"], method, aside, log)
        ax.set_xscale("log" if log else "linear")
        ax.set_xticks(values, values)
        ax.minorticks_off()
        bare(ax).set(title=title, xlabel=label, ylim=(low, 102))
    axes[0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def _line(ax: Axes, means: pd.Series, spread: pd.Series, method: str, shift: float, log: bool = False) -> None:
    """A line with error bars, moved aside a little so that they do not cover each other."""
    step = 0.02 * (means.index.max() - means.index.min() + 1)
    x = means.index * 1.04 ** shift if log else means.index + step * shift
    ax.errorbar(x, means, spread, capsize=3, lw=1.4, ms=5, label=method, **look_of(method))


def orders(records: Sequence[dict], methods: Sequence[str], images: int) -> Figure:
    """Per-task accuracy of each pair in both orders, one panel a method. A marker's color says which model is 1."""
    effect = order_effect(records, methods, images)
    pairs, colours = list(effect.index.unique("pair")), dict(zip(EMBEDDED, MODELS))
    figure, axes = plt.subplots(1, len(methods), figsize=(10.5, 3.3), sharex=True, sharey=True, layout="constrained")
    for ax, method in zip(axes, methods):
        for y, pair in enumerate(pairs):
            ends = effect.loc[(method, pair), ["first", "second"]]
            ax.plot(ends, [y, y], color=GREY, lw=2, zorder=1)
            for x, name in zip(ends, pair.split(", ")):
                ax.plot(x, y, "o", ms=8, color=colours[name])
        bare(ax).set(title=method, xlabel="per-task accuracy, %")
        ax.grid(axis="x", color=GREY, lw=0.4)
    axes[0].set_yticks(range(len(pairs)), pairs)
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    marks = [plt.Line2D([], [], ls="", marker="o", ms=8, color=colour, label=name) for name, colour in colours.items()]
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
    colours = [look_of(name)["color"] for name in names]
    for ax, pair in zip(axes, pairs):
        for shift, column, fill in ((-0.2, "mean", {"color": colours}),
                                    (0.2, "joint", {"color": "white", "edgecolor": colours, "hatch": "////"})):
            drawn = ax.barh([y + shift for y in range(len(names))], bars.loc[pair, column], 0.38, **fill)
            ax.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
        bare(ax).set(title=pair, xlim=(0, 105), xlabel="test accuracy, %")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    kinds = [Patch(ec=GREY, fc=GREY, label="per task"), Patch(ec=GREY, fc="white", hatch="////", label="joint")]
    figure.legend(handles=kinds, frameon=False, loc="outside lower center", ncols=2)
    return figure


# ---------------------------------------------------------------- lesson 12: more models

def at_once_and_in_sequence() -> Figure:
    """Three originals merged at once; and two of them merged first, then the result with the third."""
    figure, ax = canvas(15.6, 4.2, (10.4, 2.9))
    ax.text(2.9, 3.9, "at once", ha="center", fontsize=11)
    ax.text(10.7, 3.9, "in sequence", ha="center", fontsize=11)
    for y, name, colour in zip((3.2, 2.1, 1.0), ("model 1", "model 2", "model 3"), MODELS):
        box(ax, 0.9, y, name, colour, 1.4, "--")
        arrow(ax, (1.7, y), (3.2, 2.1))
        box(ax, 7.4, y, name, colour, 1.4, "--")
    box(ax, 4.2, 2.1, "1, 2 and 3", MERGED, 1.8)
    for y in (3.2, 2.1):
        arrow(ax, (8.2, y), (9.5, 2.65))
    box(ax, 10.4, 2.65, "1 and 2", MERGED, 1.6)
    arrow(ax, (11.3, 2.65), (12.9, 1.85))
    arrow(ax, (8.2, 1.0), (12.9, 1.8))
    box(ax, 13.9, 1.82, "1, 2 and 3", MERGED, 1.8)
    ax.text(4.2, 1.5, "output matrices\n$O_1,\\ O_2,\\ O_3$", ha="center", va="top", fontsize=10)
    ax.text(10.4, 3.45, "$O_1,\\ O_2$", ha="center", va="top", fontsize=10)
    ax.text(13.9, 1.2, "$O_1 U,\\ O_2 U,\\ O_3$", ha="center", va="top", fontsize=10)
    return figure


def more_models(records: Sequence[dict], methods: Sequence[str]) -> Figure:
    """Accuracy against the number of merged models."""
    return _curves(tables.summary(records, "k"), methods, "models merged", 20)


def forgetting(records: Sequence[dict], methods: Sequence[str]) -> Figure:
    """Accuracy on each task after the merge of so many models: means and deviations over seeds."""
    rows = [{"task": name, "method": r["method"], "k": r["k"], "accuracy": accuracy}
            for r in records for name, accuracy in r["per_task"].items()]
    groups = pd.DataFrame(rows).groupby(["task", "method", "k"])["accuracy"]
    means, spread = groups.mean(), groups.std()
    figure, axes = plt.subplots(1, len(EMBEDDED), figsize=(11, 3.4), sharex=True, sharey=True, layout="constrained")
    for ax, name in zip(axes, EMBEDDED):
        for j, method in enumerate(methods):
            _line(ax, means.loc[name, method], spread.loc[name, method], method, 2 * (j - 1))
        bare(ax).set(title=name, xlabel="models merged", xticks=[2, 3, 4])
    axes[0].set_ylabel("per-task accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=len(methods))
    return figure


# ---------------------------------------------------------------- lesson 12: widths

def narrow_in_wide(dim: int = 96, wide: int = 128, heads: int = 4) -> Figure:
    """A narrow model inside a wide one: which channels of the stream and of the attention heads it uses."""
    figure, ax = canvas(wide + 62, 46, (11, 3.6))
    for y, name, units, used in ((33, "stream", 1, dim), (13, "queries, keys", heads, dim // heads)):
        size = wide // units
        ax.text(0, y + 3, name, va="center", fontsize=11)
        for j in range(units):
            left = 26 + j * size
            ax.add_patch(Rectangle((left, y), used, 6, fc=MODELS[0] + "55", ec=MODELS[0], lw=1.4))
            ax.add_patch(Rectangle((left + used, y), size - used - 0.6, 6, fc="none", ec=GREY, ls="--", lw=1.2))
            label = f"{used} used" if units == 1 else f"head {j + 1}: {used}"
            ax.text(left + used / 2, y + 3, label, ha="center", va="center", fontsize=9.5)
            ax.text(left + used + (size - used) / 2, y + 3, f"{size - used} zeros", ha="center", va="center",
                    fontsize=9 if units == 1 else 7)
    right = wide + 29
    ax.text(right, 36, "LayerNorm takes the mean over\n" f"all {wide} channels", va="center", fontsize=9.5)
    ax.text(right, 16, "attention divides $q\\cdot k$\n" f"by $\\sqrt{{{wide // heads}}}$, not "
            f"$\\sqrt{{{dim // heads}}}$", va="center", fontsize=9.5)
    cures = (f"written: $\\rho\\,(x - \\mathrm{{mean}}\\,x)$ with $\\rho = ({wide}/{dim})^{{1/2}}$; "
             "the norm's weight is divided by $\\rho$",
             f"$q$ and $k$ are written $({wide // heads}/{dim // heads})^{{1/4}}$ times as large")
    for y, text in zip((28, 8), cures):
        ax.text(26, y, text, va="center", fontsize=10, color=GREEN)
    return figure


def size_of(width: int) -> float:
    """Weights of a ViT of this width and of the shipped head size, in those of one original (width 96)."""
    def count(dim: int) -> int:
        return sum(p.numel() for p in vit(dim=dim, num_heads=dim // 24).parameters())
    return count(width) / count(96)


def room_table(records: Sequence[dict]) -> pd.DataFrame:
    """Accuracy at each width: index (merge, method, width), with `size` in originals and `kept` of the originals'."""
    rows = tables.frame(records)
    rows["method"] = rows["method"].str.split(" @ ").str[0]
    whole = rows[rows["method"].str.startswith("originals")].set_index("tasks")["mean"]
    rows["kept"] = 100 * rows["mean"] / rows["tasks"].map(whole)
    rows["size"] = rows["width"].map({width: size_of(width) for width in rows["width"].unique()})
    return rows.set_index(["tasks", "method", "width"])[["size", "mean", "joint", "kept"]].sort_index()


def draw_room(records: Sequence[dict], merge: str = "digits, letters, shapes, textures", width: int = 96) -> Figure:
    """What one merge keeps at one width: task by task on the left, against all widths on the right."""
    merges = [r for r in records if ", ".join(r["tasks"]) == merge]
    chosen = next(r for r in merges if r["method"] == f"{OURS} @ {width}")
    whole = next(r for r in merges if r["method"].startswith("originals"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for y, name in enumerate([*chosen["tasks"], "joint"]):
        value, upper = (r["joint"] if name == "joint" else r["per_task"][name] for r in (chosen, whole))
        fill = {"mfc": "white"} if name == "joint" else {}
        left.plot([value, upper], [y, y], color=GREY, lw=2, zorder=1)
        left.plot(upper, y, ls="", label="originals" if y == 0 else None, color="black", marker="o", ms=8, **fill)
        left.plot(value, y, ls="", label=OURS if y == 0 else None, ms=9, **style_of(OURS), **fill)
        left.text(value - 0.8, y, f"{value:.1f}", ha="right", va="center", fontsize=9)
    left.set_yticks(range(len(chosen["tasks"]) + 1), [*chosen["tasks"], "joint"])
    bare(left).set(xlim=(80, 101), xlabel="accuracy, %", title=f"one model of width {width}")
    left.set_ylim(len(chosen["tasks"]) + 0.4, -0.4)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    line = room_table(merges).loc[(merge, OURS)]
    right.plot(line.index, line["kept"], label=OURS, **style_of(OURS))
    right.plot(width, line["kept"][width], ms=13, mec="black", mew=1.5, **style_of(OURS))
    right.axhline(100, color="black", lw=1, ls=":")
    bare(right).set(xticks=list(line.index), ylim=(89, 100.6), xlabel="width of the merged model",
                    ylabel="kept, % of the originals", title=f"{line['size'][width]:.1f} times "
                    f"the size of one original; kept: {line['kept'][width]:.1f} %")
    return figure


def beside_originals(room: Sequence[dict]) -> Figure:
    """Accuracy of one merged model of each width, and of the k originals, against their size. One panel a merge."""
    rows = room_table(room)
    merges = sorted(rows.index.unique("tasks"), key=lambda names: names.count(","))
    figure, axes = plt.subplots(1, len(merges), figsize=(11, 3.6), sharex=True, sharey=True, layout="constrained")
    for ax, merge in zip(axes, merges):
        k, (whole,) = merge.count(",") + 1, rows.loc[merge].filter(like="originals", axis=0).to_dict("records")
        for column, fill in (("mean", None), ("joint", "white")):
            line = rows.loc[(merge, OURS)]
            label = {"mean": "per task", "joint": "joint"}[column]
            ax.plot(line["size"], line[column], mfc=fill, label=f"{OURS}, {label}", **style_of(OURS))
            ax.plot(k, whole[column], ls="", marker="*", ms=14, color="black", mfc=fill, label=f"k originals, {label}")
        bare(ax).set(title=merge.replace("letters, ", "letters,\n") if k > 2 else merge, xticks=[1, 2, 3, 4],
                     xlabel="size, in originals", xlim=(0.7, 4.3))
    axes[0].set_ylabel("accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=4)
    return figure


def widths(records: Sequence[dict], methods: Sequence[str]) -> Figure:
    """Accuracy against the width of the merged model, for originals of two widths; the originals as a black line."""
    found = tables.summary(records, "width")
    whole = found.loc["originals (k models)"].mean()
    figure = _curves(found, methods, "width of the merged model", 40)
    for ax, column in zip(figure.axes, ("mean", "joint")):
        ax.axhline(whole[column], color="black", lw=1)
        ax.text(190, whole[column] - 1, "the two originals", ha="right", va="top", fontsize=9)
    return figure
