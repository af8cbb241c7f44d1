"""What the benchmarks compare: cells (originals in an order, images, seed), methods, and experiments made of them.

`bench` runs them. Learning rates were chosen by the experiment `sweep`, which scores on labelled training images with
a seed that no other experiment uses; benchmarks/README.md says how the rest came about.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import nn

from .baselines import align, average, distill, ensemble, regmean, slerp
from .fitting import fit
from .machine import pick_device
from .models import Merged, Original, load_original, vit
from .originals import DATA
from .permutations import alignment, permuted
from .subspace import fit_subspaces
from .supernet import SuperNet
from .tasks import Calibration, Task, calibration
from .training import objective, train_global, train_local
from .wiring import inputs_of

BATCH = 64
LR_DISTILL, LR_FIRST, LR_SUBSPACES, QUIET = 2e-3, 4e-3, 2e-3, 0.2
LR_ALL, LR_HINTS = 1e-3, 4e-3  # for comparison: all weights from the subspaces' start, distillation with inner features
DEPTHS = (1, 2, 3)  # of the inner features


@dataclass(frozen=True)
class Cell:
    """One place of a benchmark.

    Args:
        tasks: the originals' names in `data/originals`; the first is model 1.
        images: real images a task.
        seed: of images and training.
        steps: of every training run.
        total: images a task with augmented copies, about.
        validate: score on labelled training images, to choose settings by; else on test images.
        precision: of every training run, fp32 or bf16.
    """

    tasks: tuple[str, ...]
    images: int = 16
    seed: int = 0
    steps: int = 300
    total: int = 800
    validate: bool = False
    precision: str = "fp32"

    def load(self, device: str) -> tuple[list[Original], Calibration, list[Task]]:
        """The shipped originals, the images to merge with and the tasks to score on."""
        return self.prepare([load_original(DATA / name).to(pick_device(device)) for name in self.tasks])

    def prepare(self, originals: Sequence[Original]) -> tuple[list[Original], Calibration, list[Task]]:
        """The same for originals that are at hand."""
        copies = max(0, self.total // self.images - 1)
        tasks = [validation(o.task) if self.validate else o.task for o in originals]
        return list(originals), calibration(originals, self.images, copies, self.seed), tasks


def cell_of(record: dict) -> Cell:
    """The cell that a record is of."""
    return Cell(tuple(record["tasks"]), **{field.name: record[field.name] for field in fields(Cell)[1:]
                                          if field.name != "precision" or field.name in record})


@lru_cache(maxsize=16)
def validation(task: Task, size: int = 500) -> Task:
    """The task with labelled training images in the place of its test images: to choose settings by."""
    def draw(n: int, generator: torch.Generator, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        return task.draw(n, generator, "train")
    return replace(task, draw=draw, test_size=min(size, task.train_size or size))


@dataclass
class Outcome:
    """What a method made: something to evaluate, how many numbers it trained, and in how many steps."""

    model: nn.Module
    trained: int = 0
    steps: int = 0


# originals, images, cell, seconds of the methods that ran before on this cell -> what was made
Method = Callable[[Sequence[Original], Calibration, Cell, dict[str, float]], Outcome]


@dataclass(frozen=True)
class Experiment:
    """What a benchmark compares: methods by name, in the order in which each cell runs them, and the cells."""

    cells: list[Cell]
    methods: dict[str, Method]


# ---------------------------------------------------------------- the methods

def untrained(make: Callable, with_images: bool = False) -> Method:
    """A method without training."""
    return lambda originals, images, cell, seconds: Outcome(make(originals, images) if with_images else make(originals))


def align_regmean(originals: Sequence[Original], images: Calibration) -> Merged:
    """RegMean of originals that were brought into the order of the first."""
    found = alignment(originals, images)
    ordered = [permuted(original, p) for original, p in zip(originals, found)]
    return regmean(ordered, images)


def distillation(lr: float = LR_DISTILL, start: str = "first", as_long_as: str | None = None, times: float = 1
                 ) -> Method:
    """Distillation for so many times the cell's steps, or for as many as fit into the seconds another method took."""
    def method(originals, images, cell, seconds):
        longer = seconds[as_long_as] / seconds["distillation"] if as_long_as else times
        steps = max(cell.steps, round(cell.steps * longer))
        student = distill(originals, images, steps, lr, BATCH, start=start, seed=cell.seed, precision=cell.precision)
        return Outcome(student, _count(student.backbone.parameters()), steps)
    return method


def fs_merge(lr: float = LR_SUBSPACES, start: str = "subspaces", local: int = 0, globally: bool = True,
             quiet: float = QUIET, depths: Sequence[int] = DEPTHS, rank: int = 12,
             structure: str = "diagonal_low_rank", into: nn.Module | None = None, **how) -> Method:
    """FS-Merge: a start ("subspaces" or an init), `local` steps a block, then the cell's steps globally."""
    def method(originals, images, cell, seconds):
        net = SuperNet(originals, rank, structure, "first" if start == "subspaces" else start, into)
        if start == "subspaces":
            fit_subspaces(net, images)
        if local:
            train_local(net, images, min(local, cell.steps), lr, BATCH, seed=cell.seed, precision=cell.precision)
        if globally:
            train_global(net, images, cell.steps, lr, BATCH, seed=cell.seed, quiet=quiet, depths=depths,
                         precision=cell.precision, **how)
        trained = _count(p for p in net.parameters() if p.requires_grad) if local or globally else 0
        return Outcome(net.fold(), trained, local * (len(net.wiring.depths) + 1) + globally * cell.steps)
    return method


def in_sequence() -> Method:
    """FS-Merge of the first two, then of what came out with the third, and so on (paper, FS-Merge seq.)."""
    step = fs_merge()

    def method(originals, images, cell, seconds):
        merged, made = originals[0], []
        for i, original in enumerate(originals[1:], 1):
            seen = Calibration(images.images[images.owner <= i], images.owner[images.owner <= i])
            made.append(step([merged, original], seen.grouped([0] * i + [1]), cell, seconds))
            merged = made[-1].model
        return Outcome(merged, made[-1].trained, sum(m.steps for m in made))
    return method


def all_weights(lr: float, start: str = "subspaces", quiet: float = 0.0, depths: Sequence[int] = ()) -> Method:
    """FS-Merge's start and losses, but W*, b* and the readouts themselves are trained: what M and U are worth.

    From "first" and with inner features this is distillation with hints.
    """
    def method(originals, images, cell, seconds):
        net = SuperNet(originals)
        merged = (fit_subspaces(net, images) if start == "subspaces" else net).fold()
        layers = [net.wiring.depths[depth] for depth in depths]
        readouts = nn.ModuleDict({str(depth): nn.ParameterList(_readouts(net, layer))
                                  for depth, layer in zip(depths, layers)})

        def run(x: torch.Tensor) -> tuple[list[torch.Tensor], dict[int, list[torch.Tensor]]]:
            outputs: list[torch.Tensor] = []
            seen = inputs_of(merged.backbone, layers, lambda: outputs.extend(merged.features(x)))
            return outputs, {depth: [seen[layer] @ readout.T for readout in readouts[str(depth)]]
                             for depth, layer in zip(depths, layers)}
        parameters = [*merged.requires_grad_(True).backbone.parameters(), *merged.outputs, *readouts.parameters()]
        loss = objective(net, run, images, BATCH, cell.seed, depths, 1.0, quiet)
        fit(parameters, loss, cell.steps, lr, name="all weights", precision=cell.precision)
        return Outcome(merged.requires_grad_(False), _count(parameters), cell.steps)
    return method


@torch.no_grad()
def _readouts(net: SuperNet, layer: str) -> list[torch.Tensor]:
    """The k dense matrices through which a layer's input is read, as they are at the start."""
    module = net.body.get_submodule(layer)
    eye = torch.eye(module.unmerges[0].in_features).to(module.weight0)
    return [read.T.clone() for read in module.reads(eye)]


def _count(parameters: Iterable) -> int:
    return sum(p.numel() for p in parameters)


# ---------------------------------------------------------------- what is compared

FOUR = ("digits", "letters", "shapes", "textures")
PAIRS = [("digits", "letters"), ("letters", "shapes"), ("shapes", "textures")]
ORDERED = [pair for first, second in PAIRS for pair in ((first, second), (second, first))]
SMALL = Cell(("digits", "letters"), images=4, steps=3, total=8)


def lowdata(small: bool = False) -> Experiment:
    """The main comparison: three pairs, both orders, 16, 50 and 100 images a task, three seeds."""
    cells = [Cell(tasks, images, seed) for seed in range(3) for images in (16, 100, 50) for tasks in ORDERED]
    methods = {
        "originals (k models)": untrained(ensemble),
        "average": untrained(average),
        "slerp": untrained(slerp),
        "regmean": untrained(regmean, with_images=True),
        "align": untrained(align, with_images=True),
        "align, then regmean": untrained(align_regmean, with_images=True),
        "distillation": distillation(),
        "FS-Merge, first": fs_merge(LR_FIRST, "first", quiet=0.0, depths=()),
        "FS-Merge": fs_merge(),
        "distillation, same time": distillation(as_long_as="FS-Merge"),
        "distillation, inner, quiet": all_weights(LR_HINTS, "first", quiet=QUIET, depths=DEPTHS),
    }
    return Experiment([SMALL] if small else cells, methods)


def sweep(small: bool = False) -> Experiment:
    """Learning rates and the weight of `quiet`, chosen on labelled training images with a seed of their own."""
    cells = [Cell(tasks, images, 3, validate=True) for tasks, images in
             ((("letters", "digits"), 16), (("textures", "shapes"), 16),
              (("shapes", "letters"), 100), (("digits", "letters"), 100))]
    methods = {
        **{f"distillation {lr:g}": distillation(lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3)},
        **{f"FS-Merge, first {lr:g}": fs_merge(lr, "first", quiet=0.0, depths=()) for lr in (2e-3, 4e-3, 8e-3)},
        **{f"FS-Merge {lr:g}": fs_merge(lr) for lr in (1e-3, 2e-3, 4e-3)},
        "FS-Merge 0.002, inner 3": fs_merge(2e-3, inner=3.0),
        "FS-Merge 0.002, quiet 0.5": fs_merge(2e-3, quiet=0.5),
        **{f"all weights {lr:g}": all_weights(lr, quiet=QUIET, depths=DEPTHS) for lr in (5e-4, 1e-3, 2e-3)},
        **{f"distillation, inner {lr:g}": all_weights(lr, "first", depths=DEPTHS) for lr in (1e-3, 2e-3, 4e-3)},
    }
    return Experiment([replace(SMALL, validate=True)] if small else cells, methods)


def ablation(small: bool = False) -> Experiment:
    """Each idea on its own, one change at a time from the main setting, or from the paper's `first`."""
    cells = [Cell(tasks, images, seed) for seed in range(2)
             for tasks, images in ((("letters", "digits"), 16), (("shapes", "textures"), 100))]
    paper = {"lr": LR_FIRST, "start": "first", "quiet": 0.0}
    methods = {
        "first (paper)": fs_merge(**paper, depths=()),
        "first, inner": fs_merge(**paper),
        "first, inner, quiet": fs_merge(LR_FIRST, "first"),
        "first, local": fs_merge(**paper, local=60, globally=False),
        "first, local then global": fs_merge(**paper, local=60, depths=()),
        "subspaces, untrained": fs_merge(globally=False),
        "subspaces": fs_merge(quiet=0.0, depths=()),
        "subspaces, quiet": fs_merge(depths=()),
        "subspaces, inner": fs_merge(quiet=0.0),
        "subspaces, inner, quiet = FS-Merge": fs_merge(),
        "FS-Merge, local": fs_merge(local=60, globally=False),
        "FS-Merge, local then global": fs_merge(local=60),
        "FS-Merge, diagonal": fs_merge(structure="diagonal"),
        "FS-Merge, rank 4": fs_merge(rank=4),
        "FS-Merge, rank 32": fs_merge(rank=32),
        "subspaces, inner, quiet, all weights": all_weights(LR_ALL, quiet=QUIET, depths=DEPTHS),
        "distillation": distillation(),
        "distillation from average": distillation(start="average"),
        "distillation, inner (hints)": all_weights(LR_HINTS, "first", depths=DEPTHS),
        "distillation, inner, quiet": all_weights(LR_HINTS, "first", quiet=QUIET, depths=DEPTHS),
    }
    return Experiment([SMALL] if small else cells, methods)


def many(small: bool = False) -> Experiment:
    """k = 2, 3, 4 models, all at once and one after the other, against k teachers and against k models."""
    cells = [Cell(FOUR[:k], 100, seed) for seed in range(3) for k in (4, 3, 2)]
    methods = {
        "originals (k models)": untrained(ensemble),
        "average": untrained(average),
        "distillation": distillation(),
        "FS-Merge": fs_merge(),
        "FS-Merge, in sequence": in_sequence(),
        "distillation, same time": distillation(as_long_as="FS-Merge"),
    }
    return Experiment([replace(SMALL, tasks=FOUR[:3])] if small else cells, methods)


def longer(small: bool = False) -> Experiment:
    """Four models and a longer fit: how much is held back by the steps, by M and U, by their rank, by `quiet`."""
    cells = [Cell(FOUR, 100, steps=steps) for steps in (150, 300, 600, 1200)]
    methods = {
        "distillation": distillation(),
        "distillation, three times the steps": distillation(times=3),  # about the wall time of FS-Merge
        "FS-Merge": fs_merge(),
        "FS-Merge, rank 32": fs_merge(rank=32),
        "FS-Merge, quiet 1": fs_merge(quiet=1.0),
        "all weights from the same start": all_weights(LR_ALL, quiet=QUIET, depths=DEPTHS),
    }
    return Experiment([replace(SMALL, tasks=FOUR)] if small else cells, methods)


def widths(small: bool = False) -> Experiment:
    """Originals of width 96 (4 heads) and 64 (2 heads) into one of any width, in both orders."""
    pairs = (("digits", "letters_dim64"), ("letters_dim64", "digits"))
    cells = [Cell(pair, 100, seed, steps=150) for seed in range(3) for pair in pairs]
    sizes = {dim: vit(dim=dim, num_heads=max(2, dim // 32)) for dim in (64, 96, 128, 192)}
    methods = {"originals (k models)": untrained(ensemble)}
    for dim, into in sizes.items():
        methods |= {f"FS-Merge, first @ {dim}": fs_merge(LR_FIRST, "first", quiet=0.0, depths=(), into=into),
                    f"FS-Merge @ {dim}": fs_merge(into=into)}
    return Experiment([replace(SMALL, tasks=pairs[0])] if small else cells, methods)


EXPERIMENTS: dict[str, Callable[[bool], Experiment]] = {
    made.__name__: made for made in (lowdata, ablation, sweep, many, longer, widths)}
