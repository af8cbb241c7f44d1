"""Tasks: labelled images to test on, unlabeled images to merge with.

Four tasks need no download (`drawing` makes their pictures): real handwritten digits, and letters, shapes and
textures that are drawn. Each has ten classes of 3 x 32 x 32 pictures (or larger) in [-1, 1]. Real pictures come in
through `folder_task` (one folder a class) and `torchvision_task` (MNIST, CIFAR-10, ...).
"""
import functools
import inspect
import zlib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from . import drawing
from .drawing import SIZE

Draw = Callable[[int, torch.Generator, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A classification problem that pictures can be drawn from.

    Args:
        name: what tables and figures call it.
        classes: the names of the classes; label c is `classes[c]`.
        draw: `draw(n, generator, split)` gives images (n, 3, H, W) in [-1, 1] and labels (n,).
        size: H = W in pixels.
        test_size: how many held-out images `test()` gives.
        train_size: how many real training images there are; None where they are drawn without end.
    """

    name: str
    classes: tuple[str, ...]
    draw: Draw
    size: int = SIZE
    test_size: int = 1000
    train_size: int | None = None

    def sample(self, n: int, seed: int = 0, split: str = "train") -> tuple[Tensor, Tensor]:
        """Draw `n` images (n, 3, H, W) and their labels (n,); the same seed gives the same ones.

        Raises:
            ValueError: n < 1, an unknown split, or more real images asked for than there are.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        # One stream for each task, split and seed: no test image is drawn for training.
        key = zlib.crc32(f"{self.name}/{split}/{seed}".encode())
        return self.draw(n, torch.Generator().manual_seed(key), split)

    def test(self) -> tuple[Tensor, Tensor]:
        """The held-out images (test_size, 3, H, W) and labels: the same at every call."""
        return _test_set(self)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.classes)} classes, {self.size} x {self.size})"


@functools.lru_cache(maxsize=16)
def _test_set(task: Task) -> tuple[Tensor, Tensor]:
    return task.sample(task.test_size, seed=0, split="test")


DIGITS_TEST = 500  # of the 1,797 real digits, held out for good


def _draw_digits(n: int, generator: torch.Generator, split: str, size: int) -> tuple[Tensor, Tensor]:
    images, labels = drawing.digits(size)
    start, stop = (0, DIGITS_TEST) if split == "test" else (DIGITS_TEST, len(labels))
    return _pick(n, start, stop, generator, f"digits ({split})", lambda rows: (images[rows], labels[rows]))


def _pick(n: int, start: int, stop: int, generator: torch.Generator, what: str, get: Callable) -> tuple[Tensor, Tensor]:
    """n of the real images start..stop, none twice."""
    if n > stop - start:
        raise ValueError(f"{what} has {stop - start} images, {n} were asked for; ask for fewer")
    return get(start + torch.randperm(stop - start, generator=generator)[:n])


@functools.lru_cache(maxsize=32)
def _embedded(name: str, size: int) -> Task:
    if name == "digits":
        return Task(name, tuple("0123456789"), functools.partial(_draw_digits, size=size), size,
                    test_size=DIGITS_TEST, train_size=1797 - DIGITS_TEST)
    classes, draw = {"letters": (drawing.LETTERS, drawing.letters), "shapes": (drawing.SHAPES, drawing.shapes),
                     "textures": (tuple(drawing.TEXTURES), drawing.textures)}[name]
    return Task(name, classes, lambda n, generator, split: draw(n, generator, size), size)


EMBEDDED = {name: _embedded(name, SIZE) for name in ("digits", "letters", "shapes", "textures")}


def task(name: str, size: int = SIZE) -> Task:
    """The embedded task of that name, of size x size pictures: digits, letters, shapes or textures.

    Raises:
        ValueError: there is none of that name, or size < 8.
    """
    if name not in EMBEDDED:
        raise ValueError(f"no embedded task {name!r}; there are {', '.join(EMBEDDED)}, "
                         "and folder_task or torchvision_task for your own pictures")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    return _embedded(name, size)


# ---------------------------------------------------------------- unlabeled images to merge with

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

    def grouped(self, groups: Sequence[int]) -> "Calibration":
        """The same images, those of task i now owned by `groups[i]`: [0, 0, 1] to merge a merge of 0 and 1 with 2.

        Raises:
            ValueError: not one group for each task, or groups that are not 0..m-1.
        """
        groups, k = list(groups), int(self.owner.max()) + 1
        if len(groups) != k or set(groups) != set(range(len(set(groups)))):
            raise ValueError(f"groups must name one of 0, 1, ... for each of {k} tasks, none left out; got {groups}")
        return Calibration(self.images, torch.tensor(groups, device=self.owner.device)[self.owner])


def augmentation(size: int) -> v2.Transform:
    """The paper's: crop, flip, and one of grey, solarise, blur; for pictures in [0, 1]."""
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


# ---------------------------------------------------------------- real pictures

def folder_task(path: str | Path, size: int = SIZE, name: str | None = None) -> Task:
    """A task from image folders: `path`/train/CLASS/*.png and `path`/test/CLASS/*.png (or val; or jpg, ...).

    Args:
        path: the folder; where it holds the classes themselves, their images are split 4 : 1 at random, for good.
        size: pictures are resized and centre-cropped to size x size pixels.
        name: what tables call it; the folder's name by default.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it.
        ValueError: train and test have different classes.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; expected {path}/train/CLASS/*.png and {path}/test/CLASS/*.png")
    held_out = next((split for split in ("test", "val") if (path / split).is_dir()), None)
    if held_out and (path / "train").is_dir():
        train, test = (datasets.ImageFolder(path / split) for split in ("train", held_out))
        if train.classes != test.classes:
            raise ValueError(f"{path} has classes {train.classes} in train, but {test.classes} in {held_out}")
        return _dataset_task(name or path.name, tuple(train.classes), train, test, size)
    every = datasets.ImageFolder(path)
    parts = torch.utils.data.random_split(every, [0.8, 0.2], torch.Generator().manual_seed(0))
    return _dataset_task(name or path.name, tuple(every.classes), *parts, size)


def torchvision_task(dataset: str, root: str | Path, size: int = SIZE, download: bool = False) -> Task:
    """A task from one of torchvision's datasets that take `train=`: "MNIST", "CIFAR10", "CIFAR100", "FashionMNIST"...

    Args:
        dataset: the name of a class in `torchvision.datasets`.
        root: where its files are, as torchvision lays them out.
        size: pictures are resized and centre-cropped to size x size pixels.
        download: let torchvision fetch what is missing.

    Raises:
        ValueError: torchvision has no such dataset, or it takes no `train=`.
        RuntimeError: the files are not there (torchvision's own message).
    """
    kind = getattr(datasets, dataset, None)
    if kind is None or "train" not in inspect.signature(kind).parameters:
        raise ValueError(f"torchvision.datasets has no {dataset!r} that takes train=; image folders: folder_task")
    train, test = (kind(root, train=train, download=download) for train in (True, False))
    return _dataset_task(dataset.lower(), tuple(map(str, train.classes)), train, test, size)


def _dataset_task(name: str, classes: tuple[str, ...], train: Sized, test: Sized, size: int) -> Task:
    """Pictures of a torchvision dataset, read when they are drawn."""
    picture = v2.Compose([v2.RGB(), v2.Resize(size), v2.CenterCrop(size), v2.ToImage(),
                          v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])

    def read(data: Sized, rows: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [data[row] for row in rows.tolist()]
        return torch.stack([picture(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])

    def draw(n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        data = test if split == "test" else train
        return _pick(n, 0, len(data), generator, f"{name} ({split})", lambda rows: read(data, rows))
    return Task(name, classes, draw, size, test_size=min(1000, len(test)), train_size=len(train))
