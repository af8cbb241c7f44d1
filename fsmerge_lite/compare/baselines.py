"""What FS-Merge is compared with: each takes the originals and gives something `evaluate` takes."""
import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import architecture, graph_of
from ..architectures.graph import Layer
from ..engine import given
from ..engine.fitting import Checkpoint, fit
from ..engine.images import Calibration, same_tasks
from ..engine.running import inputs_of, rows_of, to_device, without_padding
from ..models import Merged, Original
from ..supernet import SuperNet
from ..training import Features, Reconstruction, errors_of, objective, target_features
from .alignment import alignment, equal_originals, permuted, undo


def alone(originals: Sequence[nn.Module], i: int = 0) -> Merged:
    """Original i as if it were the merge: its backbone alone before all k heads, U_out,j = I for every j.

    It is an end of a `path` (take both ends from one list of originals, so that they have the same heads), and
    the row of a table that says what one original gives on all tasks.

    Args:
        originals: k originals of equal widths.
        i: which, 0 <= i < k.

    Raises:
        TypeError, ValueError: what cannot be merged, originals of different widths, or no original i.
    """
    given.whole(0, len(given.several("originals", originals)) - 1, i=i)
    return _tensor_by_tensor(originals, lambda weights: weights[i])


def average(originals: Sequence[nn.Module]) -> Merged:
    """The plain average of all weights: W* = sum_i W_i / k, as a SuperNet folds with init="average", untrained.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    return _tensor_by_tensor(originals, lambda weights: torch.stack(weights).mean(0))


def slerp(originals: Sequence[nn.Module], t: float = 0.5) -> Merged:
    """Spherical interpolation of two models, tensor by tensor (flattened), W_1 and W_2 an angle O apart.

    W* = sin((1 - t) O) / sin O  W_1 + sin(t O) / sin O  W_2

    Tensors that point the same way or opposite ways, or are zero, are interpolated on the straight line.

    Args:
        originals: two originals of equal widths.
        t: 0 <= t <= 1; 0 is the first original, 1 the second.

    Raises:
        TypeError, ValueError: what cannot be merged, not two originals, or t outside its range.
    """
    if len(given.several("originals", originals)) != 2:
        raise ValueError(f"slerp goes between two originals, got {len(originals)}; average, regmean and align take k")
    given.number(1, t=t)
    return _tensor_by_tensor(originals, lambda weights: _slerp(*weights, t))


def _absorbed(original: Original) -> nn.Module:
    return architecture(original.backbone).absorb_scales(original.backbone)


def _tensor_by_tensor(originals: Sequence[nn.Module], combine: Callable[[list[Tensor]], Tensor]) -> Merged:
    """One model of which every tensor is made of the k originals' tensors of that name; U_out,i = I."""
    originals = equal_originals(originals)
    backbones = [_absorbed(o) for o in originals]
    merged, states = copy.deepcopy(backbones[0]), [backbone.state_dict() for backbone in backbones]
    merged.load_state_dict({name: combine([state[name] for state in states]) for name in states[0]})
    return Merged(merged, [undo(merged, {})] * len(originals), [o.head for o in originals],
                  [o.name or f"model {i}" for i, o in enumerate(originals, 1)]).requires_grad_(False).eval()


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    unit_a, unit_b = (F.normalize(w.flatten().double(), dim=0) for w in (a, b))
    angle = (unit_a @ unit_b).clamp(-1, 1).acos()
    if angle.sin() < 1e-6 or not a.any() or not b.any():
        return a.lerp(b, t)
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


def regmean(originals: Sequence[nn.Module], images: Calibration, off_diagonal: float = 0.7,
            batch_size: int = 64) -> Merged:
    """RegMean: every linear layer is the least-squares fit to all originals, each on the images of its own task.

    W* = (sum_i W_i G_i) (sum_i G_i)^-1,     G_i = X_i^T X_i / n_i

    X_i (n_i, d) are what the layer reads in original i. The off-diagonal entries of G_i are multiplied by a
    factor first. The patch embedding is such a layer too, on unfolded patches. Biases, norms, tokens and tables of
    embeddings are averaged, and so is W where no image excites any input, where sum_i G_i has no inverse.

    Args:
        originals: k originals of equal widths.
        images: from `calibration`, of these originals in their order.
        off_diagonal: the factor, 0 <= off_diagonal <= 1; 1 is plain least squares.
        batch_size: images at a time.

    Raises:
        TypeError, ValueError: what cannot be merged, originals of different widths, images of another number of
            tasks, or a factor outside its range.
    """
    given.number(1, off_diagonal=off_diagonal)
    given.whole(1, batch_size=batch_size)
    same_tasks(originals, images)
    merged = average(originals)
    backbones = [_absorbed(o) for o in equal_originals(originals)]
    grams = [_grams(backbone, images.of(i), off_diagonal, batch_size) for i, backbone in enumerate(backbones)]
    for name in grams[0]:
        mean = merged.backbone.get_submodule(name).weight
        weights = [backbone.get_submodule(name).weight for backbone in backbones]
        mean.data = _regress(weights, [gram[name] for gram in grams]).to(mean)
    return merged


def _regress(weights: Sequence[Tensor], grams: Sequence[Tensor]) -> Tensor:
    """(sum_i W_i G_i) (sum_i G_i)^-1, written around the mean of W_i, which a pseudo-inverse then leaves as it is."""
    flat = torch.stack([w.flatten(1).double() for w in weights])
    mean, grams = flat.mean(0), torch.stack(list(grams))
    solved = mean + ((flat - mean) @ grams).sum(0) @ torch.linalg.pinv(grams.sum(0), hermitian=True)
    return solved.view_as(weights[0])


@torch.no_grad()
def _grams(backbone: nn.Module, images: Tensor, off_diagonal: float, batch_size: int) -> dict[str, Tensor]:
    """X^T X / n in float64 of what every merged layer reads, off-diagonal entries times a factor."""
    layers = {layer.name: layer for layer in graph_of(backbone).layers if layer.kind != "embedding"}
    like = next(backbone.parameters())
    grams, rows, known = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0), architecture(backbone)
    for batch in images.split(batch_size):
        batch = to_device(batch, like)
        known.check_inputs(backbone, batch)
        seen = inputs_of(backbone, layers, lambda batch=batch: known.features(backbone, batch))
        counted = known.counted(backbone, batch)
        for name, layer in layers.items():
            x = rows_of(_rows_read(layer, backbone.get_submodule(name), seen[name]), counted).double()
            grams[name], rows[name] = grams[name] + x.T @ x, rows[name] + len(x)
    return {name: (off_diagonal * gram + (1 - off_diagonal) * gram.diag().diag()) / rows[name]
            for name, gram in grams.items()}


def _rows_read(layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
    """The rows (..., d) that the weight (o, d) of a layer is multiplied with; a convolution reads unfolded patches."""
    if layer.kind == "conv2d":
        x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT  # (B, patches, d)
    return x


def align(originals: Sequence[nn.Module], images: Calibration, batch_size: int = 64) -> Merged:
    """Activation matching: bring every original into the order of the first by permutations, then average.

    W* = sum_i P_i(W_i) / k, where P_i is the `alignment` of original i; U_out,i undoes it before head i.

    Args:
        originals: k originals of equal widths.
        images: from `calibration`.
        batch_size: images at a time.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    originals = equal_originals(originals)
    orders = alignment(originals, images, batch_size)
    merged = average([permuted(original, order) for original, order in zip(originals, orders)])
    return Merged(merged.backbone, [undo(merged.backbone, order) for order in orders], [o.head for o in originals],
                  merged.names).requires_grad_(False).eval()


class Ensemble(nn.Module):
    """The originals side by side, each with its own head: an upper row, at k times the cost.

    Args:
        originals: k >= 1 `Original` in eval mode, or backbones.

    Raises TypeError or ValueError for others.
    """

    def __init__(self, originals: Sequence[Original]):
        super().__init__()
        originals = [o if isinstance(o, Original) else Original(o) for o in given.several("originals", originals)]
        if not originals:
            raise ValueError("an ensemble needs one or more originals, got none")
        for i, original in enumerate(originals, 1):
            given.in_eval_mode(original.backbone, f"original {i}")
        self.originals = nn.ModuleList(copy.deepcopy(original) for original in originals)  # they may be moved

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits of all k heads, each (B, classes_i)."""
        return [original(x) for original in self.originals]


ensemble = Ensemble  # called like the other baselines


def reconstruction(features: Callable[[Tensor], Sequence[Tensor]], images: Calibration, targets: Sequence[Tensor],
                   batch_size: int, seed: int, like: Tensor, off_task: float = 0.0) -> Callable[[int], Tensor]:
    """The `objective` on the output alone, for whatever maps images (B, C, H, W) to k reconstructions (B, d_i)."""
    errors = {None: Reconstruction(images, targets, off_task)}
    return objective(lambda x: {None: features(x)}, errors, images, batch_size, seed, like)


def distill(originals: Sequence[nn.Module], images: Calibration, steps: int = 1000, lr: float = 1e-3,
            batch_size: int = 128, init: str = "first", seed: int = 0, checkpoint: str | Path | None = None,
            **optimization) -> Merged:
    """Knowledge distillation: train all weights of one model towards the originals' features.

    The same loss, images, optimizer and schedule as FS-Merge, on features brought to one scale, the first original's:
    features_i(x) = (s_i / s_1) f*(x), where s_i is the root mean square of f_i.

    Args:
        originals: k originals of one width.
        images: from `calibration`, of these originals in their order.
        steps, lr: of AdamW under a one-cycle schedule; lr is the highest rate.
        batch_size: images a step.
        init: `first` starts at original 1, `average` at the average of the weights.
        seed: fixes the order of the images.
        checkpoint: a file that the run is saved to and resumes from, after a kill to the same result.
        optimization: weight_decay, warmup, precision and progress, as for `fit`.

    Returns:
        the student as a `Merged`, with the `History` of its training as `.history`.

    Raises:
        TypeError, ValueError: originals that do not fit together, or an unknown init.
    """
    given.choice(("first", "average"), init=init)
    net = SuperNet(originals, structure="diagonal", init=init)
    for i, original in enumerate(net.originals, 1):
        if len(original.heads) != 1:
            raise ValueError(f"original {i} is a merge of {len(original.heads)}, distillation takes originals of one "
                             "task; SuperNet can merge it further")
    same_tasks(net, images)
    student = net.fold()
    parameters = list(student.backbone.requires_grad_(True).parameters())
    targets = target_features(net.originals, images, parameters[0])
    if len({t.shape[1] for t in targets}) > 1:
        raise ValueError("distillation needs originals of one feature width; SuperNet can merge different ones")
    for output, target in zip(student.outputs, targets):
        output.data = (target.square().mean() / targets[0].square().mean()).sqrt() * torch.eye(len(output)).to(output)
    loss = reconstruction(student.features, images, targets, batch_size, seed, parameters[0])
    run = net.card() | {"images": images.hash(), "seed": seed, "batch_size": batch_size}
    student.history = fit(parameters, loss, steps, lr, name="distillation", **optimization,
                          checkpoint=checkpoint and Checkpoint(checkpoint, run, student))
    return student.requires_grad_(False)


def train_folded(net: SuperNet, images: Calibration, steps: int = 1000, lr: float = 1e-3, batch_size: int = 128,
                 seed: int = 0, depths: Sequence[int] = (), inner: float = 1.0, off_task: float = 0.0, **optimization
                 ) -> Merged:
    """Fold a SuperNet first, then train all weights of the plain model, its output matrices and its inner readouts.

    The loss is that of `train_global`; M, U and the SuperNet stay as they are.

    Args:
        net: a SuperNet after its start.
        images, steps, lr, batch_size, seed, depths, inner, off_task, optimization: as for `train_global`.

    Returns:
        the model as a `Merged`, with the `History` of its training as `.history`.

    Raises:
        ValueError: as `train_global`.
    """
    same_tasks(net, images)
    given.number(inner=inner)
    merged, like = net.fold().requires_grad_(True), next(net.parameters())
    readouts = nn.ModuleDict({str(depth): _readouts(net, layer) for depth, layer in net.layers_at(depths).items()})
    weights = {None: 1.0} | {depth: inner / len(depths) for depth in depths}
    errors = errors_of(net, images, weights, off_task)
    loss = objective(_features(net, merged, readouts), errors, images, batch_size, seed, like)
    parameters = [*merged.backbone.parameters(), *merged.outputs, *readouts.parameters()]
    merged.history = fit(parameters, loss, steps, lr, name="all weights", **optimization)
    return merged.requires_grad_(False)


@torch.no_grad()
def _readouts(net: SuperNet, layer: str) -> nn.ParameterList:
    """The k dense matrices that read a layer's input, as they are in the SuperNet."""
    module = net.body.get_submodule(layer)
    eye = torch.eye(module.unmerges[0].in_features).to(module.weight0)
    return nn.ParameterList(read.T.clone() for read in module.reads(eye))


def _features(net: SuperNet, merged: Merged, readouts: nn.ModuleDict) -> Features:
    """A function from images to output features (depth None) and inner features, as `SuperNet.features`."""
    layers, known = net.layers_at([int(depth) for depth in readouts]), net.architecture

    def features(x: Tensor) -> dict[int | None, list[Tensor]]:
        counted = known.counted(merged.backbone, x)
        seen = inputs_of(merged.backbone, layers.values(), lambda: merged.features(x))
        read = {depth: without_padding(seen[layer], counted) for depth, layer in layers.items()}
        return {None: seen[None]} | {depth: [read[depth] @ readout.T for readout in readouts[str(depth)]]
                                  for depth in layers}
    return features
