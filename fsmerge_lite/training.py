"""What is reconstructed: the loss of the paper on output and inner features, trained globally or block by block."""
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .architectures import reads
from .engine import given
from .engine.fitting import Checkpoint, History, fit
from .engine.images import Calibration, same_tasks
from .engine.processes import share
from .engine.running import to_device
from .models import Original
from .supernet import SuperNet

Features = Callable[[Tensor], Mapping[int | None, Sequence[Tensor]]]  # images -> by depth, as `SuperNet.features`


@torch.no_grad()
def target_features(originals: Sequence[Original], images: Calibration, like: Tensor, layer: str | None = None,
                    batch_size: int = 256) -> list[Tensor]:
    """What every original computes for the images of its OWN task, on the device and in the dtype of `like`.

    Output features (n_i, d_i) each or, with `layer`, what that layer reads, (n_i, ..., d_i): these are large, and are
    given back on the CPU.
    """
    targets = []
    for i, original in enumerate(originals):  # one original at a time on the device of the training
        backbone = copy.deepcopy(original.backbone).to(like)
        read = (reads(backbone, layer, to_device(x, like)) for x in images.of(i).split(batch_size))
        targets.append(torch.cat([x.cpu() if layer else x for x in read]))
    return targets


class Reconstruction:
    """How far each original's features are from their reconstruction (paper, section 2).

    L = mean over images x of || features_i(x) - f_i(x) ||^2 / s_i^2
          + off_task * sum over j != i of || features_j(x) - m_j ||^2 / s_j^2,       i = owner of x

    Ours: s_i^2, the mean of ||f_i||^2, brings the originals to one scale. With off_task > 0 the features for all other
    heads are drawn to m_j, the mean of f_j, which says nothing: it is for the joint accuracy, where a head that is
    sure of itself on another task's image wins. In the paper s_i = 1 (`scaled` False) and off_task = 0.

    Args:
        images, targets: the images, and k f_i for those of task i, (n_i, ..., d_i) each.
        off_task: weight of the second term, >= 0.
        weight: a factor of L, >= 0.
    """

    def __init__(self, images: Calibration, targets: Sequence[Tensor], off_task: float = 0.0, weight: float = 1.0,
                 scaled: bool = True):
        given.number(weight=weight, off_task=off_task)
        self.images, self.targets, self.off_task, self.weight = images, targets, off_task, weight
        self.scales = [target.square().flatten(1).sum(1).mean() if scaled else 1.0 for target in targets]  # s_i^2
        self.means = [target.mean(0) for target in targets]
        self.row_in_task = torch.empty_like(images.owner)
        for i, target in enumerate(targets):
            self.row_in_task[images.owner == i] = torch.arange(len(target))

    def __call__(self, rebuilt: Sequence[Tensor], rows: Tensor) -> Tensor:
        """L of k reconstructions (B, ..., d_i) of the images at `rows` (B,)."""
        owner, row, errors = self.images.owner[rows], self.row_in_task[rows], []
        for i, (features, scale) in enumerate(zip(rebuilt, self.scales)):
            own = owner == i
            target = self.targets[i][row[own]].to(features.device)
            errors.append((features[own] - target).square().sum() / scale)
            if self.off_task:
                errors.append(self.off_task * (features[~own] - self.means[i]).square().sum() / scale)
        return self.weight * (sum(errors) / len(rows))


def objective(features: Features, errors: Mapping[int | None, Reconstruction], images: Calibration, batch_size: int,
              seed: int, like: Tensor) -> Callable[[int], Tensor]:
    """The loss of a step: the sum of the `Reconstruction` at each depth, None being the output.

    A step sees `batch_size` >= 1 of the images, none twice, fixed by its number and the seed, on the device of `like`.
    """
    given.whole(1, batch_size=batch_size)
    given.whole(seed=seed)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        rows, weight = share(torch.randperm(len(images), generator=generator)[:batch_size])
        rebuilt = features(to_device(images.images[rows], like))
        return weight * sum(error(rebuilt[depth], rows) for depth, error in errors.items())
    return loss


def errors_of(net: SuperNet, images: Calibration, weights: Mapping[int | None, float], off_task: float = 0.0,
              scaled: bool = True) -> dict[int | None, Reconstruction]:
    """The `Reconstruction` at each depth that has a weight, None being the output, to which alone off_task belongs."""
    like, layers = next(net.parameters()), {None: None} | net.layers_at([d for d in weights if d is not None])
    return {depth: Reconstruction(images, target_features(net.originals, images, like, layers[depth]),
                                  off_task if depth is None else 0.0, weight, scaled)
            for depth, weight in weights.items()}


def train_global(net: SuperNet, images: Calibration, steps: int = 1000, lr: float = 1e-3, batch_size: int = 128,
                 seed: int = 0, depths: Sequence[int] = (), inner: float = 1.0, off_task: float = 0.0,
                 scaled: bool = True, checkpoint: str | Path | None = None, **optimization) -> History:
    """Train all M, U and norms of a SuperNet together to reconstruct the originals' output features.

    Minimizes the loss of `Reconstruction`; the originals stay as they are. Inner features add
    (inner / number of depths) * sum over d of || U_i LN*(x*_d) - LN_i(x_i,d) ||^2 / s_i,d^2, own images only.

    Args:
        net: the SuperNet, on the device to train on.
        images: from `calibration`, of the net's originals in their order.
        steps, lr: of AdamW under a one-cycle schedule; lr is the highest rate.
        batch_size, seed: images a step; what fixes their order.
        depths, inner: after how many blocks inner features are reconstructed too (the paper: none); their weight, >= 0.
        off_task, scaled: see `Reconstruction`.
        checkpoint: a file that the run is saved to and resumes from, after a kill to the same result.
        optimization: weight_decay, warmup, anneal, clip, precision and progress, as for `fit`.

    Raises ValueError for images of another number of tasks, a number outside its range, an unknown depth or another
    run's checkpoint, and FloatingPointError when the loss is no longer finite.
    """
    same_tasks(net, images)
    given.number(inner=inner)
    settings = {"images": images.hash(), "seed": seed, "batch_size": batch_size, "depths": [*net.layers_at(depths)],
                "inner": inner, "off_task": off_task, "scaled": scaled}
    weights = {None: 1.0} | {depth: inner / len(depths) for depth in net.layers_at(depths)}
    errors, like = errors_of(net, images, weights, off_task, scaled), next(net.parameters())
    loss = objective(lambda x: net.features(x, list(weights)), errors, images, batch_size, seed, like)
    history = fit((p for p in net.parameters() if p.requires_grad), loss, steps, lr, name="FS-Merge",
                  checkpoint=checkpoint and Checkpoint(checkpoint, net.card() | settings, net), **optimization)
    net.provenance = [*net.provenance, {"trained": "global", "steps": steps, "lr": lr, **settings}]
    return history


def train_local(net: SuperNet, images: Calibration, steps: int = 200, lr: float = 1e-3, batch_size: int = 128,
                seed: int = 0, checkpoint: str | Path | None = None, **optimization) -> list[History]:
    """Train a SuperNet block by block, each on the reconstruction of its own depth (paper, local training).

    At depth d: min || U_i LN*(x*_d) - LN_i(x_i,d) ||^2 / s_i,d^2, over what stands between the readout before and this
    one: the block's M and inner U, its norms, and the readout (norm and U) itself; the next block starts from there.
    A ViT's block reads the merged stream that the trained blocks before it make. An MLP's layer reads the originals'
    true features, so that its layers do not depend on each other, unless a start has replaced the frozen weights.

    Args:
        net, images, lr, batch_size, seed, optimization: as for `train_global`, which raises the same errors.
        steps: for each block.
        checkpoint: a stem of file names; block d is saved to `checkpoint`.d and resumes from there.

    Returns one `History` a readout, the output features last.
    """
    same_tasks(net, images)
    settings = {"images": images.hash(), "seed": seed, "batch_size": batch_size}
    done, histories = set(), []
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    try:
        for depth in [*net.graph.readouts, None]:  # None: the output features
            block = {name for name, _ in until(net, depth)} - done
            done |= block
            for name, p in learned.items():  # no backward runs through what came before
                p.requires_grad_(name in block)
            where = "output" if depth is None else f"depth{depth}"
            loss = objective(_readout(net, depth), errors_of(net, images, {depth: 1.0}), images, batch_size, seed,
                             next(net.parameters()))
            saved = checkpoint and Checkpoint(f"{checkpoint}.{where}", net.card() | settings | {"local": where}, net)
            histories.append(fit([p for p in learned.values() if p.requires_grad], loss, steps, lr, checkpoint=saved,
                                 name=f"local: {where.replace('depth', 'depth ')}", **optimization))
    finally:
        for p in learned.values():
            p.requires_grad_(True)
    net.provenance = [*net.provenance, {"trained": "local", "steps": steps, "lr": lr, **settings}]
    return histories


def until(net: SuperNet, depth: int | None) -> list[tuple[str, Tensor]]:
    """The learned parameters that the readout after `depth` blocks depends on; None: all, up to the output."""
    named = list(net.named_parameters())  # in the order of the forward
    if depth is None:
        return named
    reader = f"body.{net.graph.readouts[depth]}"
    end = next(n for n, (name, _) in enumerate(named) if name.startswith(f"{reader}.merges"))
    return named[:end] + [pair for pair in named if pair[0].startswith(f"{reader}.unmerges")]


def _readout(net: SuperNet, depth: int | None) -> Features:
    """Images -> the k originals' features at this depth, rebuilt; None: the output features."""
    if net.graph.residual or any("readout0" in name for name, _ in net.named_buffers()):
        return lambda x: net.features(x, [depth])
    names = [layer.name for layer in net.graph.layers]
    name = names[-1 if depth is None else names.index(net.graph.readouts[depth]) - 1]  # it writes what is read
    writer = net.body.get_submodule(name)

    def read_alone(x: Tensor) -> dict[int | None, list[Tensor]]:
        """With the layer that writes it on what each original's own layer reads."""
        with torch.no_grad():
            writer.given = [reads(backbone, name, x) for backbone in net.backbones]
        try:
            return net.features(x, [depth])
        finally:
            writer.given = None
    return read_alone
