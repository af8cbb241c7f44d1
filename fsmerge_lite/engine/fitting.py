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

from . import given, processes
from .files import check_writable, write_whole


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
    """Whether to hide the bar. Left open (None): shown in a terminal and in a notebook, unless FSMERGE_QUIET is set.

    Always hidden in all processes but the first.
    """
    if not processes.is_main():
        return True
    if progress is not None or "FSMERGE_QUIET" in os.environ:
        return not progress
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return False if hasattr(shell, "kernel") else None  # for tqdm, None means: hidden unless in a terminal


class Checkpoint:
    """A file that a run is saved to and resumes from.

    Args:
        path: the file.
        run: all that the run depends on, in plain values: another run's checkpoint is refused.
        model: what is trained. Its whole state is saved, also what is frozen.
    """

    def __init__(self, path: str | Path, run: dict, model: nn.Module):
        self.path, self.run, self.model = Path(path), run, model

    def resume(self, settings: dict, **parts) -> History | None:
        """Take the model and `parts` (optimizer, schedule) to where the run was saved; None: it was not.

        Raises ValueError for a checkpoint that cannot be read, or is another run's.
        """
        processes.gather()  # process 0 may still be writing the file of a run before
        self.run = {**self.run, **settings}
        # Of every tensor that the run starts from. Rounding and signs of eigenvectors may differ between machines.
        self.norms = torch.stack([p.detach().double().norm().cpu() for p in self.model.state_dict().values()])
        if not self.path.is_file():
            check_writable(self.path)
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)  # of whatever machine
            run, norms = state["run"], state["norms"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no checkpoint that can be read ({error!r}); remove it") from None
        differs = [key for key in run | self.run if run.get(key) != self.run.get(key)]
        if norms.shape != self.norms.shape or not torch.allclose(norms, self.norms, rtol=1e-3, atol=1e-6):
            differs.append("what it starts from")
        if differs:
            raise ValueError(f"{self.path} is the checkpoint of another run, which differs in {', '.join(differs)}; "
                             "remove it, or give another path")
        for name, part in {"model": self.model, **parts}.items():
            part.load_state_dict(state[name])
        return History(**state["history"])

    def save(self, history: History, **parts) -> None:
        """Write the file, as a whole or not at all."""
        data, parts = io.BytesIO(), {"model": self.model, **parts}
        torch.save({"run": self.run, "norms": self.norms, "history": asdict(history),
                    **{name: part.state_dict() for name, part in parts.items()}}, data)
        write_whole(self.path, data.getvalue())


def fit(parameters: Iterable[Tensor], loss: Callable[[int], Tensor], steps: int, lr: float, weight_decay: float = 1e-3,
        warmup: float = 0.1, anneal: str = "cos", clip: float = 1.0, name: str = "training",
        progress: bool | None = None, precision: str = "fp32", checkpoint: Checkpoint | None = None) -> History:
    """Minimize `loss(step)` over `parameters` with AdamW, a one-cycle schedule and clipped gradients.

    Args:
        parameters: the tensors to train.
        loss: gives the scalar loss of a step; a function of the step's number alone, so that a run can resume. In
            one of several processes, that of its `share` of the images, times the weight of the share.
        steps: how many, >= 1.
        lr: the highest learning rate of the cycle, > 0.
        weight_decay: AdamW's, >= 0.
        warmup: the share of the steps in which the rate rises.
        anneal: how it rises and falls, cos or linear.
        clip: the largest norm of the gradient, > 0; infinity leaves it as it is.
        name: what the bar and the figures call it.
        progress: show a bar; None shows it in a terminal or notebook.
        precision: fp32, or bf16 for the products of the forward; parameters and optimizer stay as they are.
        checkpoint: saves the run every 100 steps and at its end, and resumes it.

    Raises ValueError for a number outside its range, an unknown precision, a checkpoint of another run or processes
    that do not train the same model, and FloatingPointError, in all processes, when the loss or its gradient is no
    longer finite.
    """
    given.whole(1, steps=steps)
    given.number(above=True, lr=lr)
    given.number(weight_decay=weight_decay)
    given.number(1, warmup=warmup)
    given.number(math.inf, above=True, clip=clip)
    given.choice(("cos", "linear"), anneal=anneal)
    given.choice(("fp32", "bf16"), precision=precision)
    trained = list(parameters)
    loss = torch.autocast(trained[0].device.type, torch.bfloat16, enabled=precision == "bf16")(loss)
    settings = {"name": name, "steps": steps, "lr": lr, "weight_decay": weight_decay, "warmup": warmup,
                "anneal": anneal, "clip": clip, "precision": precision}
    optimizer, schedule = _optimizer(trained, steps, lr, weight_decay, warmup, anneal)
    state = {"optimizer": optimizer, "schedule": schedule}
    history = (checkpoint.resume(settings, **state) if checkpoint else None) or History(name)
    processes.check(trained, loss, step=len(history.loss))
    start = time.perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
    bar = tqdm(range(len(history.loss), steps), desc=name, initial=len(history.loss), total=steps,
               disable=hidden_bar(progress))
    for step in bar:
        history.loss.append(_step(trained, optimizer, loss, step, clip, name))
        history.lr.append(schedule.get_last_lr()[0])
        history.seconds.append(time.perf_counter() - start)
        if step + 1 < steps:
            schedule.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{history.loss[-1]:.3g}")
        if checkpoint and ((step + 1) % 100 == 0 or step + 1 == steps):
            checkpoint.save(history, **state)
    return history


def _optimizer(trained: list[Tensor], steps: int, lr: float, weight_decay: float, warmup: float, anneal: str
               ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its one-cycle schedule."""
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    total = max(steps, 2)  # the schedule divides by zero if there is one step, or if the warm-up is one step
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total, pct_start=max(warmup, 1.5 / total), anneal_strategy=anneal)


def _step(trained: list[Tensor], optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], step: int,
          clip: float, name: str) -> float:
    """Make one step of training; returns the loss before it. FloatingPointError if it or its gradient is not finite."""
    optimizer.zero_grad()  # before the forward: activations and gradients are never all there at once
    value = loss(step)
    value.backward()
    value = processes.average(trained, value)
    norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    number, size = value.item(), norm.item()
    if not math.isfinite(number + size):  # before the step, so that nothing is damaged
        raise FloatingPointError(f"{name}: the loss is {number} and its gradient of size {size} at step {step}; "
                                 f"try a lower lr than {optimizer.defaults['lr']}")
    optimizer.step()
    return number
