"""Unlabeled images whose task is known: what everything here is fitted to."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .files import fingerprint


@dataclass(frozen=True)
class Calibration:
    """Unlabeled images whose task is known: images (n, 3, H, W) in [-1, 1], and owner (n,), the task's place 0..k-1."""

    images: Tensor
    owner: Tensor

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
        return Calibration(self.images, torch.tensor(groups, device=self.owner.device)[self.owner])


def a_few(n: int, most: int) -> Tensor:
    """The places of at most `most` of n images, at random: copies of one image may stand at regular distances."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]


def absorbed_normalization(weight: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a W, W t): the first layer of a model of (p - mean) / std for pictures x in [-1, 1], p = (x + 1) / 2.

    (p - mean) / std = a x + t with a = 0.5 / std, t = (0.5 - mean) / std, for W (o, channels, P, P); W t is (o,), the
    same for every patch. Raises ValueError for other than one finite mean and one std > 0 a channel.
    """
    mean, std = (torch.as_tensor(numbers, dtype=weight.dtype, device=weight.device) for numbers in (mean, std))
    if not mean.shape == std.shape == weight.shape[1:2] or not (std > 0).all() or not mean.isfinite().all():
        raise ValueError(f"mean and std need {weight.shape[1]} numbers each, one a channel of the pictures, and "
                         f"std > 0; got {mean.tolist()} and {std.tolist()}")
    return weight * (0.5 / std)[:, None, None], (weight * ((0.5 - mean) / std)[:, None, None]).sum((1, 2, 3))


def same_tasks(originals: Sequence, images: Calibration) -> None:
    """Refuse images of another number of tasks than there are originals, or none of a task."""
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")
    missing = set(range(k)) - set(images.owner.tolist())
    if missing:
        raise ValueError(f"there is no image of task {min(missing)} (from 0); every original needs some of its own")
