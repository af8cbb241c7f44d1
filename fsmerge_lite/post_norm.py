"""The fitted start of post-norm models, in which the stream itself passes through a norm after each addition.

Such a norm divides all channels by one standard deviation, over all shares, and multiplies each by its own weight. So
`start` is followed with four changes:

a. Line 3: a share has channels of its own, in which all that is written has mean 0. So B_i has zeros elsewhere, and the
   mean that a norm takes away is 0. P_i: the first principal directions of what original i's layers read.
b. The first layer: M0_i = B_i A_i, where A_i = LS(P_i (x_i - mean); e_i) makes of the sum e_i of all embeddings what
   original i's norm makes of it, x_i, as far as a matrix can.
c. Line 8: y_i is what original i's norm gives after this layer, less the layer's bias. So the sum before a merged norm
   has the size that it is to have after it, and the norm has little left to do.
d. A merged norm: weight and bias of channel c in share i are the straight line from what the norm gives without them,
   n*_c, to (B_i P_i x_i)_c, by weighted least squares on the images of task i.

What stays wrong is that the standard deviation of one share changes from token to token, and scales the others too.
"""
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .architectures.graph import Layer
from .engine import statistics
from .engine.statistics import Moments
from .start import Reads, Start


class PostNormStart(Start):
    """The fit of one SuperNet of post-norm models."""

    def _begin_norms(self) -> None:
        """They are set when their input arrives."""

    def _moments_of_reads(self, moments_of: Callable[..., dict], norms: Sequence[str]) -> dict[str | None, Tensor]:
        """E w x x^T of what layers read, by place, and of all that is read from the stream."""
        layers, stream = [layer for layer in self.net.graph.layers if layer.reads], self.net.graph.residual.name
        moments = moments_of([layer.name for layer in layers], ())
        return moments | {"stream": sum(moments[layer.name] for layer in layers if layer.reads == stream)}

    def _share_stream(self, size: int) -> None:
        """Change a: P_i (s, d_i) and B_i (d*, s) of every original."""
        self.principal, self.directions = [], []
        for share, moments in zip(self._shares(size), self.moments):
            principal = torch.linalg.eigh(moments["stream"]).eigenvectors.flip(1).T[:len(share) - 1]
            directions = torch.zeros(size, len(principal)).to(principal)
            directions[share] = statistics.centered_directions(len(share))[:, :len(principal)].to(principal)
            self.principal.append(principal)
            self.directions.append(directions)

    def _arrives(self, reads: Reads, counted: Sequence[Tensor | None], seen: dict[str, Tensor], place: str, x: Tensor
                 ) -> None:
        layer = self.layers.get(place)
        if layer and layer.reads is None:
            self.first = [self._embedding(i, layer, reads[i], counted[i]) for i in range(self.k)]
        super()._arrives(reads, counted, seen, place, x)
        if any(place == layer.norm for layer in self.layers.values()):
            self._fit_norm(place, reads, counted, x)

    def _merge(self, i: int, layer: Layer) -> Tensor:
        return self.first[i] if layer.reads is None else super()._merge(i, layer)

    def _embedding(self, i: int, layer: Layer, read: Mapping[str | None, Tensor], counted: Tensor | None) -> Tensor:
        """Change b: M0_i (d*, d_i) of the first layer. The means are for the norm's bias."""
        weights = statistics.weighed(self.weights[i][layer.norm], counted)
        found = Moments.of(read[layer.norm], self._normed(i, layer.norm, read), weights, self.batch_size)
        gram, cross = (product - torch.outer(found.read, mean) for product, mean in
                       ((found.gram, found.read), (found.cross, found.target)))
        fitted = statistics.least_squares([(1.0, gram, cross @ self.principal[i].T)], self.settings.ridge)
        return (self.directions[i] @ fitted).to(self.like)

    def _normed(self, i: int, norm: str, read: Mapping[str | None, Tensor]) -> Tensor:
        """What a norm of original i gives."""
        return self.net.backbones[i].get_submodule(norm)(read[norm])

    def _after(self, i: int, layer: Layer, read: Mapping[str | None, Tensor]) -> Tensor:
        """Change c."""
        return self._normed(i, layer.norm, read) - self.net.backbones[i].get_submodule(layer.name).bias

    def _fit_norm(self, norm: str, reads: Reads, counted: Sequence[Tensor | None], x: Tensor) -> None:
        """Change d, when x arrives at a merged norm."""
        merged = self.merged.get_submodule(norm)
        parts = F.layer_norm(x, x.shape[-1:], eps=merged.eps).split([len(read[norm]) for read in reads])
        for i, part in enumerate(parts):
            own = self.directions[i].any(1)
            target = self._normed(i, norm, reads[i]).double() @ (self.directions[i] @ self.principal[i])[own].T
            weights = statistics.weighed(self.weights[i][norm], counted[i])
            for name, value in zip(("weight", "bias"), statistics.straight_lines(part[..., own], target, weights)):
                for module in (merged, self.net.body.get_submodule(norm)):
                    getattr(module, name)[own] = value.to(self.like)
