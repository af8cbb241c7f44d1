"""Lesson 13: the order of the classes from a confusion matrix, absorbed normalization, and which merge is broken."""
import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import permutations
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ...architectures import architecture
from ...engine.images import Calibration
from ...models import Merged
from ...start import fit_subspaces
from ...supernet import SuperNet
from ...tasks.calibration import calibration
from ...tasks.originals import load_originals
from ...tasks.task import Task
from .testing import Exercise

# ---------------------------------------------------------------- class_order

EACH = "return each of the names once, one for each output of the head"
INVERSE = "that says which output each class has; the question is which class each output has"
COLUMNS = ("one name comes twice: a frequent class has more wrong answers in a column than a rare class has right "
           "ones; begin with the rows")
SORTED = "that is the order of the rows; the largest numbers do not stand on the diagonal"
OTHER = "these are the right names in a wrong order"


def _confused(generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Counts (true class, output) of a head whose outputs stand in another order than the classes, and their names."""
    names, sizes = ["bee", "cat", "dog", "elk", "fox", "hen"], torch.tensor([200, 180, 160, 140, 120, 15])
    order = torch.randperm(6, generator=generator)
    while (order[order] == torch.arange(6)).any():  # an order that is partly its own inverse would hide a mistake
        order = torch.randperm(6, generator=generator)
    sizes = sizes[torch.randperm(6, generator=generator)]
    answers = torch.eye(6) * 0.75 + 0.02
    answers[sizes.argmax(), sizes.argmin()] += 0.13
    counts = (sizes[:, None] * answers).round().long()
    return counts[:, order], names


def _by_trying(confusion: Tensor, names: Sequence[str]) -> list[str]:
    """The order of all 720 under which the largest part of each row stands in its column."""
    parts = (confusion / confusion.sum(1, keepdim=True)).tolist()
    best = max(permutations(range(len(names))), key=lambda order: sum(parts[c][j] for j, c in enumerate(order)))
    return [names[c] for c in best]


def _rows_read(confusion: Tensor, names: Sequence[str]) -> list[str]:
    return [names[j] for j in confusion.argmax(1)]


def _columns_read(confusion: Tensor, names: Sequence[str]) -> list[str]:
    return [names[c] for c in confusion.argmax(0)]


def _judge_order(result: object, confusion: Tensor, names: Sequence[str]) -> str | None:
    if not isinstance(result, list | tuple) or not all(isinstance(name, str) for name in result):
        return EACH
    result, right = list(result), _by_trying(confusion, names)
    known = {INVERSE: _rows_read(confusion, names), COLUMNS: _columns_read(confusion, names), SORTED: list(names)}
    named = next((message for message, wrong in known.items() if result == wrong), None)
    if result == right:
        return None
    return named or (OTHER if sorted(result) == sorted(names) else EACH)


CLASS_ORDER = Exercise(_confused, judge=_judge_order, mistakes={
    INVERSE: _rows_read, COLUMNS: _columns_read, SORTED: lambda confusion, names: list(names),
    EACH: lambda confusion, names: names[:3]})

# ---------------------------------------------------------------- absorb_normalization


def _patch_embedding(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight (4, 3, 2, 2) and bias (4,) of a patch embedding; mean and std (3,) of the pictures it was trained on."""
    weight, bias = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(4, generator=generator)
    return weight, bias, 0.3 + 0.3 * torch.rand(3, generator=generator), 0.2 + 0.2 * torch.rand(3, generator=generator)


def _probed(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor, range_1: bool = True) -> tuple[Tensor, Tensor]:
    """Weight and bias for pictures x, found by sending single pixels through the old embedding.

    x is in [-1, 1], or p itself in [0, 1] without `range_1`.
    """
    def old(x: Tensor) -> Tensor:
        p = (x + 1) / 2 if range_1 else x
        return F.conv2d((p - mean[:, None, None]) / std[:, None, None], weight, bias, stride=2)[:, :, 0, 0]
    pixels = torch.eye(12).view(12, 3, 2, 2)
    new_bias = old(torch.zeros(1, 3, 2, 2))[0]
    return (old(pixels) - new_bias).T.reshape(4, 3, 2, 2), new_bias


def _without_shift(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    return _probed(weight, bias, mean, std)[0], bias


def _undone(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """For an embedding that reads x and is given normalized pictures: the wrong way round."""
    scale, shift = 2 * std[:, None, None], 2 * mean - 1
    return weight * scale, bias + (weight.sum((2, 3)) * shift).sum(1)


ABSORB_NORMALIZATION = Exercise(_patch_embedding, _probed, {
    "the weight is right, but the shift is missing: what the embedding makes of a constant goes into its bias":
        _without_shift,
    "that is for pictures p in [0, 1]; the pictures here are x = 2 p - 1 in [-1, 1]":
        lambda *inputs: _probed(*inputs, range_1=False),
    "that is the wrong way round: it undoes the normalization; the new embedding has to do it": _undone})

# ---------------------------------------------------------------- project: which_is_broken

WORDS = ("fine", "normalization", "heads swapped", "classes shuffled", "one task")
MISSED = {
    "normalization": "the merge with a wrong normalization is missed: how many different answers does it give?",
    "heads swapped": "the merge with swapped heads is missed: what does head 2 say about the pictures of task 1?",
    "classes shuffled": "the merge with shuffled classes is missed: on one task it is mostly wrong, but does another "
                        "order of the classes make it right?",
    "one task": "the merge that was made on the pictures of one task is missed: it is bad at the other task, and no "
                "order of the classes makes it right",
    "fine": "the merge that is fine was called broken",
}
TRUTH: WeakKeyDictionary = WeakKeyDictionary()  # merged model -> its word


@lru_cache(maxsize=1)
def _base() -> tuple:
    """Two originals, their images, smaller test sets, and a merge that is fine."""
    originals = load_originals("shapes", "textures")
    images = calibration(originals, per_task=64, augmented=0)
    return originals, images, [replace(original.task, test_size=300) for original in originals], _merge(images)


@lru_cache(maxsize=2)
def _on_one_task(i: int) -> Merged:
    """A merge whose images are all of task i, although the owners say something else."""
    images = _base()[1]
    return _merge(Calibration(images.of(i).repeat(2, 1, 1, 1), images.owner))


def _merge(images: Calibration) -> Merged:
    net = SuperNet(load_originals("shapes", "textures"), structure="diagonal")
    return fit_subspaces(net, images, heads=(2, 2), progress=False).fold()


def _five(generator: torch.Generator) -> tuple[list[Merged], list[Task]]:
    """Five merges of the same two originals in a random order, one for each word."""
    _, _, tasks, fine = _base()
    made, i = {word: copy.deepcopy(fine) for word in WORDS}, torch.randint(2, (), generator=generator).item()
    backbone = made["normalization"].backbone
    architecture(backbone).absorb_normalization(backbone, (123.0, 117.0, 104.0), (58.0, 57.0, 57.0))
    made["heads swapped"] = Merged(fine.backbone, list(fine.outputs)[::-1], list(fine.heads)[::-1], fine.names)
    head, order = made["classes shuffled"].heads[i], torch.randperm(10, generator=generator)
    head.weight.data, head.bias.data = head.weight[order], head.bias[order]
    made["one task"] = copy.deepcopy(_on_one_task(1 - i))
    for word, merged in made.items():
        TRUTH[merged.requires_grad_(False).eval()] = word
    models = list(made.values())
    return [models[j] for j in torch.randperm(len(models), generator=generator)], tasks


def _judge_words(result: object, models: Sequence[Merged], tasks: Sequence[Task]) -> str | None:
    if not isinstance(result, list | tuple) or len(result) != len(models) or any(word not in WORDS for word in result):
        return f"return a list with one word for each of {len(models)} models, each one of {', '.join(WORDS)}"
    wrong = {TRUTH[model] for model, word in zip(models, result) if TRUTH[model] != word}
    return next((message for word, message in MISSED.items() if word in wrong), None)


def _mistaking(one: str, other: str):
    """A reader who takes one fault for another."""
    def mistake(models: Sequence[Merged], tasks: Sequence[Task]) -> list[str]:
        return [other if TRUTH[model] == one else TRUTH[model] for model in models]
    return mistake


WHICH_IS_BROKEN = Exercise(_five, judge=_judge_words, mistakes={
    MISSED["normalization"]: _mistaking("normalization", "one task"),
    MISSED["heads swapped"]: _mistaking("heads swapped", "normalization"),
    MISSED["classes shuffled"]: _mistaking("classes shuffled", "one task"),
    MISSED["one task"]: _mistaking("one task", "fine"),
    MISSED["fine"]: _mistaking("fine", "one task")})

EXERCISES = {"class_order": CLASS_ORDER, "absorb_normalization": ABSORB_NORMALIZATION,
             "which_is_broken": WHICH_IS_BROKEN}
