"""The SuperNet: the originals' own architecture with every linear tensor merged from k frozen ones."""
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .architectures import architecture, build, check_originals, check_same, describe, graph_of, reads
from .architectures.graph import Graph, Layer, Vector
from .engine import given
from .engine.files import fingerprint, load_file, save_file
from .engine.running import inputs_of, to_device, without_padding
from .layers import KINDS, Folded, SuperTokens, fold_together
from .matrices import INITS, Merge, Unmerge, scaled_rank
from .models import Merged, Original


class SuperNet(nn.Module):
    """k frozen originals and the M and U that make one model of them (paper, section 2).

    Every linear tensor becomes W* = sum_i M_i W_i U_i, b* = sum_i M_i b_i; norms are the merged model's own.
    The merged model has the widths of the first original, or those of `into`. Original i's feature is U_out,i f*(x).

    `net(x)` folds and then runs one plain model: the cost of one, with the gradient through the fold.
    `net(x, unfolded=True)` runs the tokens through U, the k frozen layers and M. It is the same function.

    Args:
        originals: k >= 2 `Original`, bare backbones, or `Merged` to merge further (then its backbone is what is
            reconstructed, and its heads are carried on); in eval mode, of one architecture, widths may differ.
        rank: r of the low-rank parts, 1 <= r <= the smallest width; inside a ViT's MLP scaled by hidden / dim.
        structure: diagonal, low_rank, diagonal_low_rank or full.
        init: `first` starts at original 1, `average` at the average of all, both also with the paper's small factors
            (`paper_first`, `paper_average`, see `Structured.set_identity`), `random` anywhere. With `into`, `first` is
            original 1 exactly where no width is smaller than its own, and otherwise only a start; see `Space`.
        shared: one A for the M of all originals and one B for their U, as in the paper: (k + 1) d r numbers a place,
            not 2 k d r; for diagonal_low_rank.
        into: a model of the merged model's widths, by default original 1's; its weights do not matter.
        seed: of the random numbers in M and U. The caller's random numbers go on undisturbed.

    Raises TypeError or ValueError for what cannot be merged, saying why.
    """

    grad_checkpointing = False  # whether the W* of large layers are recomputed in the backward

    def __init__(self, originals: Sequence[nn.Module], rank: int = 12, structure: str = "diagonal_low_rank",
                 init: str = "first", into: nn.Module | None = None, seed: int = 0, shared: bool = False):
        super().__init__()
        given.choice(INITS, init=init)
        given.whole(seed=seed)
        if shared and structure != "diagonal_low_rank":
            raise ValueError(f"shared is for structure='diagonal_low_rank', got {structure!r}")
        # Tuples keep the originals out of this module's parameters.
        self.originals = tuple(o if isinstance(o, Original | Merged) else Original(o)
                               for o in given.several("originals", originals))
        check_originals([o.backbone for o in self.originals])
        self.rank, self.structure, self.init, self.seed, self.shared = rank, structure, init, seed, shared
        self.provenance = [{"init": init, "seed": seed}]  # how M and U came about, step by step
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        self.architecture = architecture(self.originals[0].backbone)
        self.backbones = tuple(self.architecture.absorb_scales(o.backbone) for o in self.originals)
        first = self.backbones[0]
        self.config = describe(first if into is None else getattr(into, "backbone", into))
        check_same(self.config, describe(first), "into")
        self.body = build(self.config).to(next(first.parameters())).requires_grad_(False)
        self.graph, self.graphs = graph_of(self.body), [graph_of(backbone) for backbone in self.backbones]
        self.norms = [vector.name for vector in self.graph.norms]  # the merged model's own: they do not fold
        for vector in self.graph.norms:
            self._set_norm(vector)
        frozen = [self._resized(backbone, graph) for backbone, graph in zip(self.backbones, self.graphs)]
        for layer in self.graph.layers:
            self._place(layer, [backbone.get_submodule(layer.name) for backbone in frozen], init)
        self._place_tokens({v.name: [b.get_parameter(v.name) for b in frozen] for v in self.graph.tokens})
        self.outputs = self._matrices(Unmerge, self.graph.output, 1, init)
        self.eval()

    def _set_norm(self, vector: Vector) -> None:
        """A norm of the merged model: original 1's, or the average of all where they have one width.

        Next to zeros, what a wider norm writes is (d* / d)^(1/2) times as large: its weight takes that back.
        """
        p = self.body.get_parameter(vector.name).requires_grad_(True).data
        own = [backbone.get_parameter(vector.name).data for backbone in self.backbones]
        average = "average" in self.init and all(o.shape == p.shape for o in own)
        space, ratio = self.graph.spaces[vector.space], max(1, len(p) / len(own[0]))
        rows, cols = space.match(self.graphs[0].spaces[vector.space])
        if vector.role == "per_head":
            rows = cols = torch.arange(min(len(p), len(own[0])))
        p[rows] = torch.stack(own).mean(0) if average else own[0][cols]
        growth = 0 if vector.role == "norm" else space.growth  # through a norm the space is read, not written
        p *= ratio ** (growth - 0.5 if vector.name.endswith("weight") else growth)

    def _resized(self, backbone: nn.Module, graph: Graph) -> nn.Module:
        """A backbone with all that it writes as large as in the merged model's widths; see `Space`."""
        if all(self.graph.spaces[name].unit == own.unit for name, own in graph.spaces.items() if own.growth):
            return backbone
        backbone = copy.deepcopy(backbone)
        written = {f"{layer.name}.bias": (layer.writes, 0) for layer in graph.layers}
        written |= {f"{layer.name}.weight": (layer.writes, layer.axis) for layer in graph.layers}
        written |= {token.name: ((token.space,), -1) for token in graph.tokens}
        for name, p in backbone.named_parameters():
            spaces, dim = written.get(name, ((), 0))
            if spaces:
                parts = zip(spaces, p.data.chunk(len(spaces), dim))
                p.data = torch.cat([self.graph.spaces[s].resized(x, graph.spaces[s], dim) for s, x in parts], dim)
        return backbone

    def _place(self, layer: Layer, frozen: Sequence[nn.Module], init: str, stored: bool = False) -> None:
        """The SuperNet layer of k frozen layers, with new M and U."""
        merges = self._matrices(Merge, layer.writes[0], len(layer.writes), init)
        unmerges = self._matrices(Unmerge, layer.reads, 1, init) if layer.reads else None
        self.body.set_submodule(layer.name, KINDS[layer.kind](frozen, merges, unmerges, stored))

    def _place_tokens(self, tokens: Mapping[str, Sequence[Tensor]], stored: bool = False) -> None:
        """The k originals' tokens, after the first layer's M."""
        self.tokens = SuperTokens(tokens, self.body.get_submodule(self.graph.layers[0].name).merges, stored)
        self._set_tokens(dict.fromkeys(tokens))

    def _set_tokens(self, tokens: Mapping[str, Tensor | None]) -> None:
        """Put the merged tokens into the body; None: take them out."""
        for name, token in tokens.items():
            owner, _, last = name.rpartition(".")
            module = self.body.get_submodule(owner)
            module._parameters.pop(last, None)
            module.register_buffer(last, torch.empty(0) if token is None else token, persistent=False)

    def _matrices(self, kind: type[Merge] | type[Unmerge], space: str, blocks: int, init: str) -> nn.ModuleList:
        """One M (o*, o_i) or U (d_i, d*) for each original. At `identity` all have the merged model's widths."""
        matrices, like, merged = nn.ModuleList(), next(self.backbones[0].parameters()), self.graph.spaces[space]
        ranks = [self.rank] * len(self.graphs)
        if self.graph.residual and merged.kind == "hidden":  # r, scaled by hidden / dim
            ranks = [scaled_rank(self.rank, min(graph.spaces[space].size, merged.size),
                                 min(graph.residual.size, self.graph.residual.size)) for graph in self.graphs]
        factor = "A" if kind is Merge else "B"  # on the merged model's side
        for i, graph in enumerate(self.graphs):
            own = merged if init == "identity" else graph.spaces[space]
            rank = min(ranks) if self.shared else ranks[i]
            out, in_ = (merged, own) if kind is Merge else (own, merged)
            matrix = kind(out.size, in_.size, self.structure, rank, blocks, out.match(in_)).to(like.dtype)
            matrix.init(init, i, len(self.graphs), self.generator)
            matrices.append(matrix)
            if self.shared:
                setattr(matrix, factor, getattr(matrices[0], factor))
        return matrices.to(like)

    @torch.no_grad()
    def replace(self, layer: Layer, merges: Sequence[Tensor], unmerges: Sequence[Tensor] | None) -> None:
        """Put M0_i W_i U0_i and M0_i b_i in the place of W_i and b_i of a layer, with M_i and U_i at the identity.

        `merges` are k M0_i (o*, o_i), or (blocks, o* / blocks, o_i / blocks) where M has blocks. `unmerges` are
        k U0_i (d_i, d*), or None where the layer reads the input itself.
        """
        merges = [torch.block_diag(*m) if m.dim() == 3 else m for m in merges]
        frozen = [copy.deepcopy(backbone.get_submodule(layer.name)) for backbone in self.backbones]
        for own, m, u in zip(frozen, merges, unmerges or [None] * len(frozen)):
            weight = torch.tensordot(m, own.weight.to(m), ([1], [layer.axis])).movedim(0, layer.axis).contiguous()
            own.weight = nn.Parameter(weight if u is None else weight @ u)
            if getattr(own, "bias", None) is not None:
                own.bias = nn.Parameter(m @ own.bias.to(m))
        self._place(layer, frozen, "identity", stored=True)
        for i, readout in enumerate(unmerges or ()):
            self.body.get_submodule(layer.name).register_buffer(f"readout{i}", readout)
        if layer == self.graph.layers[0]:
            self._place_tokens({v.name: [b.get_parameter(v.name).to(m) @ m.T for b, m in zip(self.backbones, merges)]
                                for v in self.graph.tokens}, stored=True)

    def set_outputs(self, outputs: Sequence[Tensor]) -> None:
        """Make U_out,i the given matrices (d_i, d*), all of their entries learned."""
        self.outputs = nn.ModuleList(Unmerge(*o.shape, "full").to(next(self.parameters())) for o in outputs)
        for learned, output in zip(self.outputs, outputs):
            learned.S.data[0] = output

    def train(self, mode: bool = True) -> "SuperNet":
        """Always eval mode: the originals' dropout must not run, because the fold has none."""
        return super().train(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SuperNet":
        """Move or convert everything, the originals' backbones as well. The originals that were given stay."""
        super()._apply(fn, recurse)
        before, after = next(self.backbones[0].parameters()), fn(next(self.backbones[0].parameters()))
        if (before.device, before.dtype) != (after.device, after.dtype):
            self.backbones = tuple(copy.deepcopy(backbone)._apply(fn) for backbone in self.backbones)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the W* of large layers in the backward rather than keep them: less memory, more time."""
        self.grad_checkpointing = enable

    def folded(self) -> dict[str, Tensor]:
        """The plain model's state: W* and b* of every layer, tokens and norms; differentiable."""
        state = {v.name: self.body.get_parameter(v.name) for v in self.graph.vectors if v.role != "token"}
        for name, fold in self._folds().items():
            state[f"{name}.weight"], bias = fold()
            if bias is not None:
                state[f"{name}.bias"] = bias
        return state | self.tokens()

    def _folds(self) -> dict[str, Callable[[], Folded]]:
        """How to get the W* and b* of every layer. Small layers of one kind are folded here and now, together."""
        layers = {layer.name: self.body.get_submodule(layer.name) for layer in self.graph.layers}
        folds, groups = {name: layer.fold for name, layer in layers.items()}, {}
        for name, layer in layers.items():
            learns = any(p.requires_grad for p in layer.parameters())  # not all do in local training
            if layer.kind:
                groups.setdefault((layer.kind, learns), []).append(name)
        for (_, learns), names in groups.items():
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                folded = fold_together([layers[name] for name in names])
            folds |= {name: lambda pair=pair: pair for name, pair in zip(names, folded)}
        return folds

    @contextmanager
    def _running(self, folded: bool) -> Iterator[None]:
        """Meanwhile the body has its tokens and, if folded, every layer is the one that it folds to.

        A large layer folds itself when its turn comes: the gradients with respect to all W* are never there at once.
        """
        folds, tokens = self._folds() if folded else {}, self.tokens()
        layers = [self.body.get_submodule(name) for name in folds]
        try:
            self._set_tokens(tokens)
            for layer, fold in zip(layers, folds.values()):
                layer.as_one, layer.recomputed = fold, self.grad_checkpointing and fold == layer.fold
            yield
        finally:
            self._set_tokens(dict.fromkeys(tokens))
            for layer in layers:
                layer.as_one = None

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
        heads = [head for o in self.originals for head in o.heads]
        merged = Merged(backbone, outputs, heads, [name or f"model {i}" for i, name in enumerate(names, 1)])
        return merged.to(like).requires_grad_(False).eval()

    def backbone(self, x: Tensor, unfolded: bool = False) -> Tensor:
        """The merged model's own features f*(x), (B, d*)."""
        self.architecture.check_inputs(self.backbones[0], x)
        with self._running(not unfolded):
            return self.architecture.run(self.body, x)

    def forward(self, x: Tensor, unfolded: bool = False) -> list[Tensor]:
        """The k originals' output features, reconstructed: U_out,i f*(x), each (B, d_i)."""
        f = self.backbone(x, unfolded)
        return [output(f) for output in self.outputs]

    def features(self, x: Tensor, depths: Sequence[int | None], unfolded: bool = False
                 ) -> dict[int | None, list[Tensor]]:
        """What each original's next layer would read after `depth` blocks: U_i LN*(x*), a list of k for each depth.

        Depth None stands for the output features. One forward gives all, and goes no further than they need.
        """
        layers = self.layers_at([depth for depth in depths if depth is not None])
        seen = inputs_of(self.body, layers.values(), lambda: self.backbone(x, unfolded), None not in depths)
        counted = self.architecture.counted(self.body, x)
        rebuilt = {depth: self.body.get_submodule(name).reads(without_padding(seen[name], counted))
                   for depth, name in layers.items()}
        return rebuilt | ({None: [output(seen[None]) for output in self.outputs]} if None in depths else {})

    @torch.no_grad()
    def original_features(self, x: Tensor, depths: Sequence[int]) -> dict[int, list[Tensor]]:
        """What each original's own next layer reads after `depth` blocks: LN(x_i), a list of k for each depth."""
        x = to_device(x, next(self.parameters()))
        return {depth: [reads(backbone, layer, x) for backbone in self.backbones]
                for depth, layer in self.layers_at(depths).items()}

    def layers_at(self, depths: Sequence[int]) -> dict[int, str]:
        """The layers that read the features after so many blocks. Raises ValueError for an unknown depth."""
        for depth in given.distinct("depths", depths):
            if depth not in self.graph.readouts:
                raise ValueError(f"no depth {depth}; this model has features at {sorted(self.graph.readouts)}")
        return {depth: self.graph.readouts[depth] for depth in depths}

    def card(self) -> dict:
        """What it was made of and how, in plain values; of the originals' backbones, their fingerprints."""
        originals = [fingerprint(original.backbone.state_dict()) for original in self.originals]
        return {"originals": originals, "rank": self.rank, "structure": self.structure, "init": self.init,
                "into": self.config, "seed": self.seed, "shared": self.shared, "provenance": self.provenance}

    def save(self, path: str | Path) -> None:
        """Write M, U, norms and what a start replaced as one safetensors file; `load_supernet` reads it."""
        save_file(path, self.state_dict(), {"format": "fsmerge_lite.SuperNet", **self.card()})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the `state_dict` of a SuperNet of the same originals, also one with replaced frozen weights."""
        like, merged, spaces = next(self.parameters()), self.graph.spaces, [graph.spaces for graph in self.graphs]
        for layer in self.graph.layers:
            if f"body.{layer.name}.weight0" in state:  # room for what a start has put there
                out, read = layer.writes[0], layer.reads
                merges = [like.new_zeros(len(layer.writes), merged[out].size, own[out].size) for own in spaces]
                unmerges = [like.new_zeros(own[read].size, merged[read].size) for own in spaces] if read else None
                self.replace(layer, merges, unmerges)
        if "outputs.0.S" in state:
            self.set_outputs([state[f"outputs.{i}.S"][0] for i in range(len(self.graphs))])
        self.load_state_dict(state)


def load_supernet(path: str | Path, originals: Sequence[nn.Module]) -> SuperNet:
    """Read a SuperNet that `SuperNet.save` wrote, half-trained or not, after any start, of the same originals.

    Raises as `load_file` does, and ValueError for other originals or another order of them.
    """
    state, card = load_file(path, "fsmerge_lite.SuperNet", ("rank", "structure", "init", "into", "seed"))
    net = SuperNet(originals, card["rank"], card["structure"], card["init"], build(card["into"]), card["seed"],
                   card.get("shared", False))
    if net.card()["originals"] != card["originals"]:
        raise ValueError(f"{path} is a SuperNet of other originals, or of these in another order")
    net.to(next(iter(state.values())).dtype).restore(state)
    net.provenance = card["provenance"]
    return net
