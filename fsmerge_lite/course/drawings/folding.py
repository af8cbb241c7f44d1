"""What a fold replaces, how exact it is, and what a training step costs."""
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from ...bench.figures import box
from ...bench.palette import DARK, GREEN, GREY, LEARNED, MARKERS, MERGED, METHODS, MODELS, NEUTRAL
from ...engine.running import inputs_of
from ...matrices import scaled_rank
from ...supernet import SuperNet
from ...tasks.originals import DATA
from . import parts

WAYS = ("distillation", "folded", "unfolded")
LOOKS = {"distillation": METHODS["distillation"], "folded": MERGED, "unfolded": LEARNED}
SHARES = {"through one model": MERGED, "through the frozen layers": NEUTRAL, "tokens through M and U": GREEN,
          "the fold": DARK}
UPPER, LOWER = 5.6, 2.5  # heights of the SuperNet and of the folded block in the drawing
SIZES = {"tiny": (96, 8), "S": (384, 16), "B": (768, 16)}  # width and pixels of a patch in `benchmarks/step.py`


# ---------------------------------------------------------------- what is folded

def what_folds(dim: int = 96) -> Figure:
    """A ViT block of a SuperNet of two originals, and the plain timm block that it folds into."""
    figure, ax = parts.canvas(38.2, 8.1, (12, 3.9))
    rows = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    x, skip = 0.8, 0.3
    for name in ("norm1", "attn.qkv", "attention", "attn.proj", "+", "norm2", "mlp.fc1", "GELU", "mlp.fc2", "+"):
        width = 5.0 if name in rows else 0.7 if name == "+" else 2.6
        for y in (UPPER, LOWER):
            _thin(ax, (x - 0.5, y), (x, y), "-" if name in rows else "-|>")
        if name in rows:
            _folded_layer(ax, x, name, rows[name])
        elif name == "+":
            _residual(ax, skip, skip := x + width / 2)
        else:
            _unchanged(ax, x + width / 2, name, width)
        x += width + 0.5
    for y in (UPPER, LOWER):
        _thin(ax, (x - 0.5, y), (x, y))
    ax.text(0.3, 7.7, "SuperNet: two frozen layers (dashed) between $U$ and $M$", fontsize=10)
    ax.text(0.3, 0.05, "Folded: a plain timm block. The norms (pink) are the merged model's own and are copied; "
            "attention and GELU (grey) have no weights.", fontsize=10)
    return figure


def _folded_layer(ax: Axes, x: float, name: str, shape: tuple[int, int]) -> None:
    """U, W and M of two originals and their sum above, the one layer that they become below, from x on."""
    for y, i in ((UPPER + 0.55, 1), (UPPER - 0.55, 2)):
        for shift, letter, color, style in ((0.7, "U", LEARNED, "-"), (2.05, "W", MODELS[i - 1], "--"),
                                             (3.4, "M", LEARNED, "-")):
            box(ax, x + shift, y, f"${letter}_{i}$", color, 0.85, style)
        for left in (1.15, 2.5):
            _thin(ax, (x + left, y), (x + left + 0.45, y))
        _thin(ax, (x, UPPER), (x + 0.26, y))
        _thin(ax, (x + 3.85, y), (x + 4.5, UPPER + (0.2 if i == 1 else -0.2)))
    _plus(ax, x + 4.7, UPPER)
    _thin(ax, (x + 2.05, UPPER - 1.05), (x + 2.05, LOWER + 0.45), width=1.2)
    _thin(ax, (x, LOWER), (x + 0.73, LOWER))
    box(ax, x + 2.05, LOWER, "$W^*,\\ b^*$", MERGED, 2.6)
    _thin(ax, (x + 3.37, LOWER), (x + 5, LOWER), "-")
    ax.text(x + 2.05, LOWER - 0.6, f"{name}.weight\n{shape}", ha="center", va="top", fontsize=9, family="monospace")


def _unchanged(ax: Axes, x: float, name: str, width: float) -> None:
    """A part that is the same in both rows."""
    for y in (UPPER, LOWER):
        box(ax, x, y, name, MERGED if "norm" in name else NEUTRAL, width - 0.05)
        if name == "attention":
            ax.text(x, y - 0.45, "(softmax)", ha="center", va="top", fontsize=9)


def _residual(ax: Axes, start: float, x: float) -> None:
    """The addition of what came before: a line over the upper row and one under the lower row, to a plus at x."""
    for y, outside in ((UPPER, UPPER + 1.35), (LOWER, LOWER - 1.85)):
        ax.plot([start, start, x], [y, outside, outside], color=DARK, lw=0.7)
        _thin(ax, (x, outside), (x, y + (0.3 if outside > y else -0.3)))
        _plus(ax, x, y)


def _plus(ax: Axes, x: float, y: float) -> None:
    ax.text(x, y, "+", ha="center", va="center", fontsize=10, zorder=3,
            bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": DARK, "lw": 0.7})


def _thin(ax: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-|>", width: float = 0.7
          ) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": style, "lw": width, "color": DARK, "shrinkA": 0, "shrinkB": 0,
                                            "mutation_scale": 7 * width + 2})


def layer_differences(net: SuperNet, x: Tensor) -> dict[str, float]:
    """Layer -> how far the folded layer is from the unfolded one on the same input, relative to the output's size."""
    merged, names, found = net.fold(), [layer.name for layer in net.graph.layers], {}
    with torch.no_grad():
        read = inputs_of(net.body, names, lambda: net(x, unfolded=True))
        for name in names:
            expected = net.body.get_submodule(name)(read[name])  # U, the k frozen layers, M
            folded = merged.backbone.get_submodule(name)(read[name])  # one plain layer
            found[name] = ((folded - expected).norm() / expected.norm()).item()
    return found


def by_layer(series: Mapping[str, Mapping[str, float]], bounds: Sequence[float] = ()) -> Figure:
    """Differences layer by layer on a logarithmic axis: name -> layer -> relative difference. Bounds are dotted."""
    layers = list(next(iter(series.values())))
    figure, ax = plt.subplots(figsize=(7.6, 0.25 * len(layers) + 1.2), layout="constrained")
    for (name, values), marker, color in zip(series.items(), MARKERS, (DARK, GREY)):
        ax.plot([values[layer] for layer in layers], range(len(layers)), marker, color=color, mec=DARK, label=name)
    for j, bound in enumerate(bounds):
        ax.axvline(bound, color="black", ls=":", lw=1, label=None if j else "bound of the check")
    ax.set_yticks(range(len(layers)), layers)
    ax.set(xscale="log", xlabel="difference of folded and unfolded, relative to the output's size")
    ax.invert_yaxis()
    ax.grid(axis="y", color=GREY, lw=0.4)
    figure.legend(frameon=False, loc="outside right center")
    return parts.bare(ax).get_figure()


# ---------------------------------------------------------------- the cost of a step

def step_operations(k: int, tokens: int, rank: int, width: int = 96, blocks: int = 1) -> dict[str, dict[str, int]]:
    """The multiplications of one training step in the four linear layers of a ViT's blocks, by way and by part.

    A layer (o, d) with ranks r_U and r_M needs, forward and backward, for T tokens and k originals with an A B each

        distillation   3 T o d                          once forward, twice backward
        unfolded       k T (2 o d + 6 (r_U d + r_M o))  W_i is frozen, U and M are learned
        folded         3 T o d + 5 k (r_U + r_M) o d    one model, and the fold

    without products of the size r^2 and without diagonals. Attention itself is the same in all three and is left out.

    Raises:
        ValueError: fewer than two originals, no tokens, or a rank outside 1 to the width.
    """
    if k < 2 or tokens < 1 or not 1 <= rank <= width:
        raise ValueError(f"k must be at least 2, tokens at least 1, rank from 1 to {width}, got {k}, {tokens}, {rank}")
    inside = scaled_rank(rank, 4 * width, width)
    layers = ((3 * width, width, rank, rank), (width, width, rank, rank), (4 * width, width, rank, inside),
              (width, 4 * width, inside, rank))  # o, d, r_U, r_M
    weights, around, fold = (blocks * sum(each) for each in zip(
        *((o * d, r_U * d + r_M * o, (r_U + r_M) * o * d) for o, d, r_U, r_M in layers)))
    one = 3 * tokens * weights
    return {"distillation": {"through one model": one}, "folded": {"through one model": one, "the fold": 5 * k * fold},
            "unfolded": {"through the frozen layers": 2 * k * tokens * weights,
                         "tokens through M and U": 6 * k * tokens * around}}


def ratios(k: int, tokens: int, rank: int, width: int = 96) -> dict[str, float]:
    """Folded and unfolded -> multiplications of a step, as a multiple of distillation's."""
    counted = {way: sum(shares.values()) for way, shares in step_operations(k, tokens, rank, width).items()}
    return {way: counted[way] / counted["distillation"] for way in WAYS[1:]}


def break_even(k: int, rank: int, width: int = 96) -> int:
    """The smallest number of tokens with which a folded step multiplies less than an unfolded one."""
    def ahead(tokens: int) -> bool:
        found = ratios(k, tokens, rank, width)
        return found["folded"] < found["unfolded"]
    return bisect_left(range(1, 2 ** 20), True, key=ahead) + 1


def draw_cost(k: int = 2, tokens: int = 1088, rank: int = 12, width: int = 96) -> Figure:
    """What a training step multiplies: its parts for one setting, and the total against the number of tokens."""
    counted = step_operations(k, tokens, rank, width)
    unit = counted["distillation"]["through one model"]
    figure, axes = plt.subplots(1, 2, figsize=(10.6, 3.7), width_ratios=(1.15, 1))
    figure.subplots_adjust(0.09, 0.17, 0.98, 0.84, 0.2)
    shares = {way: {part: n / unit for part, n in each.items()} for way, each in counted.items()}
    _parts(parts.bare(axes[0]), shares)
    _against_tokens(parts.bare(axes[1]), k, tokens, rank, width)
    figure.suptitle(f"a whole block: {k} originals of width {width}, rank {rank}, {tokens:,} tokens a step",
                    fontsize=11)
    return figure


def _parts(ax: Axes, counted: Mapping[str, Mapping[str, float]]) -> None:
    """A stacked bar for each way; the number after it is the total."""
    for y, way in enumerate(WAYS[::-1]):
        left = 0.0
        for part, share in counted[way].items():
            ax.barh(y, share, 0.6, left, color=SHARES[part])
            left += share
        ax.text(left, y, f" {left:.2f}", va="center", fontsize=10)
    for part, color in SHARES.items():
        ax.barh(0, 0, color=color, label=part)
    ax.set_yticks(range(3), WAYS[::-1])
    ax.set(xlabel="multiplications of a step / distillation's", ylim=(-0.5, 3.6))
    ax.margins(x=0.12)
    ax.legend(frameon=False, loc="upper right", ncols=2, fontsize=9, columnspacing=1)


def _against_tokens(ax: Axes, k: int, tokens: int, rank: int, width: int) -> None:
    """Both ways against the number of tokens; the chosen number is marked."""
    grid = [2 ** (j / 2) for j in range(6, 31)]
    for way in WAYS[1:]:
        ax.plot(grid, [ratios(k, round(t), rank, width)[way] for t in grid], color=LOOKS[way], label=way)
        ax.plot(tokens, ratios(k, tokens, rank, width)[way], "o", color=LOOKS[way], mec="black")
    ax.axvline(even := break_even(k, rank, width), color=DARK, lw=1, ls=":", label=f"equal at {even:,} tokens")
    ax.axhline(1, color=LOOKS["distillation"], label="distillation")
    ax.set(xscale="log", yscale="log", xlabel="tokens in a step", ylim=(0.8, 50), xlim=(8, 33_000))
    ax.set_xticks([10, 100, 1000, 10_000], ["10", "100", "1,000", "10,000"])
    ax.set_yticks([1, 2, 5, 10, 20, 50], [1, 2, 5, 10, 20, 50])
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("multiplications / distillation's")
    ax.legend(frameon=False, loc="upper right", fontsize=9)


def step_records() -> pd.DataFrame:
    """What `benchmarks/step.py` measured and PyTorch counted, as multiples of distillation, a row for each setting."""
    rows = []
    for record in json.loads((DATA.parent.parent / "benchmarks" / "results" / "step.json").read_text()):
        width, patch = SIZES[record["model"]]
        tokens = record["batch"] * ((record["pixels"] // patch) ** 2 + 1)
        row = {name: record[name] for name in ("model", "k", "rank", "batch", "pixels", "device")} | {"tokens": tokens}
        for way in [way for way in WAYS[1:] if way in record["seconds"]]:
            pairs = zip(record["seconds"][way], record["seconds"]["distillation"])
            row |= {f"{way}, measured": median(a / b for a, b in pairs),
                    f"{way}, counted": record["operations"][way] / record["operations"]["distillation"],
                    f"{way}, formula": ratios(record["k"], tokens, record["rank"], width)[way]}
        rows.append(row)
    found = pd.DataFrame(rows)
    return found[found["device"] == "cpu"].drop(columns="device")


def measured_cost(records: pd.DataFrame) -> Figure:
    """Measured times of a step: against the number of originals, and against the count of operations."""
    figure, axes = plt.subplots(1, 2, figsize=(10.6, 4), layout="constrained")
    usual = records[(records["rank"] == 12) & (records["batch"] == records.groupby("model")["batch"].transform("max"))
                    & (records["pixels"] == records.groupby("model")["pixels"].transform("max"))]
    for way in WAYS[1:]:
        for (model, rows), marker, line in zip(usual.groupby("model", sort=False), MARKERS, ("-", "--", ":")):
            axes[0].plot(rows["k"], rows[f"{way}, measured"], color=LOOKS[way], marker=marker, ls=line,
                         label=f"{way}, ViT-{model}")
        axes[1].plot(records[f"{way}, counted"], records[f"{way}, measured"], "o", color=LOOKS[way], mec="white",
                     label=f"{way}, all settings")
    axes[0].set(xlabel="originals $k$", xticks=[2, 4, 8], yscale="log", ylabel="time of a step / distillation's")
    axes[0].text(5.9, 3.4, "unfolded ViT-B, $k = 8$: too\nlarge for the memory", ha="center", fontsize=9)
    axes[1].plot([1, 15], [1, 15], color=DARK, lw=1, ls=":", label="as counted")
    axes[1].set(xlabel="multiplications of a step / distillation's", xscale="log", yscale="log")
    axes[1].set_xticks([1, 2, 5, 10], [1, 2, 5, 10])
    for ax in axes:
        ax.axhline(1, color=LOOKS["distillation"], lw=1, label="distillation")
        ax.set_yticks([1, 2, 5, 10], [1, 2, 5, 10])
        parts.bare(ax).minorticks_off()
    axes[1].legend(frameon=False, loc="upper left", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=7, fontsize=8,
                  columnspacing=1)
    return figure
