"""The entries of a recipe: the default of each, its range, and what it is for."""
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

BASELINES = ("average", "slerp", "regmean", "align", "align, then regmean", "align, orthogonal",
             "align, orthogonal, then regmean", "distillation", "distillation, same time", "distillation, our losses",
             "all weights from the fitted start", "FS-Merge (fitted), untrained")
STARTS = ("fitted", "first", "paper_first", "average", "random")
STRUCTURES = ("diagonal_low_rank", "diagonal", "low_rank", "full")
AUGMENTATIONS = ("light", "paper", "none")
FINITE = 1e300


# ---------------------------------------------------------------- kinds of entries

def entry(default: object, what: str, expected: str, fits: Callable[[object], bool], known: Collection[str] = ()):
    """An entry of a recipe: its default, what it is, what is expected of it, whether a value fits, names it may have.

    None, where it is the default, stands for "not given" and cannot be written in TOML.
    """
    metadata = {"what": what, "expected": expected, "fits": fits, "known": known}
    if isinstance(default, dict | list):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_number(value: object) -> bool:
    """An int or float that is a number; True is none."""
    return type(value) in (int, float) and not math.isnan(value)


def is_list(value: object, each: Callable[[object], bool]) -> bool:
    """Whether it is a list of values that each fit."""
    return isinstance(value, list | tuple) and all(map(each, value))


def whole(default: int | None, what: str, least: int = 0):
    """A whole number."""
    return entry(default, what, f"a whole number >= {least}", lambda v: type(v) is int and v >= least)


def number(default: float | None, what: str, positive: bool = False, most: float = FINITE):
    """A number from 0 on, or above 0."""
    expected = f"a number {'>' if positive else '>='} 0" + (f" and <= {most:g}" if most < FINITE else "")
    return entry(default, what, expected, lambda v: is_number(v) and 0 <= v <= most and not (positive and v == 0))


def flag(default: bool | None, what: str):
    """True or false."""
    return entry(default, what, "true or false", lambda v: type(v) is bool)


def text(default: str | None, what: str):
    """A text."""
    return entry(default, what, "a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))


def choice(default: str | None, what: str, names: Sequence[str]):
    """One of some names."""
    return entry(default, what, f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names, names)


def list_of_texts(default: tuple | None, what: str, names: Sequence[str] = ()):
    """A list of texts."""
    expected = "a list of texts, none twice" + (f", each one of: {'; '.join(names)}" if names else "")

    def fits(value: object) -> bool:
        right = is_list(value, lambda x: isinstance(x, str) and (not names or x in names))
        return right and len(set(value)) == len(value)
    return entry(default, what, expected, fits, names)


def wholes(default: tuple, what: str, least: int):
    """A list of whole numbers."""
    expected = f"a list of one or more whole numbers >= {least}, none twice"
    return entry(default, what, expected, lambda v: bool(v) and is_list(v, lambda x: type(x) is int and x >= least)
                 and len(set(v)) == len(v))


def numbers(what: str, positive: bool = False):
    """A list of numbers."""
    return entry(None, what, f"a list of numbers{' > 0' if positive else ''}",
                 lambda v: bool(v) and is_list(v, lambda x: is_number(x) and (not positive or x > 0)))


def table(what: str):
    """A table of whatever it is passed on to."""
    return entry({}, what, "a table", lambda v: isinstance(v, dict))


# ---------------------------------------------------------------- the entries

@dataclass(frozen=True)
class OriginalEntry:
    """One trained model: where it is, and the pictures of its task."""

    shipped: str | None = text(None, "a model that ships: digits, letters, shapes, textures, language, kind")
    file: str | None = text(None, "a file that Original.save wrote")
    timm: str | None = text(None, "the name of a timm model, such as vit_base_patch16_224")
    checkpoint: str | None = text(None, "its weights, .safetensors, or .pt that holds nothing but weights")
    pretrained: bool = flag(False, "fetch timm's own weights instead")
    arguments: dict = table("more arguments of timm.create_model, such as img_size")
    name: str | None = text(None, "what tables call it; by default the task's name")
    task: str | None = text(None, "an embedded task: digits, letters, shapes, textures; language, kind")
    folder: str | None = text(None, "a folder of pictures: train/CLASS/*, test/CLASS/*, or CLASS/*")
    texts: str | None = text(None, "a folder of text files: train/CLASS.txt, test/CLASS.txt, one text a line")
    torchvision: str | None = text(None, "a data set of torchvision, such as MNIST")
    root: str | None = text(None, "the folder of that data set")
    download: bool = flag(False, "let torchvision fetch it")
    unlabeled: str | None = text(None, "a folder of pictures without classes, to merge on instead of the task's")
    classes: tuple[str, ...] | None = list_of_texts(None, "names of the classes in the order of the head's outputs")
    mean: tuple[float, ...] | None = numbers("of the pictures it was trained on, a number a channel; default: timm's")
    std: tuple[float, ...] | None = numbers("likewise", positive=True)
    size: int | None = whole(None, "pixels a side, tokens of a text; by default what the model reads", 8)
    transform: str = choice("auto", "auto is timm's own for a timm model, else plain: resize and center crop",
                            ("auto", "timm", "plain"))


@dataclass(frozen=True)
class CalibrationEntry:
    """The unlabeled pictures that the merge is trained on."""

    images: int = whole(16, "pictures of each task", 1)
    augmented: int = whole(49, "augmented copies of each")
    augmentation: str | list = entry(
        "light", "a name, or a list of torchvision's transforms, such as [{name = \"RandomHorizontalFlip\", p = 0.5}]",
        f"one of {', '.join(AUGMENTATIONS)}, or a list of tables with a name",
        lambda v: v in AUGMENTATIONS if isinstance(v, str) else bool(v) and is_list(
            v, lambda x: isinstance(x, dict) and isinstance(x.get("name"), str)), AUGMENTATIONS)


@dataclass(frozen=True)
class SuperNetEntry:
    """The SuperNet: the form of M and U, their start, the width of the merged model."""

    rank: int = whole(12, "of the low-rank part of M and U", 1)
    structure: str = choice("diagonal_low_rank", "the form of M and U", STRUCTURES)
    shared: bool | None = flag(None, "one low rank for all originals, as in the paper; by default where it is possible")
    start: str = choice("fitted", "where M and U start; fitted is the closed form", STARTS)
    width: int | None = whole(None, "of the merged model; by default original 1's", 1)
    num_heads: int | None = whole(None, "attention heads of the merged model; by default original 1's", 1)


@dataclass(frozen=True)
class StartEntry:
    """Settings of the fitted start: `fit_subspaces`."""

    ridge: float = number(1e-2, "weight of the ridge", positive=True)
    off_task: float = number(0.2, "how much the output is to say nothing on other tasks' pictures")
    inner_off_task: float = number(0.02, "the same inside")
    floor: float = number(0.2, "the part of a token's weight that all tokens have", most=1)
    corrected: bool = flag(True, "whether layers make up for errors before them")
    heads: tuple[float, ...] | None = numbers("the originals' shares of the heads; by default by need", positive=True)


@dataclass(frozen=True)
class TrainingEntry:
    """The training of M and U, and of the baselines that train."""

    how: str = choice("global", "what is trained: all at once, block by block, one after the other, nothing",
                      ("global", "local", "both", "none"))
    steps: int = whole(300, "of global training, and of every baseline that trains", 1)
    local_steps: int = whole(60, "of local training, for each block", 1)
    lr: float = number(2e-3, "highest learning rate of M and U", positive=True)
    lr_distillation: float = number(2e-3, "of the baselines that train", positive=True)
    batch_size: int = whole(64, "pictures a step", 1)
    depths: str | list = entry("quarters", "after how many blocks inner features are rebuilt too",
                               "quarters, or a list of whole numbers >= 0, none twice",
                               lambda v: v == "quarters" or (is_list(v, lambda x: type(x) is int and x >= 0)
                                                             and len(set(v)) == len(v)), ("quarters",))
    inner: float = number(1.0, "their weight")
    off_task: float = number(0.2, "weight of the off-task term")
    scaled: bool = flag(True, "whether all originals' features are brought to one scale")
    precision: str = choice("fp32", "of the products of the forward", ("fp32", "bf16"))
    weight_decay: float = number(1e-3, "AdamW's")
    warmup: float = number(0.1, "the part of the steps in which the rate rises", most=1)
    anneal: str = choice("cos", "how the rate falls", ("cos", "linear"))
    clip: float = number(1.0, "the largest norm of the gradient; inf for none", positive=True, most=math.inf)


@dataclass(frozen=True)
class RunEntry:
    """Seeds, device, output."""

    seeds: tuple[int, ...] = wholes((0,), "of pictures and training; each gives a model", 0)
    device: str = choice("auto", "a GPU where there is one, or", ("auto", "cpu", "cuda"))
    out: str | None = text(None, "folder of the results; by default runs/ and the recipe's name")
    chance: str = choice("stop", "what to do if an original is at chance on its own task", ("stop", "go"))
    test_images: int = whole(1000, "at most so many test pictures of a task are scored", 1)


SECTIONS = {"calibration": CalibrationEntry, "supernet": SuperNetEntry, "start": StartEntry,
            "training": TrainingEntry, "run": RunEntry}
