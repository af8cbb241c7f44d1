"""Unlabeled images whose task is known: what everything here is fitted to."""
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import given
from .files import fingerprint

JOINED = " + ".join  # the names of tasks that have one owner


@dataclass(frozen=True)
class Calibration:
    """Unlabeled images whose task is known.

    Args:
        images: (n, C, H, W) in [-1, 1], or (n, ...) of what else the originals read; floats. Texts are token ids
            (n, T), integers of 64 bits.
        owner: (n,), the task's place 0..k-1; integers.
        names: what the k tasks are called, if known; `same_tasks` then sees when they are in another order.

    Raises:
        ValueError: what is none of these, is not finite, or is pictures in [0, 255]. Pictures that look like [0, 1]
            are warned of.
    """

    images: Tensor
    owner: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or not isinstance(self.owner, Tensor):
            raise TypeError("images and owner must be tensors, got "
                            f"{type(self.images).__name__} and {type(self.owner).__name__}")
        given.several("names", self.names)
        _check_owner(self.owner, len(self.images), self.names)
        _check_images(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def of(self, i: int) -> Tensor:
        """The images of task i."""
        return self.images[self.owner == i]

    def hash(self) -> str:
        """Their fingerprint."""
        return fingerprint({"images": self.images, "owner": self.owner})

    def grouped(self, groups: Sequence[int]) -> "Calibration":
        """The same images, those of task i now owned by `groups[i]`: [0, 0, 1] to merge a merge of 0 and 1 with 2.

        Raises ValueError for not one group for each task, or groups that are not 0..m-1.
        """
        groups, k = list(groups), int(self.owner.max()) + 1
        if len(groups) != k or set(groups) != set(range(len(set(groups)))):
            raise ValueError(f"groups must name one of 0, 1, ... for each of {k} tasks, none left out; got {groups}")
        joined = [[name for name, own in zip(self.names, groups) if own == group] for group in range(max(groups) + 1)]
        return Calibration(self.images, torch.tensor(groups, device=self.owner.device)[self.owner],
                           tuple(map(JOINED, joined)) if self.names else ())


def _check_owner(owner: Tensor, n: int, names: Sequence[str]) -> None:
    if not n or owner.shape != (n,) or owner.dtype not in (torch.int64, torch.int32) or owner.min() < 0:
        lowest = f" from {owner.min()}" if owner.numel() else ""
        raise ValueError("owner must hold the place of the task, 0, 1, ..., of every image, and there must be one; got "
                         f"{owner.dtype} {tuple(owner.shape)}{lowest} for {n} images")
    if names and len(names) != int(owner.max()) + 1:
        raise ValueError(f"the images are of {int(owner.max()) + 1} tasks, but {len(names)} names were given: {names}")


def are_texts(images: Tensor) -> bool:
    """Whether these are token ids (n, T)."""
    return images.dtype == torch.int64 and images.dim() == 2


def _check_images(images: Tensor) -> None:
    if are_texts(images):
        return  # the model knows which ids there are
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}; of bytes make images / 127.5 - 1. "
                         "Texts are token ids (n, T) in torch.int64")
    given.finite(images, "images")
    low, high = (end.item() for end in images.aminmax())
    if images.dim() != 4:
        return  # no pictures
    if max(-low, high) > 20:
        raise ValueError(f"images go from {low:g} to {high:g}, but models here read [-1, 1]; of numbers up to 255 make "
                         "images / 127.5 - 1")
    if low >= 0 and images.numel() > 100:
        warnings.warn(f"images go from {low:g} to {high:g}; they look like [0, 1], but models here read [-1, 1]: make "
                      "them 2 * images - 1", stacklevel=4)


def a_few(n: int, most: int) -> Tensor:
    """The places of at most `most` of n images, at random: copies of one image may stand at regular distances."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]


def absorbed_normalization(weight: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a W, W t): the first layer of a model of (p - mean) / std for pictures x in [-1, 1], p = (x + 1) / 2.

    (p - mean) / std = a x + t with a = 0.5 / std, t = (0.5 - mean) / std, for W (o, channels, P, P); W t is (o,), the
    same for every patch. Raises ValueError for other than one finite mean and one std > 0 a channel.
    """
    expected = (f"mean and std need {weight.shape[1]} numbers each, one a channel of the pictures, and std > 0; got "
                f"{list(mean)} and {list(std)}")
    try:
        mean, std = (torch.as_tensor(numbers, dtype=weight.dtype, device=weight.device) for numbers in (mean, std))
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if not mean.shape == std.shape == weight.shape[1:2] or not (std > 0).all() or not (mean + std).isfinite().all():
        raise ValueError(expected)
    return weight * (0.5 / std)[:, None, None], (weight * ((0.5 - mean) / std)[:, None, None]).sum((1, 2, 3))


def check_calibration(images: object) -> None:
    """Refuse what is no `Calibration`."""
    if not isinstance(images, Calibration):
        raise TypeError(f"images must be a Calibration, as calibration(...) gives, got {type(images).__name__}")


def same_tasks(net: object, images: Calibration) -> None:
    """Refuse images of another number of tasks than a SuperNet or list has originals, none of one, or another order."""
    originals = getattr(net, "originals", net)
    if not isinstance(originals, Sequence):
        raise TypeError(f"a SuperNet or a list of originals is needed, got {type(net).__name__}")
    check_calibration(images)
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")
    missing = set(range(k)) - set(images.owner.tolist())
    if missing:
        raise ValueError(f"there is no image of task {min(missing)} (from 0); every original needs some of its own")
    names = tuple(JOINED(task_names(original)) for original in originals)
    if other_order(images.names, names):
        raise ValueError(f"the images are of {', '.join(images.names)}, but the originals are of {', '.join(names)}; "
                         "both need the same order")


def task_names(model: object) -> tuple[str, ...]:
    """What the tasks of a model are called: of its task, of its heads, or of the originals that stand side by side."""
    if hasattr(model, "originals"):
        return tuple(name for original in model.originals for name in task_names(original))
    name = getattr(getattr(model, "task", None), "name", None)
    return tuple(getattr(model, "names", ())) if name is None else (name,)


def other_order(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether these are the same names in another order."""
    return sorted(names) == sorted(others) and list(names) != list(others)
