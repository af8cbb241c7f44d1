"""Training: one loop for everything, and the reconstruction loss of the paper on top of it."""
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import plots
from .models import Original
from .supernet import SuperNet
from .tasks import Calibration


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


def _hidden(progress: bool | None) -> bool | None:
    """Whether to hide the bar. Left open (None): shown in a terminal and in a notebook, unless FSMERGE_QUIET is set."""
    if progress is not None:
        return not progress
    if "FSMERGE_QUIET" in os.environ:
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return False if hasattr(shell, "kernel") else None  # for tqdm, None means: hidden unless in a terminal


def fit(parameters: Iterable, loss: Callable[[int], Tensor], steps: int, lr: float, weight_decay: float = 1e-3,
        warmup: float = 0.1, name: str = "training", progress: bool | None = None) -> History:
    """Minimise `loss(step)` over `parameters` with AdamW, a one-cycle schedule and gradients clipped to norm 1.

    Args:
        parameters: tensors, or param groups of AdamW (each may bring its own lr).
        loss: gives the scalar loss of a step; it draws its own batch.
        steps: how many, >= 1.
        lr: the highest learning rate of the cycle.
        weight_decay: AdamW's.
        warmup: the share of the steps in which the rate rises.
        progress: show a bar; None shows it in a terminal or notebook.

    Raises:
        ValueError: steps < 1 or lr <= 0.
        FloatingPointError: the loss is no longer a number.
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps must be >= 1 and lr > 0, got steps={steps}, lr={lr}")
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(steps, 2), pct_start=warmup)
    history, start = History(name), time.perf_counter()
    bar = tqdm(range(steps), desc=name, disable=_hidden(progress))
    for step in bar:
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        history.lr.append(schedule.get_last_lr()[0])
        optimizer.step()
        if step + 1 < steps:
            schedule.step()
        history.loss.append(value.item())
        history.seconds.append(time.perf_counter() - start)
        if not math.isfinite(history.loss[-1]):
            raise FloatingPointError(f"{name}: the loss is {history.loss[-1]} at step {step}; try a lower lr than {lr}")
        if step % 10 == 0:
            bar.set_postfix(loss=f"{history.loss[-1]:.3g}")
    return history


@torch.no_grad()
def target_features(originals: Sequence[Original], images: Calibration, like: Tensor, batch_size: int = 256
                    ) -> list[Tensor]:
    """f_i(x) of every image by its OWN original, (n_i, d_i) for each i, on the device and in the dtype of `like`.

    Raises:
        ValueError: the images were drawn for another number of originals.
    """
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")
    targets = []
    for i, original in enumerate(originals):  # one original at a time on the device of the training
        backbone = copy.deepcopy(original.backbone).to(like)
        targets.append(torch.cat([backbone(x.to(like)) for x in images.of(i).split(batch_size)]))
    return targets


def reconstruction(features: Callable[[Tensor], list[Tensor]], images: Calibration, targets: Sequence[Tensor],
                   batch_size: int, seed: int, like: Tensor) -> Callable[[int], Tensor]:
    """The loss of a step: how far each original's features are from their reconstruction (paper, section 2).

    L = mean over images x of || features_i(x) - f_i(x) ||^2 / (d_i s_i^2),     i = owner of x

    Only the image's own original counts. s_i, the root mean square of f_i, brings the originals to one scale.

    Args:
        features: maps images (B, C, H, W) to k reconstructions (B, d_i).
        images, targets: what to reconstruct; `targets[i]` (n_i, d_i) are the features of the images of task i.
        batch_size: images a step, drawn without repetition.
        seed: fixes the order of the images.
        like: a parameter of the model, for device and dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = [t.square().mean() * t.shape[1] for t in targets]
    row_in_task = torch.empty_like(images.owner)
    for i, target in enumerate(targets):
        row_in_task[images.owner == i] = torch.arange(len(target))

    def loss(step: int) -> Tensor:
        rows = torch.randperm(len(images), generator=generator)[:batch_size]
        owner, row = images.owner[rows], row_in_task[rows]
        rebuilt = features(images.images[rows].to(like))
        errors = [(rebuilt[i][owner == i] - target[row[owner == i]]).square().sum() / scale
                  for i, (target, scale) in enumerate(zip(targets, scales))]
        return sum(errors) / len(rows)
    return loss


def train_global(net: SuperNet, images: Calibration, steps: int = 1000, lr: float = 1e-3, batch_size: int = 128,
                 weight_decay: float = 1e-3, seed: int = 0, progress: bool | None = None) -> History:
    """Train all M, U and norms of a SuperNet together to reconstruct the originals' output features.

    Minimises the loss of `reconstruction` over everything learned; the originals stay as they are.

    Args:
        net: the SuperNet, on the device to train on.
        images: from `calibration`, of the net's originals in their order.
        steps, lr, batch_size, weight_decay: of AdamW under a one-cycle schedule.
        seed: fixes the order of the images.
        progress: show a bar; None shows it in a terminal or notebook.

    Raises:
        ValueError: images of another number of tasks, steps < 1 or lr <= 0.
        FloatingPointError: the loss is no longer a number.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    targets = target_features(net.originals, images, parameters[0])
    loss = reconstruction(net, images, targets, batch_size, seed, parameters[0])
    return fit(parameters, loss, steps, lr, weight_decay, name="FS-Merge", progress=progress)
