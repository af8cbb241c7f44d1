"""Tasks of your own pictures: image folders, and torchvision's datasets."""
import inspect
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from .drawing import SIZE
from .task import Task, pick


def folder_task(path: str | Path, size: int = SIZE, name: str | None = None, test_size: int = 1000) -> Task:
    """A task from image folders: `path`/train/CLASS/*.png and `path`/test/CLASS/*.png (or val; or jpg, ...).

    Args:
        path: the folder; where it holds the classes themselves, their images are split 4 : 1 at random, for good.
        size: pictures are resized and centre-cropped to size x size pixels.
        name: what tables call it; the folder's name by default.
        test_size: at most so many test images are scored, drawn at random, always the same ones.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it.
        ValueError: train and test have different classes.
    """
    from torchvision import datasets  # takes a while to import
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; expected {path}/train/CLASS/*.png and {path}/test/CLASS/*.png")
    held_out = next((split for split in ("test", "val") if (path / split).is_dir()), None)
    if held_out and (path / "train").is_dir():
        train, test = (datasets.ImageFolder(path / split) for split in ("train", held_out))
        if train.classes != test.classes:
            raise ValueError(f"{path} has classes {train.classes} in train, but {test.classes} in {held_out}")
        return _dataset_task(name or path.name, tuple(train.classes), train, test, size, test_size)
    every = datasets.ImageFolder(path)
    parts = torch.utils.data.random_split(every, [0.8, 0.2], torch.Generator().manual_seed(0))
    return _dataset_task(name or path.name, tuple(every.classes), *parts, size, test_size)


def torchvision_task(dataset: str, root: str | Path, size: int = SIZE, download: bool = False,
                     test_size: int = 1000) -> Task:
    """A task from one of torchvision's datasets that take `train=`: "MNIST", "CIFAR10", "CIFAR100", "FashionMNIST"...

    Args:
        dataset: the name of a class in `torchvision.datasets`.
        root: where its files are, as torchvision lays them out.
        size: pictures are resized and centre-cropped to size x size pixels.
        download: let torchvision fetch what is missing.
        test_size: at most so many test images are scored, drawn at random, always the same ones.

    Raises:
        ValueError: torchvision has no such dataset, or it takes no `train=`.
        RuntimeError: the files are not there (torchvision's own message).
    """
    from torchvision import datasets  # takes a while to import
    kind = getattr(datasets, dataset, None)
    if kind is None or "train" not in inspect.signature(kind).parameters:
        raise ValueError(f"torchvision.datasets has no {dataset!r} that takes train=; image folders: folder_task")
    train, test = (kind(root, train=train, download=download) for train in (True, False))
    return _dataset_task(dataset.lower(), tuple(map(str, train.classes)), train, test, size, test_size)


def _dataset_task(name: str, classes: tuple[str, ...], train: Sized, test: Sized, size: int, test_size: int) -> Task:
    """The task of a torchvision dataset's pictures."""
    picture = v2.Compose([v2.RGB(), v2.Resize(size), v2.CenterCrop(size), v2.ToImage(),
                          v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    pictures = _Pictures(name, train, test, picture)
    return Task(name, classes, pictures.draw, size, test_size=min(test_size, len(test)), train_size=len(train))


@dataclass(frozen=True)
class _Pictures:
    """Training and test pictures of torchvision's datasets, read when they are drawn."""

    name: str
    train: Sized
    test: Sized
    picture: v2.Transform

    def draw(self, n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        data = self.test if split == "test" else self.train

        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            pairs = [data[row] for row in rows.tolist()]
            return torch.stack([self.picture(image) for image, _ in pairs]), torch.tensor([y for _, y in pairs])
        return pick(n, 0, len(data), generator, f"{self.name} ({split})", read)
