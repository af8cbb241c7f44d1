"""What is looked at before any long work: every original on its own task, the pictures, the size of the merge."""
import math
from collections.abc import Callable, Sequence

import torch

from ..compare.alignment import equal_originals
from ..compare.evaluation import evaluate
from ..engine.images import Calibration
from ..models import Original, feature_size
from ..start import check_shares
from ..supernet import SuperNet
from ..tasks.pictures import inspect_folder
from ..training import train_global
from .recipe import Recipe, RecipeError
from .sources import place

SAMPLE = 3  # training steps that are timed for the plan
MB = 2 ** 20


def inspect(recipe: Recipe, originals: Sequence[Original], images: Calibration, say: Callable[[str], None]) -> None:
    """Print what goes into the merge, and how good each original is on its own task.

    Raises:
        RecipeError: an original that is at chance, unless the recipe says chance = "go".
    """
    at_chance = []
    for i, (given, original) in enumerate(zip(recipe.originals, originals), 1):
        for path in filter(None, (given.folder, given.unlabeled)):
            say(f"{path}: {inspect_folder(place(recipe, path))}")
        accuracy, chance, doubtful = _own_task(original)
        normalized = f", mean {original.mean}, std {original.std}" if original.task.channels else ""  # not for texts
        say(f"original {i}: {original.name}, {_count(original):,} parameters, width {feature_size(original.backbone)}; "
            f"{original.task}{normalized}; "
            f"{accuracy:.1f} % on its own task (chance {chance:.0f} %)")
        if doubtful:
            at_chance.append(f"original {i}, {original.name}, has {accuracy:.1f} % on its own task, and chance is "
                             f"{chance:.0f} %")
    say(f"merged on {len(images):,} unlabeled images, {recipe.calibration.images} of each task and "
        f"{recipe.calibration.augmented} augmented copies of each ({recipe.calibration.augmentation})")
    if at_chance and recipe.run.chance == "stop":
        raise RecipeError(f"{'; '.join(at_chance)}. Are mean and std, the order of the classes and the transform those "
                          "of its training? To merge it all the same, set chance = \"go\" in [run]")


def _own_task(original: Original) -> tuple[float, float, bool]:
    """Accuracy and chance in percent, and whether one is as good as the other: within three standard deviations."""
    labels = original.task.test()[1]
    accuracy = evaluate(original, [original.task]).mean
    chance = (labels.bincount().max() / len(labels)).item()  # of always naming the most frequent class
    spread = 3 * math.sqrt(chance * (1 - chance) / len(labels))
    return accuracy, 100 * chance, accuracy <= 100 * (chance + spread)


def plan(recipe: Recipe, originals: Sequence[Original], images: Calibration, net: SuperNet,
         say: Callable[[str], None]) -> None:
    """Print the size of the merge and the memory that its parts take."""
    learned, merged = sum(p.numel() for p in net.parameters() if p.requires_grad), net.fold()
    backbone, size = _count(merged.backbone), next(merged.parameters()).element_size()
    say(f"merge: {recipe.label}, start {recipe.supernet.start}, about {learned:,} numbers to train; the merged "
        f"backbone has {backbone:,} parameters, width {feature_size(merged.backbone)}")
    say(f"memory without activations: originals {sum(map(_count, originals)) * size / MB:,.0f} MB, M and U with "
        f"gradients and optimizer {4 * learned * size / MB:,.0f} MB, merged model {backbone * size / MB:,.0f} MB, "
        f"images {images.images.nbytes / MB:,.0f} MB")


def possible(recipe: Recipe, originals: Sequence[Original], net: SuperNet) -> None:
    """Refuse a start or baselines that these originals do not admit. Raises ValueError, which says why."""
    if recipe.supernet.start == "fitted":
        check_shares(net)
    students = [name for name in recipe.baselines if name in ("distillation", "distillation, same time")]
    if students and len({feature_size(original.backbone) for original in originals}) > 1:
        raise RecipeError(f"the originals' features are of different widths; leave out {' and '.join(students)}")
    equal = [name for name in recipe.baselines if "fitted" not in name and "distillation" not in name]
    try:
        if equal:
            equal_originals(originals)
    except ValueError as error:
        raise RecipeError(f"{error}. Leave out the baselines that need equal widths: {', '.join(equal)}") from None


def estimate(recipe: Recipe, images: Calibration, net: SuperNet, say: Callable[[str], None]) -> None:
    """Time a few steps, and print how long all of the training may take. The net is trained by it."""
    training, cells = recipe.training, len(list(recipe.cells()))
    rows = torch.cat([(images.owner == i).nonzero()[:training.batch_size, 0] for i in range(len(net.originals))])
    some = Calibration(images.images[rows], images.owner[rows])
    history = train_global(net, some, SAMPLE, 1e-9, training.batch_size, progress=False)
    step = history.seconds[-1] - history.seconds[-2]
    blocks = (len(net.graph.readouts) + 1) * training.local_steps
    steps = {"none": 0, "global": training.steps, "local": blocks, "both": blocks + training.steps}[training.how]
    say(f"a training step takes {step:.2g} s here; {cells} merge{'s' * (cells > 1)} of {steps} steps: about "
        f"{cells * steps * step / 60:.1f} minutes, and the start and the baselines "
        f"({', '.join(recipe.baselines) or 'none'}) besides")


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
