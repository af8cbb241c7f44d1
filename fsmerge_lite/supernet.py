"""The SuperNet: the originals' own architecture with every linear tensor merged from k frozen ones."""
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .layers import INITS, Merge, SuperConv2d, SuperLinear, SuperToken, Unmerge, scaled_rank
from .models import Merged, Original, build, describe
from .wiring import absorb_layer_scale, check_images, check_originals, input_shape, inputs_of, wiring


class SuperNet(nn.Module):
    """k frozen originals and the M and U that make one model of them (paper, section 2).

    Every linear tensor becomes W* = sum_i M_i W_i U_i, b* = sum_i M_i b_i; norms are the merged model's own.
    The merged model has the widths of the first original. Original i's feature is U_out,i f*(x).

    `net(x)` folds and then runs one plain model: the cost of one, with the gradient through the fold.
    `net(x, explicit=True)` runs the tokens through U, the k frozen layers and M. It is the same function.

    Args:
        originals: k >= 2 `Original` or bare backbones, in eval mode; of one architecture, widths may differ.
        rank: r of the low-rank parts, 1 <= r <= width; inside a ViT's MLP scaled by hidden / dim.
        structure: diagonal, low_rank, diagonal_low_rank or full.
        init: `first` starts at original 1, `average` at the average of all, `random` anywhere.

    Raises:
        TypeError, ValueError: what cannot be merged, and why.
    """

    def __init__(self, originals: Sequence[nn.Module], rank: int = 12, structure: str = "diagonal_low_rank",
                 init: str = "first"):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        # Tuples keep the originals and the plain model out of this module's parameters.
        self.originals = tuple(o if isinstance(o, Original) else Original(o) for o in originals)
        check_originals([o.backbone for o in self.originals])
        self.rank, self.structure, self.init = rank, structure, init
        backbones = [absorb_layer_scale(o.backbone) for o in self.originals]
        template = backbones[0]
        self.wiring, self.config, self.input_shape = wiring(template), describe(template), input_shape(template)
        # The plain model is all shape and no weight: a tensor that the fold forgot could not go unseen.
        self._plain = (copy.deepcopy(template).to("meta"),)
        self.body = copy.deepcopy(template)
        self._own_norms(backbones)
        self._place_layers(backbones)
        d = [self._feature_size(backbone) for backbone in backbones]
        self.outputs = self._matrices(Unmerge, [(size, d[0]) for size in d])
        self.to(next(template.parameters()))
        self.eval()

    def _own_norms(self, backbones: Sequence[nn.Module]) -> None:
        merged = {wire.layer for wire in self.wiring.wires}
        self._kept = [name for name, _ in self.body.named_parameters()
                      if name.rpartition(".")[0] not in merged and name not in self.wiring.tokens]
        for name in self._kept:
            p = self.body.get_parameter(name)
            others = [backbone.get_parameter(name).data for backbone in backbones]
            if self.init == "average" and all(o.shape == p.shape for o in others):
                p.data = torch.stack(others).mean(0)
            p.requires_grad_(not name.endswith("gamma"))  # LayerScale is in the layers before it

    def _place_layers(self, backbones: Sequence[nn.Module]) -> None:
        for wire in self.wiring.wires:
            layers = [backbone.get_submodule(wire.layer) for backbone in backbones]
            outs, ins = zip(*(layer.weight.shape[:2] for layer in layers))
            rows = [size // wire.blocks for size in outs]
            merges = self._matrices(Merge, [(rows[0], size) for size in rows], wire.blocks)
            if isinstance(layers[0], nn.Conv2d):
                placed = SuperConv2d(layers, merges)
            else:
                unmerges = self._matrices(Unmerge, [(size, ins[0]) for size in ins]) if wire.unmerge else None
                placed = SuperLinear(layers, merges, unmerges)
            self.body.set_submodule(wire.layer, placed)
        shared = self.body.get_submodule(self.wiring.wires[0].layer).merges
        self.tokens = nn.ModuleDict({name: SuperToken([b.get_parameter(name) for b in backbones], shared)
                                     for name in self.wiring.tokens})
        for name in self.wiring.tokens:  # a place for functional_call to put the merged token
            delattr(self.body, name)
            self.body.register_buffer(name, torch.empty(0), persistent=False)

    def _matrices(self, kind: type[Merge] | type[Unmerge], sizes: Sequence[tuple[int, int]], blocks: int = 1
                  ) -> nn.ModuleList:
        """One M or U for each original, of sizes (out, in)."""
        made = nn.ModuleList()
        for i, (out, in_) in enumerate(sizes):
            merged_size = out if kind is Merge else in_
            rank = self.rank if self.wiring.dim is None else scaled_rank(self.rank, merged_size, self.wiring.dim)
            made.append(kind(out, in_, self.structure, rank, blocks))
            made[-1].init(self.init, i, len(sizes))
        return made

    @staticmethod
    def _feature_size(backbone: nn.Module) -> int:
        return getattr(backbone, "embed_dim", None) or backbone.layers[-1].out_features

    def folded(self) -> dict[str, Tensor]:
        """The plain model's state: W* and b* of every layer, tokens and norms; differentiable."""
        state = {name: self.body.get_parameter(name) for name in self._kept}
        for wire in self.wiring.wires:
            weight, bias = self.body.get_submodule(wire.layer).fold()
            state[f"{wire.layer}.weight"] = weight
            if bias is not None:
                state[f"{wire.layer}.bias"] = bias
        return state | {name: token() for name, token in self.tokens.items()}

    def backbone(self, x: Tensor, explicit: bool = False) -> Tensor:
        """The merged model's own features f*(x), (B, d*)."""
        check_images(x, self.input_shape, next(self.parameters()).dtype)
        if explicit:
            return functional_call(self.body, {name: token() for name, token in self.tokens.items()}, (x,))
        return functional_call(self._plain[0], self.folded(), (x,), strict=True)

    def forward(self, x: Tensor, explicit: bool = False) -> list[Tensor]:
        """The k originals' output features, reconstructed: U_out,i f*(x), each (B, d_i)."""
        f = self.backbone(x, explicit)
        return [output(f) for output in self.outputs]

    def features(self, x: Tensor, depths: Sequence[int], explicit: bool = False) -> dict[int, list[Tensor]]:
        """What each original's next layer would read after `depth` blocks: U_i LN*(x*), a list of k a depth.

        Compare with `original_features`. Depths run from 0 (behind the embedding) to below the number of blocks.
        """
        layers = self._layers_at(depths)
        seen = inputs_of(self.body if explicit else self._plain[0], layers, lambda: self.backbone(x, explicit))
        return {d: self.body.get_submodule(name).unmerged(seen[name]) for d, name in zip(depths, layers)}

    @torch.no_grad()
    def original_features(self, x: Tensor, depths: Sequence[int]) -> dict[int, list[Tensor]]:
        """What each original's own next layer reads after `depth` blocks: LN(x_i), a list of k a depth."""
        layers = self._layers_at(depths)
        seen = [inputs_of(o.backbone, layers, lambda o=o: o.backbone(x)) for o in self.originals]
        return {d: [s[name] for s in seen] for d, name in zip(depths, layers)}

    def _layers_at(self, depths: Sequence[int]) -> list[str]:
        unknown = [d for d in depths if d not in self.wiring.depths]
        if unknown:
            raise ValueError(f"no depth {unknown[0]}; this model has features at {sorted(self.wiring.depths)}")
        return [self.wiring.depths[d] for d in depths]

    @torch.no_grad()
    def fold(self) -> Merged:
        """The plain model of the first original's class, with k output matrices and the originals' heads."""
        backbone = build(self.config).to(next(self.parameters()))
        backbone.load_state_dict(self.folded())
        merged = Merged(backbone, [output.dense() for output in self.outputs], [o.head for o in self.originals],
                        [o.name or f"model {i}" for i, o in enumerate(self.originals, 1)])
        return merged.to(next(self.parameters()).device).requires_grad_(False).eval()

    def extra_repr(self) -> str:
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"k={len(self.originals)}, rank={self.rank}, {self.structure}, init={self.init}, trained={trained:,}"
