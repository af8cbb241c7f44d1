"""Statistics of what the modules of a model read, and what is fitted and chosen by them."""
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .running import inputs_of, watching

Forward = Callable[[Tensor], Tensor]  # images (B, ...) -> features (B, d)
Counted = Callable[[Tensor], Tensor | None]  # images -> which tokens are no padding, (B, T); None: all


def products(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of w x y^T over images and tokens, (d, e) in fp64, for x (B, T, d), y (B, T, e) and w (T,) or (B, T)."""
    x = x if weights is None else x * weights.to(x)[..., None]
    return (x.flatten(0, -2).T @ y.flatten(0, -2)).double()


@torch.no_grad()
def sensitivity(model: nn.Module, features: Forward, places: Collection[str], batches: Iterable[Tensor],
                counted: Counted = lambda _: None) -> dict[str, tuple[Tensor, Tensor]]:
    """How much the features f depend on what modules read: E ||g||^2 of every token, (T,), at a mean of 1, and E g g^T.

    g = d(r . f) / d(what a module reads) for a random direction r ~ N(0, I), one for each image. So E ||g||^2 is the
    square of the Jacobian's Frobenius norm, and one backward of the model is enough. E g g^T (d, d) is summed over
    tokens. All tokens of a module count the same where f does not depend on it. Means over tokens are over those that
    are `counted`.
    """
    generator, sums, n, there = torch.Generator().manual_seed(0), {}, 0, 0
    for x in batches:
        seen = {}

        def watch(place: str, read: Tensor, seen: dict = seen) -> None:
            seen[place] = read if read.requires_grad else read.requires_grad_()  # what comes first depends on nothing
        with torch.enable_grad(), watching(model, places, watch):
            output = features(x.detach())
        direction = torch.randn(output.shape, generator=generator).to(output)
        for place, g in zip(seen, torch.autograd.grad(output, list(seen.values()), direction)):
            tokens, channels = sums.get(place, (0, 0))
            sums[place] = tokens + g.square().sum(-1).sum(0).double(), channels + products(g, g)
        n, there = n + len(x), there + (torch.tensor(len(x)) if counted(x) is None else counted(x).sum(0))
    return {place: (_relative(tokens, there), channels / n) for place, (tokens, channels) in sums.items()}


def _relative(sums: Tensor, times: Tensor) -> Tensor:
    """Means (T,) of what was counted so many `times`, (T,) or (), over the mean of all. What never was is zero."""
    if not sums.dim():  # what is read there has no tokens
        return torch.ones_like(sums)
    sums, times = sums + torch.finfo(torch.float64).tiny, times.to(sums.device).expand_as(sums)
    return sums * times.sum() / (times.clamp(min=1) * sums.sum())


def weighed(weights: Tensor | None, counted: Tensor | None) -> Tensor | None:
    """Weights (T,) of tokens, zero where they do not count, (B, T). None: all count; what has no tokens stays."""
    return weights if weights is None or counted is None or not weights.dim() else weights.to(counted.device) * counted


@torch.no_grad()
def second_moments(model: nn.Module, features: Forward, places: Sequence[str], norms: Collection[str],
                   batches: Sequence[Tensor], weights: Mapping[str, Tensor],
                   counted: Counted) -> dict[str | None, Tensor]:
    """E w x x^T, (d, d), of what modules read and, under None, of the features, for the `weights` w (T,) of a place.

    For `norms`, x is what they read less its mean, over its size. Only tokens that are `counted` have a weight.
    """
    sums: dict[str | None, Tensor] = {}
    for batch in batches:
        there = counted(batch)
        for place, x in inputs_of(model, [*places, *norms], lambda batch=batch: features(batch)).items():
            x = F.layer_norm(x, x.shape[-1:]) if place in norms else x
            share = len(batch) / sum(map(len, batches))
            mean = products(x, x, weighed(weights.get(place), there)) / x[..., 0].numel()
            sums[place] = sums.get(place, 0) + share * mean
    return sums


@dataclass(frozen=True)
class Moments:
    """Weighted means over rows of what is read, u, and of what is to be made of it: E u u^T, E u, E u t^T, E t."""

    gram: Tensor
    read: Tensor
    cross: Tensor
    target: Tensor

    @classmethod
    def of(cls, u: Tensor, t: Tensor, weights: Tensor, batch_size: int) -> "Moments":
        """From u (n, T, d), t (n, T, e) and weights (T,) or (n, T), or without T."""
        total, d = 0, u.shape[-1]
        parts = weights.split(batch_size) if weights.dim() == 2 else repeat(weights)
        for x, y, w in zip(u.split(batch_size), t.split(batch_size), parts):
            one = x.new_ones(*x.shape[:-1], 1)
            total = total + products(torch.cat([x, one], -1), torch.cat([x, one, y], -1), w)
        total = total / total[d, d]  # the sum of all weights
        return cls(total[:d, :d], total[:d, d], total[:d, d + 1:], total[d, d + 1:])


def least_squares(parts: Sequence[tuple[float, Tensor, Tensor]], ridge: float) -> Tensor:
    """argmin over V of sum_p l_p E_p ||V u - t||^2 + ridge m ||V||^2, (e, d), m the mean square of u.

    `parts` are weights l_p >= 0, E_p u u^T (d, d) and E_p u t^T (d, e).
    """
    gram, cross = (sum(part[0] * part[i] for part in parts) for i in (1, 2))
    return torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram), cross).T


def straight_lines(u: Tensor, t: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts (d,) of the lines from u to t, both (n, T, d), of every channel for itself.

    Weighted least squares, with weights (T,) or (n, T). A channel in which u is constant has slope 0.
    """
    u, t, w = u.double(), t.double(), (weights / weights.expand(u.shape[:-1]).sum()).to(u)[..., None].double()
    mean_u, mean_t = ((w * x).sum((0, 1)) for x in (u, t))
    u, t = u - mean_u, t - mean_t
    slopes = (w * u * t).sum((0, 1)) / (w * u * u).sum((0, 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return slopes, mean_t - slopes * mean_u


def centered_directions(size: int) -> Tensor:
    """Orthonormal random directions, at right angles to (1, ..., 1) too: (size, size - 1)."""
    noise = torch.randn(size, size - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(torch.cat([torch.ones(size, 1).double(), noise], 1)).Q[:, 1:]


def best_groups(moment: Tensor, channels: Tensor, unit: int, count: int) -> Tensor:
    """The `count` groups of `unit` neighboring channels from which all channels are best rebuilt.

    `moment` (d, d) is E x x^T of the channels, `channels` (d, d) weighs the errors: E e^T channels e. Single channels
    are picked by a Cholesky decomposition with pivoting: at each step the one with the most that those before it do
    not tell, weighed by the diagonal. Larger groups are picked greedily.
    """
    if unit == 1:
        from scipy.linalg.lapack import dpstrf  # takes a while to import
        scale = channels.diagonal().sqrt()
        _, pivots, *_ = dpstrf((scale[:, None] * moment * scale).numpy())  # they count from 1
        return torch.from_numpy(pivots).long()[:count].sort().values - 1

    def unexplained(groups: Sequence[int]) -> float:
        """The weighed error of a least-squares fit. On the CPU, whose `lstsq` takes any rank."""
        at = torch.cat([torch.arange(g * unit, (g + 1) * unit) for g in groups])
        known = torch.linalg.lstsq(moment[at][:, at], moment[at]).solution
        return ((moment - moment[:, at] @ known) * channels).sum().item()
    chosen, groups = [], set(range(len(moment) // unit))
    for _ in range(min(count, len(groups))):
        chosen.append(min(sorted(groups.difference(chosen)), key=lambda g: unexplained([*chosen, g])))
    return torch.tensor(sorted(chosen))


def lost(errors: Tensor, truth: Tensor, tokens: Tensor, channels: Tensor) -> float:
    """E w e^T C e of `errors` e (n, T, d), over the same of the truth less its mean.

    w (T,) or (n, T) are the weights of the `tokens`, C (d, d) those of the `channels`.
    """
    missed, there = ((products(x, x, tokens) * channels).sum().item() for x in (errors, truth - truth.mean(0)))
    return missed / max(there, torch.finfo(torch.float64).tiny)  # of one image there is nothing but the mean


def divided(numbers: list[int], errors: Callable[[list[int]], list[float]]) -> list[int]:
    """Divide `numbers` anew such that the sum of `errors`, a function of them, is smaller.

    One at a time goes from the place with the smallest error to that with the largest, as long as the sum falls. No
    number falls below 1, and their sum stays.
    """
    tried, found = [numbers], errors(numbers)
    while True:
        giver = min((i for i, number in enumerate(numbers) if number > 1), key=found.__getitem__)
        taker = found.index(max(found))
        moved = [number - (i == giver) + (i == taker) for i, number in enumerate(numbers)]
        if moved in tried:
            return numbers
        tried.append(moved)
        after = errors(moved)
        if sum(after) >= sum(found):
            return numbers
        numbers, found = moved, after
