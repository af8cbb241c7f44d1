"""Own pictures: every layout, every kind of picture, every refusal; against Pillow and numpy."""
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import fsmerge_lite as fsm
from fsmerge_lite.tasks.reading import open_picture


def paint(root: Path, **counts: int) -> None:
    """`root`/CLASS/*.png, whose red says which class and whose green says which picture."""
    for i, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for j in range(n):
            Image.new("RGB", (12, 10), (60 * i, j, 0)).save(root / name / f"{j:03}.png")


def red_and_green(images: torch.Tensor) -> set[tuple[int, int]]:
    return {tuple(((image[:2, 0, 0] + 1) * 127.5).round().int().tolist()) for image in images}


def whole(task: fsm.Task) -> tuple[torch.Tensor, torch.Tensor]:
    return task.sample(task.train_size)


# ---------------------------------------------------------------- layouts

@pytest.mark.parametrize(("train", "held_out"), [
    ("train", "test"), ("train", "val"), ("train", "valid"), ("train", "validation"), ("Train", "Test"),
    ("TRAIN", "Val")])
def test_folders_of_train_and_test(tmp_path, train, held_out):
    paint(tmp_path / train, cat=4, dog=3)
    paint(tmp_path / held_out, cat=1, dog=2)
    task = fsm.folder_task(tmp_path, size=8)
    assert (task.classes, task.train_size, task.test_size) == (("cat", "dog"), 7, 3)
    assert red_and_green(task.test()[0]) == {(0, 0), (60, 0), (60, 1)}
    assert sorted(whole(task)[1].tolist()) == [0] * 4 + [1] * 3


def test_test_is_preferred(tmp_path):
    for split, n in (("train", 3), ("validation", 4), ("val", 5), ("test", 6)):
        paint(tmp_path / split, cat=n)
    task = fsm.folder_task(tmp_path, size=8)
    assert (task.train_size, task.test_size) == (3, 6)
    assert str(fsm.inspect_folder(tmp_path)).startswith(
        "folders train and test; val is not used; validation is not used\n")


@pytest.mark.parametrize("root", ["", "train", "Train"])
def test_every_class_is_split(tmp_path, root):
    paint(tmp_path / root, cat=50, dog=7, owl=2)
    task, again = (fsm.folder_task(tmp_path, size=8) for _ in range(2))
    assert task.classes == ("cat", "dog", "owl")
    (x, y), (tested, labels) = whole(task), task.test()
    assert labels.bincount().tolist() == [10, 1, 1] and y.bincount().tolist() == [40, 6, 1]
    assert not red_and_green(x) & red_and_green(tested) and len(red_and_green(x) | red_and_green(tested)) == 59
    assert torch.equal(tested, again.test()[0]) and torch.equal(x, whole(again)[0])
    ordered = fsm.folder_task(tmp_path, size=8, classes=["owl", "dog", "cat"])
    assert red_and_green(ordered.test()[0]) == red_and_green(tested)  # the split does not depend on the order
    assert len({green % 5 for red, green in red_and_green(tested) if red == 0}) > 1  # not every fifth


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    paint(tmp_path, cat=5, dog=5)
    paint(tmp_path / "cat" / "more", deeper=1)
    paint(tmp_path, **{".ipynb_checkpoints": 1})
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "cat" / "._0.png").write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = fsm.folder_task(tmp_path, size=8)
    assert task.classes == ("cat", "dog") and task.train_size + task.test_size == 11


REFUSED = {  # what is painted, what is raised, and its words
    "test alone": ({"test": {"cat": 2}}, ValueError, "has test but no train; expected .*/train/CLASS"),
    "both Train and train": ({"train": {"cat": 2}, "Train": {"cat": 2}}, ValueError, "both Train and train; keep one"),
    "one picture": ({"": {"cat": 5, "dog": 1, "owl": 1}}, ValueError, "one picture of dog, owl, too few to be split"),
    "flat": ({"": {"": 3}}, ValueError, "holds 3 pictures without classes; expected .*train/CLASS.* is unlabeled_task"),
    "flat train": ({"train": {"": 3}}, ValueError,
                   "train holds 3 pictures but no class folders; expected .*train/CLASS.*: unlabeled_task"),
    "flat test": ({"train": {"cat": 2}, "test": {"": 3}}, ValueError, "test holds 3 pictures but no class"),
    "a class called train": ({"": {"bus": 3, "train": 3}}, ValueError, "class called train needs another name"),
    "a level too high": ({"pets/train": {"cat": 2}, "pets/test": {"cat": 2}}, ValueError,
                         "pets/test is not read as a class or as part of one; give the folder that holds train"),
    "wrong way round": ({"cat/train": {"": 2}, "dog/train": {"": 2}}, ValueError, "cat/train is not read as a class"),
    "train in train": ({"train/train": {"cat": 2}, "test": {"cat": 2}}, ValueError, "train/train is not read as a"),
    "other classes": ({"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "cow": 1}}, ValueError,
                      r"has classes \['dog'\] in train, but \['cow'\] in test; both need the same"),
    "an empty class": ({"": {"cat": 2, "dog": 0}}, FileNotFoundError, "no pictures of dog, left out: none; remove"),
    "nothing": ({}, FileNotFoundError, "holds no pictures; expected .*/CLASS/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_layouts_are_refused(tmp_path, case):
    painted, kind, words = REFUSED[case]
    for folder, counts in painted.items():
        paint(tmp_path / folder, **counts)
    with pytest.raises(kind, match=words):
        fsm.folder_task(tmp_path)


def test_what_is_skipped_is_counted(tmp_path):
    paint(tmp_path / "train", cat=3, dog=3)
    paint(tmp_path / "spare", cat=1)
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/labels.txt", "dog/LICENSE", "beside.png"):
        (tmp_path / "train" / name).write_bytes(b"")
    expected = "left out 2 .heic, 1 .txt, 1 folder spare, 1 no suffix, 1 pictures beside the class folders; "
    with pytest.warns(UserWarning, match=re.escape(expected) + "what is read ends in .bmp") as caught:
        assert len(fsm.folder_task(tmp_path).classes) == 2
    assert caught[0].filename == __file__


def test_inspect_folder(tmp_path):
    paint(tmp_path / "train", cat=12, dog=3)
    paint(tmp_path / "Val", cat=2, dog=1)
    (tmp_path / "train" / "cat" / "broken.jpg").write_text("no picture, which is not opened")
    (tmp_path / "train" / "cat" / "x.heic").write_bytes(b"")
    found = fsm.inspect_folder(tmp_path)
    assert [line.split() for line in str(found).splitlines()] == [
        ["folders", "train", "and", "Val"], ["train", "test"], ["cat", "13", "2"], ["dog", "3", "1"],
        ["all", "16", "3"], ["left", "out:", "1", ".heic"]]
    assert len({len(line) for line in str(found).splitlines()[1:5]}) == 1 and repr(found) == str(found)
    assert found.classes == ("cat", "dog") and found.path == tmp_path
    assert str(fsm.inspect_folder(tmp_path / "train" / "dog")) == "3 pictures without classes\nleft out: nothing"
    with pytest.raises(AttributeError):
        found.layout = "other"
    with pytest.raises(FileNotFoundError, match="is no folder; expected"):
        fsm.inspect_folder(tmp_path / "nowhere")
    paint(tmp_path / "bare", a=5, b=10)
    assert "the classes themselves, split 4 : 1" in str(fsm.inspect_folder(tmp_path / "bare"))


# ---------------------------------------------------------------- classes

def test_the_order_of_the_classes(tmp_path):
    paint(tmp_path / "train", cat=3, dog=3, owl=3)
    paint(tmp_path / "test", cat=1, dog=1, owl=1)
    task = fsm.folder_task(tmp_path, size=8, classes=("owl", "cat", "dog"))
    assert task.classes == ("owl", "cat", "dog")
    for x, y in (task.test(), whole(task)):
        for image, label in zip(x, y):
            (red, _), = red_and_green(image[None])
            assert ("cat", "dog", "owl")[red // 60] == task.classes[label]


@pytest.mark.parametrize(("classes", "words"), [
    (["cat"], "classes must name each of the 2 classes of .* once.*got 1, missing: 'dog', unknown: none"),
    (["cat", "dgo"], r"missing: 'dog', unknown: 'dgo' \(did you mean 'dog'\?\)"),
    (["CAT", "dog"], r"missing: 'cat', unknown: 'CAT' \(did you mean 'cat'\?\)"),
    (["cat", "dog", "zebra"], "missing: none, unknown: 'zebra'$"),
    (["cat", "dog", "dog"], "got 3, missing: none, unknown: none"),
    (list("abcdefg"), "'a'.*'e', and 2 more$"),
])
def test_classes_that_are_not_there(tmp_path, classes, words):
    paint(tmp_path, cat=3, dog=3)
    with pytest.raises(ValueError, match=words):
        fsm.folder_task(tmp_path, classes=classes)


# ---------------------------------------------------------------- transforms and numbers

def corner(picture: Image.Image) -> torch.Tensor:
    """The upper left 8 x 8 pixels, by numpy."""
    pixels = np.asarray(picture, dtype=np.float32)[:8, :8] / 127.5 - 1
    return torch.from_numpy(pixels).reshape(8, 8, -1).permute(2, 0, 1)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_a_transform_of_ones_own(tmp_path, channels, mode):
    paint(tmp_path, cat=5)
    seen = []

    def transform(picture):
        seen.append(picture.mode)
        return corner(picture)
    task = fsm.folder_task(tmp_path, size=8, transform=transform, channels=channels)
    x, _ = whole(task)
    assert x.shape == (4, channels, 8, 8) and task.channels == channels and set(seen) == {mode}
    assert len(x.flatten(1).unique(dim=0)) == (4 if channels == 3 else 3)  # greens 0 to 4, as greys 0 to 2
    assert repr(task).endswith("8 x 8)" if channels == 3 else "8 x 8, grey)")


def test_the_transform_without_one_is_pillows_own(tmp_path):
    (tmp_path / "cat").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(noise).save(tmp_path / "cat" / f"{i}.png")
    small = Image.fromarray(noise).resize((20, 15), Image.Resampling.BILINEAR).crop((2, 0, 17, 15))
    x, _ = whole(fsm.folder_task(tmp_path, size=15))
    assert np.abs(x[0].permute(1, 2, 0).numpy() * 127.5 + 127.5 - np.asarray(small)).max() < 1
    grey, _ = whole(fsm.folder_task(tmp_path, size=15, channels=1))
    by_hand = np.asarray(Image.fromarray(noise).convert("L").resize((20, 15), Image.Resampling.BILINEAR))[:, 2:17]
    assert grey.shape == (1, 1, 15, 15) and np.abs(grey[0, 0].numpy() * 127.5 + 127.5 - by_hand).max() < 1


@pytest.mark.parametrize(("transform", "words"), [
    (lambda p: p, "the transform gave a Image"),
    (lambda p: np.zeros((3, 8, 8)), "the transform gave a ndarray"),
    (lambda p: torch.zeros(3, 9, 8), r"\(3, 9, 8\), expected torch.float32 \(3, 8, 8\) in \[-1, 1\]"),
    (lambda p: torch.zeros(1, 8, 8), r"gave torch.float32 \(1, 8, 8\)"),
    (lambda p: torch.zeros(3, 8, 8, dtype=torch.uint8), r"gave torch.uint8"),
    (lambda p: torch.zeros(3, 8, 8).double(), r"gave torch.float64"),
    (lambda p: torch.full((3, 8, 8), 2.5), r"gave numbers from 2.5 to 2.5.*Leave mean and std to Original"),
    (lambda p: torch.full((3, 8, 8), float("nan")), "gave numbers from nan to nan"),
])
def test_what_a_transform_may_not_give(tmp_path, transform, words):
    paint(tmp_path, cat=2)
    with pytest.raises(ValueError, match=r"cat/00\d.png: .*" + words):
        fsm.folder_task(tmp_path, size=8, transform=transform).sample(1)


@pytest.mark.parametrize(("options", "words"), [
    ({"channels": 2}, r"channels must be 3 \(RGB\) or 1 \(grey\), got 2"),
    ({"size": 0}, "size must be a whole number >= 1, got 0"),
    ({"size": 8.5}, "size must be a whole number >= 1, got 8.5"),
    ({"test_size": 0}, "test_size must be a whole number >= 1, got 0"),
    ({"test_size": 2.5}, "test_size must be a whole number >= 1, got 2.5"),
])
def test_numbers_outside_their_range(tmp_path, options, words):
    paint(tmp_path, cat=2)
    with pytest.raises(ValueError, match=words):
        fsm.folder_task(tmp_path, **options)


# ---------------------------------------------------------------- kinds of pictures

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
BYTES = (RAMP * 255).round().astype(np.uint8)
RGB = np.stack([BYTES, BYTES.T, 255 - BYTES], 2)
ALPHA = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 0, 255).astype(np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB)
GREY = np.repeat(BYTES[..., None], 3, 2)


def palette_with_a_hole() -> Image.Image:
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    picture.putpalette(np.stack([np.arange(256)] * 3, 1).astype(np.uint8).tobytes())
    return picture


INDEX = np.arange(64, dtype=np.uint8).reshape(8, 8)[..., None].repeat(3, 2)
PICTURES = {  # the picture, its suffix, how it is saved, and what it shows
    "RGB": (lambda: Image.fromarray(RGB), "png", {}, RGB),
    "L": (lambda: Image.fromarray(BYTES), "png", {}, GREY),
    "bilevel": (lambda: Image.fromarray(BYTES > 127), "png", {}, np.where(GREY > 127, 255, 0)),
    "RGBA": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])), "png", {}, ON_WHITE),
    "LA": (lambda: Image.merge("LA", [Image.fromarray(BYTES), Image.fromarray(ALPHA)]), "png", {},
           np.where(ALPHA[..., None] == 0, 255, GREY)),
    "half transparent": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "png", {},
                         np.full((8, 8, 3), (255, 127, 127))),
    "transparent color": (lambda: Image.fromarray(np.where(ALPHA[..., None] == 0, np.uint8(1), GREY)), "png",
                           {"transparency": (1, 1, 1)}, np.where(ALPHA[..., None] == 0, 255, GREY)),
    "palette": (palette_with_a_hole, "png", {}, INDEX),
    "palette with a hole": (palette_with_a_hole, "png", {"transparency": 5}, np.where(INDEX == 5, 255, INDEX)),
    "gif": (palette_with_a_hole, "gif", {}, INDEX),
    "CMYK": (lambda: Image.fromarray(np.dstack([255 - RGB, np.zeros_like(BYTES)]), "CMYK"), "tif", {}, RGB),
    "16-bit png": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "png", {}, GREY),
    "16-bit tif": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "tif", {}, GREY),
    "16-bit tif, dark": (lambda: Image.fromarray((RAMP * 2570).round().astype(np.uint16)), "tif", {},
                         np.repeat((RAMP * 10).round()[..., None], 3, 2)),
    "32-bit whole numbers": (lambda: Image.fromarray((RAMP * 65535).round().astype(np.int32)), "tif", {}, GREY),
    "32-bit bytes": (lambda: Image.fromarray(BYTES.astype(np.int32)), "tif", {}, GREY),
    "32-bit, large": (lambda: Image.fromarray((RAMP * 1e6).round().astype(np.int32)), "tif", {}, GREY),
    "float": (lambda: Image.fromarray(RAMP.astype(np.float32)), "tif", {}, GREY),
    "float, dark": (lambda: Image.fromarray((RAMP / 2).astype(np.float32)), "tif", {},
                    np.repeat((RAMP * 127.5).round()[..., None], 3, 2)),
    "float, large": (lambda: Image.fromarray((RAMP * 3000).astype(np.float32)), "tif", {}, GREY),
    "float, black": (lambda: Image.fromarray(0 * RAMP.astype(np.float32)), "tif", {}, 0 * GREY),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_look_as_they_should(tmp_path, kind):
    make, suffix, options, expected = PICTURES[kind]
    (tmp_path / "x").mkdir()
    for i in range(2):
        make().save(tmp_path / "x" / f"{i}.{suffix}", **options)
    x, _ = fsm.folder_task(tmp_path, size=8).test()
    shown = ((x[0].permute(1, 2, 0) + 1) * 127.5).numpy()
    assert np.abs(shown - expected).max() < 1.01
    grey, _ = fsm.folder_task(tmp_path, size=8, channels=1).test()
    luma = np.asarray(expected, dtype=float) @ [0.299, 0.587, 0.114]
    assert np.abs((grey[0, 0].numpy() + 1) * 127.5 - luma).max() < 1.6


@pytest.mark.parametrize(("orientation", "turned"), [
    (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud), (5, lambda a: a.swapaxes(0, 1)),
    (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a.swapaxes(0, 1), 2)), (8, np.rot90)])
def test_pictures_are_turned_as_their_exif_says(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB[:, :6]).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "x.png", 3)), turned(RGB[:, :6]))


@pytest.mark.parametrize(("numbers", "words"), [
    (np.full((8, 8), -1, np.float32), "go from -1 to -1; expected none below 0"),
    (np.full((8, 8), np.nan, np.float32), "go from nan to nan; expected"),
    (np.full((8, 8), -5, np.int32), "go from -5 to -5"),
])
def test_numbers_that_are_no_picture(tmp_path, numbers, words):
    (tmp_path / "x").mkdir()
    for i in range(2):
        Image.fromarray(numbers).save(tmp_path / "x" / f"{i}.tif")
    with pytest.raises(ValueError, match=rf"1 of 1 pictures cannot be read: .*tif \(its numbers {words}"):
        fsm.folder_task(tmp_path, size=8).test()


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    paint(tmp_path / "train", cat=3, dog=3)
    paint(tmp_path / "test", cat=2, dog=2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "cat" / "cut.jpg")
    data = (tmp_path / "test" / "cat" / "cut.jpg").read_bytes()
    (tmp_path / "test" / "cat" / "cut.jpg").write_bytes(data[:len(data) // 2])
    (tmp_path / "test" / "dog" / "text.jpg").write_text("I am no picture")
    task = fsm.folder_task(tmp_path, size=8)
    with pytest.raises(ValueError, match="2 of 6 pictures cannot be read: ") as caught:
        task.test()
    text = str(caught.value)
    assert "cat/cut.jpg (image file is truncated" in text and "dog/text.jpg (cannot identify image file" in text
    assert "Replace them or take them away, and make the task again" in text
    assert len(task.sample(6)[0]) == 6
    for i in range(9):
        (tmp_path / "train" / "dog" / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"9 of 15 pictures cannot be read: (.*bad\d.png.*, ){5}and 4 more. Replace"):
        whole(fsm.folder_task(tmp_path, size=8))


# ---------------------------------------------------------------- torchvision, unlabeled

class Tiny:
    """As torchvision's datasets: grey pictures whose brightness is 100 times their label."""

    classes = ["zero", "one", "two"]

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        self.labels = [0, 1, 2] * (4 if train else 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return Image.new("L", (9, 9), 100 * self.labels[i]), self.labels[i]


class Bare(Tiny):
    """A dataset without names for its classes."""

    classes = None
    targets = torch.tensor([2, 0, 1])


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(datasets, "Tiny", Tiny, raising=False)
    monkeypatch.setattr(datasets, "Bare", Bare, raising=False)


def test_torchvision_tasks(tiny):
    task = fsm.torchvision_task("Tiny", "nowhere", size=8)
    assert (task.name, task.classes, task.train_size, task.test_size) == ("tiny", ("zero", "one", "two"), 12, 3)
    task = fsm.torchvision_task("Tiny", "nowhere", 8, name="mine", classes=("two", "one", "zero"), channels=1)
    x, y = task.test()
    assert task.name == "mine" and x.shape == (3, 1, 8, 8)
    assert [round(v) for v in ((x[:, 0, 0, 0] + 1) * 127.5).tolist()] == [100 * (2 - label) for label in y.tolist()]
    task = fsm.torchvision_task("Tiny", "nowhere", 8, transform=lambda p: torch.full((3, 8, 8), float(p.mode == "RGB")))
    assert (task.test()[0] == 1).all()
    with pytest.raises(ValueError, match=r"picture \d of tiny: the transform gave numbers from 3 to 3"):
        fsm.torchvision_task("Tiny", "nowhere", 8, transform=lambda p: torch.full((3, 8, 8), 3.)).test()
    with pytest.raises(ValueError, match=r"unknown: 'zwo' \(did you mean 'two'\?\)"):
        fsm.torchvision_task("Tiny", "nowhere", classes=("zero", "one", "zwo"))
    assert fsm.torchvision_task("Bare", "nowhere").classes == ("0", "1", "2")


def gtsrb(root: Path):
    """As torchvision reads it: classes are folders in training and a column of a file in test."""
    test = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    rows = ["Filename;Width;ClassId"]
    for label in range(3):
        folder = root / "gtsrb" / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (9, 9), (100 * label,) * 3).save(folder / f"{n}.ppm")
        Image.new("RGB", (9, 9), (100 * label,) * 3).save(test / f"{label}.ppm")
        rows.append(f"{label}.ppm;9;{label}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))


def dtd(root: Path):
    """As torchvision reads it: lists of files, and a third part that is left alone."""
    for label, name in enumerate(("banded", "dotted", "woven")):
        folder = root / "dtd" / "dtd" / "images" / name
        folder.mkdir(parents=True)
        for part, count in {"train": 4, "val": 2, "test": 1}.items():
            lists = root / "dtd" / "dtd" / "labels" / f"{part}1.txt"
            lists.parent.mkdir(exist_ok=True)
            with lists.open("a") as file:
                for n in range(count):
                    Image.new("RGB", (9, 9), (100 * label,) * 3).save(folder / f"{part}{n}.png")
                    print(f"{name}/{part}{n}.png", file=file)


def imagenette(root: Path):
    """As torchvision reads it: it has no test part, but one that is called val, and several names for a class."""
    for label, name in enumerate(("n01440764", "n02979186", "n03000684")):
        for part, count in {"train": 4, "val": 1}.items():
            folder = root / "imagenette2" / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (9, 9), (100 * label,) * 3).save(folder / f"{n}.jpeg")


@pytest.mark.parametrize(("name", "lay_out", "classes"), [
    ("GTSRB", gtsrb, ("0", "1", "2")), ("DTD", dtd, ("banded", "dotted", "woven")),
    ("Imagenette", imagenette, ("tench", "cassette player", "chain saw"))])
def test_torchvision_tasks_with_split(name, lay_out, classes, tmp_path):
    lay_out(tmp_path)
    task = fsm.torchvision_task(name, tmp_path, size=8)
    assert (task.classes, task.train_size, task.test_size) == (classes, 12, 3)
    for images, labels in (task.test(), task.sample(12)):
        assert sorted(labels.unique().tolist()) == [0, 1, 2]
        assert [round(v) for v in ((images[:, 0, 0, 0] + 1) * 127.5).tolist()] == [100 * y for y in labels.tolist()]


def test_a_part_of_a_dataset_that_is_missing_is_told(tmp_path):
    gtsrb(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="torchvision cannot read GTSRB in .*GT-final_test.csv"):
        fsm.torchvision_task("GTSRB", tmp_path)


def test_a_damaged_test_part_is_not_replaced_by_another(tmp_path):
    dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "test1.txt").write_text("no slash")
    with pytest.raises(ValueError, match="not enough values"):
        fsm.torchvision_task("DTD", tmp_path)


class Boxes(Tiny):
    """A dataset of which a label is more than a number."""

    def __getitem__(self, i):
        return super().__getitem__(i)[0], torch.zeros(40)


def test_labels_that_are_no_classes_are_refused(monkeypatch):
    monkeypatch.setattr(datasets, "Boxes", Boxes, raising=False)
    with pytest.raises(ValueError, match="the labels of Boxes are not class numbers"):
        fsm.torchvision_task("Boxes", "nowhere")


@pytest.mark.parametrize(("name", "words"), [
    ("mnist", r"has no 'mnist' with a training and a test part \(did you mean 'MNIST'\?\); there are CIFAR10, "),
    ("cifar", r"did you mean 'CIFAR"),
    ("CIFAR_10", r"did you mean 'CIFAR10'"),
    ("svhn", r"did you mean 'SVHN'"),
    ("EMNIST", "has no 'EMNIST' with a training and a test part"),  # needs split=
    ("LFWPeople", "has no 'LFWPeople' with a training and a test part"),  # all of it, unless told
    ("ImageFolder", "folder_task for image folders"),
    ("folder", "has no 'folder' with a training"),  # a module
    ("wrap_dataset_for_transforms_v2", "has no 'wrap_dataset"),  # a function
])
def test_no_such_dataset(name, words):
    with pytest.raises(ValueError, match=words):
        fsm.torchvision_task(name, "nowhere")


def test_unlabeled_pictures(tmp_path):
    paint(tmp_path, **{"": 4, "2024/may": 3})
    (tmp_path / "note.txt").write_text("")
    with pytest.warns(UserWarning, match=r"left out 1 \.txt; what is read ends in \.bmp, "):
        task = fsm.unlabeled_task(tmp_path, size=8)
    assert (task.name, task.classes, task.train_size, task.test_size) == (tmp_path.name, (), 7, 0)
    x, y = whole(task)
    assert x.shape == (7, 3, 8, 8) and len(red_and_green(x)) == 7 and (y == -1).all()
    with pytest.raises(ValueError, match="has no labeled images to test on; it is for calibration alone"):
        task.test()
    with pytest.raises(ValueError, match=r"\(train\) has 7 images, 8 were asked for"):
        task.sample(8)
    images = fsm.calibration([task, fsm.task("digits", 8)], per_task=5, augmented=1)
    assert images.names == (tmp_path.name, "digits") and len(images) == 20
    with pytest.raises(FileNotFoundError, match="no pictures in .*, or no such folder; expected files that end in"):
        fsm.unlabeled_task(tmp_path / "nowhere")
    assert fsm.unlabeled_task(tmp_path / "2024", 8, "mine", corner, 1).sample(3)[0].shape == (3, 1, 8, 8)
