"""What is reconstructed: the loss of the paper on output and inner features, trained globally or block by block."""
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .fitting import History, fit
from .models import MLP, Original
from .supernet import SuperNet
from .tasks import Calibration
from .wiring import inputs_of


@torch.no_grad()
def target_features(originals: Sequence[Original], images: Calibration, like: Tensor, batch_size: int = 256
                    ) -> list[Tensor]:
    """f_i(x) of every image by its OWN original, (n_i, d_i) for each i, on the device and in the dtype of `like`.

    Raises:
        ValueError: the images were drawn for another number of originals.
    """
    return _own_features(originals, images, like, lambda backbone, x: backbone(x), batch_size)


def same_tasks(originals: Sequence, images: Calibration) -> None:
    """Refuse images of another number of tasks than there are originals, or none of a task."""
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")
    missing = set(range(k)) - set(images.owner.tolist())
    if missing:
        raise ValueError(f"there is no image of task {min(missing)} (from 0); every original needs some of its own")


@torch.no_grad()
def _own_features(originals: Sequence[Original], images: Calibration, like: Tensor, run: Callable,
                  batch_size: int = 256) -> list[Tensor]:
    """`run(backbone_i, x)` for the images of every task i, put together."""
    same_tasks(originals, images)
    made = []
    for i, original in enumerate(originals):  # one original at a time on the device of the training
        backbone = copy.deepcopy(original.backbone).to(like)
        made.append(torch.cat([run(backbone, x.to(like)) for x in images.of(i).split(batch_size)]))
    return made


def reconstruction(features: Callable[[Tensor], list[Tensor]], images: Calibration, targets: Sequence[Tensor],
                   batch_size: int, seed: int, like: Tensor, quiet: float = 0.0) -> Callable[[int], Tensor]:
    """The loss of a step: how far each original's features are from their reconstruction (paper, section 2).

    L = mean over images x of || features_i(x) - f_i(x) ||^2 / s_i^2
          + quiet * sum over j != i of || features_j(x) - m_j ||^2 / s_j^2,       i = owner of x

    The paper's loss is quiet = 0: only the image's own original counts. With quiet > 0 the features for all other
    heads are drawn to m_j, the mean of f_j, which says nothing: it is for the joint accuracy, where a head that is
    sure of itself on another task's image wins. s_i^2, the mean of ||f_i||^2, brings the originals to one scale.

    Args:
        features: maps images (B, C, H, W) to k reconstructions (B, ..., d_i).
        images, targets: what to reconstruct; `targets[i]` (n_i, ..., d_i) are the features of the images of task i.
        batch_size: images a step, drawn without repetition.
        seed: with the step's number, fixes which.
        like: a parameter of the model, for device and dtype.
        quiet: weight of the second term, >= 0.
    """
    scales = [t.square().flatten(1).sum(1).mean() for t in targets]
    means = [t.mean(0) for t in targets]
    row_in_task = torch.empty_like(images.owner)
    for i, target in enumerate(targets):
        row_in_task[images.owner == i] = torch.arange(len(target))

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        rows = torch.randperm(len(images), generator=generator)[:batch_size]
        owner, row = images.owner[rows], row_in_task[rows]
        rebuilt, errors = features(images.images[rows].to(like)), []
        for i, (target, mean, scale) in enumerate(zip(targets, means, scales)):
            errors.append((rebuilt[i][owner == i] - target[row[owner == i]]).square().sum() / scale)
            if quiet:
                errors.append(quiet * (rebuilt[i][owner != i] - mean).square().sum() / scale)
        return sum(errors) / len(rows)
    return loss


def _inner_targets(net: SuperNet, images: Calibration, depth: int, like: Tensor) -> list[Tensor]:
    """What each original's layer behind `depth` blocks reads on the images of its own task, (n_i, ..., d_i)."""
    layer, = net.layers_at([depth])
    return _own_features(net.originals, images, like,
                         lambda backbone, x: inputs_of(backbone, [layer], lambda: backbone(x), stop=True)[layer])


def objective(net: SuperNet, run: Callable[[Tensor], tuple[list[Tensor], dict[int, list[Tensor]]]],
              images: Calibration, batch_size: int, seed: int, depths: Sequence[int] = (), inner: float = 1.0,
              quiet: float = 0.0) -> Callable[[int], Tensor]:
    """The loss of a step on output features and, at some depths, inner features: what `train_global` minimises.

    `run` maps images to both, as `SuperNet.run` does; the originals, and where their depths are, are those of `net`.
    """
    like, seen = next(p for p in net.parameters() if p.requires_grad), {}

    def outputs(x: Tensor) -> list[Tensor]:
        rebuilt, at = run(x)
        seen.update(at)
        return rebuilt
    terms = [reconstruction(outputs, images, target_features(net.originals, images, like), batch_size, seed, like,
                            quiet)]
    for depth in depths:  # on the same batch: the first term has run its forward
        terms.append(reconstruction(lambda x, depth=depth: seen[depth], images,
                                    _inner_targets(net, images, depth, like), batch_size, seed, like))
    weights = [1.0, *[inner / max(len(depths), 1)] * len(depths)]
    return lambda step: sum(weight * term(step) for weight, term in zip(weights, terms))


# ---------------------------------------------------------------- global and local

def groups(named: Iterable[tuple[str, Tensor]], lr: float, lr_low_rank: float | None = None) -> list[dict]:
    """AdamW's param groups: diagonals, norms and full matrices at `lr`, low-rank factors A, B at `lr_low_rank`."""
    named = [(name, p) for name, p in named if p.requires_grad]
    low_rank = [p for name, p in named if name.endswith((".A", ".B"))]
    rest = [p for name, p in named if not name.endswith((".A", ".B"))]
    made = [{"params": rest, "lr": lr}, {"params": low_rank, "lr": lr_low_rank or lr}]
    return [group for group in made if group["params"]]


@contextmanager
def _training_only(net: SuperNet, block: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Only these parameters ask for a gradient meanwhile: no backward runs through what came before."""
    block, before = {name for name, _ in block}, {name: p.requires_grad for name, p in net.named_parameters()}
    try:
        for name, p in net.named_parameters():
            p.requires_grad_(name in block)
        yield
    finally:
        for name, p in net.named_parameters():
            p.requires_grad_(before[name])


def _readout(net: SuperNet, depth: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Images -> the k originals' features at this depth, rebuilt; None: the output features."""
    if isinstance(net.body, MLP) and not net.replaced:
        return lambda x: _layer_alone(net, depth or len(net.body.layers), x)
    return net if depth is None else lambda x: net.features(x, [depth])[depth]


def _layer_alone(net: SuperNet, depth: int, x: Tensor) -> list[Tensor]:
    """U_i act(sum_j M_j (W_j x_j + b_j)) for an MLP's layer, on what each original's own layer reads, x_j."""
    name = f"layers.{depth - 1}"
    with torch.no_grad():
        true = [inputs_of(b, [name], lambda b=b: b(x), stop=True)[name] for b in net.backbones]
    y = net.body.act(net.body.get_submodule(name).merged(true))
    readouts = net.outputs if depth == len(net.body.layers) else net.body.layers[depth].unmerges
    return [readout(y) for readout in readouts]


def train_global(net: SuperNet, images: Calibration, steps: int = 1000, lr: float = 1e-3, batch_size: int = 128,
                 weight_decay: float = 1e-3, seed: int = 0, progress: bool | None = None,
                 lr_low_rank: float | None = None, depths: Sequence[int] = (), inner: float = 1.0, quiet: float = 0.0,
                 precision: str = "fp32", checkpoint: str | Path | None = None) -> History:
    """Train all M, U and norms of a SuperNet together to reconstruct the originals' output features.

    Minimises the loss of `reconstruction` over everything learned; the originals stay as they are. Inner features
    add (inner / number of depths) * sum over d of || U_i LN*(x*_d) - LN_i(x_i,d) ||^2 / s_i,d^2, own images only.

    Args:
        net: the SuperNet, on the device to train on.
        images: from `calibration`, of the net's originals in their order.
        steps, lr, batch_size, weight_decay: of AdamW under a one-cycle schedule.
        seed: fixes the order of the images.
        progress: show a bar; None shows it in a terminal or notebook.
        lr_low_rank: a learning rate of their own for the low-rank parts; None: `lr`.
        depths: after how many blocks inner features are reconstructed too; none: the paper's default.
        inner: their weight.
        quiet: draws the features of all other heads to their mean, for the joint accuracy; see `reconstruction`.
        precision: fp32, or bf16 for the products of the forward.
        checkpoint: a file that the run is saved to and resumes from, after a kill to the same result.

    Raises:
        ValueError: images of another number of tasks, steps < 1 or lr <= 0, an unknown depth, another run's checkpoint.
        FloatingPointError: the loss is no longer a number.
    """
    loss = objective(net, lambda x: net.run(x, depths), images, batch_size, seed, depths, inner, quiet)
    return fit(groups(net.named_parameters(), lr, lr_low_rank), loss, steps, lr, weight_decay, name="FS-Merge",
               progress=progress, precision=precision, checkpoint=checkpoint)


def train_local(net: SuperNet, images: Calibration, steps: int = 200, lr: float = 1e-3, batch_size: int = 128,
                weight_decay: float = 1e-3, seed: int = 0, progress: bool | None = None,
                lr_low_rank: float | None = None, precision: str = "fp32",
                checkpoint: str | Path | None = None) -> list[History]:
    """Train a SuperNet block by block, each on the reconstruction of its own depth (paper, local training).

    At depth d: min || U_i LN*(x*_d) - LN_i(x_i,d) ||^2 / s_i,d^2, over what stands between the readout before and this
    one: the block's M and inner U, its norms, and the readout (norm and U) itself; the next block starts from there.
    A ViT's block reads the merged stream that the trained blocks before it make. An MLP's layer reads the originals'
    true features, so that its layers do not depend on each other.

    Args:
        net, images, lr, batch_size, weight_decay, seed, progress, lr_low_rank, precision: as for `train_global`.
        steps: for each block.
        checkpoint: a stem of file names; block d is saved to `checkpoint`.d and resumes from there.

    Returns:
        one `History` a readout: depth 0 or 1 first, the output features last.

    Raises:
        ValueError, FloatingPointError: as for `train_global`.
    """
    like = next(p for p in net.parameters() if p.requires_grad)
    done: set[str] = set()
    histories = []
    for depth in [*net.wiring.depths, None]:  # None: the output features
        targets = (target_features(net.originals, images, like) if depth is None
                   else _inner_targets(net, images, depth, like))
        block = [(name, p) for name, p in net.until(depth) if name not in done and p.requires_grad]
        done |= {name for name, _ in block}
        loss = reconstruction(_readout(net, depth), images, targets, batch_size, seed, like)
        where = "output" if depth is None else f"depth {depth}"
        file = None if checkpoint is None else f"{checkpoint}.{where.replace(' ', '')}"
        with _training_only(net, block):
            histories.append(fit(groups(block, lr, lr_low_rank), loss, steps, lr, weight_decay, name=f"local: {where}",
                                 progress=progress, precision=precision, checkpoint=file))
    return histories
