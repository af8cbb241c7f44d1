"""The learned matrices: Merge M and Unmerge U, in parts D + A B that are never made dense."""
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
        index = None if square else (tuple(rows.tolist()), tuple(cols.tolist()))
        self.kind = (out_features, in_features, blocks, structure, self.rank, index)  # alike: can be stacked
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
        return self(weight.mT).mT

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
        return put(take(weight, -1, self.rows) * self.D, -1, self.cols, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """S x for features (..., blocks * in). Gives (..., blocks * out)."""
        rows = x.reshape(-1, self.blocks, self.in_features).movedim(1, 0)  # (blocks, n, in)
        return self.blockwise(rows).movedim(0, 1).reshape(*x.shape[:-1], -1)

    def blockwise(self, x: Tensor) -> Tensor:
        """S x for features as rows (..., blocks, n, in): (S x)^T = x^T S^T. Gives (..., blocks, n, out)."""
        if self.S is not None:
            return x @ self.S.mT
        y = 0
        if self.A is not None:
            y = x @ self.B.mT @ self.A.mT
        if self.D is not None:
            y = y + put(take(x, -1, self.cols) * self.D[..., None, :], -1, self.rows, self.out_features)
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


def take(x: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """The channels that D reads; None: all, as they are."""
    return x if index is None else x.index_select(dim, index)


def put(x: Tensor, dim: int, index: Tensor | None, size: int) -> Tensor:
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


def scaled_rank(rank: int, size: int, dim: int) -> int:
    """The rank for a matrix on `size` features where the stream has `dim`: r * size / dim, as inside the MLP."""
    return math.floor(rank * size / dim)
