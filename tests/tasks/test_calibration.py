"""Unlabeled images and their augmentation; what goes together: originals, tasks, images, heads."""
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import fsmerge_lite as fsm
from fsmerge_lite.engine.images import same_tasks
from fsmerge_lite.tasks import calibration as calibration_module


def made(name: str, images: torch.Tensor, classes: int = 2, channels: int = 3) -> fsm.Task:
    """A task that always gives the first of these images."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return fsm.Task(name, tuple("abcdefgh"[:classes]), lambda n, g, split: (images[:n], labels[:n]), images.shape[-1],
                    test_size=len(images), channels=channels)


def noise(n: int = 6, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n)) * 2 - 1


def test_light_augmentation_stays_as_it_was():
    tasks = [fsm.task("digits"), fsm.task("letters")]
    images = [task.sample(3, seed=7)[0] for task in tasks]
    torch.manual_seed(7)
    change = v2.Compose([
        v2.RandomResizedCrop(32, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(0.5, p=1.0), v2.GaussianBlur(3)])])
    by_hand = [torch.cat([x, *(torch.stack([change(image / 2 + 0.5) for image in x]).clamp(0, 1) * 2 - 1
                               for _ in range(4))]) for x in images]
    drawn = fsm.calibration(tasks, per_task=3, augmented=4, seed=7)
    assert torch.equal(drawn.images, torch.cat(by_hand)) and drawn.owner.tolist() == [0] * 15 + [1] * 15
    named = fsm.calibration(tasks, 3, 4, 7, augmentation="light")
    assert named.hash() == drawn.hash() == fsm.Calibration(drawn.images, drawn.owner).hash()


@pytest.mark.parametrize("augmentation", ["light", "paper"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_copies(augmentation, channels):
    tasks = [made("one", noise(6, channels), channels=channels), made("two", noise(7, channels), channels=channels)]
    state = torch.random.get_rng_state()
    drawn = fsm.calibration(tasks, 5, 6, augmentation=augmentation)
    assert torch.equal(state, torch.random.get_rng_state())
    assert drawn.images.shape == (70, channels, 16, 16) and drawn.images.abs().max() <= 1
    assert torch.equal(drawn.images, fsm.calibration(tasks, 5, 6, augmentation=augmentation).images)
    assert len(drawn.images.flatten(1).unique(dim=0)) == 70
    assert torch.equal(drawn.of(1)[:5], noise(7, channels)[:5])


def test_the_papers_crops_come_from_the_reflected_picture():
    """Of a picture with one number a pixel, every crop and flip is a window of numpy's reflected padding."""
    image = torch.arange(64.).reshape(1, 8, 8) / 64
    crop = v2.Compose(calibration_module.paper(8, 1).transforms[:2])
    padded = np.pad(image[0].numpy(), 4, mode="reflect")
    windows = [padded[i:i + 8, j:j + 8] for i in range(9) for j in range(9)]
    windows += [window[:, ::-1] for window in windows]
    crops = [crop(image)[0].numpy() for _ in range(60)]
    found = [[i for i, window in enumerate(windows) if np.array_equal(each, window)] for each in crops]
    assert all(found) and len(set(map(tuple, found))) > 30


def test_copies_are_mixed_with_copies_of_their_own_task():
    """Each of ten pictures has one level; Mixup gives one weight for all, CutMix a rectangle of another's level."""
    levels = torch.arange(10.) / 10
    images = levels[:, None, None, None].expand(-1, 3, 16, 16).clone()
    kinds = []
    for _ in range(40):
        mixed = calibration_module.mixed(images)
        flat = mixed.flatten(1)
        if (flat == flat[:, :1]).all():
            kinds.append("mixup")
            weights = flat[:, 0]
            assert weights.sum() == pytest.approx(levels.sum().item(), rel=1e-5)
        else:
            kinds.append("cutmix")
            assert set(flat.flatten().tolist()) <= set(levels.tolist())
            assert flat.mean() == pytest.approx(levels.mean().item(), rel=1e-5)
    assert 8 < kinds.count("cutmix") < 32
    tasks = [made("dark", torch.full((6, 3, 16, 16), -0.9)), made("light", torch.full((6, 3, 16, 16), 0.9))]
    drawn = fsm.calibration(tasks, 6, 20, augmentation="paper")  # solarise turns light into dark, mixing does not
    assert drawn.of(0).max() < -0.8


def test_transforms_of_ones_own():
    task = made("one", noise())
    drawn = fsm.calibration([task], 4, 2, augmentation=lambda x: x.flip(-1))
    assert torch.allclose(drawn.images[4:8], noise()[:4].flip(-1), atol=1e-6)
    drawn = fsm.calibration([task], 4, 1, augmentation=[v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0)])
    assert torch.allclose(drawn.images[4:], noise()[:4].flip(-1, -2), atol=1e-6)
    drawn = fsm.calibration([task], 4, 1, augmentation=lambda x: x.mul_(0.5))  # in place: the images stay
    assert torch.equal(drawn.images[:4], noise()[:4])
    assert len(fsm.calibration([task], 4, 0, augmentation="none")) == 4


@pytest.mark.parametrize(("augmentation", "words"), [
    ("heavy", "augmentation must be 'light', 'paper' .of pictures. or 'none', or transforms.*got 'heavy'"),
    ("none", "'none' makes no copies; give augmented=0"),
    ([], r"augmentation must be .*got \[\]"),
    ([v2.RandomHorizontalFlip(), 3], "augmentation must be"),
    (None, "augmentation must be .*got None"),
    (v2.Grayscale(1), r"gave torch.float32 \(1, 16, 16\), expected floats \(3, 16, 16\)"),
    (v2.ToDtype(torch.uint8, scale=True), r"gave torch.uint8 \(3, 16, 16\)"),
    (lambda x: x.numpy(), r"gave float32 \(3, 16, 16\), expected floats"),
    (v2.Normalize([0.5] * 3, [0.25] * 3), "gave numbers from -.* to .*, not in .0, 1.; leave mean and std to Original"),
    (lambda x: x * float("nan"), "gave numbers from nan to nan"),
])
def test_augmentations_that_are_refused(augmentation, words):
    with pytest.raises(ValueError, match=words):
        fsm.calibration([made("one", noise())], 4, 1, augmentation=augmentation)


def original(classes: int, task: fsm.Task | None, name: str = "") -> fsm.Original:
    return fsm.Original(fsm.vit(8, 1, 2, img_size=16, patch_size=8), torch.nn.Linear(8, classes), name, task).eval()


GOOD = made("good", noise())
CALIBRATIONS = {
    "no task": (lambda: [GOOD, original(2, None, "pets")], {}, r"original 2 \(pets\) has no task to draw images from"),
    "a name": (lambda: ["digits"], {}, "original 1 has no task"),
    "nothing": (list, {}, "got no task"),
    "another head": (lambda: [original(3, GOOD, "pets")], {},
                     r"original 1 \(pets\) has a head of 3 outputs, but its task 'good' has 2 classes"),
    "sizes": (lambda: [GOOD, made("large", noise(size=24))], {}, r"got good \(3, 16, 16\), large \(3, 24, 24\)"),
    "channels": (lambda: [GOOD, made("grey", noise(channels=1))], {}, r"got good \(3, 16, 16\), grey \(1, 16, 16\)"),
    "too many": (lambda: [fsm.task("digits")], {"per_task": 1298}, r"digits \(train\) has 1297 images"),
    "too few": (lambda: [GOOD], {"per_task": 7}, "task 'good' gave 6 images, 7 were asked for"),
    "per_task": (lambda: [GOOD], {"per_task": 2.5}, "per_task must be a whole number >= 1, got 2.5"),
    "per_task 0": (lambda: [GOOD], {"per_task": 0}, "per_task must be a whole number >= 1, got 0"),
    "augmented": (lambda: [GOOD], {"augmented": "2"}, "augmented must be a whole number >= 0, got '2'"),
    "seed": (lambda: [GOOD], {"seed": None}, "seed must be a whole number >= 0, got None"),
    "NaN": (lambda: [made("bad", noise() * float("nan"))], {}, "'bad' gave torch.float32 images; expected .* none NaN"),
    "bytes": (lambda: [made("bad", noise().byte())], {}, "task 'bad' gave torch.uint8 images"),
    "normalized": (lambda: [made("bad", noise() / 0.3)], {},
                   r"'bad' gave images from -3.31 to 3.33; bring them to \[-1, 1\], and give mean and std to Original"),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_calibrations_that_are_refused(case):
    originals, options, words = CALIBRATIONS[case]
    with pytest.raises(ValueError, match=words):
        fsm.calibration(originals(), **{"per_task": 2, "augmented": 0} | options)


def test_tasks_and_originals_together():
    images = fsm.calibration([original(2, GOOD), made("other", noise(5))], np.int64(3), 0)
    assert images.names == ("good", "other") and torch.equal(images.of(1), noise(5)[:3])
    headless = fsm.Original(fsm.vit(8, 1, 2, img_size=16, patch_size=8), task=GOOD)
    assert len(fsm.calibration([headless], 3, 0)) == 3


# ---------------------------------------------------------------- unlabeled images

OWNER = torch.tensor([0, 1])
IMAGES = {
    "bytes": (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), OWNER, "floats in .-1, 1., got torch.uint8; of bytes make"),
    "[0, 255]": (torch.rand(2, 3, 8, 8) * 255, OWNER, "read .-1, 1.; of numbers up to 255 make images / 127.5 - 1"),
    "NaN": (torch.full((2, 4), float("nan")), OWNER, "images must be finite, got NaN or infinity"),
    "infinite": (torch.tensor([[0.], [float("-inf")]]), OWNER, "images must be finite, got NaN or infinity"),
    "none": (torch.zeros(0, 4), OWNER[:0], r"there must be one; got torch.int64 \(0,\) for 0 images"),
    "float owner": (torch.zeros(2, 4), OWNER.float(), r"owner must hold .*; got torch.float32 \(2,\) from 0.0 for 2"),
    "bool owner": (torch.zeros(2, 4), OWNER.bool(), "got torch.bool"),
    "too many owners": (torch.zeros(1, 4), OWNER, r"got torch.int64 \(2,\) from 0 for 1 images"),
    "2-D owner": (torch.zeros(2, 4), OWNER[:, None], r"got torch.int64 \(2, 1\)"),
    "negative owner": (torch.zeros(2, 4), OWNER - 1, r"from -1 for 2 images"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_are_refused(case):
    images, owner, words = IMAGES[case]
    with pytest.raises(ValueError, match=words):
        fsm.Calibration(images, owner)


def test_pictures_that_look_like_another_range():
    words = r"look like \[0, 1\], but models here read \[-1, 1\]: make them 2 \* images - 1"
    with pytest.warns(UserWarning, match=words) as caught:
        fsm.Calibration(torch.rand(2, 3, 8, 8), OWNER)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fsm.Calibration(torch.rand(2, 3, 8, 8) * 2 - 1, OWNER)
        fsm.Calibration(torch.rand(2, 500) * 300, OWNER)  # no pictures
        fsm.Calibration(torch.rand(2, 3, 2, 2), OWNER)  # too few pixels to say
        fsm.Calibration(torch.randn(2, 3, 8, 8) * 4, OWNER)


def test_images_know_the_names_of_their_tasks():
    one, two, three = (made(name, noise()) for name in ("one", "two", "three"))
    pair, images = [original(2, one), original(2, two)], fsm.calibration([one, two], 2, 0)
    same_tasks(pair, images)
    same_tasks(pair, fsm.calibration([one, three], 2, 0))  # other images may do
    same_tasks(pair, fsm.Calibration(images.images, 1 - images.owner))  # no names, no check
    words = "the images are of two, one, but the originals are of one, two; both need the same order"
    with pytest.raises(ValueError, match=words):
        same_tasks(pair, fsm.calibration([two, one], 2, 0))
    with pytest.raises(ValueError, match=words):
        fsm.train_global(fsm.SuperNet(pair, rank=2), fsm.calibration([two, one], 2, 0), steps=1)
    with pytest.raises(ValueError, match="images are of 2 tasks, but 1 names were given"):
        fsm.Calibration(images.images, images.owner, ("one",))
    all_three = fsm.calibration([one, two, three], 2, 0)
    assert all_three.grouped([0, 0, 1]).names == ("one + two", "three")
    assert all_three.grouped([1, 0, 1]).names == ("two", "one + three")
    merged = fsm.average([original(2, one, "one"), original(2, two, "two")])
    same_tasks([merged, original(2, three)], all_three.grouped([0, 0, 1]))
    with pytest.raises(ValueError, match=r"are of three, one \+ two, but the originals are of one \+ two, three"):
        same_tasks([merged, original(2, three)], all_three.grouped([1, 1, 0]))


# ---------------------------------------------------------------- scores

ONE, TWO = (made(name, noise(), classes) for name, classes in (("one", 2), ("two", 3)))
ORDER = "the tasks are two, one, but the model's heads are for one, two; both need the same order"
SCORES = {  # of the two originals: what is scored on which tasks, and the words of the refusal
    "an ensemble": (fsm.ensemble, [TWO, ONE], ORDER),
    "a merge": (fsm.average, [TWO, ONE], ORDER),
    "another task": (lambda pair: pair[0], [TWO], "head 1 has 2 outputs, but its task two has 3 classes; give the"),
    "no head": (lambda pair: fsm.Original(pair[0].backbone, task=TWO), [TWO], "head 1 has 8 outputs, but its task two"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_of_the_wrong_task_are_refused(case):
    model, tasks, words = SCORES[case]
    with pytest.raises(ValueError, match=words):
        fsm.evaluate(model([original(2, ONE, "one"), original(3, TWO, "two")]), tasks)


def test_a_path_is_scored_on_the_right_tasks():
    pair = [original(2, ONE, "one"), original(3, TWO, "two")]
    with pytest.raises(ValueError, match=ORDER):
        fsm.path(fsm.alone(pair, 0), fsm.alone(pair, 1), [TWO, ONE])


@pytest.mark.parametrize("limit", [0, -3])
def test_at_least_one_image_is_scored(limit):
    assert fsm.evaluate(original(2, ONE), [ONE], limit=1).joint in (0, 100)
    with pytest.raises(ValueError, match=f"limit must be a whole number >= 1, got {limit}"):
        fsm.evaluate(original(2, ONE), [ONE], limit)


def test_logits_that_are_not_finite():
    pair = [original(2, ONE, "one"), original(3, TWO, "two")]
    pair[1].head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="the logits of head 2 for the images of one are not finite; look for NaN"):
        fsm.evaluate(fsm.ensemble(pair), [ONE, TWO])


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range(label):
    class Bare:
        name = "bare"

        def test(self):
            return torch.zeros(3, 2), torch.tensor([0, 1, label])
    with pytest.raises(ValueError, match=r"task bare has labels from (-1 to 1|0 to 2), but head 1 has outputs 0 to 1"):
        fsm.evaluate(lambda x: x, [Bare()])


def test_a_task_without_test_images_is_named():
    class Empty:
        name = "empty"

        def test(self):
            return torch.zeros(0, 2), torch.zeros(0)
    with pytest.raises(ValueError, match="task empty has no test images"):
        fsm.evaluate(lambda x: x, [Empty()])
