"""The command line: python -m fsmerge_lite tour | originals | bench | doctor."""
import argparse
import os
import sys
from collections.abc import Sequence

from ..tasks.originals import load_originals
from ..tasks.task import EMBEDDED
from .experiments import EXPERIMENTS
from .machine import doctor
from .runner import run


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser("python -m fsmerge_lite", description="Merge trained transformers into one.")
    commands = main.add_subparsers(dest="command", required=True)
    tour = commands.add_parser("tour", help="the whole algorithm on shipped originals, compared and written up")
    tour.add_argument("--tasks", nargs="+", default=["digits", "letters"], choices=list(EMBEDDED), metavar="TASK",
                      help=f"two or more of {', '.join(EMBEDDED)}; the first is model 1 (default: digits letters)")
    tour.add_argument("--out", default="runs/tour", help="folder for model, figures and report (default: %(default)s)")
    tour.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    tour.add_argument("--seed", type=int, default=0)
    tour.add_argument("--steps", type=int, default=300, help="training steps a method (default: %(default)s)")
    tour.add_argument("--rank", type=int, default=12, help="of M and U (default: %(default)s)")
    tour.add_argument("--images", type=int, default=16, help="unlabeled images a task (default: %(default)s)")
    tour.add_argument("--augmented", type=int, default=49, help="augmented copies of each (default: %(default)s)")
    originals = commands.add_parser("originals", help="train the originals anew by the recipe (about 5 minutes each)")
    originals.add_argument("tasks", nargs="*", help=f"of {', '.join(EMBEDDED)} (default: all)")
    originals.add_argument("--out", default="runs/originals", help="folder for the models (default: %(default)s)")
    bench = commands.add_parser("bench", help="compare the methods on many pairs, numbers of images and seeds")
    bench.add_argument("name", choices=list(EXPERIMENTS), help="; ".join(
        f"{name}: {make.__doc__.strip()}" for name, make in EXPERIMENTS.items()))
    bench.add_argument("--out", default="runs/bench", help="folder for results and figures (default: %(default)s)")
    bench.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    bench.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time (default: one a core)")
    bench.add_argument("--small", action="store_true", help="a few steps on one cell, to try the road")
    commands.add_parser("doctor", help="versions, devices and data: for a bug report")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures are written, no window is opened
    try:
        if given.command == "tour":
            from .tour import run_tour  # draws figures: an extra
            run_tour(given.tasks, given.out, given.device, given.seed, given.steps, given.rank, given.images,
                     given.augmented)
        elif given.command == "originals":
            for original in load_originals(*given.tasks, retrain=True, folder=given.out):
                print(f"{original.name}: {original.card['accuracy']:.1f} %")
        elif given.command == "bench":
            from .results import write_results  # draws figures: an extra
            records = run(given.name, given.out, given.device, given.jobs, given.small)
            print(write_results(given.name, records, given.out))
        else:
            print(doctor())
    except ModuleNotFoundError as error:
        print(f"error: {error}; tour and bench need more: pip install 'fsmerge_lite[bench]'", file=sys.stderr)
        return 2
    except (ValueError, TypeError, FileNotFoundError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
