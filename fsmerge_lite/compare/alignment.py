"""The permutation symmetries of a model: putting its channels, heads and hidden units into another one's order.

A model whose channels change places, with the weights on both of their sides, is the same function. A permutation of
one of the model's spaces (see `architectures.graph`) is an index p (n,): channel p[a] moves to position a.
"""
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..architectures import architecture, check_originals, graph_of
from ..architectures.graph import Graph, Space
from ..engine import given
from ..engine.images import Calibration, check_calibration
from ..engine.running import inputs_of, rows_of, to_device
from ..models import Original

Permutations = dict[str, Tensor]  # space -> index; a space that is missing stays as it is


def equal_originals(originals: Sequence[nn.Module]) -> list[Original]:
    """The originals as `Original`, of which every weight has the same shape in all of them.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    originals = [o if isinstance(o, Original) else Original(o) for o in given.several("originals", originals)]
    check_originals([o.backbone for o in originals])
    first = graph_of(originals[0].backbone)
    for i, original in enumerate(originals[1:], 2):
        spaces = graph_of(original.backbone).spaces
        for name, space in first.spaces.items():
            if spaces[name].heads != space.heads:
                raise ValueError(f"original {i} has {spaces[name].heads} heads, original 1 has {space.heads}: weights "
                                 "of different heads have no average; SuperNet can merge them")
        for (name, p), q in zip(original.backbone.named_parameters(), originals[0].backbone.parameters()):
            if p.shape != q.shape:
                raise ValueError(f"original {i} has {name} of shape {tuple(p.shape)}, original 1 {tuple(q.shape)}: "
                                 "weights of different widths have no average; SuperNet can merge them")
    return originals


# ---------------------------------------------------------------- permuting

def permuted(original: nn.Module, permutations: Permutations) -> Original:
    """The same function with its channels in another order: W'[a, b] = W[p[a], q[b]] for a layer from space q to p.

    Its features come out in the new order, f'[a] = f[p[a]]; its head has its columns in that order too.

    Args:
        original: an `Original` or a bare backbone; it stays as it is.
        permutations: space -> index, for instance from `alignment`.
    """
    original = original if isinstance(original, Original) else Original(original)
    graph, backbone = graph_of(original.backbone), copy.deepcopy(original.backbone)
    parameters = dict(backbone.named_parameters())

    def reorder(name: str, axis: int, index: Tensor) -> None:
        if name in parameters:
            p = parameters[name]
            p.data = p.data.index_select(axis, index.to(p.device))
    for layer in graph.layers:
        rows = _index(permutations, [graph.spaces[space] for space in layer.writes])
        reorder(f"{layer.name}.weight", layer.axis, rows)
        reorder(f"{layer.name}.bias", 0, rows)
        if layer.reads in permutations:
            reorder(f"{layer.name}.weight", 1, permutations[layer.reads])
    for vector in graph.vectors:
        index, space = _index(permutations, [graph.spaces[vector.space]]), graph.spaces[vector.space]
        reorder(vector.name, -1, index[:space.unit] % space.unit if vector.role == "per_head" else index)
    moved = Original(backbone, _with_columns_undone(original.head, backbone, permutations), original.name,
                     original.task)
    moved.card, moved.mean, moved.std = dict(original.card), original.mean, original.std
    return moved.train(backbone.training)


def _index(permutations: Permutations, spaces: Sequence[Space]) -> Tensor:
    """The order of channels that lie in these spaces, one after the other."""
    parts, start = [], 0
    for space in spaces:
        parts.append(start + permutations.get(space.name, torch.arange(space.size)).cpu())
        start += space.size
    return torch.cat(parts)


def undo(backbone: nn.Module, permutations: Permutations) -> Tensor:
    """P (d, d) that brings the features of a `permuted` model back into the original's order: f = P f'."""
    like, graph = next(backbone.parameters()), graph_of(backbone)
    eye = torch.eye(graph.spaces[graph.output].size, dtype=like.dtype, device=like.device)
    return eye[:, permutations[graph.output].to(like.device)] if graph.output in permutations else eye


def _with_columns_undone(head: nn.Module, backbone: nn.Module, permutations: Permutations) -> nn.Module:
    """The head of a `permuted` backbone."""
    back = undo(backbone, permutations)
    if isinstance(head, nn.Linear):
        head = copy.deepcopy(head)
        head.weight.data = head.weight.data @ back
        return head
    first = nn.utils.skip_init(nn.Linear, *back.shape, bias=False)
    first.weight = nn.Parameter(back)
    return nn.Sequential(first, copy.deepcopy(head))


# ---------------------------------------------------------------- matching

def alignment(originals: Sequence[nn.Module], images: Calibration, batch_size: int = 64) -> list[Permutations]:
    """For each original the permutations that bring it closest to the first, by what both compute on all images.

    In each space, p maximises sum_a corr(x_1[a], x_i[p[a]]), an assignment problem; for the residual stream the
    correlations are averaged over the depths, and heads are assigned by the sum of their best-matching units.

    Args:
        originals: k originals of equal widths.
        images: from `calibration`; every image is shown to every original.
        batch_size: images at a time.

    Returns:
        k dicts for `permuted`; the first is empty, because original 1 stays as it is.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    first, *others = (o.backbone for o in equal_originals(originals))
    check_calibration(images)
    graph = graph_of(first)
    return [{}, *(_match(graph, correlations(first, other, images.images, batch_size)) for other in others)]


@torch.no_grad()
def correlations(first: nn.Module, other: nn.Module, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    """corr(x[a], y[b]) between the channels of two models, (n, n) for each space, averaged over where it is seen."""
    given.whole(1, batch_size=batch_size)
    like, known, graph, sums = next(first.parameters()), architecture(first), graph_of(first), {}
    for batch in images.split(batch_size):
        batch = to_device(batch, like)
        known.check_inputs(first, batch)
        ours, theirs = activations(graph, first, batch), activations(graph, other, batch)
        for space in graph.spaces:
            x, y = (torch.stack([part.double() for part in seen[space]]) for seen in (ours, theirs))
            new = x.shape[1], x.sum(1), y.sum(1), x.square().sum(1), y.square().sum(1), x.mT @ y  # x: (places, N, n)
            sums[space] = [a + b for a, b in zip(sums.get(space, [0] * len(new)), new)]
    return {space: _correlation(*parts).mean(0) for space, parts in sums.items()}


def _correlation(n: int, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Pearson's, from sums over n rows; 0 for a channel that never changes, as far as rounding lets one see."""
    spread = ((xx - x.square() / n)[..., :, None] * (yy - y.square() / n)[..., None, :]).clamp(min=0).sqrt()
    together = xy - x[..., :, None] * y[..., None, :] / n
    return torch.where(spread > 1e-6 * (xx[..., :, None] * yy[..., None, :]).sqrt(), together / spread, 0.)


def activations(graph: Graph, backbone: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """What the channels of every space hold for images x: for each space the places where it is seen, (rows, n).

    A row is a token that is no padding. Heads are seen in what is written to them, too.
    """
    writers = [layer for layer in graph.layers if graph.spaces[layer.writes[0]].kind == "heads"]
    names = dict.fromkeys(name for space in graph.spaces.values() for name in space.seen if name)
    seen = inputs_of(backbone, [*names, *(layer.name for layer in writers)],
                     lambda: architecture(backbone).features(backbone, x))
    seen[""], counted = seen[None], architecture(backbone).counted(backbone, x)
    activations: dict[str, list[Tensor]] = {name: [] for name in graph.spaces}
    for layer in writers:
        written = backbone.get_submodule(layer.name)(seen[layer.name]).chunk(len(layer.writes), -1)
        for space, part in zip(layer.writes, written):
            activations[space].append(part)
    for name, space in graph.spaces.items():
        activations[name] += [seen[module] for module in space.seen]
    return {name: [rows_of(part, counted) for part in parts] for name, parts in activations.items()}


def _match(graph: Graph, table: dict[str, Tensor]) -> Permutations:
    """The best permutation of every space; spaces of one group share the order of their heads."""
    groups: dict[str, list[Space]] = {}
    for space in graph.spaces.values():
        groups.setdefault(space.group or space.name, []).append(space)
    one_order = {vector.space for vector in graph.vectors if vector.role == "per_head"}
    matched: Permutations = {}
    for spaces in groups.values():
        units = [by_heads(table[space.name], space.heads) for space in spaces]
        orders = _assign_heads(units, [space.name in one_order for space in spaces])
        matched |= {space.name: order for space, order in zip(spaces, orders)}
    return matched


def by_heads(correlation: Tensor, heads: int) -> Tensor:
    """(n, n) as (heads, heads, units, units)."""
    return correlation.unflatten(0, (heads, -1)).unflatten(-1, (heads, -1)).transpose(1, 2)


def assign(correlation: Tensor) -> tuple[Tensor, float]:
    """The index p with the largest sum_a correlation[a, p[a]], and that sum."""
    from scipy.optimize import linear_sum_assignment  # takes a while to import
    rows, columns = linear_sum_assignment(correlation.cpu(), maximize=True)
    return torch.as_tensor(columns), correlation[rows, columns].sum().item()


def _assign_heads(tables: Sequence[Tensor], one_order: Sequence[bool]) -> list[Tensor]:
    """An index for each space of a group: units inside every pair of heads first, then heads by what that gains.

    A norm that all heads share, such as q_norm, needs `one_order` of units in all heads.

    Args:
        tables: correlations (heads, heads, units, units), one a space.
    """
    heads, gain = range(len(tables[0])), torch.zeros(len(tables[0]), len(tables[0]))
    units = [[[assign(table[a, b]) for b in heads] for a in heads] for table in tables]
    for pairs in units:
        gain += torch.tensor([[pairs[a][b][1] for b in heads] for a in heads])
    order = assign(gain)[0].tolist()
    indices = []
    for table, pairs, shared in zip(tables, units, one_order):
        if shared:
            common = assign(sum(table[a, b] for a, b in enumerate(order)))[0]
            inside = [common for _ in heads]
        else:
            inside = [pairs[a][b][0] for a, b in enumerate(order)]
        indices.append(torch.cat([b * table.shape[-1] + unit for b, unit in zip(order, inside)]))
    return indices
