"""Training: one loop for everything, and the reconstruction loss of the paper on top of it, global and local."""
import copy
import io
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import plots
from .files import write_whole
from .models import MLP, Original
from .supernet import SuperNet
from .tasks import Calibration
from .wiring import inputs_of


@dataclass
class History:
    """What a training run did: loss, learning rate and seconds since the start, one entry a step."""

    name: str = "training"
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def plot(self, ax=None):
        """Draw the loss (log scale) against the step, and the learning rate in grey behind it. Returns the axes."""
        return plots.histories([self], ax)

    def __repr__(self) -> str:
        if not self.loss:
            return f"History({self.name}: no steps yet)"
        return (f"History({self.name}: {len(self.loss)} steps in {self.seconds[-1]:.0f} s, "
                f"loss {self.loss[0]:.3g} -> {self.loss[-1]:.3g})")


def hidden_bar(progress: bool | None) -> bool | None:
    """Whether to hide the bar. Left open (None): shown in a terminal and in a notebook, unless FSMERGE_QUIET is set."""
    if progress is not None:
        return not progress
    if "FSMERGE_QUIET" in os.environ:
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return False if hasattr(shell, "kernel") else None  # for tqdm, None means: hidden unless in a terminal


# ---------------------------------------------------------------- the loop

def fit(parameters: Iterable, loss: Callable[[int], Tensor], steps: int, lr: float, weight_decay: float = 1e-3,
        warmup: float = 0.1, name: str = "training", progress: bool | None = None, precision: str = "fp32",
        checkpoint: str | Path | None = None, every: int = 100) -> History:
    """Minimise `loss(step)` over `parameters` with AdamW, a one-cycle schedule and gradients clipped to norm 1.

    Args:
        parameters: tensors, or param groups of AdamW (each may bring its own lr).
        loss: gives the scalar loss of a step; a function of the step's number alone, so that a run can resume.
        steps: how many, >= 1.
        lr: the highest learning rate of the cycle.
        weight_decay: AdamW's.
        warmup: the share of the steps in which the rate rises.
        name: what the bar and the figures call it.
        progress: show a bar; None shows it in a terminal or notebook.
        precision: fp32, or bf16 for the products of the forward; parameters and optimiser stay as they are.
        checkpoint: a file that the run is saved to every so many steps and at its end, and resumes from.
        every: steps between two checkpoints.

    Raises:
        ValueError: steps < 1, lr <= 0, an unknown precision, or a checkpoint of another run.
        FloatingPointError: the loss is no longer a number.
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps must be >= 1 and lr > 0, got steps={steps}, lr={lr}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(steps, 2), pct_start=warmup)
    run = _Checkpoint(checkpoint, {"name": name, "steps": steps, "lr": lr, "weight_decay": weight_decay},
                      trained, optimizer, schedule)
    history, start = run.load() or History(name), time.perf_counter()
    before = history.seconds[-1] if history.seconds else 0.0
    bar = tqdm(range(len(history.loss), steps), desc=name, initial=len(history.loss), total=steps,
               disable=hidden_bar(progress))
    for step in bar:
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        history.lr.append(schedule.get_last_lr()[0])
        optimizer.step()
        if step + 1 < steps:
            schedule.step()
        history.loss.append(value.item())
        history.seconds.append(before + time.perf_counter() - start)
        if not math.isfinite(history.loss[-1]):
            raise FloatingPointError(f"{name}: the loss is {history.loss[-1]} at step {step}; try a lower lr than {lr}")
        if step % 10 == 0:
            bar.set_postfix(loss=f"{history.loss[-1]:.3g}")
        if (step + 1) % every == 0 or step + 1 == steps:
            run.save(history)
    return history


@dataclass
class _Checkpoint:
    """A run's state in one file: what is trained, optimiser, schedule, history. Without a path, nothing happens."""

    path: str | Path | None
    settings: dict
    trained: list[Tensor]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def save(self, history: History) -> None:
        if self.path is None:
            return
        data = io.BytesIO()
        torch.save({"settings": self.settings, "trained": [p.detach() for p in self.trained],
                    "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                    "history": asdict(history)}, data)
        write_whole(Path(self.path), data.getvalue())

    def load(self) -> History | None:
        if self.path is None or not Path(self.path).is_file():
            return None
        try:
            state = torch.load(self.path, map_location=self.trained[0].device, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{self.path} is no checkpoint that can be read ({error}); remove it") from None
        shapes = [[tuple(p.shape) for p in ps] for ps in (state["trained"], self.trained)]
        if state["settings"] != self.settings or shapes[0] != shapes[1]:
            raise ValueError(f"{self.path} is the checkpoint of another run: {state['settings']} with "
                             f"{len(shapes[0])} tensors, this one is {self.settings} with {len(shapes[1])}; remove it")
        for p, saved in zip(self.trained, state["trained"]):
            p.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return History(**state["history"])


# ---------------------------------------------------------------- what is reconstructed

@torch.no_grad()
def target_features(originals: Sequence[Original], images: Calibration, like: Tensor, batch_size: int = 256
                    ) -> list[Tensor]:
    """f_i(x) of every image by its OWN original, (n_i, d_i) for each i, on the device and in the dtype of `like`.

    Raises:
        ValueError: the images were drawn for another number of originals.
    """
    return _own_features(originals, images, like, lambda backbone, x: backbone(x), batch_size)


def same_tasks(originals: Sequence, images: Calibration) -> None:
    """Refuse images of another number of tasks than there are originals."""
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")


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
