"""The one training loop: AdamW, a one-cycle schedule, a bar, checkpoints to resume from."""
import io
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import plots
from .files import write_whole


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
    total = max(steps, 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # which divides by zero where the rate rises for just one step
        optimizer, [group["lr"] for group in optimizer.param_groups], total, pct_start=max(warmup, 1.5 / total))
    run = _Checkpoint(checkpoint, {"name": name, "steps": steps, "lr": lr, "weight_decay": weight_decay},
                      trained, optimizer, schedule)
    history, start = run.load() or History(name), time.perf_counter()
    before = history.seconds[-1] if history.seconds else 0.0
    bar = tqdm(range(len(history.loss), steps), desc=name, initial=len(history.loss), total=steps,
               disable=hidden_bar(progress))
    for step in bar:
        optimizer.zero_grad()  # before the forward: activations and gradients are never all there at once
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(step)
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
