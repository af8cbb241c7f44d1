"""The drawings of lesson 14: texts as token ids, where the norm stands, and what a norm does to two shares."""
from collections.abc import Sequence
from unittest.mock import patch

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ...bench.figures import bar_panels
from ...bench.palette import BLUE, DARK, GREY, ORANGE, PINK
from ...engine import statistics
from ...engine.images import Calibration
from ...start import fit_subspaces
from ...supernet import SuperNet
from ...tasks.texts import BYTE, PAD, START, decode, edited, encode
from .parts import arrow, bare, box, canvas


def token_rows(ids: Tensor) -> Figure:
    """Token ids (n, length) as rows: the id in each cell, above it what it stands for; padding is grey."""
    figure, ax = canvas(ids.shape[1], len(ids) * 1.3, (10, 0.72 * len(ids)))
    ax.set_ylim(-0.1, None)
    for y, row in enumerate(reversed(ids.tolist())):
        for x, token in enumerate(row):
            color = GREY if token == PAD else PINK if token == START else BLUE
            ax.add_patch(Rectangle((x + 0.04, 1.3 * y), 0.92, 0.7, fc=color + "55", ec=color))
            ax.text(x + 0.5, 1.3 * y + 0.35, token, ha="center", va="center", fontsize=9)
            ax.text(x + 0.5, 1.3 * y + 0.95, _meaning(token), ha="center", va="center", fontsize=9, color=DARK)
    return figure


def _meaning(token: int) -> str:
    named = {PAD: "pad", START: "start"}
    byte = token - BYTE
    return named.get(token) or (chr(byte) if byte < 128 else f"{byte:02X}")


def copies(text: str = "Łódź", part: float = 0.1) -> Figure:
    """A text and three edited copies of it; `part` of the bytes is edited, with bytes of two other texts."""
    ids = encode([text, "Österreich", "Rumania"], 14)
    generator = torch.Generator().manual_seed(0)
    return token_rows(torch.stack([ids[0], *(edited(ids, generator, part)[0] for _ in range(3))]))


def pre_and_post_norm() -> Figure:
    """One block twice: with the norm before attention and MLP, and with the norm on the stream itself."""
    figure, ax = canvas(20, 6.6, (10.5, 3.6))
    ax.set_ylim(-0.2, None)
    for y, title in ((5.0, "pre-norm: TextEncoder, ViT"), (1.5, "post-norm: BERT")):
        ax.text(0.1, y + 1.15, title, fontsize=11, weight="bold")
        arrow(ax, (0.2, y), (19.8, y))
    for x, name in ((3.5, "attention"), (11.5, "MLP")):
        box(ax, x - 0.6, 3.75, "norm", PINK, 1.4)
        box(ax, x + 2.2, 3.75, name, BLUE, 2.2)
        for start, end in (((x - 0.6, 4.95), (x - 0.6, 4.12)), ((x + 0.15, 3.75), (x + 1.0, 3.75)),
                           ((x + 3.35, 3.75), (x + 4.2, 4.9))):
            arrow(ax, start, end)
        box(ax, x + 0.4, 0.3, name, BLUE, 2.2)
        for start, end in (((x - 1.2, 1.45), (x - 0.75, 0.65)), ((x + 1.55, 0.3), (x + 2.4, 1.35))):
            arrow(ax, start, end)
        box(ax, x + 4.0, 1.5, "norm", PINK, 1.4)
    return figure


def rescaled(loud: Sequence[float] = (0.25, 0.5, 1, 2, 4)) -> tuple[list[float], list[float]]:
    """How large share 1 is after a LayerNorm of both shares, over its size after a norm of its own, by loudness of 2.

    Returns (mean, standard deviation over tokens) of the ratio, one for each loudness. Every token of model 2 varies
    by a factor of up to 2 besides.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(500, 48, generator=generator) for _ in range(2))
    b = b * 2 ** (2 * torch.rand(500, 1, generator=generator) - 1)
    found = [_share(a, scale * b) for scale in loud]
    return [ratio.mean().item() for ratio in found], [ratio.std().item() for ratio in found]


def _share(a: Tensor, b: Tensor) -> Tensor:
    both = F.layer_norm(torch.cat([a, b], 1), (a.shape[1] + b.shape[1],))[:, :a.shape[1]]
    return both.norm(dim=1) / F.layer_norm(a, a.shape[1:]).norm(dim=1)


def norm_of_two(loud: Sequence[float] = (0.25, 0.5, 1, 2, 4)) -> Figure:
    """The size of share 1 after a norm of both shares, against how loud model 2 is there."""
    means, spreads = rescaled(loud)
    _, ax = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    ax.errorbar(loud, means, spreads, color=BLUE, marker="o", capsize=3)
    ax.axhline(1, color=GREY, ls=":")
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(loud), [f"{each:g}" for each in loud])
    ax.set(xlabel="size of share 2, in that of share 1", ylabel="share 1 after the norm,\nover its own norm's")
    return bare(ax).get_figure()


def samples(rows: dict[str, Tensor]) -> Figure:
    """Test texts of two tasks side by side: name -> token ids."""
    figure, axes = plt.subplots(1, len(rows), figsize=(9, 2.3), layout="constrained", squeeze=False)
    for ax, (name, ids), color in zip(axes[0], rows.items(), (BLUE, ORANGE)):
        ax.text(0, 0.98, "\n".join(decode(ids)), va="top", transform=ax.transAxes, parse_math=False, fontsize=10)
        ax.set_title(name, loc="left", color=color, weight="bold")
        ax.set_axis_off()
    return figure


def start_with_padding(net: SuperNet, images: Calibration) -> SuperNet:
    """The fitted start as it would be if padding counted like any other token."""
    with patch.object(statistics, "weighed", lambda weights, counted: weights):
        return fit_subspaces(net, images)


def merged_texts(means: pd.DataFrame) -> Figure:
    """Bars of a summary with index (method, texts a task): a panel for each number of texts."""
    titles = {number: f"{number} texts a task" for number in means.index.unique(1)}
    return bar_panels(means.swaplevel().rename(titles, level=0), "%.0f", 6)
