"""The layers that hold k originals between Merge and Unmerge, and what they fold to.

Column convention of `nn.Linear.weight`, (out, in). For original i of k, with frozen W_i (o_i, d_i) and
b_i (o_i,), a SuperNet layer of sizes (o*, d*) is (paper, section 2)

    y* = sum_i M_i (W_i U_i x* + b_i),          M_i (o*, o_i),  U_i (d_i, d*)

and the same function is one plain layer, W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i.
"""
from collections.abc import Callable, Iterator, Sequence

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
    weight = put(take(weight, -1, unmerge.rows), -1, unmerge.cols, unmerge.in_features)
    weight = weight.unflatten(-2, (merge.blocks, merge.in_features))
    weight = put(take(weight, -2, merge.cols), -2, merge.rows, merge.out_features).flatten(-3, -2)
    return (weight, put(merge.D, -1, merge.rows, merge.out_features).flatten(-2),
            put(unmerge.D.squeeze(-2), -1, unmerge.cols, unmerge.in_features))


class _AddScaled(torch.autograd.Function):
    """P + sum_i D_i W_i E_i for frozen W_i and diagonals D_i, E_i, as (P, W_1, D_1, E_1, W_2, ...).

    Autograd on its own would keep D_i W_i and make a gradient of W's size for each step of the product.
    """

    @staticmethod
    def forward(ctx, product: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        total, scaled = None, None  # W E in one place for all originals: fresh memory costs more than the product
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
