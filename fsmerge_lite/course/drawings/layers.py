"""Lesson 03: M and U in one layer and in an MLP of two layers; two small nets, drawn and merged by hand."""
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from ...bench.figures import arrow, box
from ...bench.palette import DARK, GREY, LEARNED, MERGED, MODELS
from ...engine.modules import MLP
from ...layers import SuperLinear
from ...matrices import Merge, Unmerge
from ...supernet import SuperNet
from ...tasks.embedded import task
from ...tasks.originals import Original
from ...tasks.task import Task
from .parts import bare, bracket, canvas, chain

CELL = 0.36  # inches for one entry of a matrix
SIGNS = LinearSegmentedColormap.from_list("dark, white, green", [DARK, "white", LEARNED])  # of learned entries


# ---------------------------------------------------------------- bookkeeping of the lesson

def super_linear(Ms: Sequence[Tensor], Ws: Sequence[Tensor], Us: Sequence[Tensor], bs: Sequence[Tensor]) -> SuperLinear:
    """The library's SuperNet layer with these matrices: M_i and U_i learned and dense, W_i and b_i frozen."""
    frozen = [nn.utils.skip_init(nn.Linear, *reversed(W.shape), dtype=W.dtype) for W in Ws]
    merges = nn.ModuleList(Merge(*M.shape, "full").to(M.dtype) for M in Ms)
    unmerges = nn.ModuleList(Unmerge(*U.shape, "full").to(U.dtype) for U in Us)
    for layer, W, b in zip(frozen, Ws, bs):
        layer.load_state_dict({"weight": W, "bias": b})
    for matrix, values in zip((*merges, *unmerges), (*Ms, *Us)):
        matrix.load_state_dict({"S": values[None]})
    return SuperLinear(frozen, merges, unmerges)


def set_matrices(net: SuperNet, Ms: Sequence[Tensor], Us: Sequence[Tensor]) -> None:
    """Give every layer of a SuperNet of MLPs with dense M and U the same M_i and U_i; U_i at the output as well."""
    for layer in net.body.layers:
        for i, merge in enumerate(layer.merges):
            merge.load_state_dict({"S": Ms[i][None]})
        for i, unmerge in enumerate(layer.unmerges or ()):
            unmerge.load_state_dict({"S": Us[i][None]})
    net.set_outputs(Us)


def digit_half(classes: str) -> Task:
    """Half of the handwritten digits, `classes` being "01234" or "56789", as grey pictures of 8 x 8."""
    first = int(classes[0])

    def draw(n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        images, labels = digits.sample(500 if split == "test" else 1297, split=split)  # all there are
        own = (labels >= first) & (labels < first + 5)
        return avg_pool2d(images[own].mean(1), 4)[:n], labels[own][:n] - first
    digits = task("digits")
    sizes = {split: len(draw(1297, torch.Generator(), split)[0]) for split in ("train", "test")}
    return Task(f"digits {classes[0]}-{classes[-1]}", tuple(classes), draw, 8, sizes["test"], sizes["train"])


def trained_mlp(own: Task, seed: int, hidden: int) -> Original:
    """An MLP with two layers of `hidden` units and a head, trained on half of the digits: 100 steps of Adam."""
    torch.manual_seed(seed)
    backbone, head = MLP((64, hidden, hidden)), nn.Linear(hidden, len(own.classes))
    pictures, labels = own.sample(own.train_size)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(head(backbone(pictures)), labels).backward()
        optimizer.step()
    return Original(backbone.eval(), head, own.name, own)


@torch.no_grad()
def head_margins(originals: Sequence[Original], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """How far each test picture's right head is ahead: task -> its largest logit less the other head's (n,)."""
    margins = {}
    for i, own in enumerate(tasks):
        pictures, _ = own.test()
        largest = [original(pictures).max(1).values for original in originals]
        margins[own.name] = largest[i] - largest[1 - i]
    return margins


def small_mlp(*layers: tuple[list, list]) -> MLP:
    """A frozen MLP with ReLU of these weights and biases."""
    model = MLP([len(layers[0][0][0]), *(len(bias) for _, bias in layers)], nn.ReLU)
    for own, (weight, bias) in zip(model.layers, layers):
        own.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------- matrices with their numbers

def equation(*parts: str | tuple[str, Tensor, str | Sequence[str]]) -> Figure:
    """Matrices in a row, to scale, with all their entries, and signs between them.

    Args:
        parts: a sign such as "$=$", a word, or a matrix as (name, entries, color), or with a color for each row.
    """
    matrices = [part for part in parts if not isinstance(part, str)]
    rows = max(len(entries) for _, entries, _ in matrices)
    room = {part: 0.9 if part[0] == "$" else 1.7 for part in parts if isinstance(part, str)}  # of signs and of words
    width = sum(room[part] if isinstance(part, str) else part[1].shape[1] + 0.4 for part in parts)
    figure, ax = canvas(width, rows + 1.8, (CELL * width + 0.1, CELL * (rows + 1.8) + 0.1))
    ax.set_aspect("equal")
    x, middle = 0.2, 0.9 + rows / 2
    for part in parts:
        if isinstance(part, str):
            ax.text(x + room[part] / 2 - 0.2, middle, part, ha="center", va="center", fontsize=15)
            x += room[part]
        else:
            x = _matrix(ax, x, middle, *part)
    return figure


def _matrix(ax: Axes, x: float, middle: float, name: str, entries: Tensor, colors: str | Sequence[str]) -> float:
    """A matrix with its numbers, its name above and its shape below. Returns x for the next one."""
    rows, columns = entries.shape
    top = middle + rows / 2
    for i, row in enumerate(entries.tolist()):
        color = colors if isinstance(colors, str) else colors[i]
        for j, value in enumerate(row):
            shown = 0 if abs(value) < 5e-3 else value
            ax.add_patch(Rectangle((x + j, top - i - 1), 1, 1, fc=color + "44" if shown else "white", ec=color))
            ax.text(x + j + 0.5, top - i - 0.5, f"{shown:.2g}", ha="center", va="center", fontsize=9)
    ax.text(x + columns / 2, top + 0.2, name, ha="center", va="bottom", fontsize=12)
    ax.text(x + columns / 2, top - rows - 0.2, f"{rows} x {columns}", ha="center", va="top", fontsize=9, color=DARK)
    return x + columns + 0.4


def one_as_wide(Ms: Sequence[Tensor], Ws: Sequence[Tensor], Us: Sequence[Tensor]) -> Figure:
    """The same layer drawn as one wide net: M side by side, the originals on a diagonal, U below each other."""
    owners = [MODELS[i] for i, W in enumerate(Ws) for _ in W]
    return equation(("$(M_1\\ M_2)$", torch.cat(list(Ms), 1), LEARNED),
                    ("blockdiag$(W_1, W_2)$", torch.block_diag(*Ws), owners),
                    ("$U_1$ above $U_2$", torch.cat(list(Us)), LEARNED), "$=$",
                    ("$W^*$", sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)), MERGED))


def folded(Ms: Sequence[Tensor], Ws: Sequence[Tensor], Us: Sequence[Tensor]) -> Figure:
    """M_1 W_1 U_1 + M_2 W_2 U_2 = W*, to scale and with all entries."""
    parts = []
    for i, (M, W, U) in enumerate(zip(Ms, Ws, Us), 1):
        parts += [(f"$M_{i}$", M, LEARNED), (f"$W_{i}$", W, MODELS[i - 1]), (f"$U_{i}$", U, LEARNED), "$+$"]
    return equation(*parts[:-1], "$=$", ("$W^*$", sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)), MERGED))


# ---------------------------------------------------------------- two small nets

def nets(networks: Mapping[str, tuple[Tensor, Tensor, Sequence[str]]]) -> Figure:
    """Nets of two inputs, two hidden units and two features, side by side. Arrows carry the weights; dashed: unused.

    Args:
        networks: title -> weights (2, 2) and (2, 2), and the colors of the two hidden units.
    """
    figure, axes = plt.subplots(1, len(networks), figsize=(3.3 * len(networks), 2.7), layout="constrained")
    places = [[(x, 1.9), (x, 0.5)] for x in (0.3, 2.1, 3.9)]
    names = (("$x_0$", "$x_1$"), ("$h_0$", "$h_1$"), ("$f_0$", "$f_1$"))
    for ax, (title, (first, second, colors)) in zip(axes, networks.items()):
        ax.set(xlim=(-0.15, 4.35), ylim=(0, 2.4), title=title, aspect="equal")
        ax.axis("off")
        for unit, color in enumerate(colors):
            for j in range(2):
                _weighted(ax, places[0][j], places[1][unit], first[unit, j].item(), color)
                _weighted(ax, places[1][unit], places[2][j], second[j, unit].item(), color)
        used = torch.stack([torch.ones(2), first.abs().sum(1), second.abs().sum(1)]).tolist()
        for column, texts, busy in zip(places, names, used):
            for center, text, is_busy in zip(column, texts, busy):
                ax.text(*center, text, ha="center", va="center", color="black" if is_busy else "#888888",
                        bbox={"boxstyle": "circle", "fc": "white", "ls": "-" if is_busy else ":"})
    figure.text(0.99, 0.02, "biases not drawn", ha="right", fontsize=9, color=DARK)
    return figure


def _weighted(ax: Axes, start: tuple[float, float], end: tuple[float, float], value: float, color: str) -> None:
    """A line with its weight near its start, where no other line crosses; nothing for a weight of zero."""
    if not value:
        return
    ax.plot(*zip(start, end), color=color, lw=2, zorder=0)
    x, y = (s + 0.36 * (e - s) for s, e in zip(start, end))
    ax.text(x, y, f"{value:g}", ha="center", va="center", fontsize=10, bbox={"fc": "white", "ec": "none", "pad": 1})


def carried(original_1_to_place_0: float = 1, original_1_to_place_1: float = 0, original_2_to_place_0: float = 0,
            original_2_to_place_1: float = 1) -> Figure:
    """What two merged units hold of two originals' hidden units, for a choice of M, along the inputs (0, t).

    The used unit of original 1 is relu(t), that of original 2 relu(1 - t). The merged units are
    h* = relu(M_1 a_1 + M_2 a_2), a_i being what comes before the ReLU. U is the best there is, by least squares.

    Args:
        original_1_to_place_0, original_1_to_place_1: the first column of M_1.
        original_2_to_place_0, original_2_to_place_1: the first column of M_2.
    """
    t = torch.linspace(-1, 2, 121)
    a = torch.stack([t, 1 - t], 1)
    M = torch.tensor([[original_1_to_place_0, original_2_to_place_0], [original_1_to_place_1, original_2_to_place_1]],
                     dtype=torch.float32)
    merged, own = (a @ M.T).relu(), a.relu()
    U = torch.linalg.pinv(merged, rtol=1e-5) @ own
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), width_ratios=(1.1, 1.3, 1.6),
                                                 layout="constrained")
    _columns_of(left, M, U.T)
    for j, style in enumerate(("-", "--")):
        middle.plot(t, merged[:, j], color=MERGED, ls=style, lw=2, label=f"$h^*_{j}$")
    _read_back(right, t, own, merged @ U)
    for ax, title in ((middle, "merged hidden units"), (right, "each original's unit, read back")):
        ax.set(title=title, xlabel="$t$ (input $x = (0, t)$)", ylim=(-0.6, max(3.4, 1.4 * ax.dataLim.ymax)))
        bare(ax).legend(frameon=False, fontsize=9, loc="upper center", ncols=2, columnspacing=1, handlelength=1.5)
    return figure


def _read_back(ax: Axes, t: Tensor, own: Tensor, rebuilt: Tensor) -> None:
    """Each original's hidden unit, dotted, and what U makes of the merged units, with the largest error."""
    for i, color in enumerate(MODELS[:2]):
        ax.plot(t, own[:, i], color=color, ls=":", lw=3, label=f"original {i + 1}'s unit")
        error = (rebuilt[:, i] - own[:, i]).abs().max()
        ax.plot(t, rebuilt[:, i], color=color, lw=1.5, label=f"read by $U_{i + 1}^{{(2)}}$ (error {error:.2f})")


def _columns_of(ax: Axes, M: Tensor, U: Tensor) -> None:
    """M_1 and M_2 with their numbers, the second columns zero, and the rows of U that were found for them."""
    ax.set(xlim=(-0.6, 6.4), ylim=(-1.2, 6.4), aspect="equal")
    ax.axis("off")
    unused = torch.zeros(2)
    for i in range(2):
        _matrix(ax, 3.5 * i, 4.0, f"$M_{i + 1}^{{(1)}}$", torch.stack([M[:, i], unused], 1), LEARNED)
        _matrix(ax, 3.5 * i, 0.3, f"$U_{i + 1}^{{(2)}}$, found", torch.stack([U[i], unused]), LEARNED)


# ---------------------------------------------------------------- two layers

def across_nonlinearity() -> Figure:
    """Two layers of a SuperNet MLP: M of layer 1 comes before the nonlinearity, U of layer 2 after it."""
    figure, ax = canvas(18.6, 4.3, (12, 2.9))
    for y, i in ((3.3, 1), (2.0, 2)):
        color = MODELS[i - 1]
        chain(ax, y, [(1.7, f"$W_{i}^{{(1)}},\\ b_{i}^{{(1)}}$", color, "--", 2.0),
                      (3.8, f"$M_{i}^{{(1)}}$", LEARNED, "-", 1.0)])
        chain(ax, y, [(8.5, f"$U_{i}^{{(2)}}$", LEARNED, "-", 1.0),
                      (10.6, f"$W_{i}^{{(2)}},\\ b_{i}^{{(2)}}$", color, "--", 2.0),
                      (12.7, f"$M_{i}^{{(2)}}$", LEARNED, "-", 1.0)])
        box(ax, 17.7, y, f"$U_{{out,{i}}}$", LEARNED, 1.3)
        for start, end in (((0.3, 2.65), (0.65, y)), ((4.35, y), (5.1, 2.65)), ((7.1, 2.65), (7.95, y)),
                           ((13.25, y), (14.0, 2.65)), ((16.0, 2.65), (17.0, y))):
            arrow(ax, start, end)
    for x in (6.1, 15.0):
        box(ax, x, 2.65, "$+$, then $\\sigma$", GREY, 1.9)
        bracket(ax, x - 1, x + 1, 1.35, "nonlinear:\nnothing folds across")
    ax.text(0.12, 2.65, "$x$", ha="center", va="center", fontsize=13)
    bracket(ax, 0.7, 4.4, 1.35, "folds into $W^{*(1)},\\ b^{*(1)}$")
    bracket(ax, 7.9, 13.3, 1.35, "folds into $W^{*(2)},\\ b^{*(2)}$")
    ax.text(9.3, 4.05, "dashed: frozen        green: learned        grey: nonlinear", ha="center", fontsize=10)
    return figure


# ---------------------------------------------------------------- after training

def matrices(rows: Mapping[str, Mapping[str, Tensor]], limit: float) -> Figure:
    """Matrices as images on one color scale from -limit to limit: row name -> title -> matrix (out, in)."""
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.1 * columns + 1.2, 2.3 * len(rows)), squeeze=False,
                                layout="constrained")
    for line, (name, row) in zip(axes, rows.items()):
        for ax, (title, matrix) in zip(line, row.items()):
            image = ax.imshow(matrix.detach(), cmap=SIGNS, vmin=-limit, vmax=limit, interpolation="nearest")
            ax.set(title=title, xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"entry (from {-limit:g} to {limit:g})", extend="both")
    return figure


def contributions(shares: Tensor) -> Figure:
    """How much of every merged unit comes from each original: bars of share of the variance (units,), in percent."""
    figure, ax = plt.subplots(figsize=(9, 2.9), layout="constrained")
    shares = 100 * shares.sort().values
    places = range(1, len(shares) + 1)
    ax.bar(places, 100 - shares, color=MODELS[0], label="original 1")
    ax.bar(places, shares, bottom=100 - shares, color=MODELS[1], label="original 2")
    ax.set(xlabel="merged unit, sorted", ylabel="share of the variance, %", ylim=(0, 100))
    ax.margins(x=0.01)
    bare(ax)
    figure.legend(frameon=False, loc="outside right center")
    return figure


def margins(found: Mapping[str, Tensor]) -> Figure:
    """How far the right head's largest logit is above the other head's: task -> margins (n,). Below 0: lost."""
    figure, ax = plt.subplots(figsize=(7.5, 3.1), layout="constrained")
    edges = torch.linspace(min(m.min() for m in found.values()), max(m.max() for m in found.values()), 31)
    for (name, margin), color, style in zip(found.items(), MODELS, ("-", "--")):
        ax.hist(margin, edges, histtype="step", color=color, ls=style, lw=2, label=f"pictures of {name}")
    ax.margins(x=0.02)
    limits = ax.get_xlim()
    ax.axvline(0, color="black", lw=1)
    ax.axvspan(limits[0], 0, color=GREY, alpha=0.25, lw=0, zorder=0, label="the other head wins")
    ax.set(xlim=limits, xlabel="largest logit of the right head less that of the other head", ylabel="test pictures")
    bare(ax).legend(frameon=False, loc="upper right")
    return figure
