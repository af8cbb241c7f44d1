"""The few unlabeled images that a merge is trained on."""
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..engine.images import Calibration
from .task import Task


def augmentation(size: int) -> v2.Transform:
    """Crop, flip, and one of grey, solarise, blur; for pictures in [0, 1].

    The paper has these too, but crops by 4 pixels after a reflected border, and mixes pictures (Mixup, CutMix).
    """
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(0.5, p=1.0), v2.GaussianBlur(3)]),
    ])


def calibration(originals: Sequence, per_task: int = 100, augmented: int = 8, seed: int = 0) -> Calibration:
    """Draw the few unlabeled images that a merge is trained on (paper, low-data experiments).

    Args:
        originals: k originals with a task, or k tasks.
        per_task: training images of each task, >= 1.
        augmented: how many augmented copies of each image to add, >= 0.
        seed: the same seed gives the same images and the same augmentations.

    Raises:
        ValueError: an original without a task, or numbers outside their range.
    """
    tasks = [getattr(o, "task", o) for o in originals]
    for i, each in enumerate(tasks, 1):
        if not isinstance(each, Task):
            raise ValueError(f"original {i} has no task to draw images from; make it with Original(..., task=...)")
    if augmented < 0:
        raise ValueError(f"augmented must be at least 0, got {augmented}")
    images = [each.sample(per_task, seed)[0] for each in tasks]
    sizes = {tuple(x.shape[1:]) for x in images}
    if len(sizes) > 1:
        raise ValueError(f"the tasks have images of different sizes {sorted(sizes)}; bring them to one")
    with torch.random.fork_rng(devices=[]):  # torchvision's transforms use the global generator
        torch.manual_seed(seed)
        images = [torch.cat([x, *(_augment(x) for _ in range(augmented))]) for x in images]
    return Calibration(torch.cat(images), torch.arange(len(tasks)).repeat_interleave(len(images[0])))


def _augment(images: Tensor) -> Tensor:
    transform = augmentation(images.shape[-1])
    return torch.stack([transform(image / 2 + 0.5) for image in images]).clamp(0, 1) * 2 - 1
