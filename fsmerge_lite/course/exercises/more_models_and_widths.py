"""Exercises of lesson 12: output matrices of a sequence, a narrow block in a wide one, a plan, two ways to merge."""
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...bench.methods import Cell, Method, Outcome, in_sequence
from ...engine.images import Calibration
from ...engine.modules import MLP
from ...models import Merged, Original
from ...start import fit_subspaces
from ...supernet import SuperNet
from ...training import train_global
from .testing import Exercise

Readouts = Sequence[tuple[Tensor, Tensor]]

# ---------------------------------------------------------------- output matrices of a sequence


def _readouts(generator: torch.Generator) -> tuple[list[tuple[Tensor, Tensor]]]:
    """Three merges in sequence: of each, what reads the older model's and the new original's features."""
    own, merged = (3, 2, 4, 3), (4, 5, 6)  # d_i of four originals, and d* of three merges
    older = (own[0], *merged)
    return ([(torch.randn(older[m], width, generator=generator), torch.randn(own[m + 1], width, generator=generator))
             for m, width in enumerate(merged)],)


def _columns(readouts: Readouts) -> list[Tensor]:
    """Every feature of the last model in turn, followed back through all merges to each original."""
    columns = []
    for f in torch.eye(readouts[-1][0].shape[1]):
        rebuilt = []
        for older, new in reversed(readouts):
            rebuilt.insert(0, new @ f)
            f = older @ f
        columns.append([f, *rebuilt])
    return [torch.stack(parts, 1) for parts in zip(*columns)]


def _last_only(readouts: Readouts) -> list[Tensor]:
    return [readouts[0][0] @ readouts[1][0], readouts[0][1] @ readouts[1][0], readouts[1][1], readouts[2][1]]


# ---------------------------------------------------------------- a narrow block in a wide stream

NORM = "what the norm gives is (wide / d)^(1/2) times too large; divide the norm's weight by this"
MEAN = "what is written to the wide stream must have mean 0 over its channels; take the mean off W2 and b2 first"
SIZE = "what is written to the wide stream must be (wide / d)^(1/2) times as large as in the narrow one"
SHAPES = "return g, c, W1, b1, W2, b2 with the shapes of a block on the wide stream: {}"


def _block(generator: torch.Generator, d: int = 6, hidden: int = 5, wide: int = 10) -> tuple:
    """g, c (d,) of a norm, W1 (hidden, d), b1, W2 (d, hidden), b2 of a block, and the width to embed it in."""
    shapes = ((d,), (d,), (hidden, d), (hidden,), (d, hidden), (d,))
    parts = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return (*parts, wide + int(torch.randint(4, (1,), generator=generator)))


def _widened(x: Tensor, wide: int) -> Tensor:
    """Narrow streams (n, d) as they are in a wide one: without their mean, larger, and next to zeros."""
    d = x.shape[1]
    return F.pad((wide / d) ** 0.5 * (x - x.mean(1, keepdim=True)), (0, wide - d))


def _run(x: Tensor, g: Tensor, c: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """What the block reads, W1 LN(x) + b1, and what it adds to the stream."""
    read = F.linear(F.layer_norm(x, (len(g),), g, c), W1, b1)
    return read, F.linear(F.gelu(read), W2, b2)


def _judge_embedded(result: object, *inputs) -> str | None:
    """The wide block must do on the wide stream exactly what the narrow one does on the narrow one."""
    *block, wide = inputs
    shapes = [(wide,), (wide,), (len(block[3]), wide), block[3].shape, (wide, len(block[3])), (wide,)]
    if not isinstance(result, tuple | list) or [getattr(p, "shape", None) for p in result] != shapes:
        return SHAPES.format(", ".join(str(tuple(shape)) for shape in shapes))
    x = torch.randn(20, len(block[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read, added = _run(x, *block)
    try:
        wide_read, wide_added = _run(_widened(x, wide), *(p.to(torch.float64) for p in result))
    except RuntimeError as error:
        return f"the wide block does not run: {error}"
    growth = (wide / len(block[0])) ** 0.5
    if torch.allclose(wide_read - block[3], growth * (read - block[3]) + (1 - growth) * block[2] @ block[1]):
        return NORM
    if not torch.allclose(wide_read, read):
        return "the wide block does not read what the narrow one reads: look at the norm and at W1"
    if not torch.allclose(wide_added.mean(1), torch.zeros(20, dtype=torch.float64)):
        return MEAN
    expected = _widened(added, wide)
    if torch.allclose(wide_added * growth, expected):
        return SIZE
    return None if torch.allclose(wide_added, expected) else "what the wide block adds is wrong: look at W2 and b2"


def _embedded(g: Tensor, c: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, wide: int, norm: bool = True,
              centered: bool = True, grown: bool = True) -> tuple[Tensor, ...]:
    """The block on the wide stream, with one of its three corrections left out."""
    d = len(g)
    growth, more = (wide / d) ** 0.5, wide - d
    written = torch.cat([W2, b2[:, None]], 1)
    written = (growth if grown else 1.0) * (written - written.mean(0) if centered else written)
    written = F.pad(written, (0, 0, 0, more))
    return F.pad(g / growth if norm else g, (0, more)), F.pad(c, (0, more)), F.pad(W1, (0, more)), b1, \
        written[:, :-1], written[:, -1]


# ---------------------------------------------------------------- a plan

Groups = Sequence[tuple[int, Sequence[tuple[float, float]]]]


def _options(generator: torch.Generator) -> tuple[list, float]:
    """Three groups of tasks, each with the sizes and accuracies of four merged models, and a budget.

    They are drawn until the best plan and those of the common mistakes are four different ones.
    """
    while True:
        groups = []
        for tasks in (2, 4, 1):
            sizes = 1 + torch.rand(4, generator=generator).cumsum(0) * (1 + tasks / 2)
            kept = 100 - 12 * torch.rand(4, generator=generator).sort(descending=True).values
            groups.append((tasks, list(zip(sizes.tolist(), kept.tolist()))))
        budget = sum(options[0][0] for _, options in groups) + float(1 + torch.rand(1, generator=generator))
        plans = (_best(groups, budget), _best(groups, budget, False), _greedy(groups, budget), _richest(groups, budget))
        if len(set(map(tuple, plans))) == len(plans):
            return groups, budget


def _best(groups: Groups, budget: float, weighted: bool = True) -> list[int]:
    """All combinations, by their numbers in a grid."""
    grid = torch.cartesian_prod(*(torch.arange(len(options)) for _, options in groups))
    size = sum(torch.tensor([s for s, _ in options])[column] for (_, options), column in zip(groups, grid.T))
    kept = sum((tasks if weighted else 1) * torch.tensor([a for _, a in options])[column]
               for (tasks, options), column in zip(groups, grid.T))
    return grid[kept.where(size <= budget, -1).argmax()].tolist()


def _greedy(groups: Groups, budget: float) -> list[int]:
    """The largest that still fits, group by group."""
    plan, left = [], budget - sum(options[0][0] for _, options in groups)
    for _, options in groups:
        plan.append(max(j for j, (size, _) in enumerate(options) if size - options[0][0] <= left))
        left -= options[plan[-1]][0] - options[0][0]
    return plan


def _richest(groups: Groups, budget: float) -> list[int]:
    return [max(range(len(options)), key=lambda j: options[j][1]) for _, options in groups]


# ---------------------------------------------------------------- at once and in sequence

Merging = Callable[[Sequence, Calibration], Merged]


def _merge(originals: Sequence, images: Calibration) -> Merged:
    """A SuperNet with the fitted start, trained for 20 steps, folded."""
    net = fit_subspaces(SuperNet(originals, rank=2), images, progress=False)
    train_global(net, images, 20, 0.01, 32, progress=False)
    return net.fold()


def _three(generator: torch.Generator) -> tuple[list[Original], Calibration, Merging]:
    """Three small MLPs, 20 inputs for each, and how to merge."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1000, (1,), generator=generator)))
        originals = [Original(MLP((6, 12, 6)).eval(), name=name).eval() for name in "abc"]
    return originals, Calibration(torch.randn(60, 6, generator=generator), torch.arange(60) // 20), _merge


@torch.no_grad()
def _errors(merged: Merged, originals: Sequence[Original], images: Calibration, relative: bool = True,
            own: bool = True) -> list[float]:
    """How far each original's features are from their reconstruction, in parts of their mean square."""
    errors = []
    for i, original in enumerate(originals):
        x = images.of(i) if own else images.images
        f = original.backbone(x)
        scale = f.square().sum(1).mean() if relative else 1.0
        errors.append(float((merged.features(x)[i] - f).square().sum(1).mean() / scale))
    return errors


def _both_ways(originals: Sequence[Original], images: Calibration, merge: Merging, sequence: bool = True, **changed
               ) -> tuple[list[float], list[float]]:
    """The library's own way to merge in sequence, from its benchmarks."""
    step = Method(lambda models, seen, cell, seconds: Outcome(merge(models, seen)), {})
    cell = Cell(tuple(original.name for original in originals))
    found = in_sequence(step)(originals, images, cell, {}).model if sequence else merge(originals, images)
    return tuple(_errors(m, originals, images, **changed) for m in (merge(originals, images), found))


EXERCISES = {
    "composed_outputs": Exercise(_readouts, _columns, {
        "the matrices of the older originals are right for the second merge; the third reads them through its own, too":
            _last_only,
        "these are the matrices of each original's own merge; every later merge puts one more after them":
            lambda readouts: [readouts[0][0], *(new for _, new in readouts)],
        "these are the right matrices in the wrong order: original 1 comes first, the one that came last at the end":
            lambda readouts: _columns(readouts)[::-1]}),
    "embedded": Exercise(_block, judge=_judge_embedded, mistakes={
        NORM: partial(_embedded, norm=False), MEAN: partial(_embedded, centered=False),
        SIZE: partial(_embedded, grown=False)}),
    "best_plan": Exercise(_options, _best, {
        "that is the best accuracy of every group, but it does not fit into the budget": _richest,
        "that spends on the first groups first; a smaller model there may pay for a better one elsewhere": _greedy,
        "that is the best mean over groups; a group of four tasks counts four times": partial(_best, weighted=False)}),
    "both_ways": Exercise(_three, _both_ways, {
        "both lists are of the merge at once": partial(_both_ways, sequence=False),
        "divide each error by the mean of ||f_i||^2": partial(_both_ways, relative=False),
        "each original's error is on the images of its own task": partial(_both_ways, own=False)}),
}
