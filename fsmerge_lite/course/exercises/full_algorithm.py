"""Exercises of lesson 11: the published schedule, a paired comparison, the published training, an ablation."""
import math
from collections.abc import Sequence
from functools import partial

import torch
from scipy import stats
from torch import Tensor, nn

from ...architectures.vit import vit
from ...bench.methods import Cell, fs_merge
from ...compare.evaluation import evaluate
from ...engine.images import Calibration
from ...engine.modules import MLP
from ...models import Original
from ...supernet import SuperNet
from ...tasks.task import Task
from ...training import train_global
from .testing import Exercise

# ---------------------------------------------------------------- the published learning rates


def _schedule(generator: torch.Generator) -> tuple:
    """The number of steps and the highest rate."""
    return 10 * int(torch.randint(2, 6, (1,), generator=generator)), float(1 + torch.rand(1, generator=generator))


def _rates(steps: int, lr: float, anneal: str = "linear", warmup: float = 0.3, start: float = 25.0, end: float = 1e4
           ) -> list[float]:
    """torch's own one-cycle schedule, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=warmup, anneal_strategy=anneal,
                                                   div_factor=start, final_div_factor=end)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


# ---------------------------------------------------------------- a paired comparison


def _accuracies(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two methods on 12 ordered pairs and 3 seeds: pairs differ a lot, the lead differs less, seeds a little."""
    pairs = 80 + 6 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    leads = 2 + torch.randn(12, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64) / 2
    return pairs + leads + noise[0], pairs + noise[1]


def _paired(ours: Tensor, theirs: Tensor) -> list[float]:
    """scipy's paired test on the means of the seeds."""
    found = stats.ttest_rel(ours.mean(1).numpy(), theirs.mean(1).numpy())
    return [float((ours - theirs).mean()), *map(float, found.confidence_interval(0.95))]


def _unpaired(ours: Tensor, theirs: Tensor) -> list[float]:
    found = stats.ttest_ind(ours.mean(1).numpy(), theirs.mean(1).numpy())
    return [float((ours - theirs).mean()), *map(float, found.confidence_interval(0.95))]


def _as_36(ours: Tensor, theirs: Tensor) -> list[float]:
    found = stats.ttest_rel(ours.flatten().numpy(), theirs.flatten().numpy())
    return [float((ours - theirs).mean()), *map(float, found.confidence_interval(0.95))]


def _normal(ours: Tensor, theirs: Tensor, quantile: float = 1.96, correction: int = 1) -> list[float]:
    leads = (ours - theirs).mean(1)
    half = quantile * leads.std(correction=correction) / len(leads) ** 0.5
    return [float(leads.mean()), float(leads.mean() - half), float(leads.mean() + half)]


# ---------------------------------------------------------------- the published training


def _published(generator: torch.Generator, steps: int = 12, batch: int = 8) -> tuple:
    """A SuperNet of two small MLPs in float64, its inputs, their owners, the targets, the batches, the rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1000, (1,), generator=generator)))
        originals = [MLP((6, 8, 5)).double().eval() for _ in range(2)]
    for original in originals:
        for p in original.parameters():
            p.data *= 3  # so that the gradient is long enough for clipping to matter
    inputs = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    owner = torch.arange(24) % 2
    net = SuperNet(originals, rank=2, init="paper_first", shared=True)
    with torch.no_grad():
        targets = torch.stack([net.backbones[i](x[None])[0] for x, i in zip(inputs, owner.tolist())])
    batches = [torch.randperm(24, generator=torch.Generator().manual_seed(step))[:batch] for step in range(steps)]
    return net, inputs, owner, targets, batches, 0.02


def _library(net: SuperNet, inputs: Tensor, owner: Tensor, targets: Tensor, batches: Sequence[Tensor], lr: float,
             **changed) -> list[float]:
    """The losses of `train_global` with the published settings, or with some of them changed."""
    published = {"scaled": False, "warmup": 0.3, "anneal": "linear", "clip": math.inf}
    history = train_global(net, Calibration(inputs, owner), len(batches), lr, len(batches[0]), progress=False,
                           **published | changed)
    return history.loss


# ---------------------------------------------------------------- an ablation

NO_TEST = ("test images were asked for; settings are chosen on labeled training images: set validate=True in the cell "
           "before you call its prepare")
NO_SEED = "the benchmarks report seeds 0, 1 and 2; choose settings with a seed of their own, 3 or more"
ONE_CHANGE = "control and changed must differ in exactly one setting; here they differ in {}"
NOT_FOUND = ("measured does not come out when control and changed are run again on this cell; return the points of "
             "changed minus those of control")


def _guarded(name: str, seed: int) -> Task:
    """A small task of two classes that refuses to show its test images."""
    def draw(n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        if split == "test":
            raise ValueError(NO_TEST)
        labels = torch.arange(n) % 2
        base = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return (base[labels] + 0.3 * torch.rand(n, 3, 16, 16, generator=generator)).clamp(0, 1) * 2 - 1, labels
    return Task(name, ("a", "b"), draw, size=16, test_size=20, train_size=40)


def _ablation(generator: torch.Generator) -> tuple[list[Original], Cell]:
    """Two tiny ViTs with random weights, their tasks, and a cell of two steps."""
    originals = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1000, (1,), generator=generator)))
        for i, name in enumerate(("left", "right")):
            backbone = vit(dim=24, depth=4, num_heads=2, img_size=16).eval()
            originals.append(Original(backbone, nn.Linear(24, 2), name, _guarded(name, i)).eval())
    return originals, Cell(("left", "right"), images=4, steps=2, total=8, batch_size=8)


def _measured(originals: Sequence[Original], cell: Cell, result: dict) -> list[float]:
    """Changed minus control, per task and jointly, run again."""
    scores = []
    for settings in (result["changed"], result["control"]):
        models, images, tasks = cell.prepare(originals)
        scores.append(evaluate(fs_merge(**settings)(models, images, cell, {}).model, tasks))
    return [scores[0].mean - scores[1].mean, scores[0].joint - scores[1].joint]


def _judge_ablation(result: object, originals: Sequence[Original], cell: Cell) -> str | None:
    """Form only: no test images, a seed of its own, one change, a prediction, a measurement that comes out again."""
    kinds = {"cell": Cell, "control": dict, "changed": dict, "predicted": list | tuple, "measured": list | tuple}
    if not isinstance(result, dict) or not kinds.keys() <= result.keys():
        return f"return a dict with the entries {', '.join(kinds)}"
    if wrong := [name for name, kind in kinds.items() if not isinstance(result[name], kind)]:
        return f"{wrong[0]} has the wrong type: cell is a Cell, control and changed are dicts, the others lists"
    if result["cell"].seed < 3:
        return NO_SEED
    both = (result["control"], result["changed"])
    changed = [name for name in both[0] | both[1] if both[0].get(name, "default") != both[1].get(name, "default")]
    if len(changed) != 1:
        return ONE_CHANGE.format(len(changed))
    if any(len(result[name]) != 2 for name in ("predicted", "measured")):
        return "predicted and measured are two numbers each: points per task and points jointly"
    try:
        again = _measured(originals, result["cell"], result)
    except (TypeError, ValueError) as error:
        return f"control and changed do not run on this cell: {error}"
    return NOT_FOUND if any(abs(a - b) > 0.01 for a, b in zip(again, result["measured"])) else None


def _try_ablation(originals: Sequence[Original], cell: Cell, validate: bool = True, seed: int = 3,
                  control: dict | None = None, changed: dict | None = None, sign: int = 1) -> dict:
    """An ablation as a reader might write it, right or wrong."""
    own = Cell(**vars(cell) | {"validate": validate, "seed": seed})
    result = {"cell": own, "control": control or {}, "changed": changed or {"off_task": 0.5}, "predicted": (0.0, 1.0)}
    return result | {"measured": [sign * (lead + (sign < 0)) for lead in _measured(originals, own, result)]}


EXERCISES = {
    "published_rates": Exercise(_schedule, _rates, {
        "the rate should rise and fall on straight lines; that is a cosine": partial(_rates, anneal="cos"),
        "the highest rate comes after 30 % of the steps; that is 10 %, as in FS-Merge (fitted)":
            partial(_rates, warmup=0.1),
        "the first rate is lr / 25, not 0": lambda steps, lr: [
            lr * min(step / (0.3 * steps - 1), (steps - 1 - step) / (0.7 * steps)) for step in range(steps)],
        "the last rate is lr / 25 / 10,000, almost zero; yours ends where it started": partial(_rates, end=1.0)}),
    "paired_lead": Exercise(_accuracies, _paired, {
        "that is the interval of two unrelated groups; take the difference on each pair first": _unpaired,
        "three seeds of one pair are not three independent pairs; average them first, and count 12": _as_36,
        "with 12 pairs the quantile of the t distribution is 2.201 (11 degrees of freedom), not 1.96": _normal,
        "the standard deviation of a sample divides by n - 1": partial(
            _normal, quantile=float(stats.t.ppf(0.975, 11)), correction=0)}),
    "train_published": Exercise(_published, _library, {
        "the published loss is not divided by the size of the features": partial(_library, scaled=True),
        "the published training does not clip gradients": partial(_library, clip=1.0),
        "the published rate rises and falls on straight lines, not on a cosine": partial(_library, anneal="cos"),
        "the published rate rises over 30 % of the steps": partial(_library, warmup=0.1),
        "an image asks only for the features of its own original; there is no off-task term": partial(
            _library, off_task=0.2)}),
    "my_ablation": Exercise(_ablation, judge=_judge_ablation, mistakes={
        f"my_ablation raised ValueError: {NO_TEST}": partial(_try_ablation, validate=False),
        NO_SEED: partial(_try_ablation, seed=0),
        ONE_CHANGE.format(2): partial(_try_ablation, changed={"off_task": 0.0, "depths": ()}),
        NOT_FOUND: partial(_try_ablation, sign=-1)}),
}
