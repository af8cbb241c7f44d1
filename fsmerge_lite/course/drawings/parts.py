"""Parts that several drawings share: showing a figure with words, an empty canvas, rows of boxes, brackets."""
from html import escape
from itertools import pairwise

import matplotlib.pyplot as plt
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...bench.figures import arrow, box, png

DARK = "#444444"  # lines and texts that belong to no model


def show(drawn: Figure | Axes, alt: str) -> None:
    """Display a figure as PNG with a description. JupyterLab drops the alt text, so the words can be opened below."""
    words = HTML(f"<details><summary>In words</summary>{escape(alt)}</details>")
    display(Image(png(drawn.get_figure()), alt=alt), words)


def canvas(width: float, height: float, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty drawing, `width` by `height` units, in a figure of `size` inches."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def bracket(ax: Axes, left: float, right: float, y: float, text: str) -> None:
    """A bracket from left to right with a text below it."""
    ax.plot([left, left, right, right], [y + 0.15, y, y, y + 0.15], color=DARK, lw=1.2)
    ax.text((left + right) / 2, y - 0.15, text, ha="center", va="top", fontsize=10)


def chain(ax: Axes, y: float, boxes: list[tuple[float, str, str, str, float]]) -> None:
    """A row of boxes (x, text, color, line style, width) with arrows between them."""
    for x, text, color, style, width in boxes:
        box(ax, x, y, text, color, width, style)
    for (a, *_, wide), (b, *_, next_wide) in pairwise(boxes):
        arrow(ax, (a + wide / 2 + 0.05, y), (b - next_wide / 2 - 0.05, y))


def bare(ax: Axes) -> Axes:
    """The axes without their upper and right lines."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax
