"""The drawings of lesson 12: merging in sequence, and how wide the merged model is."""
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...architectures.vit import vit
from ...bench import results as tables
from ...bench.palette import GREEN, GREY, MERGED, MODELS, style_of
from ...tasks.embedded import EMBEDDED
from .parts import arrow, bare, box, canvas
from .results import OURS

# ---------------------------------------------------------------- more models

def at_once_and_in_sequence() -> Figure:
    """Three originals merged at once; and two of them merged first, then the result with the third."""
    figure, ax = canvas(15.6, 4.2, (10.4, 2.9))
    ax.text(2.9, 3.9, "at once", ha="center", fontsize=11)
    ax.text(10.7, 3.9, "in sequence", ha="center", fontsize=11)
    for y, name, color in zip((3.2, 2.1, 1.0), ("model 1", "model 2", "model 3"), MODELS):
        box(ax, 0.9, y, name, color, 1.4, "--")
        arrow(ax, (1.7, y), (3.2, 2.1))
        box(ax, 7.4, y, name, color, 1.4, "--")
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
    ax.errorbar(x, means, spread, capsize=3, lw=1.4, ms=5, label=method, **style_of(method))


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


# ---------------------------------------------------------------- widths

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


def room_table(records: Sequence[dict]) -> pd.DataFrame:
    """Means over seeds: index (merge, method, width), with `size` in originals and `kept` of the originals'."""
    rows = tables.frame(records)
    rows["method"] = rows["method"].str.split(" @ ").str[0]
    rows = rows.groupby(["tasks", "method", "width"])[["mean", "joint"]].mean().reset_index()
    whole = rows[rows["method"].str.startswith("originals")].set_index("tasks")["mean"]
    rows["kept"] = 100 * rows["mean"] / rows["tasks"].map(whole)
    models = {width: vit(dim=width, num_heads=width // 24) for width in sorted({96, *rows["width"]})}
    rows["size"] = rows["width"].map(tables.costs_of(models)["weights"])
    return rows.set_index(["tasks", "method", "width"])[["size", "mean", "joint", "kept"]].sort_index()


def kept_table(records: Sequence[dict]) -> str:
    """Percent kept of the originals' per-task accuracy in Markdown: a row for each merge, a column for each width."""
    rows = room_table(records).xs(OURS, level="method")
    kept = rows["kept"].unstack("width")
    kept = kept.loc[sorted(kept.index, key=lambda names: (names.count(","), names))]
    kept.loc["size, in originals"] = rows["size"].groupby("width").mean()
    return tables.markdown(kept.add_prefix("width ").rename_axis(index="merge"))


def _by_task(merges: Sequence[dict], method: str) -> dict[str, float]:
    """Accuracy of a method on each task and jointly: means over the seeds of one merge."""
    runs = [r["per_task"] | {"joint": r["joint"]} for r in merges if r["method"] == method]
    return pd.DataFrame(runs).mean().to_dict()


def draw_room(records: Sequence[dict], merge: str = "digits, letters, shapes, textures", width: int = 96) -> Figure:
    """What one merge keeps at one width: task by task on the left, against all widths on the right."""
    merges = [r for r in records if ", ".join(r["tasks"]) == merge]
    chosen, whole = (_by_task(merges, name) for name in (f"{OURS} @ {width}", "originals (k models)"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for y, (name, value) in enumerate(chosen.items()):
        upper = whole[name]
        fill = {"mfc": "white"} if name == "joint" else {}
        left.plot([value, upper], [y, y], color=GREY, lw=2, zorder=1)
        left.plot(upper, y, ls="", label="originals" if y == 0 else None, color="black", marker="o", ms=8, **fill)
        left.plot(value, y, ls="", label=OURS if y == 0 else None, ms=9, **style_of(OURS), **fill)
        left.text(value - 0.8, y, f"{value:.1f}", ha="right", va="center", fontsize=9)
    left.set_yticks(range(len(chosen)), list(chosen))
    bare(left).set(xlim=(80, 101), xlabel="accuracy, %", title=f"one model of width {width}")
    left.set_ylim(len(chosen) - 0.6, -0.4)
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
    figure = _curves(found, methods, "width of the merged model", 25)
    for ax, column in zip(figure.axes, ("mean", "joint")):
        ax.axhline(whole[column], color="black", lw=1)
        ax.text(190, whole[column] - 1, "the two originals", ha="right", va="top", fontsize=9)
    return figure
