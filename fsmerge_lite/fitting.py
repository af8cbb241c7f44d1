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
from torch import Tensor, nn
from tqdm.auto import tqdm

from .models import write_whole


@dataclass
class History:
    """What a training run did: loss, learning rate and seconds since the start, one entry a step."""

    name: str = "training"
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def plot(self, ax=None, **style):
        """Draw the loss (log scale) against the step, with matplotlib. Returns the axes."""
        import matplotlib.pyplot as plt  # only here: the method itself needs no figures
        ax = ax or plt.figure(figsize=(6, 3.5), layout="constrained").gca()
        ax.semilogy(self.loss, label=f"{self.name}, {self.seconds[-1]:.0f} s", **style)
        ax.set(xlabel="step", ylabel="reconstruction loss")
        ax.legend(frameon=False)
        return ax

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


@dataclass
class Checkpoint:
    """A file that a run is saved to every so many steps and at its end, and resumes from.

    Args:
        path: the file.
        run: all that the run depends on, in plain values: another run's checkpoint is refused.
        model: what is trained. Its whole state is saved, also what is frozen.
        every: steps between two saves.
    """

    path: str | Path
    run: dict
    model: nn.Module
    every: int = 100

    def start(self, settings: dict) -> dict | None:
        """Call before the first step. Gives the state to resume from, if there is one, and takes the model there.

        Raises:
            ValueError: the checkpoint cannot be read, or is another run's.
        """
        self.run = {**self.run, **settings}
        self.sizes = {name: p.detach().double().norm().item() for name, p in self.model.state_dict().items()}
        if not Path(self.path).is_file():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
            run, sizes = state["run"], state["sizes"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no checkpoint that can be read ({error!r}); remove it") from None
        differs = [key for key in run | self.run if run.get(key) != self.run.get(key)]
        # The sizes of what a run starts from. Rounding and the signs of eigenvectors may differ between machines.
        if sizes.keys() != self.sizes.keys() or any(
                not math.isclose(size, sizes[name], rel_tol=1e-3, abs_tol=1e-6) for name, size in self.sizes.items()):
            differs.append("what it starts from")
        if differs:
            raise ValueError(f"{self.path} is the checkpoint of another run, which differs in {', '.join(differs)}; "
                             "remove it, or give another path")
        self.model.load_state_dict(state["model"])
        return state

    def save(self, history: History, optimizer: torch.optim.Optimizer, schedule) -> None:
        """Write the file, as a whole or not at all."""
        data = io.BytesIO()
        torch.save({"run": self.run, "sizes": self.sizes, "model": self.model.state_dict(),
                    "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                    "history": asdict(history)}, data)
        write_whole(Path(self.path), data.getvalue())


def fit(parameters: Iterable[Tensor], loss: Callable[[int], Tensor], steps: int, lr: float, weight_decay: float = 1e-3,
        warmup: float = 0.1, name: str = "training", progress: bool | None = None, precision: str = "fp32",
        checkpoint: Checkpoint | None = None) -> History:
    """Minimise `loss(step)` over `parameters` with AdamW, a one-cycle schedule and gradients clipped to norm 1.

    Args:
        parameters: the tensors to train.
        loss: gives the scalar loss of a step; a function of the step's number alone, so that a run can resume.
        steps: how many, >= 1.
        lr: the highest learning rate of the cycle, > 0.
        weight_decay: AdamW's, >= 0.
        warmup: the share of the steps in which the rate rises.
        name: what the bar and the figures call it.
        progress: show a bar; None shows it in a terminal or notebook.
        precision: fp32, or bf16 for the products of the forward; parameters and optimiser stay as they are.
        checkpoint: saves the run and resumes it.

    Raises:
        ValueError: steps < 1, lr <= 0, an unknown precision, or a checkpoint of another run.
        FloatingPointError: the loss is no longer a number.
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps must be >= 1 and lr > 0, got steps={steps}, lr={lr}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    total = max(steps, 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # divides by zero if the warm-up is one step
        optimizer, lr, total, pct_start=max(warmup, 1.5 / total))
    history, start = History(name), time.perf_counter()
    if checkpoint:
        state = checkpoint.start({"name": name, "steps": steps, "lr": lr, "weight_decay": weight_decay,
                                  "warmup": warmup, "precision": precision})
        if state:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            history = History(**state["history"])
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
        if checkpoint and ((step + 1) % checkpoint.every == 0 or step + 1 == steps):
            checkpoint.save(history, optimizer, schedule)
    return history
