"""The exercises of lesson 01: reordering hidden units, finding an order that was hidden, and a barrier of one's own."""
import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise, permutations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...tasks.embedded import task
from .testing import Exercise

Layers = list[tuple[Tensor, Tensor]]

# ---------------------------------------------------------------- easy: three layers, two orders


def _three_layers(g: torch.Generator) -> tuple[Layers, list[Tensor]]:
    """Layers of 3 inputs, 5 and 4 hidden units and 2 outputs, and an order for each hidden layer."""
    sizes = (3, 5, 4, 2)
    layers = [(torch.randn(o, d, generator=g), torch.randn(o, generator=g)) for d, o in pairwise(sizes)]
    return layers, [torch.tensor([2, 0, 1, 4, 3]), torch.tensor([1, 3, 0, 2])]


def _by_matrices(layers: Layers, orders: Sequence[Tensor]) -> Layers:
    """W becomes P W Q^T and b becomes P b, with the permutation matrices P of the rows and Q of the columns."""
    rows = [torch.eye(len(p))[p] for p in orders] + [torch.eye(len(layers[-1][1]))]
    columns = [torch.eye(layers[0][0].shape[1]), *rows[:-1]]
    return [(P @ W @ Q.T, P @ b) for (W, b), P, Q in zip(layers, rows, columns)]


def _rows_only(layers: Layers, orders: Sequence[Tensor]) -> Layers:
    hidden = [(W[p], b[p]) for (W, b), p in zip(layers, orders)]
    return [*hidden, layers[-1]]


def _without_biases(layers: Layers, orders: Sequence[Tensor]) -> Layers:
    return [(W, b) for (W, _), (_, b) in zip(_by_matrices(layers, orders), layers)]


def _inverse(layers: Layers, orders: Sequence[Tensor]) -> Layers:
    return _by_matrices(layers, [p.argsort() for p in orders])


# ---------------------------------------------------------------- medium: which order was it?


def _activations(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hidden units (n, 5) of a network and of its copy: other order, other sizes, some noise.

    They are drawn until all the mistakes below give different results.
    """
    while True:
        shared = torch.randn(40, 2, generator=g) @ torch.randn(2, 5, generator=g)
        units = shared.relu() + torch.rand(40, 5, generator=g)
        order, sizes = torch.randperm(5, generator=g), 10 ** (2 * torch.rand(5, generator=g) - 1)
        copied = (units + 0.5 * torch.randn(40, 5, generator=g))[:, order] * sizes
        ways = (_best_order, _nearest_alone, _inverse_order, _by_products, _by_distance)
        if len({tuple(way(units, copied).tolist()) for way in ways}) == len(ways):
            return units, copied


def _correlations(units: Tensor, copied: Tensor) -> Tensor:
    return torch.corrcoef(torch.cat([units, copied], 1).T)[:5, 5:]


def _best_order(units: Tensor, copied: Tensor) -> Tensor:
    """The best of all 120 orders, tried one by one."""
    table = _correlations(units, copied).tolist()
    return torch.tensor(max(permutations(range(5)), key=lambda p: sum(table[j][p[j]] for j in range(5))))


def _nearest_alone(units: Tensor, copied: Tensor) -> Tensor:
    return _correlations(units, copied).argmax(1)


def _inverse_order(units: Tensor, copied: Tensor) -> Tensor:
    return _best_order(units, copied).argsort()


def _by_products(units: Tensor, copied: Tensor) -> Tensor:
    return torch.tensor(linear_sum_assignment(units.T @ copied, maximize=True)[1])


def _by_distance(units: Tensor, copied: Tensor) -> Tensor:
    return torch.tensor(linear_sum_assignment(torch.cdist(units.T, copied.T))[1])


# ---------------------------------------------------------------- project: two networks of one's own

UNALIGNED = ("in this order the barrier is not even halved; match hidden units after the ReLU, on the images, and let "
             "order[j] be the unit of network 2 that goes to place j")
SAME_START = "both networks have nearly the same weights; start each from a random initialization of its own"
UNTRAINED = "a network is right on less than 85 % of the images that it was trained on; train longer"
NOT_AN_ORDER = "the third result must be an order: every hidden unit of network 2 exactly once"


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = task("digits", 8).sample(600)
    return images.mean(1).flatten(1), labels


def _problem(result: object, x: Tensor, labels: Tensor, width: int) -> str | None:
    """What is wrong with two trained networks and the order that aligns network 2 with network 1."""
    if not isinstance(result, tuple | list) or len(result) != 3:
        return "three results are needed: network 1, network 2, and the order of network 2's hidden units"
    *nets, order = result
    if not all(_has_form(net, width) for net in nets):
        return f"each network must be nn.Sequential(nn.Linear(64, {width}), nn.ReLU(), nn.Linear({width}, 10))"
    if not isinstance(order, Tensor | list) or sorted(torch.as_tensor(order).tolist()) != list(range(width)):
        return NOT_AN_ORDER
    first, second = (nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets)
    if F.cosine_similarity(first, second, dim=0) > 0.8:
        return SAME_START
    if min((net(x).argmax(1) == labels).float().mean() for net in nets) < 0.85:
        return UNTRAINED
    before, after = (_barrier(nets[0], net, x, labels) for net in (nets[1], _ordered(nets[1], order)))
    return None if after < before / 2 else UNALIGNED


def _has_form(net: object, width: int) -> bool:
    """Whether it is a linear layer from 64 inputs to `width` units, an activation, and a linear layer to 10 outputs."""
    if not isinstance(net, nn.Sequential) or len(net) != 3:
        return False
    shapes = [getattr(layer, "weight", torch.empty(0)).shape for layer in net]
    return shapes[0] == (width, 64) and shapes[2] == (10, width)


def _ordered(net: nn.Sequential, order: Tensor) -> nn.Sequential:
    net, order = copy.deepcopy(net), torch.as_tensor(order)
    net[0].weight.data, net[0].bias.data = net[0].weight.data[order], net[0].bias.data[order]
    net[2].weight.data = net[2].weight.data[:, order]
    return net


@torch.no_grad()
def _barrier(start: nn.Module, end: nn.Module, x: Tensor, labels: Tensor) -> float:
    ends, net, losses = (start.state_dict(), end.state_dict()), copy.deepcopy(start), []
    for t in torch.linspace(0, 1, 11).tolist():
        net.load_state_dict({name: p.lerp(ends[1][name], t) for name, p in ends[0].items()})
        losses.append(F.cross_entropy(net(x), labels).item())
    return (torch.tensor(losses) - torch.linspace(losses[0], losses[-1], 11)).max().item()


def _trained(x: Tensor, labels: Tensor, width: int, seed: int, steps: int = 150) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net


def _project(x: Tensor, labels: Tensor, width: int, seeds: tuple[int, int] = (0, 1), steps: int = 150,
             match: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[nn.Module, nn.Module, Tensor]:
    nets = [_trained(x, labels, width, seed, steps) for seed in seeds]
    return *nets, torch.arange(width) if match is None else match(*(net[0](x).relu() for net in nets))


EXERCISES = {
    # layers: three (W, b); orders: one for each of the two hidden layers; new unit j is old unit order[j]
    "reordered": Exercise(_three_layers, _by_matrices, {
        "the next layer still reads the units in their old order; reorder its columns too": _rows_only,
        "every unit keeps its own bias; reorder b too": _without_biases,
        "that is the inverse order: new unit j is old unit order[j]": _inverse}),
    # units, copied (n, 5): the answer p (6,) pairs column j of units with column p[j] of copied
    "found_order": Exercise(_activations, _best_order, {
        "that picks the best partner of each unit on its own, so some unit of the copy is used twice; an order uses "
        "each unit once": _nearest_alone,
        "that is the inverse order: unit j of the network is unit p[j] of the copy": _inverse_order,
        "products favor large units, and the copy's units have other sizes; use correlations": _by_products,
        "distances compare sizes too, and the copy's units have other sizes; use correlations": _by_distance}),
    # x (n, 64), labels (n,), width: two trained networks and the order of network 2's hidden units
    "trained_and_aligned": Exercise(lambda g: (*_digits(), 32), judge=_problem, mistakes={
        UNALIGNED: _project,
        SAME_START: partial(_project, seeds=(0, 0)),
        UNTRAINED: partial(_project, steps=0),
        NOT_AN_ORDER: partial(_project, match=lambda h, k: torch.zeros(h.shape[1], dtype=torch.long))}),
}
