"""The orthogonal symmetries of a transformer: more than the permutations of `alignment`.

Once the weights of its norms are absorbed into the layers that read them, a pre-norm transformer computes the same
function when its residual stream is rotated by any orthogonal Q that keeps (1, ..., 1), because LN(Q x) = Q LN(x). The
same holds inside each head for queries with keys, and for values with what reads them. Hidden units only change places.
After "Generalized Linear Mode Connectivity for Transformers" (arXiv 2506.22712).
"""
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import architecture, graph_of
from ..engine.images import Calibration, same_tasks
from ..engine.running import to_device
from ..models import Merged, Original
from .alignment import activations, assign, by_heads, correlations, equal_originals
from .baselines import average

Maps = dict[str, Tensor]  # space -> orthogonal Q (n, n): x becomes Q x


def absorbed(original: nn.Module) -> Original:
    """The same function with every norm of the stream at weight 1 and bias 0; W (g x + b) = (W g) x + W b.

    Raises:
        ValueError: a norm that cannot be absorbed, or that rotations inside heads do not pass; no linear head.
    """
    original = original if isinstance(original, Original) else Original(original)
    graph, head = graph_of(original.backbone), copy.deepcopy(original.head)
    backbone = copy.deepcopy(architecture(original.backbone).absorb_scales(original.backbone))
    for vector in graph.norms:
        kind = graph.spaces[vector.space].kind
        if vector.role != "norm" or kind == "heads":
            raise ValueError(f"{vector.name.rpartition('.')[0]} is a norm that rotations do not pass; align permutes")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"orthogonal alignment needs a linear head, which takes the last norm, got {head}")
    stream = graph.residual.name if graph.residual else None
    norms = dict.fromkeys(v.name.rpartition(".")[0] for v in graph.norms if v.space == stream)
    readers = [backbone.get_submodule(layer.name) for layer in graph.layers if stream and layer.reads == stream]
    for name, layer in zip(norms, [*readers, head]):  # one reads what each norm gives, in the order of the forward
        norm = backbone.get_submodule(name)
        if getattr(norm, "bias", None) is not None:
            shift = layer.weight.data @ norm.bias.data
            if layer.bias is None and shift.any():
                raise ValueError(f"the bias of {name} has no place to go: the layer that reads it has none")
            layer.bias = None if layer.bias is None else nn.Parameter(layer.bias.data + shift, requires_grad=False)
            norm.bias.data = torch.zeros_like(norm.bias)
        layer.weight.data = layer.weight.data * norm.weight.data
        norm.weight.data = torch.ones_like(norm.weight)
    return _like(original, backbone, head)


def _like(original: Original, backbone: nn.Module, head: nn.Module) -> Original:
    """An `Original` of the same name, task and pictures."""
    made = Original(backbone, head, original.name, original.task, mean=(0.5,) * 3, std=(0.5,) * 3)
    made.card, made.mean, made.std = dict(original.card), original.mean, original.std
    return made.train(original.backbone.training)


def rotated(original: nn.Module, maps: Maps) -> Original:
    """The same function in other coordinates: W' = Q W R^T for a layer that reads a space mapped by R and writes to Q.

    Args:
        original: an `Original` or bare backbone; it stays as it is.
        maps: space -> orthogonal matrix, for instance from `orthogonal_alignment`. That of the stream keeps
            (1, ..., 1), those of heads have a block for each head, those of hidden units are permutations.

    Raises:
        ValueError: as `absorbed`.
    """
    original = absorbed(original)
    backbone, graph = original.backbone, graph_of(original.backbone)
    like = next(backbone.parameters())

    def of(space: str) -> Tensor:
        return maps[space].to(like) if space in maps else torch.eye(graph.spaces[space].size).to(like)
    for layer in graph.layers:
        module, rows = backbone.get_submodule(layer.name), torch.block_diag(*map(of, layer.writes))
        weight = torch.tensordot(rows, module.weight.data, ([1], [layer.axis])).movedim(0, layer.axis).contiguous()
        module.weight.data = weight if layer.reads is None else weight @ of(layer.reads).T
        if getattr(module, "bias", None) is not None:
            module.bias.data = rows @ module.bias.data
    for vector in graph.vectors:
        if vector.role == "token" or (vector.space != graph.output and vector.role == "norm"):
            p = backbone.get_parameter(vector.name)
            p.data = p.data @ of(vector.space).T
    original.head.weight.data = original.head.weight.data @ of(graph.output).T
    return original


def procrustes(cross: Tensor) -> Tensor:
    """The orthogonal Q with the largest trace of Q^T C: the best of || x - Q y || for C = E x y^T."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def orthogonal_alignment(originals: Sequence[nn.Module], images: Calibration, batch_size: int = 64) -> list[Maps]:
    """For each original the maps that bring it closest to the first, by what both compute on all images.

    Stream and heads: E || x_1 - Q x_i ||^2 is smallest, over all places that are seen, each at one scale. Heads are
    assigned by the sum of their singular values, hidden units by correlation as in `alignment`.

    Args:
        originals: k originals of equal widths, with linear heads.
        images: from `calibration`; every image is shown to every original.
        batch_size: images at a time.

    Returns:
        k dicts for `rotated`; the first is empty, because original 1 stays as it is.

    Raises:
        TypeError, ValueError: what cannot be merged or rotated, or originals of different widths.
    """
    originals = [absorbed(o) for o in equal_originals(originals)]
    same_tasks(originals, images)
    return [{}, *(_match(originals[0].backbone, o.backbone, images.images, batch_size) for o in originals[1:])]


@torch.no_grad()
def _match(first: nn.Module, other: nn.Module, images: Tensor, batch_size: int) -> Maps:
    graph, units = graph_of(first), correlations(first, other, images, batch_size)  # which checks the images
    cross, maps, groups = _cross_moments(first, other, images, batch_size), {}, {}
    for name, space in graph.spaces.items():
        if space.kind == "heads":
            groups.setdefault(space.group, []).append(name)
        elif space.kind == "residual":
            keep = cross[name].norm() * torch.ones_like(cross[name])  # larger than all else: (1, ..., 1) stays
            maps[name] = procrustes(cross[name] + keep)
        else:
            maps[name] = torch.eye(space.size).double()[assign(units[name])[0]]
    for names in groups.values():
        heads = graph.spaces[names[0]].heads
        blocks = [by_heads(cross[name], heads) for name in names]
        order = assign(sum(torch.linalg.svdvals(block).sum(-1) for block in blocks))[0].tolist()
        for name, block in zip(names, blocks):
            found = torch.zeros_like(block)
            for a, b in enumerate(order):
                found[a, b] = procrustes(block[a, b])
            maps[name] = found.transpose(1, 2).flatten(0, 1).flatten(1)
    return maps


def _cross_moments(first: nn.Module, other: nn.Module, images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """E x y^T (n, n) of what the two hold in stream and heads, summed over places; the stream normalized."""
    graph, like, sums, sizes = graph_of(first), next(first.parameters()), {}, {}
    for batch in images.split(batch_size):
        batch = to_device(batch, like)
        pairs = zip(*(activations(graph, model, batch).items() for model in (first, other)))
        for (name, ours), (_, theirs) in pairs:
            if graph.spaces[name].kind == "hidden":
                continue
            for place, (x, y) in enumerate(zip(ours, theirs)):
                if graph.spaces[name].kind == "residual":
                    x, y = (F.layer_norm(z, z.shape[-1:]) for z in (x, y))
                x, y = x.double(), y.double()
                sums[name, place] = sums.get((name, place), 0) + x.T @ y
                sizes[name, place] = sizes.get((name, place), 0) + x.square().sum() * y.square().sum() / len(x) ** 2
    cross: dict[str, Tensor] = {}
    for (name, place), total in sums.items():
        cross[name] = cross.get(name, 0) + (total / sizes[name, place].sqrt()).cpu()
    return cross


def align_orthogonal(originals: Sequence[nn.Module], images: Calibration, batch_size: int = 64) -> Merged:
    """Rotate every original to the first by `orthogonal_alignment`, then average: W* = sum_i Q_i(W_i) / k.

    Args:
        originals, images, batch_size: as for `orthogonal_alignment`.

    Raises:
        TypeError, ValueError: as `orthogonal_alignment`.
    """
    originals = equal_originals(originals)
    maps = orthogonal_alignment(originals, images, batch_size)
    return average([rotated(original, each) for original, each in zip(originals, maps)])
