"""A start for M and U that needs no training: every original in its own share of the merged model.

The paper's `first` starts at model 1 and finds the others by gradient alone. Here each original gets a share of
everything the merged model has: of the directions of its residual stream, of its heads, of its hidden units. What
an original writes is brought into its share by M0_i (its principal directions, or its most useful heads and units),
and what it reads is rebuilt by least squares on the unlabeled images of its own task:

    U0_i = argmin over U of  E || U x* - x_i ||^2 + ridge ||U||^2

layer by layer in the order of the forward, x* being what the layers before it compute. The frozen weights, seen from
the merged model, are then M0_i W_i U0_i. M and U are the identity on top of them, and train from there:
W* = sum_i M_i (M0_i W_i U0_i) U_i, still the paper's form. This start is ours, not the paper's.
"""
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .architectures import build, reads
from .architectures.graph import Layer, Space
from .engine.fitting import hidden_bar
from .engine.images import Calibration, same_tasks
from .engine.running import to_device
from .supernet import SuperNet


@torch.no_grad()
def fit_subspaces(net: SuperNet, images: Calibration, ridge: float = 1e-2, batch_size: int = 256,
                  progress: bool | None = None) -> SuperNet:
    """Start all M and U of a SuperNet from the features of a few unlabeled images, by least squares (see above).

    Args:
        net: a SuperNet, trained or not: what it had learned is replaced.
        images: from `calibration`, of the net's originals in their order.
        ridge: weight of the ridge, in units of the mean square of what is read, > 0.
        batch_size: images at a time, >= 1.
        progress: show a bar; None shows it in a terminal or notebook.

    Returns the net: `fold()` already gives a working model, and `train_global` goes on from there. Raises ValueError
    for images of another number of tasks, fewer heads than originals, heads smaller than an original's, or norms that
    mix the shares: on the stream itself, on q and k, or inside attention and MLP.
    """
    same_tasks(net.originals, images)
    if not ridge > 0 or batch_size < 1:
        raise ValueError(f"ridge must be > 0 and batch_size >= 1, got {ridge} and {batch_size}")
    _check_shares(net)
    start = _Start(net, images, ridge, batch_size)
    for name in net.norms:  # the norms' bias, one everywhere, is a constant that U can read: an affine fit
        net.body.get_parameter(name).fill_(1.0)
    for layer in tqdm(net.graph.layers, desc="subspaces", disable=hidden_bar(progress)):
        unmerges = None if layer.reads is None else [start.unmerge(i, layer.name) for i in range(start.k)]
        net.replace(layer, [start.merge(i, layer) for i in range(start.k)], unmerges)
        start.merged.load_state_dict(net.folded())
    net.set_outputs([start.unmerge(i, None) for i in range(start.k)])
    net.provenance = [{"init": "subspaces", "ridge": ridge, "seed": net.seed, "images": images.hash()}]
    return net


def _check_shares(net: SuperNet) -> None:
    """Refuse what cannot be shared out."""
    for vector in net.graph.norms:
        if vector.role != "norm" or net.graph.spaces[vector.space].kind != "residual":
            raise ValueError(f"{vector.name.rpartition('.')[0]} is a norm that mixes the channels of different "
                             "originals, which subspaces keep apart; start with init='first'")
    for name, space in net.graph.spaces.items():
        if space.kind == "heads" and space.heads < len(net.originals):
            raise ValueError(f"subspaces give every original heads of its own, but {len(net.originals)} originals "
                             f"meet {space.heads} heads; start with init='first'")
        for i, graph in enumerate(net.graphs, 1):
            if space.kind == "heads" and graph.spaces[name].unit > space.unit:
                raise ValueError(f"original {i} has heads of size {graph.spaces[name].unit}, the merged model of size "
                                 f"{space.unit}; subspaces need heads at least as large: start with init='first'")


class _Start:
    """The fit of one SuperNet, layer by layer."""

    def __init__(self, net: SuperNet, images: Calibration, ridge: float, batch_size: int):
        self.net, self.images, self.ridge, self.batch_size = net, images, ridge, batch_size
        self.like, self.k = next(net.parameters()), len(net.originals)
        self.merged = build(net.config).to(self.like)  # layers still to come do not matter to those before
        self.merged.load_state_dict(net.folded())
        self.stream = self._stream() if net.graph.residual else None

    def _reads(self, model: nn.Module, name: str | None, x: Tensor) -> Tensor:
        """What a layer of a model reads, or the model's features where `name` is None: rows (n, d)."""
        return reads(model, name, to_device(x, self.like)).flatten(0, -2).double()  # for sums of many squares

    def moment(self, i: int, name: str | None, norm: bool = False) -> Tensor:
        """E x x^T of what original i's module reads on its own task; with `norm`, of x / its size, less its mean."""
        total, rows = 0, 0
        for x in self.images.of(i).split(self.batch_size):
            read = self._reads(self.net.backbones[i], name, x)
            if norm:
                read = nn.functional.layer_norm(read, read.shape[-1:])
            total, rows = total + read.T @ read, rows + len(read)
        return total / rows

    def unmerge(self, i: int, name: str | None) -> Tensor:
        """U0_i (d_i, d*): least squares from what the merged layer reads to what original i's reads."""
        gram, cross, rows = 0, 0, 0
        for x in self.images.of(i).split(self.batch_size):
            merged, own = self._reads(self.merged, name, x), self._reads(self.net.backbones[i], name, x)
            gram, cross, rows = gram + merged.T @ merged, cross + merged.T @ own, rows + len(merged)
        gram = gram / rows
        gram.diagonal().add_(self.ridge * gram.diagonal().mean())
        return torch.linalg.solve(gram, cross / rows).T.to(self.like)

    def _shares(self, size: int) -> list[Tensor]:
        """Who gets which of `size` places, at least one each: a merge of two counts twice."""
        ends = torch.tensor([len(original.heads) for original in self.net.originals]).cumsum(0)
        ends, i = (size * ends / ends[-1]).round().long(), torch.arange(self.k)
        return list(torch.arange(size).tensor_split(ends.clamp(i + 1, size - self.k + i + 1)[:-1]))

    def _stream(self) -> list[Tensor]:
        """M0_i (d*, d_i) of everything that writes to the residual stream: principal directions into own directions.

        The directions are at right angles to (1, ..., 1), so that the merged LayerNorm's mean takes nothing away.
        """
        d = self.net.graph.residual.size
        ones = torch.ones(d, 1, dtype=torch.float64)
        noise = torch.randn(d, d - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        directions = torch.linalg.qr(torch.cat([ones, noise], 1)).Q[:, 1:].to(self.like.device)  # (d*, d* - 1)
        norms, merges = dict.fromkeys(name.rpartition(".")[0] for name in self.net.norms), []
        for i, share in enumerate(self._shares(d - 1)):
            moments = sum(self.moment(i, norm, norm=True) for norm in norms)
            principal = torch.linalg.eigh(moments).eigenvectors.flip(1).T[:len(share)]  # (share, d_i)
            principal = principal - principal.mean(1, keepdim=True)
            merges.append((directions[:, share[:len(principal)]] @ principal).to(self.like))
        return merges

    def _what_counts(self, i: int, space: str) -> tuple[Tensor, Tensor]:
        """What original i's next layer makes of a space: its weight (o, d), and the moment (d, d) of what it reads."""
        reader = next((layer for layer in self.net.graph.layers if layer.reads == space), None)
        moment = self.moment(i, reader and reader.name).cpu()
        weight = reader and self.net.backbones[i].get_submodule(reader.name).weight
        return torch.eye(len(moment)).double() if reader is None else weight.double().cpu(), moment

    def _units(self, i: int, own: Space, merged: Space) -> Tensor:
        """M0_i (d*, d_i): of original i's units, those from which the next layer's outcome is best rebuilt.

        A QR decomposition with pivoting picks them: at each step the unit with the most that the ones before
        it do not tell, weighed by the weights that read it.
        """
        from scipy.linalg import qr  # takes a while to import
        weight, moment = self._what_counts(i, own.name)
        values, vectors = torch.linalg.eigh(moment)
        root = values.clamp(min=0).sqrt()[:, None] * vectors.T * weight.norm(dim=0)  # root^T root: weighed moment
        share = self._shares(merged.size)[i]
        best = torch.from_numpy(qr(root.numpy(), mode="r", pivoting=True)[1].copy())[:len(share)]
        return self._select(merged, own, share[:len(best)], best.sort().values)

    def _heads(self, i: int, own: Space, merged: Space) -> Tensor:
        """M0_i (d*, d_i): original i's heads that tell the most of all its heads, in the merged model's heads."""
        weight, moment = self._what_counts(i, own.name)
        share = self._shares(merged.heads)[i]
        best = _best_groups(moment, weight, own.unit, len(share))
        unit = torch.arange(own.unit)
        rows, columns = (share[:len(best), None] * merged.unit + unit, best[:, None] * own.unit + unit)
        return self._select(merged, own, rows.flatten(), columns.flatten())

    def _select(self, merged: Space, own: Space, rows: Tensor, columns: Tensor) -> Tensor:
        """M0_i (d*, d_i) with ones at (rows[j], columns[j])."""
        matrix = torch.zeros(merged.size, own.size)
        matrix[rows, columns] = 1.0
        return matrix.to(self.like)

    def merge(self, i: int, layer: Layer) -> Tensor:
        """M0_i of a layer: all that one layer or one attention writes goes by the last space that it writes."""
        own, merged = self.net.graphs[i].spaces[layer.writes[-1]], self.net.graph.spaces[layer.writes[-1]]
        if merged.kind == "residual":
            return self.stream[i]
        if merged.kind == "hidden":
            return self._units(i, own, merged)
        heads = self._heads(i, own, merged)
        ratio = merged.unit / own.unit  # larger heads need larger q and k, see `Space`
        return torch.stack([ratio ** self.net.graph.spaces[space].growth * heads for space in layer.writes])


def _best_groups(moment: Tensor, weight: Tensor, size: int, count: int) -> Tensor:
    """The `count` groups of `size` neighbouring channels from which weight @ x is best rebuilt, greedily."""
    def unexplained(groups: list[int]) -> float:
        """E || W x - its least-squares fit from the groups ||^2. On the CPU, whose `lstsq` takes any rank."""
        at = torch.cat([torch.arange(g * size, (g + 1) * size) for g in groups])
        known = torch.linalg.lstsq(moment[at][:, at], moment[at]).solution
        return torch.trace(weight @ (moment - moment[:, at] @ known) @ weight.T).item()
    chosen, groups = [], set(range(len(moment) // size))
    for _ in range(min(count, len(groups))):
        chosen.append(min(sorted(groups.difference(chosen)), key=lambda g: unexplained([*chosen, g])))
    return torch.tensor(sorted(chosen))
