"""The fold of frozen layers between M and U, from the parts of M and U and never dense.

With M = D + A B, U = E + F G and a frozen W, one original adds to a layer (paper, section 2)

    M W U = (M W F) G + A (B W E) + D W E,          and M b to the bias

The products of low rank of all originals stand side by side in one product of two thin matrices.
"""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .matrices import Structured, put, take


class Parts(NamedTuple):
    """M W U = tall^T wide + D W E, and M b: what one original adds to a layer, or several of them together."""

    tall: Tensor | None   # (blocks, r, o*), transposed, as wide rows are faster
    wide: Tensor | None   # (blocks, r, d*)
    scaled: list[Tensor]  # W (o*, d*), D (o*,), E (d*,), and on with the next original's
    bias: Tensor | None   # (o*,)


class Term(nn.Module):
    """What one original adds, from the parts of its M and U.

    Nothing of the size of W is made, and what is frozen is only read. F^T W^T and b^T are a few rows of features
    that M takes along. All tensors may have further dimensions in front: layers and originals that are stacked.
    """

    def __init__(self, merge: Structured, unmerge: Structured):
        super().__init__()
        self.merge, self.unmerge = merge, unmerge

    def forward(self, weight: Tensor, bias: Tensor | None) -> Parts:
        merge, unmerge, rank, tall, wide = self.merge, self.unmerge, self.unmerge.rank or 0, [], []
        rows = [unmerge.A.squeeze(-3).mT @ weight.mT] if rank else []  # (r, blocks * o)
        rows += [] if bias is None else [bias[..., None, :]]
        if rows:
            rows = torch.cat(rows, -2).unflatten(-1, (merge.blocks, -1)).movedim(-2, -3)  # (blocks, r + 1, o)
            read, made = merge.blockwise(rows).split([rank, rows.shape[-2] - rank], -2)
            bias = None if bias is None else made.flatten(-3)
        if rank:
            tall.append(read)
            wide.append(unmerge.B.expand(*read.shape[:-2], -1, -1))
        if merge.A is not None and unmerge.D is not None:
            tall.append(merge.A.mT)
            read = (merge.B @ weight.unflatten(-2, (merge.blocks, -1))).flatten(-3, -2)  # (blocks * r, d)
            wide.append(unmerge.scaled(read).unflatten(-2, (merge.blocks, -1)))
        return Parts(_joined(tall), _joined(wide), [] if merge.D is None else self._placed(weight), bias)

    def _placed(self, weight: Tensor) -> list[Tensor]:
        """W (o*, d*) and the diagonals D (o*,) and E (d*,) around it, moved to the merged model's channels."""
        merge, unmerge = self.merge, self.unmerge
        weight = put(take(weight, -1, unmerge.rows), -1, unmerge.cols, unmerge.in_features)
        weight = weight.unflatten(-2, (merge.blocks, merge.in_features))
        weight = put(take(weight, -2, merge.cols), -2, merge.rows, merge.out_features).flatten(-3, -2)
        return [weight, put(merge.D, -1, merge.rows, merge.out_features).flatten(-2),
                put(unmerge.D.squeeze(-2), -1, unmerge.cols, unmerge.in_features)]


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """Side by side in the rank."""
    return torch.cat(parts, -2) if len(parts) > 1 else parts[0] if parts else None


def total(terms: Sequence[Parts]) -> tuple[Tensor, Tensor | None]:
    """W* and b* of the originals: their products of low rank stand side by side in one product."""
    tall, wide = (_joined([part for part in parts if part is not None])
                  for parts in zip(*((term.tall, term.wide) for term in terms)))
    product = None if tall is None else (tall.mT @ wide).flatten(-3, -2)
    scaled = [part for term in terms for part in term.scaled]
    weight = AddScaled.apply(product, *scaled) if scaled else product
    return weight, None if terms[0].bias is None else sum(term.bias for term in terms)


class AddScaled(torch.autograd.Function):
    """P + sum_i D_i W_i E_i for frozen W_i and diagonals D_i, E_i, as (P, W_1, D_1, E_1, W_2, ...).

    Autograd on its own would keep D_i W_i and make a gradient of W's size for each step of the product.
    """

    @staticmethod
    def forward(ctx, product: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        total, scaled = None, None  # W E of every original in the same place: one temporary, not k
        for weight, left, right in zip(parts[::3], parts[1::3], parts[2::3]):
            scaled, left = torch.mul(weight, right[..., None, :], out=scaled), left[..., None]
            if total is None:
                total = scaled * left if product is None else torch.addcmul(product, scaled, left)
            else:
                total.addcmul_(scaled, left)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, grads, both = ctx.saved_tensors, [], None
        for weight, left, right in zip(parts[::3], parts[1::3], parts[2::3]):
            both = torch.mul(grad, weight, out=both)
            by_left = both @ right if both.dim() == 2 else torch.linalg.vecdot(both, right[..., None, :])  # faster so
            grads += [None, by_left, (left[..., None, :] @ both).squeeze(-2)]
        return grad if ctx.needs_input_grad[0] else None, *grads


# ---------------------------------------------------------------- several layers at once

class Stack:
    """`SuperLinear`s alike in all but their numbers, folded together: a few large products, not many small ones.

    Their frozen weights move into one tensor for all, of which each layer's own is a view from then on.
    Originals of one kind are stacked too. Not for `full` matrices.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        alike: dict[tuple, list[int]] = {}
        for i, pair in enumerate(zip(layers[0].merges, layers[0].unmerges)):
            alike.setdefault(tuple(matrix.kind for matrix in pair), []).append(i)
        self.piles = [_Pile(layers, same) for same in alike.values()]

    def fold(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`SuperLinear.fold` of every layer."""
        weights, biases = total([pile.parts() for pile in self.piles])
        return zip(weights, [None] * len(weights) if biases is None else biases)

    def holds(self) -> bool:
        """Whether the layers still have the frozen weights that were stacked: not so after a move to a GPU, say."""
        return all(pile.holds() for pile in self.piles)


class _Pile:
    """The originals of one kind in a `Stack`: all tensors (layers, originals, ...)."""

    def __init__(self, layers: Sequence[nn.Module], same: Sequence[int]):
        self.shape, self.pairs = (len(layers), len(same)), [(layer, i) for layer in layers for i in same]
        self.matrices = [(layer.merges[i], layer.unmerges[i]) for layer, i in self.pairs]
        self.term = Term(*self.matrices[0])
        self.learned = [name.split(".") for name, _ in self.term.named_parameters()]  # ("merge", "D"), ...
        self.weight, self.bias = self._move("weight"), self._move("bias")
        self.views = self._frozen("weight") + self._frozen("bias")

    def _frozen(self, name: str) -> list[Tensor | None]:
        return [getattr(layer, f"{name}{i}") for layer, i in self.pairs]

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(tensors).unflatten(0, self.shape)

    @torch.inference_mode(False)  # training goes on with them
    def _move(self, name: str) -> Tensor | None:
        own = self._frozen(name)
        if own[0] is None:
            return None
        stacked = self._stack(own)
        for (layer, i), view in zip(self.pairs, stacked.flatten(0, 1)):
            setattr(layer, f"{name}{i}", view)
        return stacked

    def holds(self) -> bool:
        return all(a is b for a, b in zip(self.views, self._frozen("weight") + self._frozen("bias")))

    def parts(self) -> Parts:
        """What these originals add to these layers: tensors (layers, ...)."""
        state = {f"{kind}.{part}": self._stack([getattr(pair[kind == "unmerge"], part) for pair in self.matrices])
                 for kind, part in self.learned}
        tall, wide, scaled, bias = functional_call(self.term, state, (self.weight, self.bias))
        tall, wide = (None if part is None else part.movedim(1, 2).flatten(2, 3) for part in (tall, wide))
        scaled = [part for one in zip(*(part.unbind(1) for part in scaled)) for part in one]
        return Parts(tall, wide, scaled, None if bias is None else bias.sum(1))
