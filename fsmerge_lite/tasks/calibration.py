"""The few unlabeled images that a merge is trained on."""
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..engine import given
from ..engine.images import Calibration, are_texts
from .task import Task
from .texts import edited


def light(size: int, channels: int = 3) -> v2.Transform:
    """Crop, flip, and one of grey, solarise, blur; for pictures in [0, 1]."""
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomChoice([v2.Grayscale(channels), v2.RandomSolarize(0.5, p=1.0), v2.GaussianBlur(3)]),
    ])


def paper(size: int, channels: int = 3) -> v2.Transform:
    """The paper's: crop within 4 pixels of reflected border, flip, one of grey, solarise, blur by 0.1 to 2 pixels."""
    return v2.Compose([
        v2.RandomCrop(size, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.RandomChoice([v2.Grayscale(channels), v2.RandomSolarize(0.5, p=1.0), v2.GaussianBlur(13, (0.1, 2.0))]),
    ])


def mixed(images: Tensor) -> Tensor:
    """Images (n, C, H, W), shuffled, each mixed with another: all by Mixup (0.8), or all by CutMix (1.0), as likely."""
    images = images[torch.randperm(len(images))]  # both mix neighbors
    one = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=1), v2.CutMix(alpha=1.0, num_classes=1)])
    return one(images, torch.zeros(len(images), dtype=torch.long))[0]  # both ask for labels, which there are none of


def calibration(originals: Sequence, per_task: int = 100, augmented: int = 8, seed: int = 0,
                augmentation: str | Callable | Sequence[Callable] = "light") -> Calibration:
    """Draw the few unlabeled images that a merge is trained on (paper, low-data experiments).

    Args:
        originals: k originals with a task, or tasks, or some of both.
        per_task: training images of each task, >= 1.
        augmented: how many augmented copies of each image to add, >= 0.
        seed: the same seed gives the same images and the same augmentations.
        augmentation: of the copies. "light": random resized crop, flip, and one of grey, solarise, blur. "paper": crop
            by 4 pixels, flip, one of these, then Mixup or CutMix among the copies of a task. "none": no copies, with
            augmented=0. Or transforms of your own, one or a list, from a picture (C, H, W) in [0, 1] to another.
            Of texts, "light" leaves out or replaces a tenth of the bytes; own transforms read token ids (T,).

    Raises:
        ValueError: an original without a task, or with a head of another size; numbers outside their range; more images
            than a task has, of different sizes, not finite or outside [-1, 1]; a transform that gives something else.
    """
    given.whole(1, per_task=per_task)
    given.whole(augmented=augmented, seed=seed)
    tasks = [_task_of(original, i) for i, original in enumerate(given.several("originals", originals), 1)]
    images = [_drawn(task, per_task, seed) for task in tasks]
    if len({x.shape for x in images}) != 1:
        shapes = [f"{task.name} {tuple(x.shape[1:])}" for task, x in zip(tasks, images)]
        raise ValueError("calibration needs tasks with images of one size and number of channels (size= and channels= "
                         f"of folder_task and others); got {', '.join(shapes) or 'no task'}")
    if augmented:
        change = _change(augmentation, images[0])
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms use the global generator
            torch.manual_seed(seed)
            images = [torch.cat([x, *(change(x) for _ in range(augmented))]) for x in images]
    owner = torch.arange(len(tasks)).repeat_interleave(len(images[0]))
    return Calibration(torch.cat(images), owner, tuple(task.name for task in tasks))


def _task_of(original: object, i: int) -> Task:
    """The task of original i, or a task itself."""
    task, outputs = getattr(original, "task", original), getattr(getattr(original, "head", None), "out_features", None)
    name = getattr(original, "name", "")
    called = f"original {i} ({name})" if name else f"original {i}"
    if not isinstance(task, Task):
        raise ValueError(f"{called} has no task to draw images from; make it with Original(..., task=...), or give a "
                         "task in its place")
    if task.classes and outputs not in (None, len(task.classes)):
        raise ValueError(f"{called} has a head of {outputs} outputs, but its task {task.name!r} has "
                         f"{len(task.classes)} classes; give it the task that it was trained on")
    return task


def _drawn(task: Task, n: int, seed: int) -> Tensor:
    """n training images of a task, as they are."""
    images = task.sample(n, seed)[0]
    if len(images) != n:
        raise ValueError(f"task {task.name!r} gave {len(images)} images, {n} were asked for")
    if are_texts(images):
        return images
    if not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"task {task.name!r} gave {images.dtype} images; expected floats, none NaN or infinite")
    if images.dim() == 4 and images.abs().max() > 1 + 1e-4:
        raise ValueError(f"task {task.name!r} gave images from {images.min():.3g} to {images.max():.3g}; bring them to "
                         "[-1, 1], and give mean and std to Original(..., mean=, std=), which absorbs them")
    return images


def _change(augmentation: str | Callable | Sequence[Callable], images: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes a copy of all images of a task."""
    texts = are_texts(images)
    if isinstance(augmentation, str) and augmentation == "light" and texts:
        return edited
    if isinstance(augmentation, str) and augmentation in ("light", "paper") and not texts:
        change = {"light": light, "paper": paper}[augmentation](images.shape[-1], images.shape[1])
        return partial(_augment, change=change, mix=augmentation == "paper")
    if isinstance(augmentation, str) and augmentation == "none":
        raise ValueError("augmentation 'none' makes no copies; give augmented=0 with it")
    own = list(augmentation) if isinstance(augmentation, list | tuple) else [augmentation]
    if not own or not all(map(callable, own)):
        raise ValueError("augmentation must be 'light', 'paper' (of pictures) or 'none', or transforms, one or a list, "
                         f"of a picture in [0, 1] or of a text's token ids, got {augmentation!r}")
    return partial(_change_texts if texts else _augment, change=v2.Compose(own))


def _change_texts(ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A changed copy of each text."""
    copies = [change(row) for row in ids]
    for copy in copies:
        if not isinstance(copy, Tensor) or copy.shape != ids.shape[1:] or copy.dtype != ids.dtype:
            found = getattr(copy, "dtype", type(copy).__name__), tuple(getattr(copy, "shape", ()))
            raise ValueError(f"the augmentation gave {found[0]} {found[1]}, expected token ids {tuple(ids.shape[1:])}")
    return torch.stack(copies)


def _augment(images: Tensor, change: Callable[[Tensor], Tensor], mix: bool = False) -> Tensor:
    """A changed copy of each image, which `change` sees in [0, 1]."""
    copies = []
    for image in images:
        copy = change(image / 2 + 0.5)
        if not isinstance(copy, Tensor) or copy.shape != image.shape or not copy.is_floating_point():
            found = getattr(copy, "dtype", type(copy).__name__), tuple(getattr(copy, "shape", ()))
            raise ValueError(f"the augmentation gave {found[0]} {found[1]}, expected floats {tuple(image.shape)}")
        if not ((copy >= -1e-3) & (copy <= 1.001)).all():  # NaN is not, either
            raise ValueError(f"the augmentation gave numbers from {copy.min():.3g} to {copy.max():.3g}, not in [0, 1]; "
                             "leave mean and std to Original(..., mean=, std=), which absorbs them")
        copies.append(copy)
    copies = torch.stack(copies)
    return (mixed(copies) if mix else copies).clamp(0, 1) * 2 - 1
