"""The exercises of lesson 06."""
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ...architectures.vit import vit
from ...engine.images import Calibration
from ...models import Original
from ...supernet import SuperNet
from ...training import train_local, until
from .testing import Exercise

STEPS, LR = 15, 1e-2  # of the project


# ---------------------------------------------------------------- the loss, for originals of different widths

def _features(g: Generator) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """k reconstructions (n, d_i) of all images, k targets (n_i, d_i) of each original's own images, owner (n,)."""
    owner, widths = torch.tensor([1, 0, 1, 2, 1, 0, 2]), (3, 5, 2)
    rebuilt = [torch.randn(len(owner), d, generator=g) for d in widths]
    targets = [torch.randn(int((owner == i).sum()), d, generator=g) for i, d in enumerate(widths)]
    return rebuilt, targets, owner


def _image_by_image(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor) -> float:
    total, seen = 0.0, [0] * len(targets)
    for j, i in enumerate(owner.tolist()):
        total += (rebuilt[i][j] - targets[i][seen[i]]).square().sum().item()
        seen[i] += 1
    return total / len(owner)


def _per_original(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor) -> float:
    return sum((rebuilt[i][owner == i] - t).square().sum(1).mean() for i, t in enumerate(targets)) / len(targets)


def _per_number(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor) -> float:
    return sum(len(t) * (rebuilt[i][owner == i] - t).square().mean() for i, t in enumerate(targets)) / len(owner)


# ---------------------------------------------------------------- how many runs through a block it costs

def _passes(g: Generator) -> tuple[int, int]:
    """The number of blocks, and the steps of each stage."""
    return int(torch.randint(3, 9, (), generator=g)), int(torch.randint(10, 90, (), generator=g))


def _counted(blocks: int, steps: int, forward: int = 1, backward: int = 2) -> list[int]:
    whole = local = cached = 0
    for _ in range(steps):
        whole += blocks * (forward + backward)
        for stage in range(1, blocks + 1):
            local += stage * forward + backward
            cached += forward + backward
    return [whole, local, cached]


def _counted_all_backward(blocks: int, steps: int) -> list[int]:
    whole, _, cached = _counted(blocks, steps)
    return [whole, steps * sum(3 * stage for stage in range(1, blocks + 1)), cached]


def _counted_one_forward(blocks: int, steps: int) -> list[int]:
    whole, _, cached = _counted(blocks, steps)
    return [whole, cached, cached]


# ---------------------------------------------------------------- what each stage trains, and local training itself

def _net(g: Generator) -> SuperNet:
    """A SuperNet of two tiny ViTs of three blocks, in fp64. Not at `first`, where some gradients are exactly zero."""
    seed = int(torch.randint(1000, (), generator=g))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = [vit(dim=8, depth=3, num_heads=2, img_size=8, patch_size=4) for _ in range(2)]
    originals = [Original(model.double().eval()) for model in models]
    return SuperNet(originals, rank=2, init="random", seed=seed)


def _names(g: Generator) -> tuple[list[str], int]:
    """The names of all learned parameters, and a depth between embedding and output."""
    net, depth = _net(g), int(torch.randint(1, 3, (), generator=g))
    return [name for name, p in net.named_parameters() if p.requires_grad], depth


def _used(net: SuperNet, depth: int) -> set[str]:
    """The learned parameters that the readout at a depth depends on, found by autograd."""
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    value = sum(read.sum() for read in net.features(x, [depth], unfolded=True)[depth])
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name for name, grad in zip(named, grads) if grad is not None}


def _judge_names(result: object, names: Sequence[str], depth: int) -> str | None:
    net = _net(torch.Generator().manual_seed(0))
    if not isinstance(result, set | frozenset | list | tuple) or not all(isinstance(name, str) for name in result):
        return "trained_at should return a set of names"
    chosen, right = set(result), _used(net, depth) - _used(net, depth - 1)
    if unknown := sorted(chosen - set(names)):
        return f"{unknown[0]} is not among the names that were given"
    before, here = f"the readout at depth {depth - 1}", f"the readout at depth {depth}"
    for found, words in ((right - chosen, f"is missing: {here} depends on it, and {before} does not"),
                         (chosen & _used(net, depth - 1), f"is one too many: {before} has it, so it is finished"),
                         (chosen - right, f"is one too many: {here} does not depend on it")):
        if found:
            return f"at depth {depth}, {min(found)} {words}"
    return None


def _local(g: Generator) -> tuple[SuperNet, Calibration, dict[int | None, list[str]], int, float]:
    """A SuperNet, images, the names that each stage trains (None: the output), steps for each stage, and a rate."""
    net = _net(g)
    images = Calibration(torch.randn(10, 3, 8, 8, generator=g).double(), torch.tensor([0, 1] * 5))
    plan, done = {}, set()
    for depth in (*net.graph.readouts, None):
        plan[depth] = [name for name, p in until(net, depth) if name not in done and p.requires_grad]
        done |= set(plan[depth])
    return net, images, plan, STEPS, LR


def _judge_local(result: object, net: SuperNet, images: Calibration, plan: dict, steps: int, lr: float) -> str | None:
    right = [run.loss for run in train_local(net, images, steps, lr, len(images), progress=False)]
    if not isinstance(result, list | tuple) or len(result) != len(plan):
        return f"train_locally should return {len(plan)} lists of losses, one for each stage"
    for (depth, _), mine, theirs in zip(plan.items(), result, right):
        where = "the output" if depth is None else f"depth {depth}"
        if len(mine) != steps or not all(isinstance(loss, float) for loss in mine):
            return f"for {where} there should be a list of {steps} losses as floats; use loss.item()"
        wrong = [step for step in range(steps) if not math.isclose(mine[step], theirs[step], rel_tol=1e-6)]
        if wrong:
            return _local_hint(where, wrong[0], mine, theirs, len(images), depth == next(iter(plan)))
    return None


def _local_hint(where: str, step: int, mine: list[float], theirs: list[float], n: int, earliest: bool) -> str:
    """What the first difference between two lists of losses says."""
    ratio = mine[step] / theirs[step]
    at = f"at {where} the loss of step {step + 1} is {mine[step]:.6g}, the library's is {theirs[step]:.6g}"
    if step == 0 and math.isclose(ratio, n, rel_tol=1e-6):
        return f"{at}; that is the sum over the images, take the mean"
    if step == 0 and earliest:
        return f"{at}; look at the loss: own images only, divided by the s^2 of that original at that depth"
    if step == 0:
        return f"{at}; the stages before were right. Has something trained what they had finished, or undone it?"
    if step == 1:
        return f"{at}; the first step is right. Look at the optimizer: which parameters, which rate, weight decay"
    return f"{at}; the {step} before are right. Look at the schedule (pct_start=0.1) and at the clipping"


EXERCISES = {
    "reconstruction_loss": Exercise(_features, _image_by_image, {
        "every original has the same weight now; the loss is the mean over all images":
            _per_original,
        "that is the mean over numbers; of each image take the sum over its features":
            _per_number,
        "that is the sum over the images; return the mean":
            lambda *inputs: _image_by_image(*inputs) * len(inputs[2])}),
    "block_passes": Exercise(_passes, _counted, {
        "a local stage sends no gradient through the blocks before its own; only one block runs backward":
            _counted_all_backward,
        "without a cache, the blocks before a stage's own run forward in each of its steps":
            _counted_one_forward,
        "`steps` is the number of steps of each stage, not of all stages together":
            lambda blocks, steps: [_counted(blocks, steps)[0], *(n / blocks for n in _counted(blocks, steps)[1:])]}),
    "trained_at": Exercise(_names, judge=_judge_names),
    "train_locally": Exercise(_local, judge=_judge_local),
}
