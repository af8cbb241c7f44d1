"""Pictures: deterministic, apart, in range; real folders; calibration images."""
import copy
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import fsmerge_lite as fsm
from fsmerge_lite.engine.images import Calibration
from fsmerge_lite.tasks import drawing
from fsmerge_lite.tasks import task as task_module
from fsmerge_lite.tasks.embedded import EMBEDDED


@pytest.mark.parametrize("task", EMBEDDED.values(), ids=EMBEDDED)
def test_embedded_tasks(task):
    x, y = task.sample(600, seed=3)
    assert x.shape == (600, 3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.3
    assert len(task.classes) == 10 and (y.bincount(minlength=10) > 25).all()
    assert all(torch.equal(a, b) for a, b in zip((x, y), task.sample(600, seed=3)))
    assert not torch.equal(x, task.sample(600, seed=4)[0])
    assert len(task.test()[0]) == task.test_size


@pytest.mark.parametrize("task", EMBEDDED.values(), ids=EMBEDDED)
def test_no_test_image_is_trained_on(task):
    def keys(x):
        return {image.numpy().tobytes() for image in x}
    train = keys(task.sample(task.train_size or task.test_size, seed=0)[0])
    assert not train & keys(task.test()[0])


@pytest.mark.parametrize("name", EMBEDDED)
def test_larger_pictures_show_the_same(name):
    (small, labels), (large, again) = (fsm.task(name, size).sample(100, seed=5) for size in (32, 96))
    assert large.shape == (100, 3, 96, 96) and torch.equal(labels, again) and fsm.task(name, 96).size == 96
    pooled = torch.nn.functional.avg_pool2d(large, 3)
    alike = torch.stack([torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(small, pooled)])
    assert alike.min() > 0.8 and alike.median() > 0.95
    assert fsm.task(name, 96) is fsm.task(name, 96) and fsm.task(name) is fsm.task(name, 32)


def test_digits_are_the_real_ones():
    x = torch.cat([fsm.task("digits").sample(1297)[0], fsm.task("digits").test()[0]])
    back = torch.nn.functional.avg_pool2d(x[:, :1], 4)  # 32 x 32 to 8 x 8
    real = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    nearest = torch.cdist(back.flatten(1), real.flatten(1)).argmin(1)
    assert len(set(nearest.tolist())) > 1780 and len(x) == 1797


def test_too_many_real_images():
    with pytest.raises(ValueError, match=r"digits \(train\) has 1297 images, 1298 were asked for"):
        fsm.task("digits").sample(1298)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no embedded task 'cars'"):
        fsm.task("cars")
    with pytest.raises(ValueError, match="size must be a whole number >= 8, got 4"):
        fsm.task("letters", 4)
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        fsm.task("shapes").sample(0)
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        fsm.task("shapes").sample(1, split="val")
    with pytest.raises(ValueError, match="original 1 has no task"):
        fsm.calibration([fsm.Original(fsm.vit(8, 1, 2))])
    with pytest.raises(ValueError, match="augmented must be a whole number >= 0"):
        fsm.calibration([fsm.task("shapes")], augmented=-1)
    with pytest.raises(ValueError, match="with a training and a test part"):
        fsm.torchvision_task("ImageNet99", "nowhere")


def test_calibration():
    tasks = [fsm.task("digits"), fsm.task("shapes"), fsm.task("letters")]
    images = fsm.calibration(tasks, per_task=5, augmented=2, seed=1)
    assert images.images.shape == (45, 3, 32, 32) and images.owner.bincount().tolist() == [15, 15, 15]
    assert images.images.abs().max() <= 1
    for i, task in enumerate(tasks):
        assert torch.equal(images.of(i)[:5], task.sample(5, 1)[0])
        assert all(not torch.equal(images.of(i)[j], images.of(i)[j + 5]) for j in range(10))
    state = torch.random.get_rng_state()
    assert torch.equal(images.images, fsm.calibration(tasks, 5, 2, 1).images)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers go on undisturbed
    assert not torch.equal(images.images, fsm.calibration(tasks, 5, 2, 2).images)


def test_grouped_images():
    images = Calibration(torch.arange(6.)[:, None], torch.tensor([0, 2, 1, 2, 0, 1]))
    grouped = images.grouped([0, 0, 1])
    assert grouped.owner.tolist() == [0, 1, 0, 1, 0, 0] and torch.equal(grouped.images, images.images)
    assert images.owner.tolist() == [0, 2, 1, 2, 0, 1]
    assert images.grouped([1, 0, 2]).of(1).flatten().tolist() == [0, 4]
    for groups in ([0, 1], [0, 0, 2], [1, 1, 2], [0, 0, -1]):
        with pytest.raises(ValueError, match="for each of 3 tasks.*got"):
            images.grouped(groups)


def paint_folder(root: Path, counts: dict[str, int], size=(40, 50)) -> None:
    for i, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for j in range(n):
            Image.new("RGB", size, (80 * i, 200, 5 * j)).save(root / name / f"{j}.png")


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folders(tmp_path, held_out):
    paint_folder(tmp_path / "pets" / "train", {"cat": 6, "dog": 5})
    paint_folder(tmp_path / "pets" / held_out, {"cat": 2, "dog": 1})
    task = fsm.folder_task(tmp_path / "pets", size=24)
    assert (task.name, task.classes, task.train_size, task.test_size) == ("pets", ("cat", "dog"), 11, 3)
    x, y = task.test()
    assert x.shape == (3, 3, 24, 24) and sorted(y.tolist()) == [0, 0, 1]
    for image, label in zip(x, y):
        assert image[0].unique().item() == pytest.approx(80 * label.item() / 127.5 - 1, abs=1e-3)
    whole = fsm.folder_task(tmp_path / "pets" / "train", name="mine")
    assert (whole.name, whole.train_size, whole.test_size) == ("mine", 9, 2)


def test_tasks_go_to_other_processes(tmp_path):
    paint_folder(tmp_path, {"cat": 10, "dog": 10})
    for task in (*EMBEDDED.values(), fsm.folder_task(tmp_path, size=8)):
        again = pickle.loads(pickle.dumps(task))
        assert all(torch.equal(a, b) for a, b in zip(task.sample(4, seed=1), again.sample(4, seed=1)))
        assert copy.deepcopy(task) is task


def test_what_is_done_to_test_images_is_not_kept():
    task = fsm.task("digits")
    images, labels = task.test()
    before = images.clone(), labels.clone()
    images.zero_(), labels.zero_()
    assert all(torch.equal(a, b) for a, b in zip(task.test(), before))


def test_bad_image_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; expected"):
        fsm.folder_task(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        fsm.folder_task(tmp_path / "empty")
    paint_folder(tmp_path / "odd" / "train", {"cat": 1})
    paint_folder(tmp_path / "odd" / "test", {"dog": 1})
    with pytest.raises(ValueError, match=r"\['cat'\] in train, but \['dog'\] in test"):
        fsm.folder_task(tmp_path / "odd")


real = pytest.mark.skipif("FSMERGE_DATA" not in os.environ, reason="FSMERGE_DATA does not point to real data")


@real
def test_real_mnist():
    task = fsm.torchvision_task("MNIST", os.environ["FSMERGE_DATA"])
    x, y = task.sample(200)
    assert x.shape == (200, 3, 32, 32) and task.train_size == 60000 and y.max() == 9
    assert torch.equal(x[:, 0], x[:, 1]) and x.std() > 0.3


@real
def test_real_cifar10_folders():
    task = fsm.folder_task(Path(os.environ["FSMERGE_DATA"]) / "cifar10_small")
    x, _ = task.sample(100)
    assert x.shape == (100, 3, 32, 32) and len(task.classes) == 10
    images = fsm.calibration([task, fsm.task("shapes")], per_task=4, augmented=1)
    assert len(images) == 16


def test_kept_test_images_have_a_limit(monkeypatch):
    drawn = []

    def task(name):
        def draw(n, generator, split):
            drawn.append(name)
            return torch.zeros(n, 3, 8, 8), torch.zeros(n, dtype=torch.long)
        return fsm.Task(name, ("a",), draw, size=8, test_size=10)
    one, two, three = map(task, "123")
    monkeypatch.setattr(task_module, "_test_sets", {})
    monkeypatch.setattr(task_module, "CACHE_BYTES", 2 * one.test()[0].nbytes)
    for each in (one, two, one, three, one, two):
        each.test()
    assert drawn == ["1", "2", "3", "2"]  # three pushed two out, which was used longest ago
    assert len(task_module._test_sets) == 2


def test_a_folder_tells_how_many_test_images_are_scored(tmp_path):
    paint_folder(tmp_path / "train", {"cat": 2})
    paint_folder(tmp_path / "test", {"cat": 5})
    assert fsm.folder_task(tmp_path).test_size == 5
    assert len(fsm.folder_task(tmp_path, test_size=3).test()[1]) == 3


def test_what_the_embedded_pictures_need_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    drawing.digits.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"handwritten digits come with sklearn.*fsmerge_lite\[tasks\]"):
        fsm.task("digits", 40).sample(1)
