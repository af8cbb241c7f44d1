"""Lesson 00: joint accuracy, a merge of two small networks by hand, a tour of another pair, an offset for a head."""
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...compare.baselines import average, ensemble
from ...compare.evaluation import evaluate
from ...models import Merged, Original
from ...supernet import SuperNet
from ...tasks.embedded import EMBEDDED
from ...tasks.originals import load_originals
from .testing import Exercise

# ---------------------------------------------------------------- joint_accuracy


def _answers(generator: torch.Generator) -> tuple[list[list[Tensor]], list[Tensor]]:
    """For each of three tasks of different sizes, the logits of all three heads for its images, and the labels."""
    sizes, classes = (40, 100, 160), (3, 4, 2)
    labels = [torch.randint(c, (n,), generator=generator) for n, c in zip(sizes, classes)]
    logits = [[torch.randn(n, c, generator=generator) for c in classes] for n in sizes]
    for i, own in enumerate(labels):
        logits[i][i][torch.arange(len(own)), own] += 3.0 - i
    return logits, labels


def _image_by_image(logits: Sequence[Sequence[Tensor]], labels: Sequence[Tensor], all_heads: bool = True,
                    offset: bool = True, pooled: bool = True) -> float:
    """Joint accuracy in percent by a loop over single images, right or with one mistake."""
    hits = []
    for i, (heads, own) in enumerate(zip(logits, labels)):
        before, hit = sum(head.shape[1] for head in heads[:i]) if offset and all_heads else 0, []
        for row, label in enumerate(own.tolist()):
            values = [x for head in (heads if all_heads else [heads[i]]) for x in head[row].tolist()]
            hit.append(float(values.index(max(values)) == before + label))
        hits.append(hit)
    if pooled:
        return 100 * sum(map(sum, hits)) / sum(map(len, hits))
    return 100 * sum(sum(hit) / len(hit) for hit in hits) / len(hits)


JOINT_ACCURACY = Exercise(_answers, _image_by_image, {
    "only the task's own head was used; the task is unknown here, so all heads compete":
        lambda logits, labels: _image_by_image(logits, labels, all_heads=False),
    "the labels count from 0 within their own head; side by side, its columns come after those of the heads before it":
        lambda logits, labels: _image_by_image(logits, labels, offset=False),
    "that is the mean of the tasks' own joint accuracies; joint accuracy counts all images together, and the tasks "
    "have 40, 100 and 160 here":
        lambda logits, labels: _image_by_image(logits, labels, pooled=False),
    "that is a fraction of 1; return percent": lambda logits, labels: _image_by_image(logits, labels) / 100})

# ---------------------------------------------------------------- merge_two_layers


def _two_networks(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Layers A1 (5, 3), A2 (2, 5) and B1, B2; hidden unit j of network 2 does nearly what unit order[j] of 1 does."""
    order = torch.randperm(5, generator=generator)
    while (order == order.argsort()).all():  # an order that is its own inverse would hide a mistake
        order = torch.randperm(5, generator=generator)
    A1, A2 = torch.randn(5, 3, generator=generator), torch.randn(2, 5, generator=generator)
    B1, B2 = A1 + 0.1 * torch.randn(5, 3, generator=generator), A2 + 0.1 * torch.randn(2, 5, generator=generator)
    return A1, A2, B1[order], B2[:, order], order.tolist()


def _with_matrices(A1: Tensor, A2: Tensor, B1: Tensor, B2: Tensor, order: Sequence[int], merge: bool = True,
                   unmerge: bool = True, half: float = 0.5) -> tuple[Tensor, Tensor]:
    """W* of both layers as the sum of M_i W_i U_i with the matrices written out, right or with one left out."""
    eye, swap = torch.eye(5), torch.zeros(5, 5)
    for j, unit in enumerate(order):
        swap[unit, j] = 1.0  # what unit j of network 2 gives goes to the place of unit order[j]
    M_2, U_2 = (swap if merge else eye), (swap.T if unmerge else eye)
    return 0.5 * eye @ A1 + 0.5 * M_2 @ B1, half * (A2 @ eye + B2 @ U_2)


MERGE_TWO_LAYERS = Exercise(_two_networks, _with_matrices, {
    "that is the plain average of both layers; bring the units of network 2 into the order of network 1 first":
        lambda *inputs: _with_matrices(*inputs, merge=False, unmerge=False),
    "layer 2 of network 2 still reads the units in its own old order: U_2 of layer 2 is missing":
        lambda *inputs: _with_matrices(*inputs, unmerge=False),
    "the hidden units of network 2 are still in their own order: M_2 of layer 1 is missing":
        lambda *inputs: _with_matrices(*inputs, merge=False),
    "that order goes the wrong way round; unit j of network 2 belongs to place order[j]":
        lambda A1, A2, B1, B2, order: _with_matrices(A1, A2, B1, B2, torch.tensor(order).argsort().tolist()),
    "the output is twice as large as that of either network; it is merged with one half, too":
        lambda *inputs: _with_matrices(*inputs, half=1.0)})

# ---------------------------------------------------------------- tour

FOLD = "that is a SuperNet; fold it into one plain model"
TWO = "that has more than one backbone of the size of one original; one merged model is asked for"
ORDER = "the merged model must have the names of the two originals in the order in which they were given"
GUESS = "both tasks are near guessing; averaged weights fit neither model"
SECOND = "the task of model 2 is near guessing: its features have not been let in; fit the start, or train"
LOW = "both tasks are above guessing, but one is below 60 %; use more images, or copies of them"


def _pair(generator: torch.Generator) -> tuple[Original, Original]:
    """Two of the shipped originals, in a random order."""
    names = [list(EMBEDDED)[i] for i in torch.randperm(len(EMBEDDED), generator=generator)[:2]]
    return tuple(load_originals(*names))


def _judge_tour(result: object, *originals: Original) -> str | None:
    """What is wrong with a merge of two originals: its kind, its size, the order of its heads, its accuracy."""
    if isinstance(result, SuperNet):
        return FOLD
    size = {name: p.shape for name, p in originals[0].backbone.state_dict().items()}
    if not isinstance(result, nn.Module) or not isinstance(result, Merged) or size != {
            name: p.shape for name, p in result.backbone.state_dict().items()}:
        return TWO
    if result.names != tuple(original.name for original in originals):
        return ORDER
    first, second = evaluate(result, [original.task for original in originals], limit=200).per_task.values()
    if max(first, second) < 40:
        return GUESS
    if second < 40 <= first:
        return SECOND
    return LOW if min(first, second) < 60 else None


TOUR = Exercise(_pair, judge=_judge_tour, mistakes={
    FOLD: lambda a, b: SuperNet([a, b]),
    TWO: lambda a, b: ensemble([a, b]),
    ORDER: lambda a, b: SuperNet([b, a]).fold(),
    GUESS: lambda a, b: average([a, b]),
    SECOND: lambda a, b: SuperNet([a, b]).fold()})

# ---------------------------------------------------------------- project: best_offset

NUMBER = "that is not one number"
NOTHING = "that leaves as many images with the wrong classification head as no offset at all"
SIGN = "the sign is wrong: t is added to the logits of classification head 2"
BETTER = ("another t gives more images to their own classification head; compare the largest logits of both, image by "
          "image, and count")


def _loud(generator: torch.Generator) -> tuple[list[list[Tensor]]]:
    """The logits of two heads for the images of two tasks. Head 2 has more classes, and is too loud or too low."""
    classes, sizes = (3, 6), (60, 150)
    size, sign = torch.rand(2, generator=generator) - 0.5
    louder = (3.5 + 3 * size) * sign.sign()
    logits = [[torch.randn(n, c, generator=generator) for c in classes] for n in sizes]
    for i, heads in enumerate(logits):
        heads[i][:, 0] += 3 - i + torch.randn(sizes[i], generator=generator).abs()
        heads[1] += louder
    return (logits,)


def _owned(logits: Sequence[Sequence[Tensor]], t: float) -> int:
    """How many images have the largest of all logits in their own head, with t added to those of head 2."""
    own = logits[0][0].shape[1]
    return sum(((torch.cat([first, second + t], 1).argmax(1) >= own) == i).sum().item()
               for i, (first, second) in enumerate(logits))


def _every_offset(logits: Sequence[Sequence[Tensor]]) -> float:
    """The best offset of all that make a difference, each one tried on all images."""
    margins = torch.cat([first.amax(1) - second.amax(1) for first, second in logits]).sort().values.tolist()
    return max(((a + b) / 2 for a, b in pairwise(margins)), key=lambda t: _owned(logits, t))


def _judge_offset(result: object, logits: Sequence[Sequence[Tensor]]) -> str | None:
    """What is wrong with an offset: it is no number, or gives fewer images to their own head than another one."""
    if not isinstance(result, Tensor | float | int) or torch.as_tensor(result).numel() != 1:
        return NUMBER
    t, best = float(result), _owned(logits, _every_offset(logits))
    if max(_owned(logits, t + step) for step in (-1e-5, 0, 1e-5)) == best:  # t may be exactly where one image changes
        return None
    if _owned(logits, -t) == best:
        return SIGN
    return NOTHING if _owned(logits, t) <= _owned(logits, 0) else BETTER


BEST_OFFSET = Exercise(_loud, judge=_judge_offset, mistakes={
    NUMBER: lambda logits: torch.zeros(2),
    NOTHING: lambda logits: 0.0,
    SIGN: lambda logits: -_every_offset(logits),
    BETTER: lambda logits: sum((first.amax(1) - second.amax(1)).mean().item() for first, second in logits) / 2})

EXERCISES = {"joint_accuracy": JOINT_ACCURACY, "merge_two_layers": MERGE_TWO_LAYERS, "tour": TOUR,
             "best_offset": BEST_OFFSET}
