"""The command line: python -m fsmerge_lite tour | merge | evaluate | export | train-original |
originals | bench | doctor.

Exit codes: 0 done, 2 refused with one line that says why, 130 stopped with Ctrl-C.
"""
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from ..architectures import architecture
from ..architectures.text import TextEncoder
from ..architectures.vit import vit
from ..bench.experiments import EXPERIMENTS, NO_OFF_TASK
from ..bench.machine import doctor, pick_device
from ..bench.methods import LR_DISTILL_TEXT
from ..bench.runner import run
from ..compare.evaluation import Table, evaluate
from ..engine import processes
from ..engine.files import check_writable, file_of, load_file
from ..engine.given import whole
from ..models import Original, load_merged
from ..tasks.embedded import EMBEDDED, KNOWN, task
from ..tasks.originals import load_originals, train_on
from ..tasks.originals import recipe as shipped_recipe
from ..tasks.pictures import folder_task, torchvision_task
from ..tasks.task import Task
from ..tasks.texts import TEXTS, text_task
from .export import export
from .merging import merge
from .recipe import Recipe, describe_entries, read_recipe, recipe_of
from .sources import check_timm, load_all

REFUSED, STOPPED = 2, 130


class Parser(argparse.ArgumentParser):
    """One that refuses with one line."""

    def error(self, message: str) -> None:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    main = Parser("python -m fsmerge_lite", description="Merge trained transformers into one.")
    commands = main.add_subparsers(dest="command", required=True)
    for add in (add_tour, add_merge, add_evaluate, add_export, add_train_original, add_originals, add_bench):
        add(commands)
    options = commands.add_parser("doctor", help="versions, devices and data: for a bug report")
    options.set_defaults(run=lambda given: print(doctor()))
    return main


# ---------------------------------------------------------------- each command: its options, and what it does

def add_tour(commands) -> None:
    options = commands.add_parser("tour", help="the whole algorithm on shipped originals, compared and written up")
    options.add_argument("--tasks", nargs="+", default=["digits", "letters"], choices=list(KNOWN), metavar="TASK",
                         help=f"two or more of {', '.join(EMBEDDED)}, or of {', '.join(TEXTS)}, which are of texts; "
                              "the first is model 1 (default: digits letters)")
    options.add_argument("--out", default="runs/tour", help="folder for model and report (default: %(default)s)")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=300, help="training steps a method (default: %(default)s)")
    options.add_argument("--rank", type=int, default=12, help="of M and U (default: %(default)s)")
    options.add_argument("--images", type=int, default=16, help="unlabeled images a task (default: %(default)s)")
    options.add_argument("--augmented", type=int, default=49, help="augmented copies of each (default: %(default)s)")
    options.set_defaults(run=tour)


def tour(given: argparse.Namespace) -> None:
    """The tour is a recipe of shipped originals, with the untrained start beside it."""
    start, training = {}, {"steps": given.steps}
    if given.tasks[0] in TEXTS:  # both tasks read the same names, see recipes/texts.toml
        start, training = NO_OFF_TASK, training | {"off_task": 0.0, "lr_distillation": LR_DISTILL_TEXT}
    recipe = recipe_of({
        "originals": [{"shipped": name} for name in given.tasks],
        "baselines": ["average", "distillation", "FS-Merge (fitted), untrained"],
        "calibration": {"images": given.images, "augmented": given.augmented}, "supernet": {"rank": given.rank},
        "start": start, "training": training,
        "run": {"out": given.out, "device": given.device, "seeds": [given.seed]}}, "tour")
    _finish(merge(recipe, overwrite=True))


def add_merge(commands) -> None:
    options = commands.add_parser("merge", help="merge your own models by a recipe",
                                  formatter_class=argparse.RawDescriptionHelpFormatter,
                                  epilog=f"The entries of a recipe:\n{describe_entries()}")
    options.add_argument("recipe", help="a TOML file, such as recipes/tour.toml")
    options.add_argument("--dry-run", action="store_true", help="check everything and print the plan; write nothing")
    options.add_argument("--out", help="folder of the results, instead of the recipe's")
    options.add_argument("--device", choices=["auto", "cpu", "cuda"], help="instead of the recipe's")
    options.add_argument("--seed", type=int, nargs="+", help="instead of the recipe's")
    options.add_argument("--overwrite", action="store_true", help="replace the models of another run in this folder")
    options.add_argument("--jobs", type=int, default=1, help="cells of a sweep at a time (default: %(default)s)")
    options.add_argument("--executor", help="dask for local workers, or the address of a Dask scheduler")
    options.set_defaults(run=merging)


def merging(given: argparse.Namespace) -> None:
    recipe = with_options(read_recipe(given.recipe), given)
    processes.join(cpu=recipe.run.device == "cpu")  # those that `accelerate launch` started
    say = print if processes.is_main() else lambda line: None
    _finish(merge(recipe, given.dry_run, given.overwrite, given.jobs, given.executor, say=say))
    processes.leave()


def with_options(recipe: Recipe, given: argparse.Namespace) -> Recipe:
    """The recipe with what the command line says instead."""
    options = {"out": given.out, "device": given.device, "seeds": given.seed}
    run = recipe.given.get("run", {}) | {name: value for name, value in options.items() if value is not None}
    return recipe_of({**recipe.given, "run": run}, recipe.name, recipe.folder)


def _finish(results) -> None:
    if results.files and processes.is_main():
        print(f"written: {', '.join(map(str, results.files))}")


def add_evaluate(commands) -> None:
    options = commands.add_parser("evaluate", help="score a merged model on the tasks of a recipe")
    options.add_argument("model", help="a merged model's .safetensors file")
    options.add_argument("recipe", help="the recipe that it was made by")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.set_defaults(run=scoring)


def scoring(given: argparse.Namespace) -> None:
    merged = load_merged(given.model).to(pick_device(given.device))
    tasks = [original.task for original in load_all(read_recipe(given.recipe))]
    print(Table({Path(given.model).stem: evaluate(merged, tasks)}))


def add_export(commands) -> None:
    options = commands.add_parser("export", help="a merged model as plain timm checkpoints, one for each task")
    options.add_argument("model", help="a merged model's .safetensors file")
    options.add_argument("--out", default="runs/export", help="folder for the checkpoints (default: %(default)s)")
    options.add_argument("--onnx", action="store_true", help="ONNX files too")
    options.set_defaults(run=exporting)


def exporting(given: argparse.Namespace) -> None:
    _, card = load_file(given.model, "fsmerge_lite.Merged")
    for path in export(load_merged(given.model), given.out, classes=card.get("classes"), onnx=given.onnx):
        print(path)


def add_train_original(commands) -> None:
    options = commands.add_parser("train-original", help="train a model of your own on your own pictures or texts")
    pictures = options.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--folder", help="of pictures: train/CLASS/*, test/CLASS/*, or CLASS/*")
    pictures.add_argument("--torchvision", metavar="NAME", help="a data set of torchvision, such as MNIST")
    pictures.add_argument("--texts", help="a folder of texts, one a line: train/CLASS.txt and test/CLASS.txt")
    pictures.add_argument("--task", choices=list(KNOWN), help="an embedded task")
    options.add_argument("--root", help="the folder of torchvision's data set")
    options.add_argument("--timm", metavar="NAME", help="a timm VisionTransformer (default: a small one)")
    options.add_argument("--pretrained", action="store_true", help="begin with timm's own weights")
    options.add_argument("--size", type=int, help="pixels a side, tokens of a text (default: timm's own, or 32)")
    options.add_argument("--steps", type=int, default=2000, help="(default: %(default)s)")
    options.add_argument("--lr", type=float, default=1e-3, help="(default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of initialization and pictures (default: %(default)s)")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.add_argument("--out", required=True, help="file for the model")
    options.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    options.set_defaults(run=training)


def training(given: argparse.Namespace) -> None:
    check_writable(file_of(given.out))
    if file_of(given.out).exists() and not given.overwrite:
        raise ValueError(f"{file_of(given.out)} is there already; give another --out, or --overwrite")
    size = 32 if given.size is None else given.size
    whole(8, size=size)
    whole(seed=given.seed)
    torch.manual_seed(given.seed)
    find = _text_model if given.texts or given.task in TEXTS else _picture_model
    backbone, own = find(given, size)
    original = train_on(own, backbone, given.steps, given.lr, given.batch_size, seed=given.seed,
                        device=pick_device(given.device), checkpoint=f"{given.out}.training")
    original.save(given.out)
    Path(f"{given.out}.training").unlink(missing_ok=True)
    print(f"{original.name}: {original.card['accuracy']:.1f} % on its test set; written: {file_of(given.out)}")


def _text_model(given: argparse.Namespace, size: int) -> tuple[torch.nn.Module, Task]:
    if given.timm:
        raise ValueError(f"timm's {given.timm} reads pictures; for texts leave --timm out")
    encoder = TextEncoder(**shipped_recipe("language")["architecture"] | {"max_length": size})  # as those that ship
    return encoder, text_task(given.texts, size) if given.texts else task(given.task, size)


def _picture_model(given: argparse.Namespace, size: int) -> tuple[torch.nn.Module, Task]:
    if given.timm:
        check_timm(given.timm)
        options = {} if given.size is None else {"img_size": given.size}
        model = timm.create_model(given.timm, pretrained=given.pretrained, num_classes=0, **options)
        backbone = Original(model.eval()).backbone.requires_grad_(True)  # it reads pictures in [-1, 1]
    else:
        if size % 4:
            raise ValueError(f"size must be a multiple of 4 for a small model, got {size}")
        backbone = vit(img_size=size, patch_size=size // 4)
    channels, size, _ = architecture(backbone).input_shape(backbone)
    own = (task(given.task, size) if given.task else folder_task(given.folder, size, channels=channels)
           if given.folder else torchvision_task(given.torchvision, given.root or ".", size, channels=channels))
    return backbone, own


def add_originals(commands) -> None:
    options = commands.add_parser("originals", help="train the originals anew by the recipe (about 5 minutes each)")
    options.add_argument("tasks", nargs="*", help=f"of {', '.join(KNOWN)} (default: the first four)")
    options.add_argument("--out", default="runs/originals", help="folder for the models (default: %(default)s)")
    options.set_defaults(run=originals)


def originals(given: argparse.Namespace) -> None:
    for original in load_originals(*given.tasks, retrain=True, folder=given.out):
        print(f"{original.name}: {original.card['accuracy']:.1f} %")


def add_bench(commands) -> None:
    options = commands.add_parser("bench", help="compare the methods on many pairs, numbers of images and seeds")
    options.add_argument("name", choices=list(EXPERIMENTS), help="; ".join(
        f"{name}: {make.__doc__.strip()}" for name, make in EXPERIMENTS.items()))
    options.add_argument("--out", default="runs/bench", help="folder for results and figures (default: %(default)s)")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time (default: one a core)")
    options.add_argument("--small", action="store_true", help="a few steps on one cell, to try the road")
    options.set_defaults(run=bench)


def bench(given: argparse.Namespace) -> None:
    from ..bench.results import write_results  # draws figures: an extra
    records = run(given.name, given.out, given.device, given.jobs, given.small)
    print(write_results(given.name, records, given.out))


# ---------------------------------------------------------------- running one

def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures are written, no window is opened
    try:
        given.run(given)
    except KeyboardInterrupt:
        return _say("stopped; what was finished is kept, and the same command goes on from there", STOPPED)
    except ModuleNotFoundError as error:
        more = "" if "pip install" in str(error) else "; this command needs more: pip install 'fsmerge_lite[bench]'"
        return _say(f"error: {error}{more}", REFUSED)
    except (ValueError, TypeError, OSError, ArithmeticError, NotImplementedError) as error:
        return _say(f"error: {error}", REFUSED)
    return 0


def _say(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code
