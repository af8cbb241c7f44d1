"""The SuperNet: the originals' own architecture with every linear tensor merged from k frozen ones."""
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .folding import Stack
from .layers import SuperConv2d, SuperLinear, SuperTokens
from .matrices import INITS, Merge, Place, Unmerge, scaled_rank
from .models import Merged, Original, build, describe, feature_size
from .wiring import (
    Wire,
    absorb_layer_scale,
    check_alike,
    check_images,
    check_originals,
    check_rank,
    input_shape,
    inputs_of,
    place,
    wiring,
)

STACKED = 2 ** 17  # weights of up to so many numbers are folded several at a time


class SuperNet(nn.Module):
    """k frozen originals and the M and U that make one model of them (paper, section 2).

    Every linear tensor becomes W* = sum_i M_i W_i U_i, b* = sum_i M_i b_i; norms are the merged model's own.
    The merged model has the widths of the first original, or those of `into`. Original i's feature is U_out,i f*(x).

    `net(x)` folds and then runs one plain model: the cost of one, with the gradient through the fold.
    `net(x, explicit=True)` runs the tokens through U, the k frozen layers and M. It is the same function.

    Args:
        originals: k >= 2 `Original`, bare backbones, or `Merged` to merge further (then its backbone is what is
            reconstructed, and its heads are carried on); in eval mode, of one architecture, widths may differ.
        rank: r of the low-rank parts, 1 <= r <= the smallest width; inside a ViT's MLP scaled by hidden / dim.
        structure: diagonal, low_rank, diagonal_low_rank or full.
        init: `first` starts at original 1, `average` at the average of all, `random` anywhere. With `into`, `first`
            is exactly original 1 where no width is smaller than its own, and otherwise only a start; see `place`.
        into: a backbone, or a model that has one, of the merged model's widths; its weights do not matter.
            None: original 1's widths.

    Raises:
        TypeError, ValueError: what cannot be merged, and why.
    """

    grad_checkpointing = False

    def __init__(self, originals: Sequence[nn.Module], rank: int = 12, structure: str = "diagonal_low_rank",
                 init: str = "first", into: nn.Module | None = None):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        # Tuples keep the originals and the plain model out of this module's parameters.
        self.originals = tuple(o if isinstance(o, (Original, Merged)) else Original(o) for o in originals)
        check_originals([o.backbone for o in self.originals])
        self.rank, self.structure, self.init = rank, structure, init
        self.backbones = tuple(absorb_layer_scale(o.backbone) for o in self.originals)
        template = self.backbones[0] if into is None else self._template(into)
        if "low_rank" in structure:
            check_rank(rank, (*self.backbones, template))
        self.wiring, self.config, self.input_shape = wiring(template), describe(template), input_shape(template)
        # The plain model is all shape and no weight: a tensor that the fold forgot could not go unseen.
        self._plain = (copy.deepcopy(template).to("meta"),)
        self.body = copy.deepcopy(template)
        self._own_norms()
        self.replaced = False  # whether the frozen weights are M0 W U0 by now
        for wire in self.wiring.wires:
            self._place(wire, [backbone.get_submodule(wire.layer) for backbone in self.backbones], init)
        self._place_tokens({name: [b.get_parameter(name) for b in self.backbones] for name in self.wiring.tokens})
        self.outputs = self._matrices(Unmerge, "stream" if self.wiring.dim else "units", feature_size(template),
                                      [feature_size(backbone) for backbone in self.backbones], init)
        self.to(next(template.parameters()))
        self.eval()

    def _template(self, into: nn.Module) -> nn.Module:
        """A fresh model of the architecture asked for, if original 1 differs from it in nothing but widths."""
        config = describe(getattr(into, "backbone", into))
        check_alike(config, describe(self.backbones[0]), "into")
        return build(config).to(next(self.backbones[0].parameters()))

    def _own_norms(self) -> None:
        """The merged model's norms, from original 1's, or their average where all have one width."""
        merged = {wire.layer for wire in self.wiring.wires}
        self.kept = [name for name, _ in self.body.named_parameters()
                     if name.rpartition(".")[0] not in merged and name not in self.wiring.tokens]
        for name in self.kept:
            p = self.body.get_parameter(name)
            own = [backbone.get_parameter(name).data for backbone in self.backbones]
            same = self.init == "average" and all(o.shape == p.shape for o in own)
            self._start_norm(name, p.data, torch.stack(own).mean(0) if same else own[0])
            p.requires_grad_(not name.endswith("gamma"))  # LayerScale is in the layers before it

    def _start_norm(self, name: str, p: Tensor, own: Tensor) -> None:
        """Let the merged model's norm write what original 1's writes, see `place`."""
        at = place("heads" if ".attn.norm." in name else "units", self.backbones[0], self.plain, len(own), len(p))
        p[at.rows] = own[at.cols]
        wider = max(1, len(p) / len(own)) ** 0.5
        if name.endswith("weight"):  # a vector with zeros behind it, divided by its size, is so much larger
            p /= wider
        if "norm_pre" in name or "q_norm" in name:  # but stream and q are to be so much larger
            p *= wider

    def _place(self, wire: Wire, layers: Sequence[nn.Module], init: str) -> None:
        """The SuperNet layer of k frozen layers, with new M and U."""
        merged = self.plain.get_submodule(wire.layer)
        (out, *outs), (in_, *ins) = zip(*(layer.weight.shape[:2] for layer in (merged, *layers)))
        merges = self._matrices(Merge, wire.writes, out // wire.blocks, [size // wire.blocks for size in outs], init,
                                wire.blocks)
        if isinstance(merged, nn.Conv2d):
            placed = SuperConv2d(layers, merges)
        else:
            unmerges = self._matrices(Unmerge, wire.reads, in_, ins, init) if wire.reads else None
            placed = SuperLinear(layers, merges, unmerges)
        placed.grad_checkpointing = self.grad_checkpointing
        self.body.set_submodule(wire.layer, placed)
        self._stacks: list[tuple[list[str], Stack]] | None = None  # layers that are folded together, once known

    def _place_tokens(self, tokens: Mapping[str, Sequence[Tensor]]) -> None:
        """The k originals' tokens, behind the first layer's M."""
        self.tokens = SuperTokens(tokens, self.body.get_submodule(self.wiring.wires[0].layer).merges)
        for name in tokens:  # a place for functional_call to put the merged token
            if name in dict(self.body.named_parameters(recurse=False)):
                delattr(self.body, name)
                self.body.register_buffer(name, torch.empty(0), persistent=False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Make the W* of large layers again in the backward rather than keep them: less memory, more time, same result.

        Named after timm's, which does so with the activations of a block. Small layers are folded in stacks,
        once a step; for them nothing changes.
        """
        self.grad_checkpointing = enable
        for wire in self.wiring.wires:
            self.body.get_submodule(wire.layer).grad_checkpointing = enable

    @torch.no_grad()
    def replace(self, wire: Wire, merges: Sequence[Tensor], unmerges: Sequence[Tensor] | None) -> None:
        """Put M0_i W_i U0_i and M0_i b_i in the place of W_i and b_i, with M_i and U_i at the identity.

        Args:
            wire: which layer.
            merges: k matrices M0_i (o*, o_i), or (blocks, o* / blocks, o_i / blocks) where M has blocks.
            unmerges: k matrices U0_i (d_i, d*), or None where the layer reads the input itself.
        """
        self.replaced = True
        layers = [copy.deepcopy(b.get_submodule(wire.layer)).to(merges[0]) for b in self.backbones]
        merges = [torch.block_diag(*m) if m.dim() == 3 else m for m in merges]
        for i, (layer, merge) in enumerate(zip(layers, merges)):
            rows = merge @ layer.weight.flatten(1)
            folded = rows if unmerges is None else rows @ unmerges[i]
            layer.weight = nn.Parameter(folded.unflatten(1, layer.weight.shape[1:]) if unmerges is None else folded)
            layer.bias = None if layer.bias is None else nn.Parameter(merge @ layer.bias)
        self._place(wire, layers, "identity")
        self.body.get_submodule(wire.layer).set_readouts(unmerges)
        if wire == self.wiring.wires[0]:
            self._place_tokens({name: [b.get_parameter(name).to(m) @ m.T for b, m in zip(self.backbones, merges)]
                                for name in self.wiring.tokens})

    def set_outputs(self, outputs: Sequence[Tensor]) -> None:
        """Make U_out,i the given matrices (d_i, d*), all of their entries learned."""
        self.outputs = nn.ModuleList(Unmerge(*output.shape, "full").to(output) for output in outputs)
        for learned, output in zip(self.outputs, outputs):
            learned.S.data[0] = output

    def _matrices(self, kind: type[Merge] | type[Unmerge], space: str, merged_size: int, sizes: Sequence[int],
                  init: str, blocks: int = 1) -> nn.ModuleList:
        """One M (merged_size, size) or U (size, merged_size) for each original, on channels of this space."""
        made, like = nn.ModuleList(), next(self.body.parameters())
        for i, (size, backbone) in enumerate(zip(sizes, self.backbones)):
            rank = self.rank
            if space == "units" and self.wiring.dim:
                rank = scaled_rank(rank, min(size, merged_size), min(feature_size(backbone), self.wiring.dim))
            at = None if init == "identity" else place(space, backbone, self.plain, size, merged_size)
            if kind is Merge:
                matrix = Merge(merged_size, size, self.structure, rank, blocks, at)
            else:
                matrix = Unmerge(size, merged_size, self.structure, rank, blocks, at and Place(at.cols, at.rows))
            made.append(matrix.to(like.dtype))
            matrix.init(init, i, len(sizes))  # on the CPU: the same random numbers on every device
        return made.to(like)

    def folded(self) -> dict[str, Tensor]:
        """The plain model's state: W* and b* of every layer, tokens and norms; differentiable."""
        state = {name: self.body.get_parameter(name) for name in self.kept}
        for name, fold in self._folds().items():
            state[f"{name}.weight"], bias = fold()
            if bias is not None:
                state[f"{name}.bias"] = bias
        return state | self.tokens()

    def _folds(self) -> dict[str, Callable[[], tuple[Tensor, Tensor | None]]]:
        """How to get the W* and b* of every layer; small layers of one kind are folded here and now, stacked."""
        if self._stacks is None or not all(stack.holds() for _, stack in self._stacks):
            self._stacks = [(names, Stack([self.body.get_submodule(name) for name in names]))
                            for names in self._alike() if len(names) > 1]
        made = {wire.layer: self.body.get_submodule(wire.layer).fold for wire in self.wiring.wires}
        for names, stack in self._stacks:
            for name, one in zip(names, stack.fold()):
                if not any(p.requires_grad for p in self.body.get_submodule(name).parameters()):  # local training
                    one = [None if part is None else part.detach() for part in one]
                made[name] = partial(tuple, one)
        return made

    def _alike(self) -> Iterable[list[str]]:
        """The layers, those of one kind and shape together if they are small: see `_folding` for large ones."""
        groups: dict[tuple, list[str]] = {}
        for wire in self.wiring.wires:
            sizes = [self.plain.get_submodule(wire.layer).weight.shape]
            sizes += [weight.shape for weight, _ in self.body.get_submodule(wire.layer).frozen()]
            small = wire.reads and self.structure != "full" and max(size.numel() for size in sizes) <= STACKED
            groups.setdefault((wire.reads, wire.writes, *sizes) if small else (wire.layer,), []).append(wire.layer)
        return groups.values()

    @contextmanager
    def _folding(self) -> Iterator[None]:
        """Meanwhile every layer is the one that it folds to.

        A large layer folds itself when its turn comes: so its backward comes right after that of what it computed,
        and the gradients by all W* are never there at the same time.
        """
        folds = self._folds()
        try:
            for name, fold in folds.items():
                self.body.get_submodule(name).as_one = fold
            yield
        finally:
            for name in folds:
                self.body.get_submodule(name).as_one = None

    def backbone(self, x: Tensor, explicit: bool = False) -> Tensor:
        """The merged model's own features f*(x), (B, d*)."""
        check_images(x, self.input_shape, next(self.parameters()).dtype)
        with nullcontext() if explicit else self._folding():
            return functional_call(self.body, self.tokens(), (x,))

    def forward(self, x: Tensor, explicit: bool = False) -> list[Tensor]:
        """The k originals' output features, reconstructed: U_out,i f*(x), each (B, d_i)."""
        f = self.backbone(x, explicit)
        return [output(f) for output in self.outputs]

    def features(self, x: Tensor, depths: Sequence[int], explicit: bool = False) -> dict[int, list[Tensor]]:
        """What each original's next layer would read after `depth` blocks: U_i LN*(x*), a list of k a depth.

        Compare with `original_features`. Depths run from 0 (behind the embedding) to below the number of blocks.
        """
        return self.run(x, depths, explicit, stop=True)[1]

    def run(self, x: Tensor, depths: Sequence[int], explicit: bool = False, stop: bool = False
            ) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
        """Output features and inner features from one forward; with `stop`, no further than the inner ones need."""
        layers, f = self.layers_at(depths), []
        seen = inputs_of(self.body, layers, lambda: f.append(self.backbone(x, explicit)), stop and bool(depths))
        inner = {d: self.body.get_submodule(name).reads(seen[name]) for d, name in zip(depths, layers)}
        return [output(f[0]) for output in self.outputs] if f else [], inner

    @torch.no_grad()
    def original_features(self, x: Tensor, depths: Sequence[int]) -> dict[int, list[Tensor]]:
        """What each original's own next layer reads after `depth` blocks: LN(x_i), a list of k a depth."""
        layers = self.layers_at(depths)
        seen = [inputs_of(o.backbone, layers, lambda o=o: o.backbone(x), stop=True) for o in self.originals]
        return {d: [s[name] for s in seen] for d, name in zip(depths, layers)}

    def layers_at(self, depths: Sequence[int]) -> list[str]:
        """The layers that read the features behind so many blocks."""
        unknown = [d for d in depths if d not in self.wiring.depths]
        if unknown:
            raise ValueError(f"no depth {unknown[0]}; this model has features at {sorted(self.wiring.depths)}")
        return [self.wiring.depths[d] for d in depths]

    def until(self, depth: int | None) -> list[tuple[str, nn.Parameter]]:
        """The learned parameters that the readout after `depth` blocks depends on; None: all, up to the output."""
        if depth is None:
            return list(self.named_parameters())
        reader, made = f"body.{self.wiring.depths[depth]}", []
        for name, p in self.named_parameters():  # in the order of the forward
            if name.startswith(f"{reader}.merges"):
                break
            made.append((name, p))
        reads = [(f"{reader}.unmerges.{n}", p) for n, p in self.get_submodule(reader).unmerges.named_parameters()]
        return made + reads

    @property
    def plain(self) -> nn.Module:
        """The merged model's architecture without weights, for `functional_call` with the state from `folded`."""
        return self._plain[0]

    @torch.no_grad()
    def fold(self) -> Merged:
        """The plain model, with the originals' heads and an output matrix before each.

        For a head j of original i that had an output matrix O_ij already, it is now O_ij U_out,i.
        """
        like = next(self.parameters())
        backbone = build(self.config).to(like)
        backbone.load_state_dict(self.folded())
        outputs = [unmerge.right(own.to(like)) for o, unmerge in zip(self.originals, self.outputs) for own in o.outputs]
        names = [name for o in self.originals for name in o.names]
        merged = Merged(backbone, outputs, [head for o in self.originals for head in o.heads],
                        [name or f"model {i}" for i, name in enumerate(names, 1)])
        return merged.to(like.device).requires_grad_(False).eval()

    def extra_repr(self) -> str:
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"k={len(self.originals)}, rank={self.rank}, {self.structure}, init={self.init}, trained={trained:,}"
