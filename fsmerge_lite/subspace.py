"""A start for M and U that needs no training: every original in its own share of the merged model.

The paper's `first` starts at model 1 and finds the others by gradient alone. Here each original gets a share of
everything the merged model has: of the directions of its residual stream, of its heads, of its hidden units. What
an original writes is brought into its share by M0_i (its principal directions, or its most useful heads and units),
and what it reads is rebuilt by least squares on the unlabeled images of its own task:

    U0_i = argmin over U of  E || U x* - x_i ||^2 + ridge ||U||^2

layer by layer in the order of the forward, x* being what the layers before it make. The frozen weights, seen from
the merged model, are then M0_i W_i U0_i. M and U are the identity on top of them, and train from there:
W* = sum_i M_i (M0_i W_i U0_i) U_i, still the paper's form. This start is ours, not the paper's.
"""
import copy

import torch
from scipy.linalg import qr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from .fitting import hidden_bar
from .supernet import SuperNet
from .tasks import Calibration
from .training import same_tasks
from .wiring import Wire, inputs_of


@torch.no_grad()
def fit_subspaces(net: SuperNet, images: Calibration, ridge: float = 1e-2, batch_size: int = 256,
                  progress: bool | None = None) -> SuperNet:
    """Start all M and U of a SuperNet from the features of a few unlabeled images, by least squares (see above).

    Args:
        net: a SuperNet, trained or not: what it had learned is replaced.
        images: from `calibration`, of the net's originals in their order.
        ridge: weight of the ridge, in units of the mean square of what is read, > 0.
        batch_size: images at a time.
        progress: show a bar; None shows it in a terminal or notebook.

    Returns:
        the net, on which `fold()` already gives a working model and `train_global` goes on.

    Raises:
        ValueError: images of another number of tasks, fewer heads than originals, or a variant of the ViT that
            mixes the shares: a norm on the stream itself (pre_norm), on q and k, or inside attention and MLP.
    """
    same_tasks(net.originals, images)
    _refuse(net.body, len(net.originals))
    start = _Start(net, images, ridge, batch_size)
    for name in net.kept:  # the norms' bias, one everywhere, is a constant that U can read: an affine fit
        net.body.get_parameter(name).fill_(1.0)
    for at, wire in enumerate(tqdm(net.wiring.wires, desc="subspaces", disable=hidden_bar(progress))):
        start.place(wire, net.wiring.wires[at + 1] if at + 1 < len(net.wiring.wires) else None)
    net.set_outputs([start.unmerge(i, None) for i in range(len(net.originals))])
    return net


def _refuse(body: nn.Module, k: int) -> None:
    if isinstance(body, VisionTransformer):
        attn, mlp = body.blocks[0].attn, body.blocks[0].mlp
        if attn.num_heads < k:
            raise ValueError(f"subspaces give every original heads of its own, but {k} originals meet "
                             f"{attn.num_heads} heads; start with init='first'")
        for what, norm in {"pre_norm": body.norm_pre, "qk_norm": attn.q_norm, "scale_attn_norm": attn.norm,
                           "scale_mlp_norm": mlp.norm}.items():
            if not isinstance(norm, nn.Identity):
                raise ValueError(f"subspaces cannot be kept apart in a ViT with {what}; start with init='first'")


class _Start:
    """The fit of one SuperNet, layer by layer."""

    def __init__(self, net: SuperNet, images: Calibration, ridge: float, batch_size: int):
        self.net, self.images, self.ridge, self.batch_size = net, images, ridge, batch_size
        self.like, self.k = next(net.parameters()), len(net.originals)
        self.backbones = [copy.deepcopy(backbone).to(self.like) for backbone in net.backbones]
        # The merged model's state as far as it is known; layers still to come do not matter to those before.
        self.state = net.folded()
        if isinstance(net.body, VisionTransformer):
            self.stream = self._stream()

    # ------------------------------------------------------------ what the originals and the merged model read

    def _reads(self, model: nn.Module, layer: str | None, x: Tensor, state: dict | None = None) -> Tensor:
        """What a layer of a model reads, or the model's features where `layer` is None: rows (n, d)."""
        def run() -> Tensor:
            return model(x) if state is None else functional_call(model, state, (x,))
        read = run() if layer is None else inputs_of(model, [layer], run, stop=True)[layer]
        return read.flatten(0, -2)

    def moment(self, i: int, layer: str | None, norm: bool = False) -> Tensor:
        """E x x^T of what original i's layer reads on its own task; with `norm`, of x / its size, less its mean."""
        total, rows = 0, 0
        for x in self.images.of(i).split(self.batch_size):
            read = self._reads(self.backbones[i], layer, x.to(self.like))
            if norm:
                read = nn.functional.layer_norm(read, read.shape[-1:])
            total, rows = total + (read.T @ read).double(), rows + len(read)
        return total / rows

    def unmerge(self, i: int, layer: str | None) -> Tensor:
        """U0_i (d_i, d*): least squares from what the merged layer reads to what original i's reads."""
        gram, cross, rows = 0, 0, 0
        for x in self.images.of(i).split(self.batch_size):
            x = x.to(self.like)
            merged = self._reads(self.net.plain, layer, x, self.state)
            own = self._reads(self.backbones[i], layer, x)
            gram, cross = gram + (merged.T @ merged).double(), cross + (merged.T @ own).double()
            rows += len(merged)
        gram = gram / rows
        gram.diagonal().add_(self.ridge * gram.diagonal().mean())
        return torch.linalg.solve(gram, cross / rows).T.to(self.like)

    # ------------------------------------------------------------ each original's share of what is written

    def _shares(self, size: int) -> list[Tensor]:
        """Who gets which of `size` places, at least one each: a merge of two counts twice."""
        ends = torch.tensor([len(original.heads) for original in self.net.originals]).cumsum(0)
        ends, i = (size * ends / ends[-1]).round().long(), torch.arange(self.k)
        return list(torch.arange(size).tensor_split(ends.clamp(i + 1, size - self.k + i + 1)[:-1]))

    def _stream(self) -> list[Tensor]:
        """M0_i (d*, d_i) of everything that writes to the residual stream: principal directions into own directions.

        The directions stand upright on (1, ..., 1), so that the merged LayerNorm's mean takes nothing away.
        """
        d = self.net.body.embed_dim
        ones = torch.ones(d, 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(d, d - 1, dtype=torch.float64, generator=generator)
        directions = torch.linalg.qr(torch.cat([ones, noise], 1)).Q[:, 1:].to(self.like.device)  # (d*, d* - 1)
        made = []
        for i, share in enumerate(self._shares(d - 1)):
            norms = [f"blocks.{b}.{name}" for b in range(len(self.net.body.blocks)) for name in ("norm1", "norm2")]
            moments = sum(self.moment(i, norm, norm=True) for norm in [*norms, "norm"])
            principal = torch.linalg.eigh(moments).eigenvectors.flip(1).T[:len(share)]  # (share, d_i)
            principal = principal - principal.mean(1, keepdim=True)
            made.append((directions[:, share[:len(principal)]] @ principal).to(self.like))
        return made

    def _units(self, i: int, size: int, reader: Wire | None) -> Tensor:
        """M0_i (size, size_i): of original i's units, those from which the next layer's outcome is best rebuilt.

        A QR decomposition with pivoting picks them: at each step the unit with the most that the ones before
        it do not tell, weighed by the weights that read it.
        """
        layer = reader.layer if reader else None
        values, vectors = torch.linalg.eigh(self.moment(i, layer))
        weight = self._weight(i, layer, len(values))
        root = values.clamp(min=0).sqrt()[:, None] * vectors.T * weight.norm(dim=0)  # root^T root: weighed moment
        share = self._shares(size)[i]
        best = qr(root.cpu().numpy(), mode="r", pivoting=True)[1][:len(share)].copy()
        return _select(size, len(values), share[:len(best)], torch.from_numpy(best).sort().values).to(self.like)

    def _weight(self, i: int, layer: str | None, size: int) -> Tensor:
        if layer is None:
            return torch.eye(size, dtype=torch.float64, device=self.like.device)
        return self.backbones[i].get_submodule(layer).weight.double()

    def _heads(self, i: int, block: nn.Module, reader: Wire) -> Tensor:
        """M0_q, M0_k, M0_v, each (d*, d_i), on each other: original i's heads that tell the most of all its heads."""
        attn = self.backbones[i].get_submodule(reader.layer.rpartition(".")[0])
        share, size, own = self._shares(block.num_heads)[i], block.head_dim, attn.head_dim
        weight, moment = self._weight(i, reader.layer, attn.num_heads * own), self.moment(i, reader.layer)
        best = _best_groups(moment, weight, own, len(share))
        if own > size:
            raise ValueError(f"original {i + 1} has heads of size {own}, the merged model of size {size}; "
                             "subspaces need heads at least as large: start with init='first'")
        rows = (share[:len(best), None] * size + torch.arange(own)).flatten()
        place = _select(size * block.num_heads, attn.num_heads * own, rows,
                        (best[:, None] * own + torch.arange(own)).flatten()).to(self.like)
        # timm scales by the head's size: q (s / s_i)^(1/2) gives the same attention
        return torch.stack([(size / own) ** 0.5 * place, place, place])

    # ------------------------------------------------------------ one layer

    def place(self, wire: Wire, reader: Wire | None) -> None:
        """Put M0_i W_i U0_i in the place of W_i, with M and U at the identity."""
        layer = self.net.body.get_submodule(wire.layer)
        size = self.state[f"{wire.layer}.weight"].shape[0]
        unmerges = None if layer.unmerges is None else [self.unmerge(i, wire.layer) for i in range(self.k)]
        if wire.writes == "stream":
            merges = self.stream
        elif wire.writes == "heads":
            block = self.net.body.get_submodule(wire.layer.rpartition(".")[0])
            merges = [self._heads(i, block, reader) for i in range(self.k)]
        else:
            merges = [self._units(i, size, reader) for i in range(self.k)]
        self.net.replace(wire, merges, unmerges)
        self.state = self.net.folded()


def _best_groups(moment: Tensor, weight: Tensor, size: int, count: int) -> Tensor:
    """The `count` groups of `size` neighbouring channels from which weight @ x is best rebuilt, greedily."""
    chosen: list[int] = []
    groups = range(len(moment) // size)
    for _ in range(min(count, len(groups))):
        errors = {g: _unexplained(moment, weight, size, [*chosen, g]) for g in groups if g not in chosen}
        chosen.append(min(errors, key=errors.get))
    return torch.tensor(sorted(chosen))


def _unexplained(moment: Tensor, weight: Tensor, size: int, groups: list[int]) -> float:
    """E || W x - its least-squares fit from the groups' channels ||^2."""
    at = torch.cat([torch.arange(g * size, (g + 1) * size) for g in groups]).to(moment.device)
    known = torch.linalg.lstsq(moment[at][:, at], moment[at]).solution
    return torch.trace(weight @ (moment - moment[:, at] @ known) @ weight.T).item()


def _select(out: int, in_: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Ones at (rows[j], columns[j]) of a matrix (out, in)."""
    made = torch.zeros(out, in_)
    made[rows, columns] = 1.0
    return made
