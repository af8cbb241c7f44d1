"""The learned matrices: Merge M and Unmerge U, in parts D + A B that are never made dense."""
import torch
from torch import Tensor, nn

from .engine import given

STRUCTURES = ("diagonal", "low_rank", "diagonal_low_rank", "full")
INITS = ("first", "average", "random", "paper_first", "paper_average")


class Structured(nn.Module):
    """A learned matrix S (out, in) = D + A B, kept in parts.

    `diagonal` is D alone, `low_rank` A B alone, `diagonal_low_rank` both, `full` a dense matrix. D has its entries
    where the identity between the two widths has its ones: at (j, j), or at (rows[j], cols[j]). With `blocks` > 1 it is
    block-diagonal, one S a block (Merge after qkv: M_q, M_k, M_v; paper, appendix B).

    Args:
        out_features, in_features: rows and columns of a block, >= 1.
        structure: one of `STRUCTURES`; another one raises ValueError.
        rank: r of A (out, r) and B (r, in), 1 <= r <= min(out, in), or ValueError; ignored by diagonal and full.
        blocks: how many blocks, >= 1.
        ones: indices (rows, cols), each (n,): where the identity has its ones, the same in every block.
    """

    def __init__(self, out_features: int, in_features: int, structure: str = "diagonal_low_rank",
                 rank: int = 12, blocks: int = 1, ones: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        given.choice(STRUCTURES, structure=structure)
        width, low_rank = min(out_features, in_features), "low_rank" in structure
        given.whole(1, width, rank=rank if low_rank else 1)
        self.out_features, self.in_features, self.blocks = out_features, in_features, blocks
        self.structure, self.rank = structure, rank if low_rank else None
        n = torch.arange(width)
        rows, cols = ones or (n, n)
        if out_features == in_features and torch.equal(rows, n) and torch.equal(cols, n):
            rows = cols = None  # D needs no index
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("cols", cols, persistent=False)
        index = None if rows is None else (tuple(rows.tolist()), tuple(cols.tolist()))
        self.kind = out_features, in_features, blocks, structure, self.rank, index  # must be equal to stack two

        def part(there: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(blocks, *shape)) if there else None
        self.D = part("diagonal" in structure, width if rows is None else len(rows))
        self.A, self.B = part(low_rank, out_features, rank), part(low_rank, rank, in_features)
        self.S = part(structure == "full", out_features, in_features)

    @torch.no_grad()
    def set_identity(self, scale: float = 1.0, generator: torch.Generator | None = None, paper: bool = False) -> None:
        """S = scale * I. A low rank alone holds the first r ones of I.

        A is zero, B normal of std d^-1/2, d = in_features. In the `paper`, B is zero, A of std 0.1 / (r d^1/2).
        """
        rows, cols = (torch.arange(self.out_features),) * 2 if self.rows is None else (self.rows, self.cols)
        if self.D is not None:
            self.D.fill_(scale)
        if self.S is not None:
            self.S.zero_()[:, rows, cols] = scale
        if self.A is not None:
            zero, normal, std = (self.B, self.A, 0.1 / self.rank) if paper else (self.A, self.B, 1.0)
            zero.zero_()
            normal.normal_(std=std * self.in_features ** -0.5, generator=generator)
        if self.structure == "low_rank" and scale:
            ranks = torch.arange(min(self.rank, len(rows)))  # each of the first ones in a rank of its own
            self.A[:, rows[ranks], ranks] = scale
            self.B[:, ranks] = 0
            self.B[:, ranks, cols[ranks]] = 1

    @torch.no_grad()
    def set_random(self, scale: float = 1.0, generator: torch.Generator | None = None) -> None:
        """Independent normal entries, sized so that S x is about as large as scale * x."""
        if self.S is not None:
            self.S.normal_(std=scale * self.in_features ** -0.5, generator=generator)
        if self.D is not None:
            self.D.normal_(std=scale, generator=generator)
        if self.A is not None:
            self.A.normal_(std=scale * self.rank ** -0.5, generator=generator)
            self.B.normal_(std=self.in_features ** -0.5, generator=generator)

    def left(self, weight: Tensor) -> Tensor:
        """S W for a weight (..., blocks * in, n): what Merge does to a layer's output side. (..., blocks * out, n)."""
        return self(weight.mT).mT

    def right(self, weight: Tensor) -> Tensor:
        """W S for a weight (..., n, out), one block: what Unmerge does to a layer's input side. Gives (..., n, in)."""
        if self.S is not None:
            return weight @ self.S.squeeze(-3)
        folded = 0 if self.A is None else (weight @ self.A.squeeze(-3)) @ self.B.squeeze(-3)
        return folded if self.D is None else folded + self.scaled(weight)

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
        y = 0 if self.A is None else x @ self.B.mT @ self.A.mT
        if self.D is None:
            return y
        return y + put(take(x, -1, self.cols) * self.D[..., None, :], -1, self.rows, self.out_features)

    def dense(self) -> Tensor:
        """S as one matrix (blocks * out, blocks * in): to look at, and for the output matrices of a fold."""
        like = next(self.parameters())
        return self.left(torch.eye(self.blocks * self.in_features, device=like.device, dtype=like.dtype))

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.rank else ""
        blocks = f", blocks={self.blocks}" if self.blocks > 1 else ""
        return f"{self.out_features}, {self.in_features}, {self.structure}{rank}{blocks}"


def take(x: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """The channels that D reads; None: all, as they are."""
    return x if index is None else x.index_select(dim, index)


def put(x: Tensor, dim: int, index: Tensor | None, size: int) -> Tensor:
    """What D computes, at its channels among `size`, zeros elsewhere; None: it is all there is."""
    if index is None:
        return x
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape).index_copy(dim, index, x)


class Merge(Structured):
    """M_i (o*, o_i): takes what original i's layer computes into the merged model's features."""

    def init(self, name: str, i: int, k: int, generator: torch.Generator | None = None) -> None:
        """Start as original i of k (from 0): `first` I or 0, `average` I / k, `identity` I, `random` of size k^-1/2."""
        scale = {"first": float(i == 0), "average": 1 / k, "random": k ** -0.5, "identity": 1.0}[name.split("_")[-1]]
        self.set_random(scale, generator) if name == "random" else self.set_identity(scale, generator, "paper" in name)


class Unmerge(Structured):
    """U_i (d_i, d*): takes the merged model's features back to what original i's layer reads."""

    def init(self, name: str, i: int, k: int, generator: torch.Generator | None = None) -> None:
        """Start as original i of k: `random` of size 1, everything else I."""
        self.set_random(1.0, generator) if name == "random" else self.set_identity(1.0, generator, "paper" in name)


def scaled_rank(rank: int, size: int, dim: int) -> int:
    """The rank for a matrix on `size` features where the stream has `dim`: r * size / dim, as inside the MLP."""
    return int(rank * size / dim)
