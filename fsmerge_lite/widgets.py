"""Sliders for notebooks, each on top of a function that draws the same for one setting and needs no front end."""
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import plots
from .originals import DATA
from .tasks import Task, task

RANKS = DATA.parent / "lessons" / "ranks.json"
STARTS = {"first": "the paper's start, first", "subspaces": "our start, fit_subspaces"}


def load_ranks(file: Path = RANKS) -> dict:
    """What `benchmarks/ranks.py` measured: "settings", and for each start a list of merges in the order of the rank."""
    return json.loads(Path(file).read_text())


def draw_rank(rank: int, start: str = "first", file: Path = RANKS) -> Figure:
    """What the merges of this rank came to, among those of all ranks.

    Args:
        rank: one of those measured; 0 stands for diagonals alone.
        start: "first" (the paper's) or "subspaces" (ours).
        file: the measured merges, from `benchmarks/ranks.py`.

    Raises:
        ValueError: a rank or start that was not measured.
    """
    found = load_ranks(file)
    runs = {run["rank"]: run for run in found[start]} if start in STARTS else {}
    if rank not in runs:
        raise ValueError(f"there are the starts {', '.join(STARTS)}, with ranks {', '.join(map(str, runs))}")
    drawn = plt.figure(figsize=(11, 6.4), layout="constrained")
    axes = drawn.subplot_mosaic([["numbers", "loss", "singular"], ["read", "read", "classes"]])
    drawn.suptitle(f"{_name(rank)}, {STARTS[start]}: {runs[rank]['trained']:,} numbers trained")
    tasks = [task(name) for name in found["settings"]["tasks"]]
    _numbers(axes["numbers"], runs, rank, [each.name for each in tasks])
    _curves(axes["loss"], runs, rank, found["settings"]["steps"])
    _singular(axes["singular"], runs, rank)
    _read(axes["read"], tasks, runs[rank]["read"])
    axes["classes"].bar(tasks[1].classes, runs[rank]["by_class"][1], color=plots.ORANGE)
    axes["classes"].set(title=f"{tasks[1].name}, class by class", ylabel="right, %", ylim=(0, 105))
    for name in ("numbers", "loss", "singular", "classes"):
        axes[name].spines[["top", "right"]].set_visible(False)
    return drawn


def rank_slider(rank: int = 12, file: Path = RANKS) -> ipywidgets.VBox:
    """`draw_rank` under a slider for the rank, which begins at `rank`, and a choice of the start."""
    ranks = [(_name(run["rank"]), run["rank"]) for run in load_ranks(file)["first"]]
    slider = ipywidgets.SelectionSlider(description="rank", options=ranks, value=rank, continuous_update=False)
    start = ipywidgets.ToggleButtons(options=[(text, name) for name, text in STARTS.items()],
                                     style={"button_width": "auto"})
    picture = ipywidgets.HTML()  # not an Output: nbclient, which runs notebooks, may wait for ever at one

    def draw(change: object = None) -> None:
        data = base64.b64encode(plots.png(draw_rank(slider.value, start.value, file))).decode()
        alt = f"Accuracy, loss and answers of the merge of {_name(slider.value)}, from {STARTS[start.value]}."
        picture.value = f'<img style="width: 100%" alt="{alt}" src="data:image/png;base64,{data}">'
    for control in (slider, start):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([slider, start, picture])


def _name(rank: int) -> str:
    return f"rank {rank}" if rank else "diagonals alone"


def _numbers(ax: Axes, runs: Mapping[int, dict], rank: int, names: Sequence[str]) -> None:
    for i, name in enumerate((*names, "joint")):
        values = {r: (run["trained"], [*run["per_task"], run["joint"]][i]) for r, run in runs.items()}
        how = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
        ax.plot(*zip(*values.values()), ms=4, lw=1.2, label=name, **how)
        ax.plot(*values[rank], ms=11, mec="black", **how)
    ax.set(xscale="log", xlabel="numbers trained", ylabel="test accuracy, %", ylim=(0, 105), title="accuracy")
    ax.legend(frameon=False, loc="lower right")


def _curves(ax: Axes, runs: Mapping[int, dict], rank: int, steps: int) -> None:
    for r, run in sorted(runs.items(), key=lambda pair: pair[0] == rank):  # the chosen one last: on top
        at = [(j + 0.5) * steps / len(run["loss"]) for j in range(len(run["loss"]))]
        ax.semilogy(at, run["loss"], color=plots.BLUE if r == rank else plots.GREY, lw=2.4 if r == rank else 1)
    plots.plain_log(ax)
    ax.set(xlabel="step", ylabel="reconstruction loss", title="loss (grey: the other ranks)")


def _singular(ax: Axes, runs: Mapping[int, dict], rank: int) -> None:
    for r, run in runs.items():
        chosen = {"color": plots.GREEN, "marker": "o", "ms": 4} if r == rank else {"color": plots.GREY, "lw": 1}
        ax.plot(range(1, r + 1), run["singular"], **chosen)
    ax.set(xlabel="number", title="singular values of $AB$ in one $M$", ylim=(0, None))


def _read(ax: Axes, tasks: Sequence[Task], answers: Sequence[Sequence[int]]) -> None:
    for row, (each, read) in enumerate(zip(tasks, answers)):
        images, labels = each.test()
        for column, (image, label, answer) in enumerate(zip(images.movedim(1, -1).numpy() / 2 + 0.5, labels, read)):
            ax.imshow(image, extent=(column, column + 0.94, -1.4 * row, 0.94 - 1.4 * row))
            ax.text(column + 0.47, -0.2 - 1.4 * row, f"{each.classes[answer]} {'✓' if answer == label else '✗'}",
                    color=plots.GREEN if answer == label else plots.COLOURS[5], ha="center", va="center")
    ax.set(xlim=(0, len(answers[0])), ylim=(-1.8, 1), title="what it reads in some test pictures (head given)")
    ax.axis("off")
