"""The algebra of Merge and Unmerge, and the layers that hold k originals between them.

Column convention of `nn.Linear.weight`, (out, in). For original i of k, with frozen W_i (o_i, d_i) and
b_i (o_i,), a SuperNet layer of sizes (o*, d*) is (paper, section 2)

    y* = sum_i M_i (W_i U_i x* + b_i),          M_i (o*, o_i),  U_i (d_i, d*)

and the same function is one plain layer, W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i.
"""
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

STRUCTURES = ("diagonal", "low_rank", "diagonal_low_rank", "full")
INITS = ("first", "average", "random")


class Place(NamedTuple):
    """The identity I between two widths: I[rows[j], cols[j]] = scale, and I (1 - 11^T / in) where it is `centred`.

    Args:
        rows, cols: indices (n,), n <= min(out, in): which channel stands for which.
        scale: one factor, or one for each block.
        centred: whether the mean over the channels that come in is taken away first.
    """

    rows: Tensor
    cols: Tensor
    scale: tuple[float, ...] = (1.0,)
    centred: bool = False


class Structured(nn.Module):
    """A learned matrix S (out, in) = D + A B, kept in parts and never made dense on its way.

    `diagonal` is D alone, `low_rank` A B alone, `diagonal_low_rank` both, `full` a dense matrix. D stands
    where the ones of the identity between the two widths stand: at (j, j), or as `place` says. With `blocks` > 1
    it is block-diagonal, one S a block (Merge after qkv: M_q, M_k, M_v; paper, appendix B).

    Args:
        out_features: rows of a block, >= 1.
        in_features: columns of a block, >= 1.
        structure: one of `STRUCTURES`.
        rank: r of A (out, r) and B (r, in), 1 <= r <= min(out, in); ignored by diagonal and full.
        blocks: how many blocks, >= 1.
        place: the identity between the two widths, the same in every block; None: ones at (j, j).

    Raises:
        ValueError: an unknown structure, or a rank outside its range.
    """

    def __init__(self, out_features: int, in_features: int, structure: str = "diagonal_low_rank",
                 rank: int = 12, blocks: int = 1, place: Place | None = None):
        super().__init__()
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, got {structure!r}")
        width = min(out_features, in_features)
        low_rank = "low_rank" in structure
        if low_rank and not 1 <= rank <= width:
            raise ValueError(f"rank must lie between 1 and the width {width}, got {rank}")
        self.out_features, self.in_features, self.blocks = out_features, in_features, blocks
        self.structure, self.rank = structure, rank if low_rank else None
        n = torch.arange(width)
        rows, cols, self.scale, self.centred = place or Place(n, n)
        square = out_features == in_features and torch.equal(rows, n) and torch.equal(cols, n)
        self.register_buffer("rows", None if square else rows, persistent=False)  # None: D needs no index
        self.register_buffer("cols", None if square else cols, persistent=False)

        def part(here: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(blocks, *shape)) if here else None
        self.D = part("diagonal" in structure, len(rows))
        self.A = part(low_rank, out_features, rank)
        self.B = part(low_rank, rank, in_features)
        self.S = part(structure == "full", out_features, in_features)

    @torch.no_grad()
    def set_identity(self, scale: float = 1.0) -> None:
        """S = scale * I, with I as in `place`; a low rank alone holds its first r ones, a diagonal all but the mean."""
        like = next(self.parameters())
        n = torch.arange(min(self.out_features, self.in_features), device=like.device)
        rows, cols = (n, n) if self.rows is None else (self.rows, self.cols)
        ones = scale * like.new_tensor(self.scale)[:, None].expand(self.blocks, len(rows))
        if self.D is not None:
            self.D.copy_(ones)
        if self.S is not None:
            self.S.zero_()[:, rows, cols] = ones
            if self.centred:
                self.S -= self.S.mean(-1, keepdim=True)
        if self.A is not None:
            self._quiet_low_rank()
            if self.D is None:
                self._hold(ones[:, :self.rank], rows[:self.rank], cols[:self.rank])
            elif self.centred:  # - I 11^T / in has rank one
                self.A[:, rows, 0] = -ones * self.in_features ** -0.5
                self.B[:, 0] = self.in_features ** -0.5

    def _hold(self, ones: Tensor, rows: Tensor, cols: Tensor) -> None:
        """A B = these ones of the identity, each in a rank of its own."""
        ranks = torch.arange(len(rows), device=ones.device)
        self.A[:, rows, ranks] = ones
        self.B[:, ranks] = 0
        self.B[:, ranks, cols] = 1
        if self.centred:
            self.B -= self.B.mean(-1, keepdim=True)

    @torch.no_grad()
    def set_zero(self) -> None:
        """S = 0, with a gradient to leave it by."""
        for part in (self.S, self.D):
            if part is not None:
                part.zero_()
        if self.A is not None:
            self._quiet_low_rank()

    def _quiet_low_rank(self) -> None:
        """A = 0 and B random: A B = 0, but A has a gradient."""
        self.A.zero_()
        self.B.normal_(std=self.in_features ** -0.5)

    @torch.no_grad()
    def set_random(self, scale: float = 1.0) -> None:
        """Independent normal entries, sized so that S x is about as large as scale * x."""
        if self.S is not None:
            self.S.normal_(std=scale * self.in_features ** -0.5)
        if self.D is not None:
            self.D.normal_(std=scale)
        if self.A is not None:
            self.A.normal_(std=scale * self.rank ** -0.5)
            self.B.normal_(std=self.in_features ** -0.5)

    def left(self, weight: Tensor) -> Tensor:
        """S W for a weight (..., blocks * in, n): what Merge does to a layer's output side. (..., blocks * out, n)."""
        weight = weight.unflatten(-2, (self.blocks, self.in_features))
        if self.S is not None:
            return (self.S @ weight).flatten(-3, -2)
        folded = 0
        if self.A is not None:
            folded = self.A @ (self.B @ weight)
        if self.D is not None:
            folded = folded + _put(self.D[..., None] * _take(weight, -2, self.cols), -2, self.rows, self.out_features)
        return folded.flatten(-3, -2)

    def right(self, weight: Tensor) -> Tensor:
        """W S for a weight (..., n, out), one block: what Unmerge does to a layer's input side. Gives (..., n, in)."""
        if self.S is not None:
            return weight @ self.S.squeeze(-3)
        folded = 0
        if self.A is not None:
            folded = (weight @ self.A.squeeze(-3)) @ self.B.squeeze(-3)
        if self.D is not None:
            folded = folded + self.scaled(weight)
        return folded

    def scaled(self, weight: Tensor) -> Tensor:
        """W D for a weight (..., n, out), one block. Gives (..., n, in)."""
        return _put(_take(weight, -1, self.rows) * self.D, -1, self.cols, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """S x for features (..., blocks * in). Gives (..., blocks * out)."""
        if self.blocks == 1:  # features as rows: (S x)^T = x^T S^T
            return self._transposed(x, 0)
        return torch.cat([self._transposed(part, b) for b, part in enumerate(x.chunk(self.blocks, -1))], -1)

    def _transposed(self, x: Tensor, block: int) -> Tensor:
        if self.S is not None:
            return F.linear(x, self.S[block])
        y = 0
        if self.A is not None:
            y = F.linear(F.linear(x, self.B[block]), self.A[block])
        if self.D is not None:
            y = y + _put(_take(x, -1, self.cols) * self.D[block], -1, self.rows, self.out_features)
        return y

    def dense(self) -> Tensor:
        """S as one matrix (blocks * out, blocks * in): to look at, and for the output matrices of a fold."""
        eye = torch.eye(self.blocks * self.in_features, device=self.device, dtype=self.dtype)
        return self.left(eye)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.rank else ""
        blocks = f", blocks={self.blocks}" if self.blocks > 1 else ""
        return f"{self.out_features}, {self.in_features}, {self.structure}{rank}{blocks}"


def _take(x: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """The channels that D reads; None: all, as they are."""
    return x if index is None else x.index_select(dim, index)


def _put(x: Tensor, dim: int, index: Tensor | None, size: int) -> Tensor:
    """What D made, put in its channels among `size`, zeros elsewhere; None: it is all there is."""
    if index is None:
        return x
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape).index_copy(dim, index, x)


class Merge(Structured):
    """M_i (o*, o_i): takes what original i's layer put out into the merged model's features."""

    def init(self, how: str, i: int, k: int) -> None:
        """`first`: I for i = 0, else 0. `average`: I / k. `random`: normal, of size 1 / sqrt(k). `identity`: I."""
        if how == "identity":
            self.set_identity()
        elif how == "average":
            self.set_identity(1 / k)
        elif how == "random":
            self.set_random(k ** -0.5)
        else:
            self.set_identity() if i == 0 else self.set_zero()


class Unmerge(Structured):
    """U_i (d_i, d*): takes the merged model's features back to what original i's layer reads."""

    def init(self, how: str, i: int, k: int) -> None:
        """`first`, `average` and `identity`: I. `random`: normal, of size 1."""
        self.set_random() if how == "random" else self.set_identity()


class SuperLinear(nn.Module):
    """k frozen linear layers between Unmerge and Merge: y* = sum_i M_i (W_i U_i x* + b_i).

    Args:
        layers: the k originals' `nn.Linear`; their weights are used, frozen, not copied.
        merges: k Merge, M_i (o*, o_i).
        unmerges: k Unmerge, U_i (d_i, d*), or None for a layer that reads the input itself.
    """

    def __init__(self, layers: Sequence[nn.Module], merges: nn.ModuleList, unmerges: nn.ModuleList | None = None):
        super().__init__()
        self.merges, self.unmerges, self.k = merges, unmerges, len(layers)
        for i, layer in enumerate(layers):
            self.register_buffer(f"weight{i}", layer.weight.detach(), persistent=False)
            bias = None if layer.bias is None else layer.bias.detach()
            self.register_buffer(f"bias{i}", bias, persistent=False)

    def frozen(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The originals' (W_i, b_i)."""
        return ((getattr(self, f"weight{i}"), getattr(self, f"bias{i}")) for i in range(self.k))

    def unmerged(self, x: Tensor) -> list[Tensor]:
        """U_i x* for every i: what each frozen layer reads."""
        return [x] * self.k if self.unmerges is None else [unmerge(x) for unmerge in self.unmerges]

    def set_readouts(self, readouts: Sequence[Tensor] | None) -> None:
        """Note the U0_i (d_i, d*) that the frozen weights hold already, so that `reads` can tell."""
        for i, readout in enumerate(readouts or ()):
            self.register_buffer(f"readout{i}", readout, persistent=False)

    def reads(self, x: Tensor) -> list[Tensor]:
        """What each original's own layer would read: U_i x*, or U0_i U_i x* where W_i stands for W_i U0_i."""
        own = (getattr(self, f"readout{i}", None) for i in range(self.k))
        return [u if readout is None else F.linear(u, readout) for u, readout in zip(self.unmerged(x), own)]

    def forward(self, x: Tensor) -> Tensor:
        """The layer run explicitly, as the paper draws it. x (..., d*), gives (..., o*)."""
        return self.merged(self.unmerged(x))

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        """sum_i M_i (W_i u_i + b_i) for what the k frozen layers read, u_i (..., d_i). Gives (..., o*)."""
        return sum(merge(F.linear(u, weight, bias)) for u, (weight, bias), merge
                   in zip(inputs, self.frozen(), self.merges))

    def fold(self) -> tuple[Tensor, Tensor | None]:
        """W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i (paper, section 2), differentiable in M and U."""
        bias = None if self.bias0 is None else sum(
            merge.left(b[..., None]) for merge, (_, b) in zip(self.merges, self.frozen())).squeeze(-1)
        if self.unmerges is None:  # a patch embedding's weight is (o_i, C, P, P)
            rows = sum(merge.left(weight.flatten(1)) for merge, (weight, _) in zip(self.merges, self.frozen()))
            return rows.unflatten(1, self.weight0.shape[1:]), bias
        if self.merges[0].S is not None:
            return sum(merge.left(unmerge.right(weight)) for merge, unmerge, (weight, _)
                       in zip(self.merges, self.unmerges, self.frozen())), bias
        return self._fold_structured(), bias

    def _fold_structured(self) -> Tensor:
        """The same from the parts of M = D + A B and U = E + F G: sum of D W E + (M W F) G + A (B W E).

        The products of low rank stand side by side in one product of two thin matrices, so that nothing of the
        size of W is made but W* itself, and what is frozen is only read.
        """
        tall, wide, diagonal = [], [], []
        for (weight, _), merge, unmerge in zip(self.frozen(), self.merges, self.unmerges):
            blocks = (merge.blocks, -1)
            if unmerge.A is not None:
                tall.append(merge.left(weight @ unmerge.A.squeeze(-3)).unflatten(-2, blocks))  # (blocks, o, r)
                wide.append(unmerge.B.expand(*tall[-1].shape[:-2], -1, -1))                    # (blocks, r, d*)
            if merge.A is not None and unmerge.D is not None:
                read = (merge.B @ weight.unflatten(-2, blocks)).flatten(-3, -2)  # (blocks * r, d)
                tall.append(merge.A)
                wide.append(unmerge.scaled(read).unflatten(-2, blocks))
            if merge.D is not None:
                diagonal += _placed(weight, merge, unmerge)
        product = (torch.cat(tall, -1) @ torch.cat(wide, -2)).flatten(-3, -2) if tall else None
        return _AddScaled.apply(product, *diagonal) if diagonal else product


def fold_alike(layers: Sequence[SuperLinear]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`fold` of layers that are alike in everything but their numbers, stacked: a few large products for many small."""
    tensors = [dict(layer.named_parameters()) | {name: buffer for name, buffer in layer.named_buffers()
                                                 if name.startswith(("weight", "bias"))} for layer in layers]
    stacked = {f"layer.{name}": torch.stack([each[name] for each in tensors]) for name in tensors[0]}
    weights, biases = functional_call(_Folding(layers[0]), stacked, ())
    return zip(weights, [None] * len(layers) if biases is None else biases)


class _Folding(nn.Module):
    """A layer whose call is its fold, for `functional_call`."""

    def __init__(self, layer: SuperLinear):
        super().__init__()
        self.layer = layer

    def forward(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.fold()


def _placed(weight: Tensor, merge: Structured, unmerge: Structured) -> tuple[Tensor, Tensor, Tensor]:
    """W (o*, d*) and the diagonals D (o*,) and E (d*,) around it, moved to the merged model's channels."""
    weight = _put(_take(weight, -1, unmerge.rows), -1, unmerge.cols, unmerge.in_features)
    weight = weight.unflatten(-2, (merge.blocks, merge.in_features))
    weight = _put(_take(weight, -2, merge.cols), -2, merge.rows, merge.out_features).flatten(-3, -2)
    return (weight, _put(merge.D, -1, merge.rows, merge.out_features).flatten(-2),
            _put(unmerge.D.squeeze(-2), -1, unmerge.cols, unmerge.in_features))


class _AddScaled(torch.autograd.Function):
    """P + sum_i D_i W_i E_i for frozen W_i and diagonals D_i, E_i, as (P, W_1, D_1, E_1, W_2, ...).

    Autograd on its own would keep D_i W_i and make a gradient of W's size for each step of the product.
    """

    @staticmethod
    def forward(ctx, product: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        for weight, left, right in zip(parts[::3], parts[1::3], parts[2::3]):
            scaled, left = weight * right[..., None, :], left[..., None]
            product = scaled.mul_(left) if product is None else torch.addcmul(product, scaled, left)
        return product

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = []
        for weight, left, right in zip(ctx.saved_tensors[::3], ctx.saved_tensors[1::3], ctx.saved_tensors[2::3]):
            both = grad * weight
            grads += [None, (both @ right[..., None]).squeeze(-1), (left[..., None, :] @ both).squeeze(-2)]
        return grad if ctx.needs_input_grad[0] else None, *grads


class SuperConv2d(SuperLinear):
    """k frozen patch convolutions that read the picture itself, merged by channel; weights (o_i, C, P, P)."""

    def __init__(self, layers: Sequence[nn.Conv2d], merges: nn.ModuleList):
        super().__init__(layers, merges)
        first = layers[0]
        self.how = {"stride": first.stride, "padding": first.padding, "dilation": first.dilation}

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), gives (B, o*, H / P, W / P)."""
        return sum(merge(F.conv2d(x, weight, bias, **self.how).movedim(1, -1)).movedim(-1, 1)
                   for (weight, bias), merge in zip(self.frozen(), self.merges))


class SuperToken(nn.Module):
    """k frozen tensors of the residual stream (class token, positions): t* = sum_i M_i t_i, (..., d*)."""

    def __init__(self, tokens: Sequence[Tensor], merges: nn.ModuleList):
        super().__init__()
        self.merges = merges
        for i, token in enumerate(tokens):
            self.register_buffer(f"token{i}", token.detach(), persistent=False)

    def forward(self) -> Tensor:
        return sum(merge(getattr(self, f"token{i}")) for i, merge in enumerate(self.merges))


def scaled_rank(rank: int, size: int, dim: int) -> int:
    """The rank for a matrix on `size` features where the stream has `dim`: r * size / dim, as inside the MLP."""
    return math.floor(rank * size / dim)
