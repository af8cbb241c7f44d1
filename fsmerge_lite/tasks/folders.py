"""What an image folder holds: its layout, its classes, and the files of each in train and test."""
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = ("test", "val", "valid", "validation")  # the first that is there is the test set
Files = Mapping[str, list[Path]]  # class -> its pictures


@dataclass(frozen=True, repr=False)
class Folder:
    """An image folder as `folder_task` reads it: pictures by class in train and test, and what is left out.

    `layout` says where train and test come from. `left_out` counts files by suffix, and what else is not read. There
    are no classes where the pictures lie flat, as `unlabeled_task` reads them.
    """

    path: Path
    layout: str
    train: Files
    test: Files
    left_out: Mapping[str, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(self.train)

    def __str__(self) -> str:
        counts = [(name, len(self.train[name]), len(self.test[name])) for name in self.classes]
        rows = [("", "train", "test"), *counts, ("all", sum(n for _, n, _ in counts), sum(n for _, _, n in counts))]
        wide = max(len(name) for name, _, _ in rows)
        lines = [f"{name:{wide}}  {train:>7}  {test:>7}" for name, train, test in rows] if counts else []
        return "\n".join([self.layout, *lines, f"left out: {listed(self.left_out) or 'nothing'}"])

    __repr__ = __str__


def inspect_folder(path: str | Path) -> Folder:
    """Say what `folder_task` finds in a folder, without opening any picture; `print` shows it as a table.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it or in one of its classes.
        ValueError: the layout is not one that `folder_task` reads; the message says what was found and expected.
    """
    path, left_out = Path(path), Counter()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; expected {path}/train/CLASS/*.png and {path}/test/CLASS/*.png")
    folders = _subfolders(path)
    if not folders and (flat := pictures_in(path, left_out)):
        return Folder(path, f"{len(flat)} pictures without classes", {}, {}, left_out)
    splits = _splits(path, folders)
    train, held_out = splits.pop("train", None), next(iter(splits.values()), None)
    if held_out and not train:
        raise ValueError(f"{path} has {held_out.name} but no train; expected {path}/train/CLASS/*.png beside it")
    left_out.update(f"folder {other.name}" for other in folders if train and not _is_split(other))
    files = _by_class(train or path, left_out)
    if not held_out:
        where = f"folder {train.name}" if train else "the classes themselves"
        return Folder(path, f"{where}, split 4 : 1", *_split(path, files), left_out)
    test = _by_class(held_out, left_out)
    _check_same(path, train.name, files, held_out.name, test)
    unused = [f"{other.name} is not used" for other in splits.values() if other != held_out]
    return Folder(path, "; ".join([f"folders {train.name} and {held_out.name}", *unused]), files, test, left_out)


def pictures_in(folder: Path, left_out: Counter) -> list[Path]:
    """All pictures in a folder and below, sorted. Other files are counted by suffix, hidden ones are passed over."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    left_out.update(file.suffix.lower() or "no suffix" for file in found if not _is_picture(file))
    return sorted(filter(_is_picture, found))


def listed(counts: Mapping[str, int]) -> str:
    """Counts as text: 3 .heic, 1 .txt."""
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _splits(path: Path, folders: list[Path]) -> dict[str, Path]:
    """Those folders of a path that are called train, test, ..., in any letter case, the preferred one first."""
    splits = {}
    for kind in ("train", *HELD_OUT):
        found = [folder for folder in folders if folder.name.lower() == kind]
        if len(found) > 1:
            raise ValueError(f"{path} has both {found[0].name} and {found[1].name}; keep one of them")
        if found:
            splits[kind] = found[0]
    return splits


def _by_class(folder: Path, left_out: Counter) -> Files:
    """The pictures of every class folder."""
    classes = _subfolders(folder)
    flat = sum(_is_picture(entry) for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not classes and not flat:
        raise FileNotFoundError(f"{folder} holds no pictures; expected {folder}/CLASS/*.png (or jpg, ...); left out: "
                                f"{listed(left_out) or 'nothing'}")
    if not classes:
        raise ValueError(f"{folder} holds {flat} pictures but no class folders; expected {folder}/CLASS/*.png (a class "
                         f"called {folder.name} needs another name). Pictures without classes: unlabeled_task")
    inside = [each for each in (*classes, *(sub for c in classes for sub in _subfolders(c))) if _is_split(each)]
    if inside:
        raise ValueError(f"{inside[0]} is not read as a class or as part of one; give the folder that holds train and "
                         f"test, with the classes in them, or rename a class that is called {inside[0].name}")
    if flat:
        left_out["pictures beside the class folders"] += flat
    files = {each.name: pictures_in(each, left_out) for each in classes}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise FileNotFoundError(f"{folder} has no pictures of {some(empty)}, left out: {listed(left_out) or 'none'}; "
                                f"remove that folder, or put pictures there ({', '.join(SUFFIXES)})")
    return files


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in ("train", *HELD_OUT)


def _check_same(path: Path, name: str, train: Files, other: str, test: Files) -> None:
    alone = [[c for c in ours if c not in theirs][:5] for ours, theirs in ((train, test), (test, train))]
    if any(alone):
        raise ValueError(f"{path} has classes {alone[0]} in {name}, but {alone[1]} in {other}; both need the same, and "
                         "these are (up to five) that only one has")


def some(names: list) -> str:
    """Up to five names, then how many more."""
    return ", ".join([*map(str, names[:5]), *([f"and {len(names) - 5} more"] if len(names) > 5 else [])])


def _split(path: Path, files: Files) -> tuple[Files, Files]:
    """Every class 4 : 1 at random. It depends on the name of the class and its sorted files alone."""
    single = [name for name, found in files.items() if len(found) < 2]
    if single:
        raise ValueError(f"{path} has one picture of {some(single)}, too few to be split into train and test; "
                         "add pictures, or give folders train and test")
    train, test = {}, {}
    for name, found in files.items():
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(zlib.crc32(os.fsencode(name))))
        held_out = max(1, round(len(found) / 5))
        test[name] = [found[i] for i in sorted(order[:held_out].tolist())]
        train[name] = [found[i] for i in sorted(order[held_out:].tolist())]
    return train, test
