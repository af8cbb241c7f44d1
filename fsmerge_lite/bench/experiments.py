"""The experiments of the benchmarks: each is a list of cells, and the methods that run on every cell.

The names of methods are those of the committed records. "FS-Merge (paper)" is the published method, "FS-Merge (fitted)"
starts from the fitted subspaces and has inner features and the off-task term in its loss; `text` has no off-task terms.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations, product

from ..architectures.vit import vit
from ..compare.baselines import average, ensemble, regmean, slerp
from ..compare.rotation import align_orthogonal
from .methods import (
    DEPTHS,
    LR_ALL,
    LR_DISTILL_TEXT,
    LR_HINTS,
    OFF_TASK,
    Cell,
    Method,
    align_orthogonal_regmean,
    align_regmean,
    all_weights,
    distillation,
    fs_merge,
    in_sequence,
    paper,
    untrained,
    without_images,
)


@dataclass(frozen=True)
class Experiment:
    """The cells of a benchmark, and its methods by name in the order in which they run."""

    cells: list[Cell]
    methods: dict[str, Method]


FOUR = ("digits", "letters", "shapes", "textures")
TEXTS = ("language", "kind")
STARTS = {"ridge": (1e-3, 3e-3, 3e-2, 0.1), "floor": (0.0, 0.1, 0.5, 1.0), "inner_off_task": (0.0, 0.01, 0.05),
          "off_task": (0.0, 0.1, 0.5), "corrected": (False,)}  # one change at a time from the start's own settings
NO_OFF_TASK = {"off_task": 0.0, "inner_off_task": 0.0}  # of the start, where tasks read the same inputs
CHOSEN_FOR_MANY = "FS-Merge (fitted), rank 32, off-task 0.5"
SMALL = Cell(("digits", "letters"), images=4, steps=3, total=8)


def lowdata(small: bool = False) -> Experiment:
    """The main comparison: all six pairs of four tasks, both orders, 16, 50 and 100 images a task, three seeds."""
    cells = [Cell(tasks, images, seed)
             for seed, images, tasks in product(range(3), (16, 50, 100), permutations(FOUR, 2))]
    methods = {
        "originals (k models)": untrained(without_images(ensemble)),
        "average": untrained(without_images(average)),
        "slerp": untrained(without_images(slerp)),
        "regmean": untrained(regmean),
        "align, then regmean": untrained(align_regmean),
        "align, orthogonal, then regmean": untrained(align_orthogonal_regmean),
        "distillation": distillation(),
        "FS-Merge (paper)": paper(),
        "FS-Merge (fitted), untrained": fs_merge(globally=False),
        "FS-Merge (fitted)": fs_merge(shared=True),
        "distillation, same time": distillation(as_long_as="FS-Merge (fitted)"),
    }
    return Experiment([SMALL] if small else cells, methods)


def text(small: bool = False) -> Experiment:
    """The methods of `lowdata` on two text encoders: both orders, 16 and 100 texts a task, three seeds."""
    cells = [Cell(tasks, images, seed) for seed, images, tasks in product(range(3), (16, 100), permutations(TEXTS))]
    methods = lowdata().methods | {  # what is changed here was chosen by `text_sweep`
        "distillation": distillation(LR_DISTILL_TEXT),
        "FS-Merge (fitted), untrained": fs_merge(globally=False, start=NO_OFF_TASK),
        "FS-Merge (fitted)": fs_merge(shared=True, off_task=0.0, start=NO_OFF_TASK),
        "distillation, same time": distillation(LR_DISTILL_TEXT, as_long_as="FS-Merge (fitted)"),
    }
    return Experiment([replace(SMALL, tasks=TEXTS)] if small else cells, methods)


def text_sweep(small: bool = False) -> Experiment:
    """Settings for texts, with and without edited copies, on labeled training texts of a seed of their own."""
    cells = [Cell(tasks, images, 3, total=total, validate=True) for tasks, images, total in
             ((TEXTS, 16, 800), (TEXTS[::-1], 100, 800), (TEXTS, 16, 16))]
    rates, without = (1e-3, 2e-3, 4e-3), partial(fs_merge, shared=True, off_task=0.0, start=NO_OFF_TASK)
    methods = {**{f"distillation {lr:g}": distillation(lr) for lr in rates},
               **{f"FS-Merge (paper) {lr:g}": paper(lr) for lr in (*rates, 8e-3)},
               "start, untrained": fs_merge(globally=False),
               **{f"FS-Merge, shared {lr:g}": fs_merge(lr, shared=True) for lr in rates},
               "start, untrained, no off-task": fs_merge(globally=False, start=NO_OFF_TASK),
               **{f"FS-Merge, shared {lr:g}, no off-task": without(lr) for lr in rates},
               "FS-Merge, shared 0.002, no off-task, no inner": without(depths=())}
    if small:
        return Experiment([replace(SMALL, tasks=TEXTS, validate=True)], _some(methods))
    return Experiment(cells, methods)


def _some(methods: dict[str, Method]) -> dict[str, Method]:
    """Every fifth method, as a trial: those of a sweep differ in one number."""
    return dict(list(methods.items())[::5])


def rivals(small: bool = False) -> Experiment:
    """What if others are lent what FS-Merge (fitted) has? All six pairs, both orders, one seed."""
    cells = [Cell(tasks, images) for images in (16, 100) for tasks in permutations(FOUR, 2)]
    methods = {
        "align, orthogonal": untrained(align_orthogonal),
        "distillation": distillation(),
        "distillation, our losses": all_weights(LR_HINTS, "first", off_task=OFF_TASK, depths=DEPTHS),
        "all weights from the fitted start": all_weights(LR_ALL, off_task=OFF_TASK, depths=DEPTHS),
        "FS-Merge (fitted)": fs_merge(shared=True),
    }
    return Experiment([SMALL] if small else cells, methods)


def room(small: bool = False) -> Experiment:
    """How wide must the merged model be? Widths 1 to 2 times that of the originals, at equal head size, three seeds."""
    cells = [Cell(tasks, 100, seed) for seed, tasks in
             product(range(3), (("digits", "letters"), ("shapes", "textures"), FOUR))]
    methods = {"originals (k models)": untrained(without_images(ensemble))}
    for heads in (4, 8) if small else (4, 5, 6, 7, 8):
        dim, into = 24 * heads, vit(dim=24 * heads, num_heads=heads)
        methods |= {f"FS-Merge (fitted), untrained @ {dim}": fs_merge(globally=False, into=into),
                    f"FS-Merge (fitted) @ {dim}": fs_merge(into=into, shared=True)}
    return Experiment([SMALL] if small else cells, methods)


def heads(small: bool = False) -> Experiment:
    """What are the shares of the heads worth? 1 : 3, 2 : 2 and 3 : 1, one seed, scored on labeled training images."""
    cells = [Cell(tasks, images, 3, validate=True) for images in (16, 100) for tasks in
             (("letters", "digits"), ("textures", "digits"), ("digits", "shapes"), ("shapes", "textures"))]
    methods = {"distillation": distillation()}
    for shares in ([1, 3], [2, 2], [3, 1]):
        name, start = "FS-Merge (fitted), {} : {} heads".format(*shares), {"heads": shares}
        methods |= {f"{name}, untrained": fs_merge(globally=False, start=start),
                    name: fs_merge(shared=True, start=start)}
    return Experiment([replace(SMALL, validate=True)] if small else cells, methods)


def sweep(small: bool = False) -> Experiment:
    """Every setting, chosen on labeled training images with a seed of their own."""
    cells = [Cell(tasks, images, 3, validate=True) for tasks, images in
             ((("letters", "digits"), 16), (("textures", "shapes"), 16),
              (("shapes", "letters"), 100), (("digits", "letters"), 100))]
    starts = {"": {}, **{f"{name} {value:g}": {name: value} for name, values in STARTS.items() for value in values}}
    methods = {
        **{f"distillation {lr:g}": distillation(lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3)},
        **{f"FS-Merge (paper) {lr:g}": paper(lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3)},
        **{f"FS-Merge, first {lr:g}": fs_merge(lr, "first", off_task=0.0, depths=()) for lr in (2e-3, 4e-3, 8e-3)},
        **{f"start, untrained {name}".strip(): fs_merge(globally=False, start=start) for name, start in starts.items()},
        **{f"FS-Merge {lr:g}": fs_merge(lr) for lr in (1e-3, 2e-3, 4e-3)},
        **{f"FS-Merge, shared {lr:g}": fs_merge(lr, shared=True) for lr in (2e-3, 4e-3)},
        "FS-Merge 0.002, no inner": fs_merge(2e-3, depths=()),
        "FS-Merge 0.002, inner 3": fs_merge(2e-3, inner=3.0),
        "FS-Merge 0.002, quiet 0": fs_merge(2e-3, off_task=0.0),
        "FS-Merge 0.002, quiet 0.5": fs_merge(2e-3, off_task=0.5),
        **{f"all weights {lr:g}": all_weights(lr, off_task=OFF_TASK, depths=DEPTHS) for lr in (5e-4, 1e-3, 2e-3)},
        **{f"distillation, inner {lr:g}": all_weights(lr, "first", depths=DEPTHS) for lr in (1e-3, 2e-3, 4e-3)},
    }
    return Experiment([replace(SMALL, validate=True)], _some(methods)) if small else Experiment(cells, methods)


def ablation(small: bool = False) -> Experiment:
    """Each idea on its own: one change at a time, in what is trained, in the start and in the rivals."""
    cells = [Cell(tasks, images, seed) for seed in range(3)
             for tasks, images in ((("letters", "digits"), 16), (("shapes", "textures"), 100))]
    fitted = partial(fs_merge, shared=True)
    start = partial(fs_merge, globally=False)
    first_version = {"off_task": 0.0, "inner_off_task": 0.0, "floor": 1.0, "corrected": False, "heads": [1, 1]}
    methods = {
        "FS-Merge (paper)": paper(),
        "paper, inner": paper(depths=DEPTHS),
        "paper, inner, off-task": paper(depths=DEPTHS, off_task=OFF_TASK),
        "paper, local": paper(local=60, globally=False),
        "paper, local then global": paper(local=60),
        "start": start(),
        "start, equal heads": start(start={"heads": [1, 1]}),
        "start, not corrected": start(start={"corrected": False}),
        "start, tokens alike": start(start={"floor": 1.0}),
        "start, no off-task": start(start=NO_OFF_TASK),
        "start, none of these": start(start=first_version),
        "FS-Merge (fitted)": fitted(),
        "fitted, no off-task": fitted(off_task=0.0),
        "fitted, no inner": fitted(depths=()),
        "fitted, neither": fitted(off_task=0.0, depths=()),
        "fitted, local": fitted(local=60, globally=False),
        "fitted, local then global": fitted(local=60),
        "fitted, diagonal": fs_merge(structure="diagonal"),
        "fitted, rank 4": fitted(rank=4),
        "fitted, rank 32": fitted(rank=32),
        "fitted, not shared": fs_merge(),
        "all weights from the fitted start": all_weights(LR_ALL, off_task=OFF_TASK, depths=DEPTHS),
        "distillation": distillation(),
        "distillation from average": distillation(init="average"),
        "distillation, inner": all_weights(LR_HINTS, "first", depths=DEPTHS),
        "distillation, our losses": all_weights(LR_HINTS, "first", off_task=OFF_TASK, depths=DEPTHS),
    }
    return Experiment([SMALL] if small else cells, methods)


def many(small: bool = False) -> Experiment:
    """k = 2, 3, 4 models, all at once and one after the other, against k teachers and against k models."""
    cells = [Cell(FOUR[:k], 100, seed) for seed in range(3) for k in (4, 3, 2)]
    methods = {
        "originals (k models)": untrained(without_images(ensemble)),
        "average": untrained(without_images(average)),
        "distillation": distillation(),
        "FS-Merge (paper)": paper(),
        "FS-Merge (fitted), untrained": fs_merge(globally=False),
        "FS-Merge (fitted)": fs_merge(shared=True),
        "FS-Merge (fitted), in sequence": in_sequence(fs_merge(shared=True)),
        "distillation, same time": distillation(as_long_as="FS-Merge (fitted)"),
        CHOSEN_FOR_MANY: fs_merge(rank=32, off_task=0.5, shared=True),  # the best of `many_sweep`
        "distillation, as long as rank 32": distillation(as_long_as=CHOSEN_FOR_MANY),
    }
    return Experiment([replace(SMALL, tasks=FOUR[:3])] if small else cells, methods)


def many_sweep(small: bool = False) -> Experiment:
    """The off-task weight and the rank for three and four models, on labeled training images of seeds of their own."""
    cells = [Cell(FOUR[:k], 100, seed, validate=True) for seed, k in ((3, 4), (4, 4), (3, 3))]
    methods = {"distillation": distillation()}
    for rank, weight in ((12, 0.2), (12, 0.5), (12, 1.0), (12, 2.0), (32, 0.2), (32, 0.5)):
        methods[f"FS-Merge, rank {rank}, off-task {weight:g}"] = fs_merge(rank=rank, off_task=weight, shared=True)
    if small:
        return Experiment([replace(SMALL, tasks=FOUR[:3], validate=True)], _some(methods))
    return Experiment(cells, methods)


def longer(small: bool = False) -> Experiment:
    """Four models, longer training. What is the limit: the steps, M and U, their rank, or the off-task weight?"""
    cells = [Cell(FOUR, 100, seed, steps=steps) for seed in range(3) for steps in (150, 300, 600)]
    methods = {
        "distillation": distillation(),
        "distillation, three times the steps": distillation(times=3),
        "FS-Merge (fitted)": fs_merge(shared=True),
        "fitted, rank 32": fs_merge(rank=32, shared=True),
        "fitted, off-task 1": fs_merge(off_task=1.0, shared=True),
        "all weights from the fitted start": all_weights(LR_ALL, off_task=OFF_TASK, depths=DEPTHS),
    }
    return Experiment([replace(SMALL, tasks=FOUR)] if small else cells, methods)


def widths(small: bool = False) -> Experiment:
    """Originals of width 96 (4 heads) and 64 (2 heads) into one of any width, in both orders."""
    pairs = (("digits", "letters_dim64"), ("letters_dim64", "digits"))
    cells = [Cell(pair, 100, seed, steps=150) for seed in range(3) for pair in pairs]
    sizes = {dim: vit(dim=dim, num_heads=max(2, dim // 32)) for dim in (64, 96, 128, 192)}
    methods = {"originals (k models)": untrained(without_images(ensemble))}
    for dim, into in sizes.items():
        methods |= {f"FS-Merge (paper) @ {dim}": paper(into=into),
                    f"FS-Merge (fitted) @ {dim}": fs_merge(into=into, shared=True)}
    return Experiment([replace(SMALL, tasks=pairs[0])] if small else cells, methods)


EXPERIMENTS: dict[str, Callable[[bool], Experiment]] = {
    experiment.__name__: experiment
    for experiment in (lowdata, rivals, ablation, sweep, many, many_sweep, longer, widths, room, heads,
                       text, text_sweep)}
