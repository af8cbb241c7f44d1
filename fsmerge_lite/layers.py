"""The layers that hold k originals between Merge and Unmerge, unfolded and folded.

Column convention of `nn.Linear.weight`, (out, in). For original i of k, with frozen W_i (o_i, d_i) and
b_i (o_i,), a SuperNet layer of sizes (o*, d*) is (paper, section 2)

    y* = sum_i M_i (W_i U_i x* + b_i),          M_i (o*, o_i),  U_i (d_i, d*)

and the same function is one plain layer, W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i. The fold never makes M or U
dense. With M = D + A B and U = E + F G, one original adds

    M W U = (M W F) G + A (B W E) + D W E,          and M b to the bias.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .matrices import Structured, put, take

Folded = tuple[Tensor, Tensor | None]  # W* and b*
STACKED = 2 ** 17  # layers with up to so many weights are folded several at a time


class SuperLinear(nn.Module):
    """k frozen linear layers between Unmerge and Merge: y* = sum_i M_i (W_i U_i x* + b_i).

    Args:
        layers: the k originals' `nn.Linear`; their weights are used, frozen, not copied.
        merges: k Merge, M_i (o*, o_i).
        unmerges: k Unmerge, U_i (d_i, d*), or None for a layer that reads the input itself.
        stored: whether the frozen weights belong into `state_dict`, because they are no longer the originals'.
    """

    channels = -1  # the dimension of features that holds them
    as_one: Callable[[], Folded] | None = None  # gives W* and b* for the forward; None: run unfolded
    recomputed = False  # whether a W* that is folded in the forward is made again in the backward, not kept
    given: Sequence[Tensor] | None = None  # what the k frozen layers read instead of U_i x*, each (..., d_i)

    def __init__(self, layers: Sequence[nn.Module], merges: nn.ModuleList, unmerges: nn.ModuleList | None = None,
                 stored: bool = False):
        super().__init__()
        self.merges, self.unmerges, self.k = merges, unmerges, len(layers)
        # In a tuple, because their parameters are those of M and U.
        self.terms = tuple(Term(*pair) for pair in zip(merges, unmerges or ()))
        for i, layer in enumerate(layers):
            self.register_buffer(f"weight{i}", layer.weight.detach(), persistent=stored)
            bias = getattr(layer, "bias", None)
            self.register_buffer(f"bias{i}", None if bias is None else bias.detach(), persistent=stored)
        self.shared = self.k > 1 and merges[0].A is not None and merges[0].A is merges[1].A
        # Layers of one kind can be folded together. None: large layers, dense M, no U, originals that differ.
        kinds = {(term.merge.kind, term.unmerge.kind, layer.bias is None) for term, layer in zip(self.terms, layers)}
        alone = len(kinds) != 1 or merges[0].S is not None or self.weight0.numel() > STACKED
        self.kind = None if alone else kinds.pop()

    def frozen(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The originals' (W_i, b_i)."""
        return ((getattr(self, f"weight{i}"), getattr(self, f"bias{i}")) for i in range(self.k))

    def unmerged(self, x: Tensor) -> list[Tensor]:
        """U_i x* for every i: what each frozen layer reads."""
        return [x] * self.k if self.unmerges is None else [unmerge(x) for unmerge in self.unmerges]

    def reads(self, x: Tensor) -> list[Tensor]:
        """What each original's own layer would read: U_i x*, or U0_i U_i x* where W_i stands for W_i U0_i already."""
        readouts = [getattr(self, f"readout{i}", None) for i in range(self.k)]
        return [u if readout is None else F.linear(u, readout) for u, readout in zip(self.unmerged(x), readouts)]

    def forward(self, x: Tensor) -> Tensor:
        """The layer, unfolded as the paper draws it or as the one layer it folds to. x (..., d*), gives (..., o*)."""
        if self.as_one is None or self.given is not None:
            return self.merged(self.given or self.unmerged(x))
        fold = self.as_one
        if self.recomputed:
            return checkpoint(lambda x: self.plain(x, *fold()), x, use_reentrant=False, preserve_rng_state=False)
        return self.plain(x, *fold())

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A plain layer of this kind, of any weights."""
        return F.linear(x, weight, bias)

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        """sum_i M_i (W_i u_i + b_i) for what the k frozen layers read, u_i (..., d_i). Gives (..., o*)."""
        rows = (self.plain(u, *frozen).movedim(self.channels, -1) for u, frozen in zip(inputs, self.frozen()))
        return sum(merge(row).movedim(-1, self.channels) for merge, row in zip(self.merges, rows))

    def fold(self) -> Folded:
        """W* = sum_i M_i W_i U_i and b* = sum_i M_i b_i (paper, section 2), differentiable in M and U."""
        if self.unmerges is not None and self.merges[0].S is None:
            return total([term(*frozen) for term, frozen in zip(self.terms, self.frozen())], self.shared)
        return self._fold_dense()

    def _fold_dense(self) -> Folded:
        """The fold where M is dense or there is no U. The bias is one more column that M takes along."""
        folded = 0
        for merge, unmerge, (weight, bias) in zip(self.merges, self.unmerges or [None] * self.k, self.frozen()):
            read = weight.flatten(1) if unmerge is None else unmerge.right(weight)
            folded = folded + merge.left(read if bias is None else torch.cat([read, bias[:, None]], 1))
        bias = None if self.bias0 is None else folded[:, -1]
        weight = folded if bias is None else folded[:, :-1]
        return weight.unflatten(1, self.weight0.shape[1:]) if self.unmerges is None else weight, bias


class SuperConv2d(SuperLinear):
    """k frozen patch convolutions that read the picture itself, merged by channel; weights (o_i, C, P, P)."""

    channels = 1

    def __init__(self, layers: Sequence[nn.Conv2d], merges: nn.ModuleList, unmerges: None = None, stored: bool = False):
        super().__init__(layers, merges, unmerges, stored)
        self.options = {name: getattr(layers[0], name) for name in ("stride", "padding", "dilation")}

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (B, C, H, W), gives (B, o, H / P, W / P)."""
        return F.conv2d(x, weight, bias, **self.options)


class SuperEmbedding(SuperLinear):
    """k frozen tables of token embeddings (V, o_i), merged by channel: y* = sum_i M_i E_i[id], E* = sum_i E_i M_i^T."""

    def plain(self, x: Tensor, weight: Tensor, bias: None) -> Tensor:
        """Ids x (...), gives (..., o)."""
        return F.embedding(x, weight)

    def fold(self) -> Folded:
        return sum(merge(weight) for merge, (weight, _) in zip(self.merges, self.frozen())), None


KINDS = {"linear": SuperLinear, "conv2d": SuperConv2d, "embedding": SuperEmbedding}  # of `graph.Layer`


class SuperTokens(nn.Module):
    """k frozen sets of tensors of the residual stream (class token, positions): t* = sum_i M_i t_i, each (..., d*).

    `tokens` maps a name to the k originals' tensors (..., d_i), of one shape but for the width. `merges` are those of
    the layer that writes to the stream first. `stored` is as in `SuperLinear`.
    """

    def __init__(self, tokens: Mapping[str, Sequence[Tensor]], merges: nn.ModuleList, stored: bool = False):
        super().__init__()
        self.__dict__["merges"] = merges  # past nn.Module's registration: they are that layer's parameters
        self.shapes = {name: each[0].shape[:-1] for name, each in tokens.items()}
        for i, own in enumerate(zip(*tokens.values())):
            self.register_buffer(f"rows{i}", torch.cat([t.detach().flatten(0, -2) for t in own]), persistent=stored)

    def forward(self) -> dict[str, Tensor]:
        """name -> t*."""
        if not self.shapes:
            return {}
        rows = sum(merge(getattr(self, f"rows{i}")) for i, merge in enumerate(self.merges))
        parts = rows.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.unflatten(0, shape) for (name, shape), part in zip(self.shapes.items(), parts)}


class Parts(NamedTuple):
    """M W U = tall^T wide + D W E, and M b: what one original adds to a layer, or several of them together."""

    tall: list[Tensor]    # (blocks, r, o*) each, transposed, as wide rows are faster
    wide: list[Tensor]    # (blocks, r, d*) each
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
        merge, unmerge = self.merge, self.unmerge
        tall, wide = [], []
        read, merged_bias = self._through_merge(weight, bias)
        if read is not None:  # (M W F) G
            tall.append(read)
            wide.append(unmerge.B.expand(*read.shape[:-2], -1, -1))
        if merge.A is not None and unmerge.D is not None:  # A (B W E)
            tall.append(merge.A.mT)
            read = (merge.B @ weight.unflatten(-2, (merge.blocks, -1))).flatten(-3, -2)  # (blocks * r, d)
            wide.append(unmerge.scaled(read).unflatten(-2, (merge.blocks, -1)))
        scaled = [] if merge.D is None else self._placed(weight)
        return Parts(tall, wide, scaled, merged_bias)

    def _through_merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(M W F)^T (blocks, r, o*) and M b (o*,), in one product with M."""
        merge, rank = self.merge, self.unmerge.rank or 0
        rows = [self.unmerge.A.squeeze(-3).mT @ weight.mT] if rank else []  # (r, blocks * o)
        if bias is not None:
            rows.append(bias[..., None, :])
        if not rows:
            return None, None
        rows = torch.cat(rows, -2).unflatten(-1, (merge.blocks, -1)).movedim(-2, -3)  # (blocks, r + 1, o)
        read, last = merge.blockwise(rows).split([rank, rows.shape[-2] - rank], -2)
        return read if rank else None, None if bias is None else last.flatten(-3)

    def _placed(self, weight: Tensor) -> list[Tensor]:
        """W (o*, d*) and the diagonals D (o*,) and E (d*,) around it, moved to the merged model's channels."""
        merge, unmerge = self.merge, self.unmerge
        weight = put(take(weight, -1, unmerge.rows), -1, unmerge.cols, unmerge.in_features)
        weight = weight.unflatten(-2, (merge.blocks, merge.in_features))
        weight = put(take(weight, -2, merge.cols), -2, merge.rows, merge.out_features).flatten(-3, -2)
        return [weight, put(merge.D, -1, merge.rows, merge.out_features).flatten(-2),
                put(unmerge.D.squeeze(-2), -1, unmerge.cols, unmerge.in_features)]


def total(terms: Sequence[Parts], shared: bool = False) -> Folded:
    """W* and b* of the originals: their low-rank products stand side by side in one product, of rank 2 k r.

    Where all share one A and one G, it is of rank 2 r: (sum_i M_i W_i F_i) G + A (sum_i B_i W_i E_i).
    """
    tall, wide = [t for term in terms for t in term.tall], [w for term in terms for w in term.wide]
    if shared:
        tall, wide = [sum(tall[::2]), tall[1]], [wide[0], sum(wide[1::2])]
    scaled = [part for term in terms for part in term.scaled]
    product = (torch.cat(tall, -2).mT @ torch.cat(wide, -2)).flatten(-3, -2) if tall else None
    weight = AddScaled.apply(product, *scaled) if scaled else product
    return weight, None if terms[0].bias is None else sum(term.bias for term in terms)


class AddScaled(torch.autograd.Function):
    """P + sum_i D_i W_i E_i for frozen W_i and diagonals D_i, E_i, as (P, W_1, D_1, E_1, W_2, ...).

    Autograd on its own would keep D_i W_i and make a gradient of W's size for each step of the product.
    """

    @staticmethod
    def forward(ctx, product: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        result, scaled = None, None  # W E of every original in the same memory: one temporary, not k
        for weight, left, right in zip(parts[::3], parts[1::3], parts[2::3]):
            scaled, left = torch.mul(weight, right[..., None, :], out=scaled), left[..., None]
            if result is None:
                result = scaled * left if product is None else torch.addcmul(product, scaled, left)
            else:
                result.addcmul_(scaled, left)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, grads, both = ctx.saved_tensors, [], None
        for weight, left, right in zip(parts[::3], parts[1::3], parts[2::3]):
            both = torch.mul(grad, weight, out=both)
            by_left = both @ right if both.dim() == 2 else torch.linalg.vecdot(both, right[..., None, :])  # faster so
            grads += [None, by_left, (left[..., None, :] @ both).squeeze(-2)]
        return grad if ctx.needs_input_grad[0] else None, *grads


def fold_together(layers: Sequence[SuperLinear]) -> list[Folded]:
    """`SuperLinear.fold` of layers of one `kind`: a few large products, not many small ones."""
    def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:  # (layers, originals, ...)
        return None if tensors[0] is None else torch.stack(tensors).unflatten(0, (len(layers), -1))
    terms = [term for layer in layers for term in layer.terms]
    learned = {name: stacked([term.get_parameter(name) for term in terms]) for name, _ in terms[0].named_parameters()}
    frozen = zip(*(pair for layer in layers for pair in layer.frozen()))
    parts = functional_call(terms[0], learned, tuple(map(stacked, frozen)))
    if layers[0].shared:
        tall, wide = [parts.tall[0].sum(1), parts.tall[1][:, 0]], [parts.wide[0][:, 0], parts.wide[1].sum(1)]
    else:
        tall, wide = ([torch.cat(some, -2).movedim(1, 2).flatten(2, 3)] if some else [] for some in parts[:2])
    scaled = [part for triple in zip(*(part.unbind(1) for part in parts.scaled)) for part in triple]  # (W, D, E) each
    weight, bias = total([Parts(tall, wide, scaled, None if parts.bias is None else parts.bias.sum(1))])
    return list(zip(weight, [None] * len(weight) if bias is None else bias))
