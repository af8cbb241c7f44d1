"""The drawings of lesson 02: what formulas for weights can do, and which matrices a transformer allows."""
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ...bench import results, runner
from ...bench.palette import BLUE_ORANGE, GREY, METHODS, MODELS, style_of
from ...engine.running import inputs_of
from ...models import Merged, Original
from ...tasks.originals import DATA
from . import parts

LOWDATA = DATA.parents[1] / "benchmarks" / "results" / "lowdata.json"
PLACES = [f"blocks.{n}.{name}" for n in range(4) for name in ("attn.qkv", "mlp.fc1")]


def arc_and_chord(degrees: float = 90) -> Figure:
    """Two vectors of length 1, so many degrees apart; their average on the chord between them, and SLERP on the arc."""
    figure, ax = plt.subplots(figsize=(7.2, 2.9), layout="constrained")
    arc = np.radians(90 + degrees * np.linspace(0.5, -0.5))
    ends, length = np.stack([np.cos(arc), np.sin(arc)], 1)[[0, -1]], np.sin(arc[0])
    ax.plot(*ends.T, color=METHODS["average"], ls=":", lw=1.5)
    ax.plot(np.cos(arc), np.sin(arc), color=METHODS["slerp"], ls=":", lw=1.5)
    for end, color, name in zip((*ends, (0, length), (0, 1)), (*MODELS[:2], METHODS["average"], METHODS["slerp"]),
                                ("$w_1$", "$w_2$", f"average: length {length:.2f}", "SLERP: length 1.00")):
        width = 8 if "average" in name else 2.5
        ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": width, "shrinkB": 0})
        ax.plot([], [], color=color, lw=width, label=name)
    ax.set(xlim=(-1.1, 1.1), ylim=(-0.1, 1.1), aspect="equal", title=f"{degrees:.0f} degrees apart")
    ax.axis("off")
    figure.legend(frameon=False, loc="outside right center")
    return figure


def bowls(weights: Tensor, grams: Tensor, points: Mapping[str, Tensor]) -> Figure:
    """The squared error of each original's layer as a bowl over two weights, seen from above, and what methods choose.

    Args:
        weights: (2, 2), the weights of both originals, where the bowls are zero.
        grams: (2, 2, 2), the Gram matrices of what both read, which give the bowls their shapes.
        points: method -> two weights.
    """
    figure, ax = plt.subplots(figsize=(6.6, 4.1), layout="constrained")
    grid = torch.stack(torch.meshgrid(torch.linspace(-1.5, 6, 151), torch.linspace(-1.5, 6, 151), indexing="xy"), -1)
    for i, (own, gram, color) in enumerate(zip(weights, grams, MODELS), 1):
        error = torch.einsum("xya, ab, xyb -> xy", grid - own, gram, grid - own)
        rings = ax.contour(*grid.unbind(-1), error, levels=(0.1, 0.3, 0.6, 1), colors=color, linewidths=1.2)
        ax.clabel(rings, [1], fmt="error 1")
        ax.plot(*own, "o", color=color, ms=9, label=f"$W_{i}$ and its error")
    for name, point in points.items():
        ax.plot(*point, ls="", ms=10, mec="black", label=name, **style_of(name))
    ax.set(xlabel="weight of input 0", ylabel="weight of input 1", aspect="equal")
    figure.legend(frameon=False, loc="outside right center")
    parts.bare(ax)
    return figure


@torch.no_grad()
def layer_errors(original: Original, merge: Merged, images: Tensor) -> dict[str, tuple[float, float]]:
    """The errors of two merged layers of each block, in percent of the variance of the original's outputs.

    Returns:
        place -> the error when the layer reads what the original's layer reads, and its error in the merged model.
    """
    found, (own, inside) = {}, (inputs_of(model.backbone, PLACES, lambda net=model.backbone: net(images))
                                for model in (original, merge))
    for place in PLACES:
        wanted = original.backbone.get_submodule(place)(own[place])
        layer, variance = merge.backbone.get_submodule(place), wanted.flatten(0, 1).var(0).mean()
        found[place] = tuple(100 * ((layer(read[place]) - wanted).square().mean() / variance).item()
                             for read in (own, inside))
    return found


def errors_by_layer(errors: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> Figure:
    """The error of merged layers, in percent: task -> method -> "blocks.0.mlp.fc1", ... -> (alone, in the model)."""
    figure, axes = plt.subplots(1, len(errors), figsize=(10.8, 4), sharey=True, layout="constrained")
    for ax, (task, methods) in zip(axes, errors.items()):
        for name, layers in methods.items():
            look, (alone, inside) = style_of(name), zip(*layers.values())
            ax.plot(alone, ls="--", mfc="white", label=f"{name}: reads what the original reads", **look)
            ax.plot(inside, label=f"{name}: in the merged model", **look)
        parts.bare(ax).axhline(100, color="black", lw=1, ls=":", label="as wrong as a constant")
        ax.set_xticks(range(len(layers)), [f"{int(place[7]) + 1} {place.rpartition('.')[2]}" for place in layers])
        ax.set(title=task, xlabel="block and layer")
    axes[0].set(ylabel="error, % of the output's variance", ylim=(0, None))
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def matching(table: Tensor, orders: Mapping[str, Sequence[int]]) -> Figure:
    """A table of correlations with the pairs that orders choose, and their sums, one picture for each order."""
    figure, axes = plt.subplots(1, len(orders), figsize=(3.3 * len(orders), 3.2), layout="constrained")
    for ax, (name, order) in zip(axes, orders.items()):
        ax.imshow(table, cmap=BLUE_ORANGE, vmin=-1.5, vmax=1.5)
        for (i, j), value in np.ndenumerate(table.numpy()):
            chosen = order[i] == j
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontweight="bold" if chosen else "normal")
            if chosen:
                ax.add_patch(Circle((j, i), 0.36, fill=False, lw=2.5))
        total = sum(table[i, j].item() for i, j in enumerate(order))
        ax.set(title=f"{name}: sum {total:.1f}", xticks=range(len(table)), yticks=range(len(table)),
               xlabel="unit of model 2", ylabel="unit of model 1")
    return figure


def allowed_maps() -> Figure:
    """A block of a ViT, and the matrices that change the coordinates of a space but not the function."""
    figure, ax = parts.canvas(15.4, 6.2, (10.6, 4.3))
    rows = ((4.8, ("$W_q,\\ W_k,\\ W_v$", "attention", "$W_o$")), (1.7, ("$W_{fc1}$", "GELU", "$W_{fc2}$")))
    for y, (first, middle, last) in rows:
        parts.chain(ax, y, [(0.9, "stream", GREY, ":", 1.3), (3.2, "norm", GREY, "-", 1.2),
                            (6.0, first, MODELS[0], "--", 2.2), (9.0, middle, GREY, "-", 1.6),
                            (11.6, last, MODELS[0], "--", 1.3), (14.2, "+ stream", GREY, ":", 1.6)])
    for y in (4.0, 0.9):
        parts.bracket(ax, 0.3, 4.0, y, "stream: a rotation $Q$ that keeps\n$(1, ..., 1)$, norm weights absorbed")
    parts.bracket(ax, 6.0, 11.6, 4.0, "inside each attention head: $q$ and $k$ by $A$ and $A^{-T}$;\n$v$ by any "
                  "invertible matrix, which $W_o$ undoes\n(we use rotations); attention heads may change places")
    parts.bracket(ax, 6.0, 11.6, 0.9, "hidden units: only a new order $P$,\nbecause GELU works unit by unit")
    return figure


def merges(images: int) -> pd.DataFrame:
    """The benchmark `lowdata` for so many images per task: a row for each merge and method."""
    return results.frame([record for record in runner.load_records(LOWDATA) if record["images"] == images])


def spread(records: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Accuracy of every merge as a point, per task and joint, with mean and standard deviation: a row for each method.

    Args:
        records: from `results.frame`, with columns `method`, `mean` and `joint`.
        methods: which, from above.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(methods) + 1.3), sharey=True, layout="constrained")
    for ax, column, title in zip(axes, ("mean", "joint"), ("per task (head given)", "joint (task unknown)")):
        for row, name in enumerate(methods[::-1]):
            values, color = records.loc[records["method"] == name, column], style_of(name)["color"]
            beside = row + np.linspace(-0.25, 0.25, len(values))
            ax.plot(values, beside, "o", ms=4, alpha=0.5, color=color, mfc=color if column == "mean" else "white")
            ax.errorbar(values.mean(), row, xerr=values.std(), fmt="D", ms=7, capsize=4, color=color, mec="black")
            ax.text(107, row, f"{values.mean():.0f}", ha="center", va="center")
        ax.set_yticks(range(len(methods)), methods[::-1])
        ax.set(title=title, xlabel="test accuracy, % (number: mean)", xlim=(0, 112), xticks=range(0, 101, 20))
        parts.bare(ax)
    return figure


def explained(shares: pd.DataFrame) -> Axes:
    """How much of one model's features another one explains: a column for each kind of map, a row for each pair."""
    ax = plt.figure(figsize=(8, 0.55 * len(shares.columns) + 1.1), layout="constrained").gca()
    rows = range(len(shares.columns))[::-1]
    ax.barh(rows, shares.mean(), 0.62, color=GREY)
    for row, column in zip(rows, shares):
        ax.plot(shares[column], row + np.linspace(-0.2, 0.2, len(shares)), "o", ms=4, color="black", alpha=0.5)
        ax.text(shares[column].max() + 2, row, f"{shares[column].mean():.0f} %", va="center")
    ax.set_yticks(rows, shares.columns)
    ax.set(xlim=(0, 108), xlabel="explained variance on held-out images, % (points: pairs of models)")
    return parts.bare(ax)
