"""A recipe: what is merged, on which pictures, how, and what it is held against; read from TOML and checked.

An entry that is wrong is refused by its name, with what was expected; a misspelt name with the nearest right one.
"""
import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path

from .entries import (
    BASELINES,
    SECTIONS,
    CalibrationEntry,
    OriginalEntry,
    RunEntry,
    StartEntry,
    SuperNetEntry,
    TrainingEntry,
    choice,
    list_of_texts,
    table,
)

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

TOP = ("method", "baselines", "originals", "sweep", *SECTIONS)
# What `method` sets. Every entry can still be set by hand.
METHODS = {
    "fitted": {},
    "paper": {"supernet": {"start": "paper_first"},
              "training": {"lr": 4e-3, "depths": (), "off_task": 0.0, "scaled": False, "warmup": 0.3,
                           "anneal": "linear", "clip": math.inf}},
}


class RecipeError(ValueError):
    """A recipe that cannot be run as it stands. The message names the entry."""


def nearest(name: object, known: Collection[str]) -> str:
    """The end of a message: the known name that is nearest, if one is near."""
    found = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


@dataclass(frozen=True)
class Recipe:
    """All of a recipe. `folder` is where its relative paths begin, `sweep` lists values of entries to try."""

    originals: tuple[OriginalEntry, ...]
    method: str = choice("fitted", "the defaults of what follows: ours, or the published method", tuple(METHODS))
    baselines: tuple[str, ...] = list_of_texts(("average", "distillation"), "what it is held against", BASELINES)
    calibration: CalibrationEntry = field(default_factory=CalibrationEntry)
    supernet: SuperNetEntry = field(default_factory=SuperNetEntry)
    start: StartEntry = field(default_factory=StartEntry)
    training: TrainingEntry = field(default_factory=TrainingEntry)
    run: RunEntry = field(default_factory=RunEntry)
    sweep: dict = table("lists of values by entry, such as \"supernet.rank\" = [4, 12]")
    name: str = "recipe"
    folder: Path = Path()
    given: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def label(self) -> str:
        """What tables call the merge."""
        return f"FS-Merge ({self.method})"

    @property
    def out(self) -> Path:
        return Path(self.run.out or Path("runs") / self.name)

    def cells(self) -> Iterator[tuple[dict, "Recipe"]]:
        """Every combination of the sweep's values with a seed, and the recipe with them in place."""
        for values in product(*self.sweep.values()):
            chosen = dict(zip(self.sweep, values))
            for seed in self.run.seeds:
                one = recipe_of(_with(self.given, chosen | {"run.seeds": [seed]}), self.name, self.folder)
                yield {**chosen, "seed": seed}, replace(one, sweep={})

    def plain(self) -> dict:
        """The recipe in plain values, for cards and records; without the places of files."""
        values = asdict(self)
        return {key: values[key] for key in ("method", "originals", "calibration", "supernet", "start", "training")}


# ---------------------------------------------------------------- reading

def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from its TOML file; relative paths in it begin at the file's folder.

    Raises:
        FileNotFoundError: no such file.
        RecipeError: not TOML, or an entry that is unknown, missing or out of its range, by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}; recipes are TOML files, such as recipes/tour.toml")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    return recipe_of(given, path.stem, path.parent)


def recipe_of(given: Mapping, name: str = "recipe", folder: str | Path = ".") -> Recipe:
    """The recipe that a nested table says; see `read_recipe`."""
    _known(given, TOP, "a recipe")
    method = given.get("method", "fitted")
    preset = METHODS[_checked(Recipe, "method", method, "")]
    top = {key: _checked(Recipe, key, given[key], "") for key in ("baselines", "sweep") if key in given}
    sections = {}
    for section, kind in SECTIONS.items():
        sections[section] = read_table(kind, given.get(section, {}), section, preset.get(section, {}))
    recipe = Recipe(_originals(given), method, **top, **sections, name=name, folder=Path(folder), given=dict(given))
    _agree(recipe)
    return recipe


def read_table(kind: type, given: Mapping, where: str, preset: Mapping | None = None):
    """A `kind` from a table; entries that are not given are the preset's, else the default."""
    _known(given, [each.name for each in fields(kind)], where)
    return kind(**{**(preset or {}), **{name: _checked(kind, name, value, where) for name, value in given.items()}})


def _known(given: object, names: Sequence[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where} is {given!r}, expected a table")
    for name in given:
        if name not in names:
            raise RecipeError(f"{where} has no entry {name!r}{nearest(name, names)}. It may have {', '.join(names)}")


def _checked(kind: type, name: str, value: object, where: str) -> object:
    """The value of an entry, lists as tuples. Raises RecipeError where it does not fit."""
    metadata = next(each.metadata for each in fields(kind) if each.name == name)
    if not metadata["fits"](value):
        wrong = [x for x in value if x not in metadata["known"]] if isinstance(value, list) else [value]
        hint = nearest(wrong[0], metadata["known"]) if wrong and isinstance(wrong[0], str) else ""
        raise RecipeError(f"{where and where + '.'}{name} is {value!r}, expected {metadata['expected']}{hint}")
    return tuple(value) if isinstance(value, list) and not any(isinstance(x, dict) for x in value) else value


def _originals(given: Mapping) -> tuple[OriginalEntry, ...]:
    tables = given.get("originals", [])
    if not isinstance(tables, list) or len(tables) < 2:
        raise RecipeError("a recipe needs two or more tables [[originals]], one for each trained model; it has "
                          f"{len(tables) if isinstance(tables, list) else repr(tables)}")
    entries = []
    for i, each in enumerate(tables, 1):
        entries.append(read_table(OriginalEntry, each, f"originals {i}"))
        _one_model(entries[-1], f"originals {i}")
        first = 1 + entries.index(entries[-1])
        if first < i:
            raise RecipeError(f"originals {i} is the same as originals {first}; each model once")
    return tuple(entries)


def _one_model(original: OriginalEntry, where: str) -> None:
    """Refuse entries of an original that contradict each other."""
    def given(*names: str) -> list[str]:
        return [name for name in names if getattr(original, name)]
    models, pictures = given("shipped", "file", "timm"), given("task", "folder", "torchvision", "texts")
    if len(models) != 1:
        raise RecipeError(f"{where} needs one of shipped, file, timm; it has {' and '.join(models) or 'none'}")
    if len(pictures) > 1:
        raise RecipeError(f"{where} needs one of task, folder, torchvision, texts; it has {' and '.join(pictures)}")
    if original.timm and len(given("checkpoint", "pretrained")) != 1:
        raise RecipeError(f"{where} needs checkpoint = \"a file\" or pretrained = true for timm's {original.timm}: "
                          "without trained weights there is nothing to merge")
    if not original.timm and (wrong := given("checkpoint", "pretrained", "arguments")):
        raise RecipeError(f"{where} has {', '.join(wrong)}, which go with timm, not with {models[0]}")
    if original.timm and not pictures:
        raise RecipeError(f"{where} needs the pictures of its task: one of task, folder, torchvision")
    if original.torchvision and not original.root:
        raise RecipeError(f"{where} needs root: the folder of torchvision's {original.torchvision}")
    if (original.mean is None) != (original.std is None):
        raise RecipeError(f"{where} needs both mean and std, or neither")
    if not original.timm and original.mean:
        raise RecipeError(f"{where} has mean and std, which go with timm: those of {models[0]} are absorbed already")


def _agree(recipe: Recipe) -> None:
    """Refuse sections that contradict each other, and a sweep whose values do not fit."""
    net, fitted = recipe.supernet, recipe.supernet.start == "fitted"
    if net.shared and net.structure != "diagonal_low_rank":
        raise RecipeError(f"supernet.shared goes with structure diagonal_low_rank, not with {net.structure}")
    if not fitted and "start" in recipe.given:
        raise RecipeError(f"the table [start] is of the fitted start, but supernet.start is {net.start!r}")
    heads = recipe.start.heads
    if heads and len(heads) != len(recipe.originals):
        raise RecipeError(f"start.heads has {len(heads)} shares, there are {len(recipe.originals)} originals")
    if not fitted and recipe.training.how == "none":
        raise RecipeError(f"training.how is 'none', but supernet.start is {net.start!r}: only the fitted start gives a "
                          "model without training")
    if "distillation, same time" in recipe.baselines and "distillation" not in recipe.baselines:
        raise RecipeError("the baseline 'distillation, same time' needs distillation beside it, whose seconds tell how "
                          "many steps fit")
    for key, values in recipe.sweep.items():
        _swept(recipe, key, values)


def _swept(recipe: Recipe, key: str, values: object) -> None:
    possible = [f"{section}.{each.name}" for section, kind in SECTIONS.items() if section != "run"
                for each in fields(kind)] + ["method"]
    if key not in possible:
        near = [name for name in possible if name.endswith(f".{key}")]
        hint = f"; did you mean {near[0]!r}?" if near else nearest(key, possible)
        raise RecipeError(f"sweep has no entry {key!r}{hint}. It may have \"SECTION.ENTRY\" of "
                          "calibration, supernet, start, training, and method")
    if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
        raise RecipeError(f"sweep.{key} is {values!r}, expected a list of one or more values, none twice")
    for value in values:
        recipe_of(_with({k: v for k, v in recipe.given.items() if k != "sweep"}, {key: value}), recipe.name)


def _with(given: Mapping, values: Mapping[str, object]) -> dict:
    """The nested table with other values at dotted names."""
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (changed.setdefault(section, {}) if section else changed)[name] = value
    return changed


def describe_entries() -> str:
    """All entries of a recipe: default, what it is for, what is expected."""
    kinds = {"": Recipe, "[[originals]]": OriginalEntry, **{f"[{name}]": kind for name, kind in SECTIONS.items()}}
    lines = []
    for title, kind in kinds.items():
        lines += ["", f"{title}  {kind.__doc__}"] if title else []
        for each in [each for each in fields(kind) if each.metadata]:
            default = each.default if each.default is not MISSING else each.default_factory()
            shown = "" if default in (None, {}) else f" = {list(default) if isinstance(default, tuple) else default}"
            lines.append(f"  {each.name}{shown}: {each.metadata['what']}; {each.metadata['expected']}")
    return "\n".join(lines)
