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


def same_tasks(originals: Sequence, images: Calibration) -> None:
    """Refuse images of another number of tasks than there are originals, or none of a task."""
    k = int(images.owner.max()) + 1
    if k != len(originals):
        raise ValueError(f"the images are of {k} tasks, but there are {len(originals)} originals")
    missing = set(range(k)) - set(images.owner.tolist())
    if missing:
        raise ValueError(f"there is no image of task {min(missing)} (from 0); every original needs some of its own")
