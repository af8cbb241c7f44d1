"""The layers that hold k originals between Merge and Unmerge.

Column convention of `nn.Linear.weight`, (out, in). For original i of k, with frozen W_i (o_i, d_i) and
b_i (o_i,), a SuperNet layer of sizes (o*, d*) is (paper, section 2)

    y* = sum_i M_i (W_i U_i x* + b_i),          M_i (o*, o_i),  U_i (d_i, d*)

and the same function is one plain layer, W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .folding import Term, total


class SuperLinear(nn.Module):
    """k frozen linear layers between Unmerge and Merge: y* = sum_i M_i (W_i U_i x* + b_i).

    Args:
        layers: the k originals' `nn.Linear`; their weights are used, frozen, not copied.
        merges: k Merge, M_i (o*, o_i).
        unmerges: k Unmerge, U_i (d_i, d*), or None for a layer that reads the input itself.
    """

    # Gives W* and b* for the forward: `fold`, or what was folded already. None: run explicitly.
    as_one: Callable[[], tuple[Tensor, Tensor | None]] | None = None
    # Whether W*, where it is folded in the forward, is made again for the backward rather than kept.
    grad_checkpointing = False

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
        if self.as_one is None:
            return self.merged(self.unmerged(x))
        if self.grad_checkpointing and self.as_one == self.fold:
            return checkpoint(lambda x: F.linear(x, *self.fold()), x, use_reentrant=False, preserve_rng_state=False)
        return F.linear(x, *self.as_one())

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        """sum_i M_i (W_i u_i + b_i) for what the k frozen layers read, u_i (..., d_i). Gives (..., o*)."""
        return sum(merge(F.linear(u, weight, bias)) for u, (weight, bias), merge
                   in zip(inputs, self.frozen(), self.merges))

    def fold(self) -> tuple[Tensor, Tensor | None]:
        """W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i (paper, section 2), differentiable in M and U."""
        if self.unmerges is not None and self.merges[0].S is None:
            return total([Term(merge, unmerge)(weight, bias) for merge, unmerge, (weight, bias)
                          in zip(self.merges, self.unmerges, self.frozen())])
        weights, biases = zip(*self.frozen())
        read = [w.flatten(1) if self.unmerges is None else unmerge.right(w)
                for w, unmerge in zip(weights, self.unmerges or weights)]
        if biases[0] is not None:  # the bias as one more column that M takes along
            read = [torch.cat([w, b[:, None]], 1) for w, b in zip(read, biases)]
        folded = sum(merge.left(w) for merge, w in zip(self.merges, read))
        weight, bias = (folded, None) if biases[0] is None else (folded[:, :-1], folded[:, -1])
        return weight.unflatten(1, self.weight0.shape[1:]) if self.unmerges is None else weight, bias


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


class SuperTokens(nn.Module):
    """k frozen sets of tensors of the residual stream (class token, positions): t* = sum_i M_i t_i, each (..., d*).

    Args:
        tokens: name -> the k originals' tensors (..., d_i), of one shape but for the width.
        merges: k Merge, those of the layer that writes to the stream first.
    """

    def __init__(self, tokens: Mapping[str, Sequence[Tensor]], merges: nn.ModuleList):
        super().__init__()
        self.merges, self.shapes = merges, {name: each[0].shape[:-1] for name, each in tokens.items()}
        for i, own in enumerate(zip(*tokens.values())):
            self.register_buffer(f"rows{i}", torch.cat([t.detach().flatten(0, -2) for t in own]), persistent=False)

    def forward(self) -> dict[str, Tensor]:
        if not self.shapes:
            return {}
        rows = sum(merge(getattr(self, f"rows{i}")) for i, merge in enumerate(self.merges))  # all tokens: (n, d*)
        parts = rows.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.unflatten(0, shape) for (name, shape), part in zip(self.shapes.items(), parts)}
