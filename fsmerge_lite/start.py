"""A start for M and U that needs no training: every original in its own share of the merged model.

The paper's `first` starts at model 1 and finds the others by gradient alone. Here each original gets a share of the
residual stream, of the heads and of the hidden units, and what it computes there is fitted by least squares on the
unlabeled images. This start is ours, not the paper's. In ten lines:

1. One backward of original i: g_n = d(r . f_i) / d(what layer n reads), r ~ N(0, I). Its token t counts with weight
   w_n[t] = E ||g_n[t]||^2, its channels by E g_n g_n^T. (After the last attention only the class token counts.)
2. E_i is a mean over the images of task i. Tokens count by w, brought to mean 1 and mixed with `floor` parts of 1.
3. P_i: the first principal directions of original i's normalized stream, without their mean over the channels. B_i: as
   many orthonormal directions of the merged stream, at right angles to all B_j and to 1. Written there: M0_i = B_i P_i.
4. What is written to heads and hidden units: M0_i picks those from which all are rebuilt best, errors by E g_n g_n^T.
5. LS_i(T; T', l) = argmin over V of E_i ||V u* - T||^2 + l sum_{j != i} E_j ||V u* - T'||^2 + ridge ||V||^2, where u*
   is what the merged layer reads, made by the layers before it with W* = sum_i M0_i W_i U0_i.
6. A layer that reads the stream: U0_i = LS_i(x_i; -, 0), x_i being what original i's own layer reads.
7. fc1, of which the rows A and biases c are kept: on the images of others its units are asked to be off.
   U0_i = U + A^+ (V - A U) with U = LS_i(x_i; -, 0) and V = LS_i(A x_i; OFF - c, l).
8. A layer that adds to the stream z_i: T = P_i y_i - B_i^T z* with y_i = z_i + W_i x_i is all that this share still
   lacks, errors of earlier layers included. U0_i = (P_i W_i)^+ LS_i(T; T', l), T' being T with the mean of P_i y_i.
9. The heads of a block are divided equally at first. Then one at a time goes from the original with the smallest error
   to the one with the largest, as long as the sum of all errors after the block falls. The error of original i is
   E_i w e^T C e for e = P_i^T (P_i z_i - B_i^T z*), over that of z_i less its mean; w and C = E g g^T as in line 1.
10. The output: U_out,i = LS_i(f_i; mean f_i, off_task).

M and U are the identity on top of it and train from there: W* = sum_i M_i (M0_i W_i U0_i) U_i, still the paper's form.
`PostNormStart` says what is different where the stream itself passes through norms, as in BERT.
"""
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .architectures.graph import Layer
from .engine import given, statistics
from .engine.fitting import hidden_bar
from .engine.images import Calibration, a_few, same_tasks
from .engine.modules import activation
from .engine.running import inputs_of, to_device, watching
from .engine.statistics import Moments
from .supernet import SuperNet

FEW = 256  # images of each task for lines 1 and 9
Reads = Sequence[Mapping[str | None, Tensor]]  # of every original: what its modules read, by name; None: what they give
OFF = -2.0  # where GELU, ReLU and SiLU give next to nothing; with an activation that gives more, line 7 is left out


@torch.no_grad()
def fit_subspaces(net: SuperNet, images: Calibration, ridge: float = 1e-2, off_task: float = 0.2,
                  inner_off_task: float = 0.02, floor: float = 0.2, corrected: bool = True,
                  heads: Sequence[float] | None = None, batch_size: int = 256, progress: bool | None = None
                  ) -> SuperNet:
    """Start all M and U of a SuperNet from the features of a few unlabeled images, by least squares (see above).

    Args:
        net: a SuperNet, trained or not: what it had learned is replaced.
        images: from `calibration`, of the net's originals in their order.
        ridge: weight of the ridge, in units of the mean square of what is read, > 0.
        off_task, inner_off_task: l at the output and inside, >= 0.
        floor: the part of a token's weight that all tokens have, 0 to 1; at 1 all tokens count the same.
        corrected: whether a layer that adds to the stream makes up for the errors before it; else T = P_i W_i x_i.
        heads: the originals' shares of the heads of every block, k numbers > 0, such as (3, 1); None: by need (9).
        batch_size: images at a time, >= 1. What one block computes for all images is in memory at once even so.
        progress: show a bar; None shows it in a terminal or notebook.

    Returns the net: `fold()` already gives a working model, and `train_global` goes on from there. Raises ValueError
    for images of another number of tasks, a number outside its range, fewer heads than originals, heads smaller than
    an original's, or norms that mix the shares: on q and k, inside attention and MLP, or before the first block.
    """
    same_tasks(net, images)
    given.shares(heads, len(net.originals))
    given.number(above=True, ridge=ridge)
    given.number(off_task=off_task, inner_off_task=inner_off_task)
    given.number(1, floor=floor)
    given.whole(1, batch_size=batch_size)
    settings = {"ridge": ridge, "off_task": off_task, "inner_off_task": inner_off_task, "floor": floor,
                "corrected": corrected, "heads": heads and list(heads)}
    check_shares(net)
    net.architecture.check_inputs(net.backbones[0], to_device(images.images[:1], next(net.parameters())))
    kind = PostNormStart if net.graph.post_norm else Start
    kind(net, images, batch_size, settings).run(progress)
    net.provenance = [{"init": "subspaces", "seed": net.seed, "images": images.hash(), **settings}]
    return net


def check_shares(net: SuperNet) -> None:
    """Refuse what cannot be shared out."""
    after_layers = {layer.norm for layer in net.graph.layers}
    for vector in net.graph.norms:
        norm, on_stream = vector.name.rpartition(".")[0], net.graph.spaces[vector.space].kind == "residual"
        if norm not in after_layers and (vector.role != "norm" or not on_stream):
            raise ValueError(f"{norm} is a norm that mixes the channels of different "
                             "originals, which subspaces keep apart; start with init='first'")
    for name, heads, unit in [(name, s.heads, s.unit) for name, s in net.graph.spaces.items() if s.kind == "heads"]:
        if heads < len(net.originals):
            raise ValueError(f"subspaces give every original heads of its own, but {len(net.originals)} originals "
                             f"meet {heads} heads; start with init='first'")
        for i, own in enumerate((graph.spaces[name].unit for graph in net.graphs), 1):
            if own > unit:
                raise ValueError(f"original {i} has heads of size {own}, the merged model of size {unit}; subspaces "
                                 "need heads at least as large: start with init='first'")


class Start:
    """The fit of one SuperNet. A layer is fitted when its input arrives: in one run, and in trials for line 9."""

    def __init__(self, net: SuperNet, images: Calibration, batch_size: int, settings: dict):
        self.net, self.batch_size, self.settings = net, batch_size, SimpleNamespace(**settings)
        self.like, self.k = next(net.parameters()), len(net.originals)
        self._begin_norms()
        self.merged = net.fold().backbone  # layers still to come do not matter to those before
        self.gated = self.settings.inner_off_task and activation(net.config)()(torch.tensor(OFF)).abs() < 0.3
        self.own, self.heads = [to_device(images.of(i), self.like) for i in range(self.k)], self.settings.heads
        self.counted = [net.architecture.counted(self.merged, x) for x in self.own]  # which tokens are no padding
        self.weights, self.channels, self.moments = [], [], []  # of every original, by place
        for backbone, x in zip(net.backbones, self.own):
            self._measure(backbone, x)
        if net.graph.residual:
            self._share_stream(net.graph.residual.size)

    def _begin_norms(self) -> None:
        """The norms' bias, one everywhere, is a constant that U can read: an affine fit."""
        for name in self.net.norms:
            self.net.body.get_parameter(name).fill_(1.0)

    def _measure(self, backbone: nn.Module, images: Tensor) -> None:
        """Lines 1 and 2 of an original, and E_i x x^T of all that is picked from and, normalized, of the stream."""
        features, layers = partial(self.net.architecture.features, backbone), self.net.graph.layers
        norms = dict.fromkeys(name.rpartition(".")[0] for name in self.net.norms)
        stream, floor = getattr(self.net.graph.residual, "seen", ()), self.settings.floor
        places = dict.fromkeys((*(layer.name for layer in layers if layer.reads), *norms, *stream))
        some, batches = (x.split(self.batch_size) for x in (images[a_few(len(images), FEW)], images))
        counted = partial(self.net.architecture.counted, backbone)
        found = statistics.sensitivity(backbone, features, places, some, counted)
        self.channels.append({place: channels for place, (_, channels) in found.items()})
        self.weights.append({place: (1 - floor) * t + floor for place, (t, _) in found.items()})
        moments_of = partial(statistics.second_moments, backbone, features, batches=batches, weights=self.weights[-1],
                             counted=counted)
        self.moments.append(self._moments_of_reads(moments_of, list(norms)))

    def _moments_of_reads(self, moments_of: Callable[..., dict], norms: Sequence[str]) -> dict[str | None, Tensor]:
        """E w x x^T of what layers pick from, by place, and of what the norms give, as "stream"."""
        output = self.net.graph.output
        picked = [layer.name for layer in self.net.graph.layers if layer.reads and layer.reads != output]
        moments = moments_of(picked, norms)
        return moments | {"stream": sum(moments[norm] for norm in norms)}

    def _shares(self, size: int, given: Sequence[float] | None = None) -> list[Tensor]:
        """Who gets which of `size` places, at least one each: as `given`, or a merge of two counts twice."""
        ends = torch.tensor(given or [len(original.heads) for original in self.net.originals]).cumsum(0)
        ends, i = (size * ends / ends[-1]).round().long(), torch.arange(self.k)
        return list(torch.arange(size).tensor_split(ends.clamp(i + 1, size - self.k + i + 1)[:-1]))

    def _share_stream(self, size: int) -> None:
        """P_i (s, d_i) and B_i (d*, s) of every original: line 3. The merged LayerNorm's mean takes nothing away."""
        directions, self.principal, self.directions = statistics.centered_directions(size).to(self.like.device), [], []
        for share, moments in zip(self._shares(size - 1), self.moments):
            principal = torch.linalg.eigh(moments["stream"]).eigenvectors.flip(1).T[:len(share)]
            self.principal.append(principal - principal.mean(1, keepdim=True))
            self.directions.append(directions[:, share[:len(principal)]])

    def run(self, progress: bool | None) -> None:
        """Fit all layers in the order of the forward, then the output."""
        *segments, through_merged = map(self.net.architecture.segments, (*self.net.backbones, self.merged))
        own, merged, graph = self.own, torch.cat(self.own), self.net.graph
        for name, self.through in tqdm(through_merged.items(), desc="subspaces", disable=hidden_bar(progress)):
            self.layers = {layer.name: layer for layer in graph.layers if f"{layer.name}.".startswith(f"{name}.")}
            self.places = [place for layer in self.layers.values()
                           for place in (layer.name, layer.adds_to, layer.norm) if place]
            reads = [inputs_of(backbone, self.places, partial(through[name], x, counted))
                     for backbone, through, x, counted in zip(self.net.backbones, segments, own, self.counted)]
            heads = max((graph.spaces[s].heads for layer in self.layers.values() for s in layer.writes), default=1)
            if heads > self.k and not self.settings.heads:
                self.heads = self._divided(name, heads, reads, merged)
            merged, own = self._fitted(reads, merged, self.counted), [read[None] for read in reads]
        parts, off_task = merged.split([len(f) for f in own]), self.settings.off_task
        moments = [Moments.of(u, f, torch.ones(()), self.batch_size) for u, f in zip(parts, own)]
        eyes = [torch.eye(len(m.target)).to(m.gram) for m in moments]
        self.net.set_outputs([self._fit(i, moments, eye, off_task) for i, eye in enumerate(eyes)])

    def _fitted(self, reads: Reads, merged: Tensor, counted: Sequence[Tensor | None]) -> Tensor:
        """What a part of the merged model makes of `merged`; its layers are fitted to what the originals read there."""
        with watching(self.merged, self.places, partial(self._arrives, reads, counted, {})):
            return self.through(merged, None if counted[0] is None else torch.cat(list(counted)))

    def _divided(self, name: str, heads: int, reads: Reads, merged: Tensor) -> list[int] | None:
        """Line 9: the number of heads of every original in block `name`, found on a few images. None: equal shares."""
        after = dict(pairwise(self.net.graph.residual.seen)).get(name)  # what reads the stream next
        if after is None:  # the features are the stream
            return None
        few, parts = [a_few(len(x), FEW) for x in self.own], merged.split([len(x) for x in self.own])
        reads = [{place: x[at] for place, x in read.items()} for read, at in zip(reads, few)]
        merged = torch.cat([x[at] for x, at in zip(parts, few)])
        counted = [None if each is None else each[at] for each, at in zip(self.counted, few)]

        def errors(numbers: list[int]) -> list[float]:
            self.heads, found = numbers, []
            for i, z in enumerate(self._fitted(reads, merged, counted).split([len(at) for at in few])):
                true, principal = reads[i][None].double(), self.principal[i]
                wrong = (true @ principal.T - z.double() @ self.directions[i]) @ principal
                tokens = statistics.weighed(self.weights[i][after], counted[i])
                found.append(statistics.lost(wrong, true, tokens, self.channels[i][after]))
            return found
        return statistics.divided([len(share) for share in self._shares(heads)], errors)

    def _arrives(self, reads: Reads, counted: Sequence[Tensor | None], seen: dict[str, Tensor], place: str, x: Tensor
                 ) -> None:
        """x arrives in the merged model, and the originals read `reads` there: put a layer's M0 and U0 in its place."""
        seen[place] = x
        if place not in self.layers:
            return
        layer, unmerges, merges = self.layers[place], None, [self._merge(i, self.layers[place]) for i in range(self.k)]
        if layer.reads is not None:
            moments = [self._moments(i, layer, reads, counted[i], seen) for i in range(self.k)]
            unmerges = [self._unmerge(i, layer, merges[i], moments).to(self.like) for i in range(self.k)]
        self.net.replace(layer, merges, unmerges)
        weight, bias = self.net.body.get_submodule(place).fold()
        fitted = {f"{place}.weight": weight, f"{place}.bias": bias}
        self.merged.load_state_dict(fitted | self.net.tokens(), strict=False)

    def _moments(self, i: int, layer: Layer, reads: Reads, counted: Tensor | None, seen: Mapping[str, Tensor]
                 ) -> Moments:
        """On the images of task i: of u*, and of x_i or, where it adds to the stream, of z* and z_i + W_i x_i."""
        target, sizes = reads[i][layer.name], [len(read[layer.name]) for read in reads]
        if layer.adds_to:
            target = F.linear(target, self.net.backbones[i].get_submodule(layer.name).weight)
        if layer.adds_to and self.settings.corrected:
            target = torch.cat([seen[layer.adds_to].split(sizes)[i], reads[i][layer.adds_to] + target], -1)
        weights = statistics.weighed(self.weights[i][layer.name], counted)
        return Moments.of(seen[layer.name].split(sizes)[i], target, weights, self.batch_size)

    def _fit(self, i: int, moments: Sequence[Moments], rows: Tensor, off_task: float, off: Tensor | None = None,
             directions: Tensor | None = None) -> Tensor:
        """LS_i(A t - B^T z*; `off` - B^T z*, l), (s, d*), for A = `rows` (s, d_i), B (d*, s); `off` is mean A t."""
        directions = rows.new_zeros(0, len(rows)) if directions is None else directions
        size, parts = len(directions), []  # z* stands before t
        off = rows @ moments[i].target[size:] if off is None else off
        for j, each in enumerate(moments):
            cross = each.cross[:, size:] @ rows.T if j == i else torch.outer(each.read, off)
            parts.append((1.0 if j == i else off_task, each.gram, cross - each.cross[:, :size] @ directions))
        return statistics.least_squares(parts, self.settings.ridge)

    def _unmerge(self, i: int, layer: Layer, merge: Tensor, moments: Sequence[Moments]) -> Tensor:
        """U0_i (d_i, d*) of a layer: lines 6 to 8."""
        own = self.net.backbones[i].get_submodule(layer.name)
        weight = own.weight.double()
        if layer.adds_to:
            directions = self.directions[i] if self.settings.corrected else None
            fitted = self._fit(i, moments, self.principal[i], self.settings.inner_off_task, None, directions)
            return torch.linalg.pinv(self.principal[i] @ weight, rtol=1e-6) @ fitted
        unmerge = self._fit(i, moments, torch.eye(weight.shape[1]).to(weight), 0.0)
        if self.net.graph.spaces[layer.writes[0]].kind == "hidden" and self.gated:
            kept, bias = merge[0].any(0), torch.zeros(len(weight)) if own.bias is None else own.bias
            rows, off = weight[kept], OFF - bias.to(weight)[kept]
            gated = self._fit(i, moments, rows, self.settings.inner_off_task, off)
            unmerge = unmerge + torch.linalg.pinv(rows, rtol=1e-6) @ (gated - rows @ unmerge)
        return unmerge

    def _merge(self, i: int, layer: Layer) -> Tensor:
        """M0_i of a layer: all that one layer or one attention writes goes by the space that is read."""
        own, merged = (graph.read_of(layer.writes[-1]) for graph in (self.net.graphs[i], self.net.graph))
        if merged.kind == "residual":
            return (self.directions[i] @ self.principal[i]).to(self.like)
        reader = next((other.name for other in self.net.graph.layers if other.reads == own.name), None)
        moment, eye = self.moments[i][reader].cpu(), torch.eye(own.size).double()
        moment = moment + self.settings.ridge * moment.diagonal().mean() * eye  # no ties where the rows are few
        unit, wider = (1, 1) if merged.kind == "hidden" else (own.unit, merged.unit)
        share = self._shares(merged.size // wider, merged.kind == "heads" and self.heads)[i]
        chosen = statistics.best_groups(moment, self.channels[i].get(reader, eye).cpu(), unit, len(share))
        matrix, inside = torch.zeros(merged.size, own.size), torch.arange(unit)
        matrix[share[:len(chosen), None] * wider + inside, chosen[:, None] * unit + inside] = 1.0
        spaces = (self.net.graph.spaces[space] for space in layer.writes)
        return torch.stack([(wider / unit) ** space.growth * matrix for space in spaces]).to(self.like)


class PostNormStart(Start):
    """The fit of one SuperNet of models whose stream itself passes through a norm after each addition.

    Such a norm divides all channels by one standard deviation, over all shares, and multiplies each by its own weight.
    So two things change:

    - Line 3: a share has channels of its own, and B_i is zero elsewhere. What is written to a share has mean 0 over its
      channels, so that a norm takes no mean away. P_i: principal directions of what is read from the stream.
    - A norm's weight and bias at channel c of share i are the straight line from what the norm gives without them,
      n*_c, to 1 + (B_i P_i x_i)_c, by weighted least squares on images of task i. x_i is what original i's own norm
      gives. The 1 is a constant that U can read, and that the next norm takes away.

    Two errors remain. The size of one share scales the others, in each token by another factor. And original i's norm
    has a weight for each channel, which in the directions B_i P_i is no longer one for each.
    """

    def _begin_norms(self) -> None:
        """They are set when their input arrives."""

    def _moments_of_reads(self, moments_of: Callable[..., dict], norms: Sequence[str]) -> dict[str | None, Tensor]:
        """E w x x^T of what layers read, by place. As "stream", of what is read from there: every place at one size."""
        layers, stream = [layer for layer in self.net.graph.layers if layer.reads], self.net.graph.residual.name
        moments = moments_of([layer.name for layer in layers], ())
        read = [moments[layer.name] for layer in layers if layer.reads == stream]
        return moments | {"stream": sum(moment / moment.trace() for moment in read)}

    def _share_stream(self, size: int) -> None:
        """P_i (s, d_i) and B_i (d*, s) of every original."""
        self.principal, self.directions = [], []
        for share, moments in zip(self._shares(size), self.moments):
            principal = torch.linalg.eigh(moments["stream"]).eigenvectors.flip(1).T[:len(share) - 1]
            directions = torch.zeros(size, len(principal)).to(principal)
            directions[share] = statistics.centered_directions(len(share))[:, :len(principal)].to(principal)
            self.principal.append(principal - principal.mean(1, keepdim=True))
            self.directions.append(directions)

    def _arrives(self, reads: Reads, counted: Sequence[Tensor | None], seen: dict[str, Tensor], place: str, x: Tensor
                 ) -> None:
        super()._arrives(reads, counted, seen, place, x)
        if any(place == layer.norm for layer in self.layers.values()):
            self._fit_norm(place, reads, counted, x)

    def _fit_norm(self, name: str, reads: Reads, counted: Sequence[Tensor | None], x: Tensor) -> None:
        """Weight and bias of a merged norm, at which x arrives."""
        merged, learned = self.merged.get_submodule(name), self.net.body.get_submodule(name)
        parts = F.layer_norm(x, x.shape[-1:], eps=merged.eps).split([len(read[name]) for read in reads])
        for i, part in enumerate(parts):
            own = self.directions[i].any(1)  # its channels
            normed = self.net.backbones[i].get_submodule(name)(reads[i][name]).double()
            target = normed @ (self.directions[i] @ self.principal[i])[own].T
            weights = statistics.weighed(self.weights[i][name], counted[i])
            slopes, intercepts = statistics.straight_lines(part[..., own], target, weights)
            for norm in (merged, learned):
                norm.weight[own], norm.bias[own] = slopes.to(self.like), intercepts.to(self.like) + 1
