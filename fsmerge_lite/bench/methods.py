"""The methods that benchmarks compare, and the cells on which they run.

The experiment `sweep` chose the learning rates. It scores on labeled training images, with a seed that no other
experiment uses. benchmarks/README.md explains the other choices.
"""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, wraps
from inspect import signature

import torch
from torch import nn

from ..architectures import describe
from ..compare.alignment import alignment, permuted
from ..compare.baselines import distill, regmean, train_folded
from ..compare.rotation import orthogonal_alignment, rotated
from ..engine.images import Calibration
from ..models import Merged, Original
from ..start import fit_subspaces
from ..supernet import SuperNet
from ..tasks.calibration import calibration
from ..tasks.originals import DATA, load_original
from ..tasks.task import Task
from ..training import train_global, train_local
from .machine import pick_device

BATCH = 64
LR_DISTILL, LR_FIRST, LR_PAPER, LR_SUBSPACES, OFF_TASK = 2e-3, 4e-3, 4e-3, 2e-3, 0.2
LR_ALL, LR_HINTS = 1e-3, 4e-3  # of all weights from the subspaces' start, and of distillation with inner features
LR_DISTILL_TEXT = 1e-3  # of distillation on texts, in `text_sweep`
DEPTHS = (1, 2, 3)  # of the inner features


@dataclass(frozen=True)
class Cell:
    """One cell of a benchmark: originals in an order, images, seed and training length.

    Args:
        tasks: the originals' names in `data/originals`; the first is model 1.
        images: real images per task.
        seed: of images and training.
        steps: of every training run.
        total: images per task with augmented copies, rounded down to a multiple of `images`.
        validate: score on labeled training images, to choose settings; otherwise on test images.
        precision: of every training run, fp32 or bf16.
        batch_size: images a step.
    """

    tasks: tuple[str, ...]
    images: int = 16
    seed: int = 0
    steps: int = 300
    total: int = 800
    validate: bool = False
    precision: str = "fp32"
    batch_size: int = BATCH

    def load(self, device: str) -> tuple[list[Original], Calibration, list[Task]]:
        """The shipped originals, the images for the merge and the tasks to score on."""
        return self.prepare([load_original(DATA / name).to(pick_device(device)) for name in self.tasks])

    def prepare(self, originals: Sequence[Original]) -> tuple[list[Original], Calibration, list[Task]]:
        """Like `load`, for given originals."""
        copies = max(0, self.total // self.images - 1)
        tasks = [validation(o.task) if self.validate else o.task for o in originals]
        return list(originals), calibration(originals, self.images, copies, self.seed), tasks


def cell_of(record: dict) -> Cell:
    """The cell of a record. What early records do not have is as by default."""
    names = [field.name for field in fields(Cell) if field.name in record]
    return Cell(**{name: record[name] for name in names} | {"tasks": tuple(record["tasks"])})


@lru_cache(maxsize=16)
def validation(task: Task, size: int = 500) -> Task:
    """A copy of the task that tests on labeled training images, to choose settings."""
    def draw(n: int, generator: torch.Generator, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        return task.draw(n, generator, "train")
    return replace(task, draw=draw, test_size=min(size, task.train_size or size))


@dataclass
class Outcome:
    """The result of a method: a model to evaluate, the number of trained parameters, the training steps."""

    model: nn.Module
    trained: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Method:
    """A method with all of its settings. Records store the settings, so that an edited method runs again.

    Args:
        run: maps originals, images, cell and seconds to an `Outcome`. The seconds are those of the methods that ran
            before on this cell, by name.
        settings: the name of the function that made it, and its arguments.
    """

    run: Callable[[Sequence[Original], Calibration, Cell, dict[str, float]], Outcome]
    settings: dict

    def __call__(self, originals: Sequence[Original], images: Calibration, cell: Cell, seconds: dict[str, float]
                 ) -> Outcome:
        return self.run(originals, images, cell, seconds)


def method(make: Callable) -> Callable[..., Method]:
    """A decorator. The decorated function returns `run`; the result returns a `Method` with its settings."""
    @wraps(make)
    def make_method(*args, **kwargs) -> Method:
        bound = signature(make).bind(*args, **kwargs)
        bound.apply_defaults()
        settings = {"method": make.__name__}
        for name, value in bound.arguments.items():
            settings |= value if name == "options" else {name: _plain(value)}
        return Method(make(*args, **kwargs), settings)
    return make_method


def _plain(value: object) -> object:
    """A setting in a form that JSON can hold."""
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, Method):
        return value.settings
    if callable(value):
        return value.__name__
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------- the methods

@method
def untrained(baseline: Callable) -> Method:
    """A method without training, from a function of originals and images."""
    return lambda originals, images, cell, seconds: Outcome(baseline(originals, images))


def without_images(baseline: Callable) -> Callable:
    """The baseline as a function of originals and images that ignores the images."""
    @wraps(baseline)
    def ignoring(originals: Sequence[Original], images: Calibration) -> nn.Module:
        return baseline(originals)
    return ignoring


def align_regmean(originals: Sequence[Original], images: Calibration) -> Merged:
    """RegMean after alignment: all originals permuted into the order of the first."""
    orders = alignment(originals, images)
    return regmean([permuted(original, order) for original, order in zip(originals, orders)], images)


def align_orthogonal_regmean(originals: Sequence[Original], images: Calibration) -> Merged:
    """RegMean after orthogonal alignment: all originals rotated to the first."""
    maps = orthogonal_alignment(originals, images)
    return regmean([rotated(original, each) for original, each in zip(originals, maps)], images)


@method
def distillation(lr: float = LR_DISTILL, init: str = "first", as_long_as: str | None = None, times: float = 1
                 ) -> Method:
    """Distillation for `times` the cell's steps, or for as many steps as fit into another method's seconds."""
    def run(originals, images, cell, seconds):
        factor = seconds[as_long_as] / seconds["distillation"] if as_long_as else times
        steps = max(cell.steps, round(cell.steps * factor))
        student = distill(originals, images, steps, lr, cell.batch_size, init=init, seed=cell.seed,
                          precision=cell.precision)
        return Outcome(student, _count(student.backbone.parameters()), steps)
    return run


@method
def fs_merge(lr: float = LR_SUBSPACES, init: str = "subspaces", local: int = 0, globally: bool = True,
             off_task: float = OFF_TASK, depths: Sequence[int] = DEPTHS, rank: int = 12,
             structure: str = "diagonal_low_rank", into: nn.Module | None = None, shared: bool = False,
             start: dict | None = None, **options) -> Method:
    """FS-Merge: a start ("subspaces" with settings `start`, or an init), `local` steps per block, then global training.

    `options` are of `train_global`.
    """
    def run(originals, images, cell, seconds):
        net = _started(originals, images, init, start, rank=rank, structure=structure, into=into, seed=cell.seed,
                       shared=shared)
        local_steps, global_steps = min(local, cell.steps), cell.steps if globally else 0
        if local_steps:
            train_local(net, images, local_steps, lr, cell.batch_size, cell.seed, precision=cell.precision)
        if global_steps:
            train_global(net, images, global_steps, lr, cell.batch_size, cell.seed, depths, off_task=off_task,
                         precision=cell.precision, **options)
        steps = local_steps * (len(net.graph.readouts) + 1) + global_steps
        trained = _count(p for p in net.parameters() if p.requires_grad) if steps else 0
        return Outcome(net.fold(), trained, steps)
    return run


def paper(lr: float = LR_PAPER, **options) -> Method:
    """The published method: its form of M and U, its start, loss and schedule, on the images of the cell."""
    published = {"init": "paper_first", "shared": True, "off_task": 0.0, "depths": (), "scaled": False, "warmup": 0.3,
                 "anneal": "linear", "clip": math.inf}
    return fs_merge(lr, **published | options)


@method
def in_sequence(step: Method) -> Method:
    """A method on the first two originals, then on the result and the third, and so on (paper, FS-Merge seq.)."""
    def run(originals, images, cell, seconds):
        merged, outcomes = originals[0], []
        for i, original in enumerate(originals[1:], 1):
            seen = Calibration(images.images[images.owner <= i], images.owner[images.owner <= i])
            outcomes.append(step([merged, original], seen.grouped([0] * i + [1]), cell, seconds))
            merged = outcomes[-1].model
        return Outcome(merged, outcomes[-1].trained, sum(outcome.steps for outcome in outcomes))
    return run


@method
def all_weights(lr: float, init: str = "subspaces", off_task: float = 0.0, depths: Sequence[int] = ()) -> Method:
    """FS-Merge's start and losses, but all weights are trained instead of M and U.

    From "first" and with inner features this is distillation with hints.
    """
    def run(originals, images, cell, seconds):
        net = _started(originals, images, init, seed=cell.seed)
        merged = train_folded(net, images, cell.steps, lr, cell.batch_size, cell.seed, depths, off_task=off_task,
                              precision=cell.precision)
        return Outcome(merged, _count(merged.backbone.parameters()) + _count(merged.outputs), cell.steps)
    return run


def _started(originals: Sequence[Original], images: Calibration, init: str, start: dict | None = None, **options
             ) -> SuperNet:
    """A SuperNet from the fitted subspaces, or from an init."""
    if init != "subspaces":
        return SuperNet(originals, init=init, **options)
    return fit_subspaces(SuperNet(originals, **options), images, **start or {})


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(p.numel() for p in parameters)
