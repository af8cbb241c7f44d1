"""Tasks of your own pictures: image folders, torchvision's datasets, and pictures without classes."""
import difflib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from ..engine import given
from .drawing import SIZE
from .folders import SUFFIXES, inspect_folder, listed, pictures_in, some
from .reading import cropped, open_picture, to_tensor
from .task import Task, pick


def folder_task(path: str | Path, size: int = SIZE, name: str | None = None, test_size: int = 1000,
                transform: Callable | None = None, channels: int = 3, classes: Sequence[str] | None = None) -> Task:
    """A task from image folders: `path`/train/CLASS/*.png and `path`/test/CLASS/*.png (or jpg, ...).

    Instead of test there may be val, valid or validation; test is preferred. Without any of them, the pictures of every
    class are split 4 : 1 at random, for good. Without train, `path` holds the classes themselves, and is split too.
    Pictures are turned as their EXIF says, transparency is put on white, and grey of 16 bits or floats is scaled.
    `inspect_folder(path)` says beforehand what is found.

    Args:
        path: the folder.
        size: H = W of the images, in pixels, >= 1.
        name: what tables call it; the folder's name by default.
        test_size: at most so many test images are scored, drawn at random, always the same ones, >= 1.
        transform: maps a PIL image (RGB, or L for one channel) to a float32 tensor (channels, size, size) in [-1, 1],
            without randomness. None resizes the shorter side to `size` pixels and cuts out the middle.
        channels: 3 for RGB, 1 for grey.
        classes: the names of the classes in the order of the head's outputs; None sorts them.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it or in one of its classes.
        ValueError: a layout that is not one of these, other classes than there are, a number outside its range; and,
            when images are drawn, pictures that cannot be read, or a transform that gives something else.
    """
    found = inspect_folder(path)
    if not found.classes:
        raise ValueError(f"{path} holds {found.layout}; expected {path}/train/CLASS/*.png and .../test/CLASS/*.png, or "
                         "the classes themselves. For pictures without classes there is unlabeled_task")
    _warn(path, found.left_out)
    train, test = ([(file, label) for label, files in enumerate(part.values()) for file in files]
                   for part in (found.train, found.test))  # both have the same classes, sorted
    return _task(name or _name(path), found.classes, train, test, size, test_size, transform, channels, classes)


def torchvision_task(dataset: str, root: str | Path, size: int = SIZE, download: bool = False, test_size: int = 1000,
                     name: str | None = None, transform: Callable | None = None, channels: int = 3,
                     classes: Sequence[str] | None = None) -> Task:
    """A task from one of torchvision's datasets: "MNIST", "CIFAR10", "SVHN", "GTSRB", "DTD", "Food101"...

    It needs a training and a test part, by `train=` or by `split=`. Of splits, it trains on the default one ("train" or
    "trainval"), and tests on "test" or, where there is none, on "val".

    Args:
        dataset: the name of a class in `torchvision.datasets`.
        root: where its files are, as torchvision lays them out.
        size, test_size, transform, channels, classes: as for `folder_task`.
        download: let torchvision fetch what is missing.
        name: what tables call it; the dataset's name in small letters by default.

    Raises:
        ValueError: no such dataset or parts, or labels that are not class numbers; and as for `folder_task`.
        FileNotFoundError: the files are not there.
    """
    from torchvision import datasets  # takes a while to import
    kinds = {kind: each for kind, each in inspect.getmembers(datasets, inspect.isclass) if _parts_of(each)}
    if dataset not in kinds:
        raise ValueError(f"torchvision.datasets has no {dataset!r} with a training and a test part"
                         f"{_nearest(dataset, kinds)}; there are {', '.join(kinds)}, and folder_task for image folders")
    try:
        train, test = (_first(kinds[dataset], root, download, part) for part in _parts_of(kinds[dataset]))
    except (RuntimeError, FileNotFoundError) as error:  # as torchvision says that files are missing or damaged
        raise FileNotFoundError(f"torchvision cannot read {dataset} in {root} ({error}); give the folder that it was "
                                "fetched into, or download=True") from None
    have = _classes(dataset, train, test)
    return _task(name or dataset.lower(), have, train, test, size, test_size, transform, channels, classes)


def unlabeled_task(path: str | Path, size: int = SIZE, name: str | None = None, transform: Callable | None = None,
                   channels: int = 3) -> Task:
    """All pictures in a folder and below, without classes: images for `calibration`, and nothing to test on.

    Args:
        path: the folder.
        size, name, transform, channels: as for `folder_task`.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it.
        ValueError: as for `folder_task`; and when test images are asked for.
    """
    left_out = Counter()
    files = pictures_in(Path(path), left_out)
    if not files:
        raise FileNotFoundError(f"no pictures in {path}, or no such folder; expected files that end in "
                                f"{', '.join(SUFFIXES)}; left out: {listed(left_out) or 'nothing'}")
    _warn(path, left_out)
    return _task(name or _name(path), (), [(file, -1) for file in files], (), size, 1, transform, channels, None)


def _name(path: str | Path) -> str:
    return Path(path).name or Path(path).resolve().name


def _warn(path: str | Path, left_out: Mapping[str, int]) -> None:
    if left_out:
        warnings.warn(f"{path}: left out {listed(left_out)}; what is read ends in {', '.join(SUFFIXES)}", stacklevel=3)


def _parts_of(kind: type) -> Sequence[Sequence[dict]]:
    """The arguments for a dataset's training part, and those for its test part, by preference.

    Empty if it has no such parts, or needs more than these, root and download.
    """
    parameters = inspect.signature(kind).parameters
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if not {"root", "download"} <= set(parameters) or needed - {"root", "train", "download"}:
        return ()
    if "train" in parameters:
        return [{"train": True}], [{"train": False}]
    if "split" in parameters and str(parameters["split"].default).startswith("train"):
        return [{}], [{"split": "test"}, {"split": "val"}]
    return ()


def _first(kind: type, root: str | Path, download: bool, parts: Sequence[dict]) -> Sequence:
    """A part of a dataset, made with the first of these arguments that it knows."""
    *others, last = parts
    for part in others:
        try:
            return kind(root, download=download, **part)
        except ValueError as error:
            if "Unknown value" not in str(error):  # as torchvision says that there is no such split
                raise
    return kind(root, download=download, **last)


def _classes(dataset: str, train: Sequence, test: Sequence) -> tuple[str, ...]:
    """The names of a dataset's classes, or else the numbers that are its labels. To find them may take a whole pass."""
    try:
        [index(part[0][1]) for part in (train, test)]
    except TypeError:
        raise ValueError(f"the labels of {dataset} are not class numbers, and a task needs one for each picture; there "
                         "is folder_task for image folders") from None
    names, *numbers = (getattr(train, each, None) for each in ("classes", "targets", "labels"))
    passed = (train[i][1] for i in range(len(train)))
    numbers = next((each for each in numbers if each is not None), passed)
    names = names or sorted(set(map(index, numbers)))
    return tuple(each[0] if isinstance(each, tuple) else str(each) for each in names)  # a tuple: several names of one


def _nearest(name: object, names: Iterable[str]) -> str:
    """A question for the nearest of these names, if one is near."""
    names = {each.lower(): each for each in names}
    near = difflib.get_close_matches(str(name).lower(), names, 1)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def _places(name: str, have: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The head's output of each label: where the classes stand in the wanted order."""
    missing = [repr(each) for each in have if each not in wanted]
    unknown = [f"{each!r}{_nearest(each, have)}" for each in wanted if each not in have]
    if missing or unknown or len(wanted) != len(have):
        raise ValueError(f"classes must name each of the {len(have)} classes of {name} once, in the order of the "
                         f"head's outputs; got {len(wanted)}, missing: {some(missing) or 'none'}, "
                         f"unknown: {some(unknown) or 'none'}")
    return [list(wanted).index(each) for each in have]


def _task(name: str, have: tuple[str, ...], train: Sequence, test: Sequence, size: int, test_size: int,
          transform: Callable | None, channels: int, classes: Sequence[str] | None) -> Task:
    """The task of pairs of a file or picture and a label."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels!r}")
    given.whole(1, size=size, test_size=test_size)
    given.text(name=name)
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function from a picture to a tensor, or None, got {transform!r}")
    classes = have if classes is None else tuple(given.several("classes", classes))
    pictures = _Pictures(name, train, test, _places(name, have, classes), transform or cropped(size, channels),
                         (channels, size, size))
    return Task(name, classes, pictures.draw, size, min(test_size, len(test)), len(train), channels)


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Training and test pictures, read when they are drawn; of shape (C, H, W)."""

    name: str
    train: Sequence
    test: Sequence
    places: Sequence[int]  # the head's output of each label; none without classes
    transform: Callable
    shape: tuple[int, int, int]

    def draw(self, n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        data = self.test if split == "test" else self.train
        return pick(n, 0, len(data), generator, f"{self.name} ({split})", lambda rows: self.read(data, rows.tolist()))

    def read(self, data: Sequence, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels, broken = [], [], []
        for row in rows:
            source, label = data[row]
            what = source if isinstance(source, Path) else f"picture {row} of {self.name}"
            try:
                picture = open_picture(source, self.shape[0])
            except Exception as error:  # Pillow raises many kinds
                broken.append(f"{what} ({error})")
                continue
            images.append(to_tensor(self.transform, picture, self.shape, what))
            labels.append(self.places[label] if self.places else label)
        if broken:
            raise ValueError(f"{len(broken)} of {len(rows)} pictures cannot be read: {some(broken)}. Replace them "
                             "or take them away, and make the task again")
        return torch.stack(images), torch.tensor(labels)
