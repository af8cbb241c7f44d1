"""What M and U are made of, how many numbers that is, and what a rank is worth."""
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter, NullLocator
from torch import Tensor

from ...bench import figures, results, runner
from ...bench.palette import DARK, GREEN, GREY, MARKERS, MODELS
from ...supernet import SuperNet
from ...tasks.embedded import task
from ...tasks.originals import DATA
from ...tasks.task import Task
from . import parts

STARTS = {"first": "from model 1", "subspaces": "from the fitted start"}
TRAINED = {"fitted, diagonal": "diagonals", "fitted, rank 4": "rank 4", "FS-Merge (fitted)": "rank 12",
           "fitted, not shared": "rank 12, not shared", "fitted, rank 32": "rank 32",
           "all weights from the fitted start": "all weights"}


# ---------------------------------------------------------------- what the matrices are made of

def channels(D: Tensor, A: Tensor, B: Tensor) -> Figure:
    """D + A B with rank 1 as a network: straight lines for D, and one narrow unit that B feeds and A reads."""
    n, (figure, ax) = len(D), parts.canvas(8.4, len(D) + 0.4, (7.2, 3.6))
    heights, middle = [n - 0.3 - j for j in range(n)], (4.2, n / 2 + 0.2)
    for j, y in enumerate(heights):
        _weighted(ax, (0.9, y), (7.5, y), D[j].item(), 0.82, 1.4)
        _weighted(ax, (0.9, y), middle, B[0, j].item(), 0.45, 2.2)
        _weighted(ax, middle, (7.5, y), A[j, 0].item(), 0.5, 2.2)
        for x, name in ((0.6, f"$x_{j}$"), (7.8, f"$y_{j}$")):
            ax.text(x, y, name, ha="center", va="center", fontsize=13)
    ax.text(*middle, "$Bx$", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white", "ec": GREEN, "lw": 2})
    for x, text in ((1.9, "$B$ reads"), (4.2, "$r = 1$ number"), (6.3, "$A$ writes")):
        ax.text(x, 0.05, text, ha="center", fontsize=11)
    return figure


def _weighted(ax: Axes, start: tuple[float, float], end: tuple[float, float], weight: float, at: float,
              width: float) -> None:
    """A line with its weight at a part of its length; nothing where the weight is zero."""
    if weight:
        ax.plot(*zip(start, end), color=GREEN, lw=width, zorder=0)
        x, y = (s + at * (e - s) for s, e in zip(start, end))
        ax.text(x, y, f"{weight:g}".replace("-", "−"), ha="center", va="center", fontsize=10,
                bbox={"fc": "white", "ec": "none", "pad": 1})


def structures(size: int, rank: int) -> Figure:
    """The four structures of M and U as rectangles to scale, with the number of entries of each."""
    figure, ax = parts.canvas(14.3, 3.9, (10, 2.8))
    counts = {"diagonal": size, "low_rank": 2 * size * rank, "diagonal_low_rank": size + 2 * size * rank,
              "full": size * size}
    for (name, count), (x, letters) in zip(counts.items(), ((0.2, "D"), (3.0, "AB"), (6.4, "D+AB"), (12.1, "S"))):
        end = _product(ax, x, 1.2, letters, 2 * rank / size)
        ax.text((x + end) / 2, 0.75, name, ha="center", fontsize=11)
        ax.text((x + end) / 2, 0.3, f"{count:,} numbers", ha="center", fontsize=10)
    return figure


def _product(ax: Axes, x: float, y: float, letters: str, strip: float) -> float:
    """Matrices two units high side by side: D, A, B, S or +. Returns where they end."""
    for letter in letters:
        width, height = {"A": (strip, 2), "B": (2, strip), "+": (0.4, 2)}.get(letter, (2, 2))
        if letter == "+":
            ax.text(x + 0.2, y + 1, "$+$", ha="center", va="center", fontsize=16)
        elif letter == "D":
            ax.add_patch(Rectangle((x, y), 2, 2, fc="none", ec=GREY, ls=":"))
            ax.plot([x, x + 2], [y + 2, y], color=GREEN, lw=3)
        else:
            ax.add_patch(Rectangle((x, y + 2 - height), width, height, fc=GREEN + "66", ec=GREEN, lw=1.5))
        if letter != "+":
            ax.text(x + width / 2, y + 2.15, f"${letter}$", ha="center", fontsize=12)
        x += width + 0.08
    return x


def shared_and_not() -> Figure:
    """M_1 beside M_2: their low-rank factors apart, and with one common A."""
    figure, ax = parts.canvas(13.2, 6.6, (9.6, 4.6))
    rows = ((3.5, "one $A B$ for each original:  $2\\,k\\,d\\,r$ numbers in $A$ and $B$", ("A_1", "A_2")),
            (0.1, "one $A$ for all originals (the paper):  $(k + 1)\\,d\\,r$ numbers in $A$ and $B$", ("A",)))
    for y, title, names in rows:
        ax.text(0.1, y + 2.75, title, fontsize=11)
        ax.text(0.75, y + 1, "$[M_1\\ \\ M_2]\\ =$", ha="center", va="center", fontsize=13)
        for i, left in ((1, 1.8), (2, 3.8)):
            _block(ax, left, y, (2, 2), f"D_{i}", "none", MODELS[i - 1])
            ax.plot([left, left + 2], [y + 2, y], color=GREEN, lw=3)
        ax.text(6.25, y + 1, "$+$", ha="center", va="center", fontsize=16)
        for j, name in enumerate(names):
            _block(ax, 6.7 + 0.4 * j, y, (0.35, 2), name, GREEN + "66", GREEN)
        for i, left in ((1, 7.8), (2, 9.8)):
            lower = 0.75 * (i - 1) * (len(names) - 1)
            _block(ax, left, y + 1.65 - lower, (2, 0.35), f"B_{i}", GREEN + "66", MODELS[i - 1])
            if len(names) > 1:  # block-diagonal: each A_i is multiplied by its own B_i only
                ax.text(left + 1, y + 1.075 + lower, "0", ha="center", va="center", color=DARK, fontsize=12)
    return figure


def _block(ax: Axes, x: float, y: float, size: tuple[float, float], name: str, fill: str, edge: str) -> None:
    ax.add_patch(Rectangle((x, y), *size, fc=fill, ec=edge, lw=1.8))
    ax.text(x + size[0] / 2, y + size[1] + 0.12, f"${name}$", ha="center", fontsize=12)


# ---------------------------------------------------------------- how many numbers

def shares(learned: Callable, full: Callable, models: Mapping[str, tuple[int, int, int]]) -> Figure:
    """The numbers to learn for two originals, in percent of the merged model's weights, against the rank.

    Args:
        learned: gives the numbers for width, blocks, rank, number of originals and whether A is shared.
        full: gives them for width, blocks and number of originals, of full matrices.
        models: name -> width, blocks, number of weights.
    """
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    ranks = (1, 2, 4, 8, 12, 24, 48)
    for (name, (width, blocks, weights)), marker, inside in zip(models.items(), MARKERS, (DARK, "white")):
        for form, shared, line in (("one $A B$ each", False, "-"), ("one $A$ for all", True, "--")):
            percent = [100 * learned(width, blocks, r, 2, shared) / weights for r in ranks]
            ax.plot(ranks, percent, color=DARK, ls=line, marker=marker, mfc=inside, label=f"{name}, {form}")
    both = [100 * full(width, blocks, 2) / weights for width, blocks, weights in models.values()]
    ax.axhline(sum(both) / len(both), color=GREY, ls=":", lw=2, label="full matrices, both")  # they differ by 4 %
    ax.axhline(100, color="black", lw=1)
    ax.text(1, 110, "as many as the model has", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="rank $r$", ylabel="numbers to learn, % of the model's weights")
    _ticks(ax, "x", {r: f"{r}" for r in ranks})
    _ticks(ax, "y", {p: f"{p}" for p in (2, 5, 10, 20, 50, 100, 200, 500)})
    figure.legend(frameon=False, loc="outside right center")
    return parts.bare(ax).get_figure()


def _ticks(ax: Axes, axis: str, labels: Mapping[float, str]) -> None:
    """Exactly these ticks, with these labels."""
    line = getattr(ax, f"{axis}axis")
    line.set_major_locator(NullLocator())
    line.set_minor_locator(NullLocator())
    line.set_minor_formatter(NullFormatter())
    line.set_ticks(list(labels), list(labels.values()))


# ---------------------------------------------------------------- what a rank can hold

def left_over(matrix: Tensor, ranks: Sequence[int], rounds: int = 4) -> dict[int, float]:
    """Rank -> how much of a matrix the best D + A B that we find leaves out, in percent of its size.

    D and A B are fitted in turns: A B is the best low rank of matrix - D, D the diagonal of matrix - A B.
    """
    return {rank: 100 * (_rest(matrix, rank, rounds).norm() / matrix.norm()).item() for rank in ranks}


def _rest(matrix: Tensor, rank: int, rounds: int) -> Tensor:
    D = matrix.diag()
    for _ in range(rounds):
        U, s, Vh = torch.linalg.svd(matrix - D.diag())
        low_rank = (U[:, :rank] * s[:rank]) @ Vh[:rank]
        D = (matrix - low_rank).diag()
    return matrix - low_rank - D.diag()


def fitted_unmerges(net: SuperNet, layer: str) -> list[Tensor]:
    """U0_i (d_i, d*) of a net after `fit_subspaces`, for one of its layers."""
    return [net.body.get_submodule(layer).get_buffer(f"readout{i}") for i in range(len(net.originals))]


def reach(lines: Mapping[str, Mapping[int, float]], usual: int = 12) -> Figure:
    """What D + A B leaves out of some matrices: name -> rank -> percent. The first is neutral, the others of models."""
    figure, ax = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
    for (name, percent), color, marker in zip(lines.items(), (DARK, *MODELS), MARKERS):
        ax.plot(list(percent), list(percent.values()), color=color, marker=marker, label=name)
    ax.axvline(usual, color=GREY, lw=1, ls=":")
    ax.text(usual + 1, 3, f"rank {usual}", color=DARK, fontsize=9)
    ax.set(xlabel="rank of $A B$", ylabel="left out, % of the matrix's size", ylim=(0, 105), xticks=list(percent))
    figure.legend(frameon=False, loc="outside right center")
    return parts.bare(ax).get_figure()


# ---------------------------------------------------------------- what a rank is worth

@lru_cache(maxsize=1)
def load_ranks() -> dict:
    """What `benchmarks/ranks.py` measured: "settings", and for each start a list of merges ordered by rank."""
    return json.loads((DATA.parent / "lessons" / "ranks.json").read_text())


def letters_by_rank(start: str) -> dict[int, float]:
    """Rank -> accuracy on letters in percent; rank 0 means diagonals alone."""
    return {run["rank"]: run["per_task"][1] for run in load_ranks()[start]}


def letters_table() -> pd.DataFrame:
    """Accuracy on letters in percent: a row for each start, a column for each rank."""
    rows = {f"letters, %, {text}": letters_by_rank(start) for start, text in STARTS.items()}
    return pd.DataFrame(rows).rename(lambda rank: f"rank {rank}" if rank else "diagonals").T.round(1)


def letters_of_seeds(rank: int) -> list[float]:
    """Accuracy on letters in percent of every seed, for one rank, from model 1."""
    run, = (run for run in load_ranks()["first"] if run["rank"] == rank)
    return [letters for _, letters, _ in run["seeds"]]


def draw_rank(rank: int, start: str = "first", details: bool = True) -> Figure:
    """The merge of one rank among the merges of all ranks.

    Args:
        rank: one of the measured ranks; 0 means diagonals alone.
        start: "first" (at model 1) or "subspaces" (the fitted start).
        details: also answers to test pictures and the accuracy class by class.

    Raises:
        ValueError: this rank or start was not measured.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    runs = {run["rank"]: run for run in load_ranks()[start]}
    if rank not in runs:
        raise ValueError(f"rank must be one of {', '.join(map(str, runs))}, got {rank}")
    settings = load_ranks()["settings"]
    tasks = [task(name) for name in settings["tasks"]]
    figure, axes = _panels(details)
    figure.suptitle(f"{name_of(rank)}, {STARTS[start]}: {runs[rank]['trained']:,} numbers learned")
    _accuracy(parts.bare(axes["accuracy"]), runs, rank, [each.name for each in tasks])
    _curves(parts.bare(axes["loss"]), runs, rank, settings["steps"])
    _singular(parts.bare(axes["singular"]), runs, rank)
    if details:
        _pictures(axes["pictures"], tasks, runs[rank]["read"])
        _classes(parts.bare(axes["classes"]), tasks[1], runs[rank]["by_class"][1])
    return figure


def _panels(details: bool) -> tuple[Figure, Mapping[str, Axes]]:
    """Three panels, or five in two rows; placed by hand, because a constrained layout takes twice the time."""
    figure = plt.figure(figsize=(10.6, 6.6 if details else 3.9))
    rows = [["accuracy", "accuracy", "loss", "singular"], ["pictures", "pictures", "classes", "classes"]]
    bottom, top = (0.06, 0.84) if details else (0.25, 0.73)
    return figure, figure.subplot_mosaic(rows if details else rows[:1], gridspec_kw={
        "left": 0.06, "right": 0.99, "bottom": bottom, "top": top, "wspace": 0.32, "hspace": 0.6})


def name_of(rank: int) -> str:
    """What figures and controls call a rank."""
    return f"rank {rank}" if rank else "diagonals alone"


def _accuracy(ax: Axes, runs: Mapping[int, dict], rank: int, names: Sequence[str]) -> None:
    """Accuracy against the numbers learned; the upper axis has the ranks, bars the range of seeds."""
    trained = [run["trained"] for run in runs.values()]
    looks = [{"color": MODELS[0]}, {"color": MODELS[1]}, {"color": DARK, "mfc": "white", "ls": "--"}]
    for i, (name, look) in enumerate(zip((*names, "joint"), looks)):
        values = np.array([[*run["per_task"], run["joint"]][i] for run in runs.values()])
        seeds = np.array([[seed[i] for seed in run["seeds"]] for run in runs.values()])
        spread = np.abs([values - seeds.min(1), seeds.max(1) - values])
        ax.errorbar(trained, values, spread, marker=MARKERS[i], ms=5, lw=1.3, capsize=2, label=name, **look)
        ax.plot(runs[rank]["trained"], values[list(runs).index(rank)], MARKERS[i], ms=9, mec="black",
                color=look.get("mfc", look["color"]))
    ax.set(xscale="log", xlabel="numbers learned", ylabel="test accuracy, %", ylim=(0, 105))
    _ticks(ax, "x", {n: f"{n:,}" for n in (20_000, 100_000, 500_000, 2_000_000)})
    upper = ax.secondary_xaxis("top")
    _ticks(upper, "x", dict(zip(trained, (r or "D" for r in runs))))
    upper.tick_params(labelsize=8)
    upper.set_xlabel("rank (D: diagonals alone)")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)


def _curves(ax: Axes, runs: Mapping[int, dict], rank: int, steps: int) -> None:
    for r, run in sorted(runs.items(), key=lambda pair: pair[0] == rank):  # the chosen rank last, on top
        x = [(j + 0.5) * steps / len(run["loss"]) for j in range(len(run["loss"]))]
        ax.semilogy(x, run["loss"], color=GREEN if r == rank else GREY, lw=2.4 if r == rank else 1)
    figures.plain_log(ax)
    ax.set(xlabel="step (means of 5 steps)", title="loss (grey: other ranks)")


def _singular(ax: Axes, runs: Mapping[int, dict], rank: int) -> None:
    for r, run in runs.items():
        look = {"color": GREEN, "marker": "o", "ms": 4} if r == rank else {"color": GREY, "lw": 1}
        ax.plot(range(1, r + 1), run["singular"], **look)
    ax.set(xlabel="index of the singular value", title="singular values\nof $A B$ in one $M_2$", ylim=(0, None))


def _pictures(ax: Axes, tasks: Sequence[Task], answers: Sequence[Sequence[int]]) -> None:
    """The first test pictures of every task with the class that the merged model gives them."""
    for row, (each, classes) in enumerate(zip(tasks, answers)):
        images, labels = each.test()
        strip = np.concatenate(list(images[:len(classes)].movedim(1, -1).numpy() / 2 + 0.5), axis=1)
        ax.imshow(strip, extent=(0, len(classes), -1.6 * row, 1 - 1.6 * row))
        for column, (label, answer) in enumerate(zip(labels, classes)):
            mark, weight = ("✓", "bold") if answer == label else ("✗", "normal")
            ax.text(column + 0.5, -0.27 - 1.6 * row, f"{each.classes[answer]} {mark}", color=DARK, ha="center",
                    va="center", weight=weight)
    ax.set(xlim=(0, len(answers[0])), ylim=(-2.1, 1), title="answers to some test pictures (task given; bold: right)")
    ax.axis("off")


def _classes(ax: Axes, each: Task, percent: Sequence[float]) -> None:
    """The accuracy on each class of a task."""
    ax.bar(each.classes, percent, color=MODELS[1])
    ax.set(title=f"{each.name} (model 2), class by class", ylabel="test accuracy, %", ylim=(0, 105))


def ablation() -> pd.DataFrame:
    """What is trained from the fitted start -> accuracy in percent, mean and standard deviation of three seeds."""
    records = runner.load_records(DATA.parent.parent / "benchmarks" / "results" / "ablation.json")
    means, columns = results.summary(records).loc[["start", *TRAINED]], {}
    for images, tasks in ((16, "letters, digits"), (100, "shapes, textures")):
        rows = means.xs(images, level="images")
        for column, name in (("mean", "per task"), ("joint", "joint")):
            columns[f"{tasks}, {images} images", name] = [results.points(*row) for row in
                                                          rows[[column, f"{column}_std"]].to_numpy()]
    numbers = means.xs(16, level="images")["trained"].map("{:,.0f}".format)
    table = pd.DataFrame(columns, index=["nothing (the start itself)", *TRAINED.values()])
    table.insert(0, ("", "numbers learned"), list(numbers))
    return table


def ablation_means() -> pd.DataFrame:
    """The same as plain numbers: columns `mean` (per task) and `joint`, means of both pairs and three seeds."""
    records = runner.load_records(DATA.parent.parent / "benchmarks" / "results" / "ablation.json")
    means = results.summary(records)[["mean", "joint"]].groupby(level=0).mean()
    return means.rename(index=TRAINED)
