"""The rank slider of lesson 04, and the function that draws one of its settings without a front end."""
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench import figures
from ..tasks.originals import DATA
from ..tasks.task import Task, task

RANKS = DATA.parent / "lessons" / "ranks.json"
STARTS = {"first": "from model 1, first", "subspaces": "our start, fit_subspaces"}


def load_ranks(file: Path = RANKS) -> dict:
    """Results of `benchmarks/ranks.py`: "settings", and for each start a list of merges ordered by rank."""
    return json.loads(Path(file).read_text())


def draw_rank(rank: int, start: str = "first", file: Path = RANKS) -> Figure:
    """The results of one rank, compared with those of all ranks.

    Args:
        rank: one of the measured ranks; 0 means diagonals only.
        start: "first" (at model 1) or "subspaces" (fitted).
        file: results of `benchmarks/ranks.py`.

    Raises:
        ValueError: this rank or start was not measured.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    results = load_ranks(file)
    runs = {run["rank"]: run for run in results[start]}
    if rank not in runs:
        raise ValueError(f"rank must be one of {', '.join(map(str, runs))}, got {rank}")
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplot_mosaic([["accuracy", "loss", "singular"], ["predictions", "predictions", "classes"]])
    figure.suptitle(f"{_name(rank)}, {STARTS[start]}: {runs[rank]['trained']:,} trained parameters")
    tasks = [task(name) for name in results["settings"]["tasks"]]
    _accuracy(axes["accuracy"], runs, rank, [each.name for each in tasks])
    _curves(axes["loss"], runs, rank, results["settings"]["steps"])
    _singular(axes["singular"], runs, rank)
    _predictions(axes["predictions"], tasks, runs[rank]["read"])
    axes["classes"].bar(tasks[1].classes, runs[rank]["by_class"][1], color=figures.ORANGE)
    axes["classes"].set(title=f"{tasks[1].name}, class by class", ylabel="test accuracy, %", ylim=(0, 105))
    for name in ("accuracy", "loss", "singular", "classes"):
        axes[name].spines[["top", "right"]].set_visible(False)
    return figure


def rank_slider(rank: int = 12, file: Path = RANKS) -> ipywidgets.VBox:
    """A slider for the rank, initially `rank`, a choice of the start, and below them what `draw_rank` draws."""
    ranks = [(_name(run["rank"]), run["rank"]) for run in load_ranks(file)["first"]]
    slider = ipywidgets.SelectionSlider(description="rank", options=ranks, value=rank, continuous_update=False)
    start = ipywidgets.ToggleButtons(options=[(text, name) for name, text in STARTS.items()],
                                     style={"button_width": "auto"})
    picture = ipywidgets.HTML()  # not an Output widget, at which nbclient may wait forever

    def draw(change: object = None) -> None:
        data = base64.b64encode(figures.png(draw_rank(slider.value, start.value, file))).decode()
        alt = f"Accuracy, loss and predictions of the merge with {_name(slider.value)}, from {STARTS[start.value]}."
        picture.value = f'<img style="width: 100%" alt="{alt}" src="data:image/png;base64,{data}">'
    for control in (slider, start):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([slider, start, picture])


def _name(rank: int) -> str:
    return f"rank {rank}" if rank else "diagonals only"


def _accuracy(ax: Axes, runs: Mapping[int, dict], rank: int, names: Sequence[str]) -> None:
    for i, name in enumerate((*names, "joint")):
        values = {r: (run["trained"], [*run["per_task"], run["joint"]][i]) for r, run in runs.items()}
        style = {"color": figures.COLOURS[i], "marker": figures.MARKERS[i]}
        ax.plot(*zip(*values.values()), ms=4, lw=1.2, label=name, **style)
        ax.plot(*values[rank], ms=11, mec="black", **style)
    ax.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy, %", ylim=(0, 105), title="accuracy")
    ax.legend(frameon=False, loc="lower right")


def _curves(ax: Axes, runs: Mapping[int, dict], rank: int, steps: int) -> None:
    for r, run in sorted(runs.items(), key=lambda pair: pair[0] == rank):  # the chosen rank last, on top
        x = [(j + 0.5) * steps / len(run["loss"]) for j in range(len(run["loss"]))]
        ax.semilogy(x, run["loss"], color=figures.BLUE if r == rank else figures.GREY, lw=2.4 if r == rank else 1)
    figures.plain_log(ax)
    ax.set(xlabel="step", ylabel="reconstruction loss", title="loss (grey: other ranks)")


def _singular(ax: Axes, runs: Mapping[int, dict], rank: int) -> None:
    for r, run in runs.items():
        style = {"color": figures.GREEN, "marker": "o", "ms": 4} if r == rank else {"color": figures.GREY, "lw": 1}
        ax.plot(range(1, r + 1), run["singular"], **style)
    ax.set(xlabel="index", title="singular values of $AB$ in one $M$", ylim=(0, None))


def _predictions(ax: Axes, tasks: Sequence[Task], predicted: Sequence[Sequence[int]]) -> None:
    for row, (each, classes) in enumerate(zip(tasks, predicted)):
        images, labels = each.test()
        images = images.movedim(1, -1).numpy() / 2 + 0.5
        for column, (image, label, answer) in enumerate(zip(images, labels, classes)):
            ax.imshow(image, extent=(column, column + 0.94, -1.4 * row, 0.94 - 1.4 * row))
            ax.text(column + 0.47, -0.2 - 1.4 * row, f"{each.classes[answer]} {'✓' if answer == label else '✗'}",
                    color=figures.GREEN if answer == label else figures.COLOURS[5], ha="center", va="center")
    ax.set(xlim=(0, len(predicted[0])), ylim=(-1.8, 1), title="predictions for some test images (head given)")
    ax.axis("off")
