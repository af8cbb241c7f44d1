"""Several processes train one model together, each on a device of its own. With one process nothing here has an effect.

`accelerate launch` or torchrun starts the same program in each, and `join` brings them together. In a training step
each computes the loss of its own rows of the batch; loss and gradients are averaged, and all take the same step. All
else (the start, folding, evaluation) each does for itself, to the same result. Only process 0 writes files and shows
bars. When one ends with an error, the launcher ends the others.
"""
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

_here = SimpleNamespace(index=0, count=1)  # until `join`, also where torch.distributed serves something else


def join(cpu: bool = False) -> torch.device | None:
    """Join the processes that a launcher started, and give this one's device; None: there is one process only.

    Each has its own GPU; with `cpu`, or without GPUs, all run on the CPU. `accelerate launch --multi_gpu
    --num_processes 2` starts two there as well (--cpu starts one). Raises ModuleNotFoundError without accelerate.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    try:
        from accelerate import PartialState  # an extra
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"a launcher started {os.environ['WORLD_SIZE']} processes, which need accelerate: "
                                  "pip install 'fsmerge_lite[devices]', or start one") from None
    state = PartialState(cpu=cpu or not torch.cuda.is_available())
    _here.index, _here.count = state.process_index, state.num_processes
    return torch.device("cpu") if state.device.type == "cpu" else state.device  # cpu:0 is not equal to cpu


def leave() -> None:
    """Part from the other processes at the end of a program. Not after an error: the others would not come along."""
    if _here.count > 1:
        dist.destroy_process_group()
        _here.index, _here.count = 0, 1


def is_main() -> bool:
    """Whether this is process 0."""
    return _here.index == 0


def gather(value: object = None) -> list:
    """The value of every process, in their order. Nobody goes on before all are here."""
    values = [value] * _here.count
    if _here.count > 1:
        dist.all_gather_object(values, value)
    return values


def share(rows: Tensor) -> tuple[Tensor, float]:
    """Process p's rows of a batch, and the weight w_p of the mean of their losses, so that the average is exact.

    mean over all rows = 1/P sum_p w_p (mean over the rows of p),     w_p = P (number of rows of p) / (number of rows)

    A process that is left without a row takes the first one with w_p = 0.
    """
    if _here.count == 1:
        return rows, 1.0
    own = rows[_here.index::_here.count]
    return own if len(own) else rows[:1], _here.count * len(own) / len(rows)


def average(parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
    """The mean of the loss over the processes. Every gradient becomes its mean, a missing one counting as zero."""
    if _here.count == 1:
        return loss
    present, gradients = torch.tensor([p.grad is not None for p in parameters]).to(loss), _gradients(parameters)
    flat = torch.cat([loss.detach().reshape(1), present, *gradients])
    dist.all_reduce(flat)
    loss, present, *means = flat.div_(_here.count).split([1, len(present), *map(len, gradients)])
    for p, some, mean in zip(parameters, present.tolist(), means):
        # In the memory layout of p, as the fused AdamW takes for granted. It passes over what has no gradient anywhere.
        p.grad = torch.empty_like(p).copy_(mean.view_as(p)) if some else None
    return loss


def check(parameters: Sequence[Tensor], loss: Callable[[int], Tensor], step: int) -> None:
    """Raise ValueError in all processes unless they begin at one step, and with one gradient for the same images."""
    if _here.count == 1:
        return
    own, _here.index = _here.index, 0  # all take the rows of process 0
    try:
        loss(step).backward()
    finally:
        _here.index = own
    gradient = torch.cat(_gradients(parameters))
    first = gradient.clone()
    dist.broadcast(first, 0)
    steps, apart = zip(*gather((step, (gradient - first).norm().item())))
    size = first.norm().item()
    if len(set(steps)) > 1 or max(apart) > 0.05 * size + 1e-5:  # more than rounding
        raise ValueError(f"the processes begin at steps {steps}, with gradients {apart} away from that of process 0, "
                         f"whose size is {size:.3g}; give all the same files, checkpoints, seed and kind of device")


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
