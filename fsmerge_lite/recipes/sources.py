"""From the entries of a recipe to models and pictures: originals, their tasks, the calibration images, the width."""
import os
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_state_dict
from torch import nn
from torchvision.transforms import v2

from ..architectures import architecture, build, describe
from ..engine.images import Calibration
from ..models import Original
from ..tasks.calibration import calibration
from ..tasks.embedded import KNOWN, task
from ..tasks.originals import DATA, load_original
from ..tasks.pictures import folder_task, torchvision_task, unlabeled_task
from ..tasks.task import Task
from ..tasks.texts import text_task
from .entries import OriginalEntry
from .recipe import Recipe, RecipeError, nearest

HALF = (0.5, 0.5, 0.5)


def place(recipe: Recipe, path: str) -> Path:
    """A path of a recipe: ~ and $VARIABLES are filled in, and a relative one begins at the recipe's folder.

    Raises:
        RecipeError: an environment variable that is not set.
    """
    filled = os.path.expandvars(os.path.expanduser(path))
    if "$" in filled:
        raise RecipeError(f"{path} names an environment variable that is not set; set it, or write the path out")
    return recipe.folder / filled


# ---------------------------------------------------------------- models

def load_all(recipe: Recipe) -> list[Original]:
    """The originals of a recipe on the CPU, each with its task.

    Raises:
        RecipeError: what is wrong with a file, a model or pictures, with the number of the original.
    """
    originals = []
    for i, given in enumerate(recipe.originals, 1):
        try:
            originals.append(_original(recipe, given))
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise RecipeError(f"originals {i}: {error}") from error
    return originals


def _original(recipe: Recipe, given: OriginalEntry) -> Original:
    if given.shipped:
        original = load_original(_shipped(given.shipped))
    elif given.file:
        original = load_original(place(recipe, given.file))
    else:
        original = Original(_timm_model(recipe, given).eval(), mean=given.mean, std=given.std)
    own = _task(recipe, given, original)
    original.task = own or original.task
    if original.task is None:
        raise RecipeError("the pictures of its task are not known; give task, folder, torchvision or texts")
    original.name = given.name or original.name or original.task.name
    _check(original)
    return original.eval()


def _shipped(name: str) -> Path:
    known = sorted(path.stem for path in DATA.glob("*.safetensors"))
    if name not in known:
        raise RecipeError(f"no model {name!r} ships{nearest(name, known)}. There are {', '.join(known)}")
    return DATA / name


def _timm_model(recipe: Recipe, given: OriginalEntry) -> nn.Module:
    """The timm model with its weights. Weights are read without running any code of the file."""
    check_timm(given.timm)
    try:
        if given.pretrained:
            return timm.create_model(given.timm, pretrained=True, **given.arguments)
        state = read_weights(place(recipe, given.checkpoint))
        return fill(partial(timm.create_model, given.timm, **given.arguments), state, given.checkpoint)
    except TypeError as error:
        raise RecipeError(f"timm's {given.timm} does not take {given.arguments}: {error}") from None


def check_timm(name: str) -> None:
    """Raise RecipeError for a model that timm does not have."""
    if name.split(".")[0] not in timm.list_models():
        raise RecipeError(f"timm has no model {name!r}{nearest(name, timm.list_models('*vit*'))}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a .safetensors file, or in a .pt or .pth file that holds nothing but weights.

    Raises:
        RecipeError: no such file, one that is damaged, or one that would have to run code.
    """
    if not path.is_file():
        raise RecipeError(f"there is no checkpoint {path}")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError, KeyError, pickle.PickleError) as error:
        if "weights_only" in str(error):
            raise RecipeError(f"{path} holds more than weights, and reading it would run code from it. Save "
                              "model.state_dict() with safetensors.torch.save_file or torch.save") from None
        raise RecipeError(f"{path} cannot be read as weights ({error}); it may be cut short") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RecipeError(f"{path} is no table of weights by name, such as model.state_dict() gives")
    return state


def fill(make, state: dict[str, torch.Tensor], path: str) -> nn.Module:
    """A timm model with these weights and as many classes as they have. Raises RecipeError where they do not fit."""
    name = make(num_classes=0).pretrained_cfg.get("classifier") or "head"
    head = state.get(f"{name}.weight")
    if head is None:
        raise RecipeError(f"{path} has no classifier: there is no {name}.weight among its weights. A merge needs the "
                          "head that was trained on the task")
    model = make(num_classes=len(head))
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own.keys() - state.keys()]
    wrong += [f"{key} is not in the model" for key in state.keys() - own.keys()]
    wrong += [f"{key} has shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
              for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if wrong:
        raise RecipeError(f"the weights in {path} do not fit the model: {'; '.join(sorted(wrong)[:5])}"
                          f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Check `timm` and `arguments`")
    model.load_state_dict(state)
    return model


# ---------------------------------------------------------------- pictures

def _task(recipe: Recipe, given: OriginalEntry, original: Original) -> Task | None:
    """The task that an entry names; None: it names none."""
    shape = architecture(original.backbone).input_shape(original.backbone)
    size, channels = given.size or shape[-1], shape[0] if shape[1:] else 0
    if given.task:
        if given.task not in KNOWN:
            raise RecipeError(f"there is no embedded task {given.task!r}{nearest(given.task, KNOWN)}. There are "
                              f"{', '.join(KNOWN)}; pictures of your own: folder, texts: texts")
        return task(given.task, size)
    if bool(channels) == bool(given.texts) and (given.texts or given.folder or given.torchvision or given.unlabeled):
        raise RecipeError("its model reads pictures, so give folder or torchvision, not texts" if channels else
                          "its model reads texts, so give texts, not folder, torchvision or unlabeled")
    if given.texts:
        return text_task(place(recipe, given.texts), size, given.name, recipe.run.test_images, given.classes)
    options = {"size": size, "channels": channels, "classes": given.classes, "test_size": recipe.run.test_images,
               "transform": _transform(given, original, size)}
    if given.folder:
        return folder_task(place(recipe, given.folder), name=given.name, **options)
    if given.torchvision:
        return torchvision_task(given.torchvision, place(recipe, given.root), name=given.name,
                                download=given.download, **options)
    return None


def _transform(given: OriginalEntry, original: Original, size: int):
    """What makes a picture (channels, size, size) in [-1, 1] of a PIL image; None: resize and center crop."""
    if given.transform == "plain" or (given.transform == "auto" and not given.timm):
        return None
    config = resolve_model_data_config(original.backbone)
    channels = architecture(original.backbone).input_shape(original.backbone)[0]
    return create_transform(input_size=(channels, size, size), interpolation=config["interpolation"],
                            crop_pct=config["crop_pct"], crop_mode=config["crop_mode"], mean=HALF[:1] * channels,
                            std=HALF[:1] * channels)


def _check(original: Original) -> None:
    """Refuse weights that are not finite, and a head of other classes than the task's."""
    bad = [name for name, p in original.named_parameters() if not p.isfinite().all()]
    if bad:
        raise RecipeError(f"{original.name} has weights that are not finite, in {bad[0]}")
    outputs = getattr(original.head, "out_features", None)
    if outputs is not None and outputs != len(original.task.classes):
        raise RecipeError(f"its head has {outputs} outputs, but its task {original.task.name} has "
                          f"{len(original.task.classes)} classes: {', '.join(original.task.classes)[:200]}")


def pictures(recipe: Recipe, originals: Sequence[Original]) -> Calibration:
    """The unlabeled images of a recipe with one seed."""
    tasks = []
    for given, original in zip(recipe.originals, originals):
        if given.unlabeled:
            tasks.append(unlabeled_task(place(recipe, given.unlabeled), original.task.size, original.task.name,
                                        _transform(given, original, original.task.size), original.task.channels))
        else:
            tasks.append(original.task)
    own = recipe.calibration
    return calibration(tasks, own.images, own.augmented, recipe.run.seeds[0], augmentation=_augmentation(recipe))


def _augmentation(recipe: Recipe):
    """The augmentation's name, or the transforms that the recipe lists."""
    given = recipe.calibration.augmentation
    if isinstance(given, str):
        return given
    transforms = []
    for entry in given:
        kind = getattr(v2, entry["name"], None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise RecipeError(f"calibration.augmentation: torchvision.transforms.v2 has no {entry['name']!r}"
                              f"{nearest(entry['name'], v2.__dict__)}")
        try:
            transforms.append(kind(**{key: value for key, value in entry.items() if key != "name"}))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"calibration.augmentation: {entry['name']} refuses {entry}: {error}") from None
    return transforms


# ---------------------------------------------------------------- the merged model's width

def into(recipe: Recipe, originals: Sequence[Original]) -> nn.Module | None:
    """A model of the merged model's width and heads; None: original 1's."""
    net = recipe.supernet
    if net.width is None and net.num_heads is None:
        return None
    config = describe(originals[0].backbone)
    changed = {"embed_dim": net.width or config["embed_dim"], "num_heads": net.num_heads or config["num_heads"]}
    if changed["embed_dim"] % changed["num_heads"]:
        raise RecipeError(f"supernet.width {changed['embed_dim']} is no multiple of its {changed['num_heads']} heads; "
                          "set supernet.num_heads too")
    return build(config | changed)
