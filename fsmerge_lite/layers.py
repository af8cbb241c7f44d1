"""The layers that hold k originals between Merge and Unmerge, and what they fold to.

Column convention of `nn.Linear.weight`, (out, in). For original i of k, with frozen W_i (o_i, d_i) and
b_i (o_i,), a SuperNet layer of sizes (o*, d*) is (paper, section 2)

    y* = sum_i M_i (W_i U_i x* + b_i),          M_i (o*, o_i),  U_i (d_i, d*)

and the same function is one plain layer, W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .matrices import Structured, put, take


class SuperLinear(nn.Module):
    """k frozen linear layers between Unmerge and Merge: y* = sum_i M_i (W_i U_i x* + b_i).

    Args:
        layers: the k originals' `nn.Linear`; their weights are used, frozen, not copied.
        merges: k Merge, M_i (o*, o_i).
        unmerges: k Unmerge, U_i (d_i, d*), or None for a layer that reads the input itself.
    """

    # Gives W* and b* for the forward: `fold`, or what was folded already. None: run explicitly.
    as_one: Callable[[], tuple[Tensor, Tensor | None]] | None = None

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
        """The layer, explicitly as the paper draws it or as the one layer it folds to. x (..., d*), gives (..., o*)."""
        return F.linear(x, *self.as_one()) if self.as_one else self.merged(self.unmerged(x))

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        """sum_i M_i (W_i u_i + b_i) for what the k frozen layers read, u_i (..., d_i). Gives (..., o*)."""
        return sum(merge(F.linear(u, weight, bias)) for u, (weight, bias), merge
                   in zip(inputs, self.frozen(), self.merges))

    def fold(self) -> tuple[Tensor, Tensor | None]:
        """W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i (paper, section 2), differentiable in M and U."""
        if self.unmerges is not None and self.merges[0].S is None:
            return _sum([_Term(merge, unmerge)(weight, bias) for merge, unmerge, (weight, bias)
                         in zip(self.merges, self.unmerges, self.frozen())])
        reads = [nn.Identity()] * self.k if self.unmerges is None else [unmerge.right for unmerge in self.unmerges]
        weight = sum(merge.left(read(w.flatten(1))) for merge, read, (w, _) in zip(self.merges, reads, self.frozen()))
        bias = None if self.bias0 is None else sum(merge(b) for merge, (_, b) in zip(self.merges, self.frozen()))
        return weight.unflatten(1, self.weight0.shape[1:]) if self.unmerges is None else weight, bias


# ---------------------------------------------------------------- the fold, from the parts of M and U

class _Parts(NamedTuple):
    """M W U = tall^T wide + D W E, and M b: what one original adds to a layer, or several of them together."""

    tall: list[Tensor]   # (blocks, r, o*), transposed, as wide rows are faster
    wide: list[Tensor]   # (blocks, r, d*)
    scaled: list[Tensor]  # W (o*, d*), D (o*,), E (d*,), and on with the next original's
    bias: Tensor | None  # (o*,)


class _Term(nn.Module):
    """What one original adds, from M = D + A B and U = E + F G: M W U = (M W F) G + A (B W E) + D W E.

    Nothing of the size of W is made, and what is frozen is only read. F^T W^T and b^T are a few rows of features
    that M takes along. All tensors may have further dimensions in front: layers and originals that are stacked.
    """

    def __init__(self, merge: Structured, unmerge: Structured):
        super().__init__()
        self.merge, self.unmerge = merge, unmerge

    def forward(self, weight: Tensor, bias: Tensor | None) -> _Parts:
        merge, unmerge, tall, wide = self.merge, self.unmerge, [], []
        if bias is not None:
            bias = bias[..., None, :]
        if unmerge.A is not None:
            rows = unmerge.A.squeeze(-3).mT @ weight.mT  # (r, blocks * o)
            rows = merge(rows if bias is None else torch.cat([rows, bias], -2))
            tall.append(rows[..., :unmerge.rank, :].unflatten(-1, (merge.blocks, -1)).movedim(-2, -3))
            wide.append(unmerge.B.expand(*tall[0].shape[:-2], -1, -1))
        elif bias is not None:
            rows = merge(bias)
        if merge.A is not None and unmerge.D is not None:
            read = (merge.B @ weight.unflatten(-2, (merge.blocks, -1))).flatten(-3, -2)  # (blocks * r, d)
            tall.append(merge.A.mT)
            wide.append(unmerge.scaled(read).unflatten(-2, (merge.blocks, -1)))
        scaled = [] if merge.D is None else self._placed(weight)
        return _Parts(tall, wide, scaled, None if bias is None else rows[..., -1, :])

    def _placed(self, weight: Tensor) -> list[Tensor]:
        """W (o*, d*) and the diagonals D (o*,) and E (d*,) around it, moved to the merged model's channels."""
        merge, unmerge = self.merge, self.unmerge
        weight = put(take(weight, -1, unmerge.rows), -1, unmerge.cols, unmerge.in_features)
        weight = weight.unflatten(-2, (merge.blocks, merge.in_features))
        weight = put(take(weight, -2, merge.cols), -2, merge.rows, merge.out_features).flatten(-3, -2)
        return [weight, put(merge.D, -1, merge.rows, merge.out_features).flatten(-2),
                put(unmerge.D.squeeze(-2), -1, unmerge.cols, unmerge.in_features)]


def _sum(terms: Sequence[_Parts]) -> tuple[Tensor, Tensor | None]:
    """W* and b* of the originals: their products of low rank stand side by side in one product."""
    tall, wide, scaled = ([part for term in terms for part in term[n]] for n in range(3))
    product = (torch.cat(tall, -2).mT @ torch.cat(wide, -2)).flatten(-3, -2) if tall else None
    weight = _AddScaled.apply(product, *scaled) if scaled else product
    return weight, None if terms[0].bias is None else sum(term.bias for term in terms)


def fold_alike(layers: Sequence[SuperLinear]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`fold` of layers that are alike in all but their numbers: originals of one kind, and the layers, are stacked.

    A few large products in the place of many small ones. Not for `full` matrices.
    """
    alike: dict[tuple, list[int]] = {}
    for i, pair in enumerate(zip(layers[0].merges, layers[0].unmerges)):
        alike.setdefault(tuple(matrix.kind for matrix in pair), []).append(i)
    weights, biases = _sum([_stacked(layers, same) for same in alike.values()])
    return zip(weights, [None] * len(layers) if biases is None else biases)


def _stacked(layers: Sequence[SuperLinear], same: Sequence[int]) -> _Parts:
    """What these originals add to these layers, stacked: tensors (layers, ...)."""
    def stack(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).unflatten(0, (len(layers), len(same)))  # (layers, originals, ...)

    pairs = [(layer, i) for layer in layers for i in same]
    term = _Term(layers[0].merges[same[0]], layers[0].unmerges[same[0]])
    each = [dict(_Term(layer.merges[i], layer.unmerges[i]).named_parameters()) for layer, i in pairs]
    state = {name: stack(one[name] for one in each) for name in each[0]}
    weight = stack(getattr(layer, f"weight{i}") for layer, i in pairs)
    bias = None if layers[0].bias0 is None else stack(getattr(layer, f"bias{i}") for layer, i in pairs)
    tall, wide, scaled, bias = functional_call(term, state, (weight, bias))
    side_by_side = ([part.movedim(1, 2).flatten(2, 3) for part in parts] for parts in (tall, wide))
    scaled = [part for one in zip(*(part.unbind(1) for part in scaled)) for part in one]
    return _Parts(*side_by_side, scaled, None if bias is None else bias.sum(1))


class _AddScaled(torch.autograd.Function):
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
        grads, both = [], None
        for weight, left, right in zip(ctx.saved_tensors[::3], ctx.saved_tensors[1::3], ctx.saved_tensors[2::3]):
            both = torch.mul(grad, weight, out=both)
            grads += [None, *((both @ right, left @ both) if both.dim() == 2 else  # stacked, such products are slow
                              ((both * right[:, None]).sum(-1), (both * left[..., None]).sum(-2)))]
        return grad if ctx.needs_input_grad[0] else None, *grads


class SuperConv2d(SuperLinear):
    """k frozen patch convolutions that read the picture itself, merged by channel; weights (o_i, C, P, P)."""

    def __init__(self, layers: Sequence[nn.Conv2d], merges: nn.ModuleList):
        super().__init__(layers, merges)
        first = layers[0]
        self.how = {"stride": first.stride, "padding": first.padding, "dilation": first.dilation}

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), gives (B, o*, H / P, W / P)."""
        if self.as_one:
            return F.conv2d(x, *self.as_one(), **self.how)
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
