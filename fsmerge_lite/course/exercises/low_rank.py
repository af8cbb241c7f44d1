"""The exercises of lesson 05: products with D + A B, counting numbers, the best low rank, an ablation of rank."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ...architectures.vit import vit
from ...supernet import SuperNet
from .testing import Exercise

Fit = tuple[Tensor, Tensor, Tensor]  # D (n,), A (n, r), B (r, n)


def _normal(g: torch.Generator, *shapes: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, generator=g) for shape in shapes)


# ---------------------------------------------------------------- M W, where M is not square

def _weight(g: torch.Generator) -> tuple[Tensor, ...]:
    """D (min(o*, o),), A (o*, r), B (r, o), W (o, d); the merged model is wider for even seeds, narrower for odd."""
    merged, own = ((6, 4), (4, 6))[g.initial_seed() % 2]
    return _normal(g, (4,), (merged, 2), (2, own), (own, 3))


def _dense_product(D: Tensor, A: Tensor, B: Tensor, W: Tensor) -> Tensor:
    M = torch.zeros(len(A), len(W))
    M.diagonal().copy_(D)
    return (M + A @ B) @ W


MERGE_WEIGHT = Exercise(_weight, _dense_product, {
    "the diagonal part D W is missing": lambda D, A, B, W: A @ (B @ W),
    "the low-rank part A B W is missing": lambda D, A, B, W: _dense_product(D, 0 * A, B, W),
    "the rows of W are not scaled by D": lambda D, A, B, W: _dense_product(torch.ones_like(D), A, B, W)})


# ---------------------------------------------------------------- how many numbers are learned

def _sizes(g: torch.Generator) -> tuple:
    """Widths of the originals, the merged model's width, depth, rank, and whether all share one A and one G."""
    widths = [(2 * torch.randint(4, 9, (1,), generator=g)).item() for _ in range(2 + g.initial_seed() % 2)]
    merged = (2 * torch.randint(4, 11, (1,), generator=g)).item()
    return widths, merged, 1 + g.initial_seed(), 3, g.initial_seed() != 1


def _counted(widths: Sequence[int], merged: int, depth: int, rank: int, shared: bool) -> int:
    """The library's own count."""
    models = [vit(dim=width, depth=depth, num_heads=2, img_size=8).eval() for width in (*widths, merged)]
    net = SuperNet(models[:-1], rank, into=models[-1], shared=shared)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _by_formula(widths: Sequence[int], merged: int, depth: int, rank: int, shared: bool, narrow: int = 8,
                inside: int = 4, norms: bool = True) -> int:
    """`narrow` matrices on the stream's width in each block; rank `inside` times as high in the MLP."""
    def place(scale: int, r: int) -> int:
        own = sum(scale * (min(width, merged) + r * width) for width in widths)
        return own + scale * r * merged * (1 if shared else len(widths))
    found = (narrow * depth + 2) * place(1, rank) + 2 * depth * place(4, inside * rank)
    return found + (2 * depth + 1) * 2 * merged * norms


NUMBERS_TO_LEARN = Exercise(_sizes, _counted, {
    "the merged model's own LayerNorms are missing: two in each block and one at the end, weight and bias each":
        lambda *sizes: _by_formula(*sizes, norms=False),
    "the rank inside the MLP is the same as outside; there it is four times as high, as the width is":
        lambda *sizes: _by_formula(*sizes, inside=1),
    "q, k and v have an M each, so a block has eight matrices on the stream's width for each original":
        lambda *sizes: _by_formula(*sizes, narrow=6),
    "where A and G are shared they count once for all originals, and where they are not once for each":
        lambda *sizes: _by_formula(*sizes[:4], not sizes[4])})


# ---------------------------------------------------------------- the best low rank

TWICE = "the singular values are in A and in B; their product A B must have them once"
WITHOUT = "the singular values are missing from A B"
SMALLEST = "A B keeps the smallest singular values; keep the largest"


def _factors(S: Tensor, columns: slice, power: float = 1.0) -> tuple[Tensor, Tensor]:
    U, s, Vh = torch.linalg.svd(S, full_matrices=False)
    return U[:, columns] * s[columns] ** power, Vh[columns]


def _low_rank_problem(result: object, S: Tensor, r: int) -> str | None:
    """The best error is known without A and B: the root of the sum of the squared singular values after the r-th."""
    if not isinstance(result, tuple | list) or [tuple(part.shape) for part in result] != [(len(S), r), (r, S.shape[1])]:
        return f"return A {(len(S), r)} and B {(r, S.shape[1])}"
    product = result[0] @ result[1]
    best = torch.linalg.svdvals(S)[r:].norm()
    if (S - product).norm() <= 1.001 * best:
        return None
    known = {TWICE: (slice(r), 2.0), WITHOUT: (slice(r), 0.0), SMALLEST: (slice(-r, None), 1.0)}
    for message, choice in known.items():
        A, B = _factors(S, *choice)
        if torch.allclose(product, A @ B, atol=1e-3):
            return message
    return f"A B leaves {(S - product).norm() / best:.2f} times as much of S as the best product of rank {r}"


BEST_LOW_RANK = Exercise(
    lambda g: (*_normal(g, (7, 5)), 2), judge=_low_rank_problem, mistakes={
        TWICE: lambda S, r: _factors(S, slice(r), 2.0), WITHOUT: lambda S, r: _factors(S, slice(r), 0.0),
        SMALLEST: lambda S, r: _factors(S, slice(-r, None))})


# ---------------------------------------------------------------- project: an ablation of rank

ZERO = "A B is zero at a rank above 0: if both factors start at zero, neither gets a gradient"
FIXED = "D has not been learned: it is the same number in every channel"
TARGET = "D + A B itself is close to the target; (D + A B) times the start has to be"


def _maps(g: torch.Generator) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """A start and a target (n, n), and ranks. The start is the identity or, for odd seeds, near the target."""
    n = 12
    target = torch.linalg.qr(torch.randn(n, n, generator=g)).Q
    near = target + 0.03 * torch.randn(n, n, generator=g)
    return (near if g.initial_seed() % 2 else torch.eye(n)), target, (0, 1, 2, 4)


def _in_turns(start: Tensor, target: Tensor, ranks: Sequence[int], rounds: int = 100) -> list[Fit]:
    """The closest (D + A B) start for each rank: the low rank by singular values, D row by row, in turns."""
    fits = []
    for r in ranks:
        low_rank = torch.zeros_like(target)
        for _ in range(rounds):
            D = ((target - low_rank) * start).sum(1) / start.square().sum(1)
            U, s, Vh = torch.linalg.svd(target - D[:, None] * start)
            low_rank = (U[:, :r] * s[:r]) @ Vh[:r]
        fits.append((D, U[:, :r] * s[:r], torch.linalg.solve(start, Vh[:r], left=False)))
    return fits


def _left(fit: Fit, start: Tensor, target: Tensor) -> float:
    D, A, B = fit
    return ((target - (D.diag() + A @ B) @ start).norm() / target.norm()).item()


def _ablation_problem(result: object, start: Tensor, target: Tensor, ranks: Sequence[int]) -> str | None:
    n = len(target)
    if not isinstance(result, tuple | list) or len(result) != len(ranks):
        return f"return a list of {len(ranks)} results (D, A, B), one for each rank"
    best = _in_turns(start, target, ranks)
    for r, fit, reference in zip(ranks, result, best):
        if [tuple(part.shape) for part in fit] != [(n,), (n, r), (r, n)]:
            return f"at rank {r}, return D ({n},), A ({n}, {r}) and B ({r}, {n})"
        fit = tuple(part.detach() for part in fit)
        possible = _left(reference, start, target)
        if r and not (fit[1] @ fit[2]).any():
            return ZERO
        if fit[0].std() < 1e-6:
            return FIXED
        if (left := _left(fit, start, target)) > 1.1 * possible + 0.02:
            wrong = _left(fit, torch.eye(n), target) < left and not torch.equal(start, torch.eye(n))
            return TARGET if wrong else (f"at rank {r} your D + A B leaves {100 * left:.0f} % of the target, and "
                                         f"{100 * possible:.0f} % is possible: more steps, or another learning rate")
    return None


RANK_ABLATION = Exercise(_maps, judge=_ablation_problem, mistakes={
    ZERO: lambda start, target, ranks: [(D, 0 * A, 0 * B) for D, A, B in _in_turns(start, target, ranks)],
    FIXED: lambda start, target, ranks: [(torch.ones_like(D), A, B) for D, A, B in _in_turns(start, target, ranks)],
    TARGET: lambda start, target, ranks: _in_turns(torch.eye(len(target)), target, ranks)})

EXERCISES = {"merge_weight": MERGE_WEIGHT, "numbers_to_learn": NUMBERS_TO_LEARN, "best_low_rank": BEST_LOW_RANK,
             "rank_ablation": RANK_ABLATION}
