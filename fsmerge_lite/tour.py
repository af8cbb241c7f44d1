"""The main job from end to end: two trained models in, one model out, and the table that compares."""
import base64
import html
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch

from . import diagrams, plots
from .baselines import average, distill, ensemble
from .evaluation import Table, evaluate
from .experiments import BATCH, DEPTHS, LR_DISTILL, LR_SUBSPACES, QUIET
from .files import write_whole
from .fitting import History
from .machine import doctor, pick_device
from .models import Merged
from .originals import load_originals
from .subspace import fit_subspaces
from .supernet import SuperNet
from .tasks import calibration
from .training import train_global

FOLD_BOUND = 1e-4  # fp32; features are of size 1


@dataclass
class Tour:
    """What a tour found: the table, the merged model, the fold's error, the training runs and the seconds."""

    table: Table
    merged: Merged
    fold_error: float
    histories: list[History]
    seconds: float
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "equal" if self.fold_error < FOLD_BOUND else "NOT EQUAL"
        return (f"{self.table}\n\nfolded and SuperNet: {verdict} (largest difference {self.fold_error:.1e})\n"
                f"{self.seconds:.0f} s; written: {', '.join(str(f) for f in self.files)}")


def run_tour(names: Sequence[str] = ("digits", "letters"), out: str | Path = "runs/tour", device: str = "auto",
             seed: int = 0, steps: int = 300, rank: int = 12, per_task: int = 16, augmented: int = 49,
             progress: bool | None = None, say=print) -> Tour:
    """Merge shipped originals by averaging, distillation and FS-Merge, compare, and write model, figures, report.

    Args:
        names: two or more embedded tasks, each once; the first is model 1.
        out: the folder to write to.
        device: auto, cpu or cuda.
        seed: of images and training.
        steps: of distillation and of FS-Merge, each.
        rank: of M and U.
        per_task, augmented: unlabeled images a task, and augmented copies of each.
        progress: show bars; None shows them in a terminal or notebook.
        say: called with each line of text.

    Raises:
        ValueError: unknown or repeated tasks, or numbers outside their range.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"each task once, got {', '.join(names)}")
    start, out, device = time.perf_counter(), Path(out), pick_device(device)
    originals = [o.to(device) for o in load_originals(*names)]
    tasks = [o.task for o in originals]
    torch.manual_seed(seed)  # for the noise in the low-rank parts
    net = SuperNet(originals, rank=rank)
    images = calibration(originals, per_task, augmented, seed)
    say(f"originals: {', '.join(names)}, on {device}; {per_task} unlabeled images a task, "
        f"{augmented} augmented copies of each")
    table = Table({"originals (k models)": evaluate(ensemble(originals), tasks),
                   "average": evaluate(average(originals), tasks)})
    student = distill(originals, images, steps, LR_DISTILL, BATCH, seed=seed, progress=progress)
    table["distillation"] = evaluate(student, tasks)
    fit_subspaces(net, images, progress=progress)
    table["FS-Merge, untrained"] = evaluate(net.fold(), tasks)
    history = train_global(net, images, steps, LR_SUBSPACES, BATCH, seed=seed, progress=progress, depths=DEPTHS,
                           quiet=QUIET)
    merged = net.fold()
    table["FS-Merge"] = evaluate(merged, tasks)
    say(f"trained: distillation {sum(p.numel() for p in student.backbone.parameters()):,} parameters, "
        f"FS-Merge {sum(p.numel() for p in net.parameters() if p.requires_grad):,}")
    found = Tour(table, merged, fold_error(net, merged, images.images[:64].to(device)),
                 [student.history, history], time.perf_counter() - start)
    write(found, out, {name: task.test()[0] for name, task in zip(names, tasks)})
    say(str(found))
    if found.fold_error >= FOLD_BOUND:
        raise ArithmeticError(f"the folded model differs from its SuperNet by {found.fold_error:.1e}")
    return found


@torch.no_grad()
def fold_error(net: SuperNet, merged: Merged, x: torch.Tensor) -> float:
    """The largest difference between the features of the explicit SuperNet and of its fold, in true fp32."""
    with torch.backends.cudnn.flags(allow_tf32=False):  # a GPU's default for convolutions keeps 10 bits of 23
        return max((a - b).abs().max().item() for a, b in zip(net(x, explicit=True), merged.features(x)))


def write(tour: Tour, out: Path, examples: dict[str, torch.Tensor]) -> None:
    """Merged model, figures and HTML report, each there as a whole or not at all."""
    tour.merged.save(out / "merged", table={method: s.row() for method, s in tour.table.items()})
    with matplotlib.rc_context({"figure.dpi": 120}):
        figures = {"tasks": plots.pictures(examples), "accuracy": plots.accuracies(tour.table),
                   "training": plots.histories(tour.histories).figure, "layer": diagrams.layer_diagram()}
        images = {name: plots.png(figure) for name, figure in figures.items()}
    for name, data in images.items():
        write_whole(out / f"{name}.png", data)
    write_whole(out / "report.html", report(tour, images).encode())
    tour.files = [out / "report.html", out / "merged.safetensors"]


CAPTIONS = {
    "tasks": "Test images of the tasks. Each original was fine-tuned on one of them; the merge sees no label.",
    "layer": "One layer of the SuperNet, and what it folds into.",
    "training": "Reconstruction loss on the unlabeled images while training.",
    "accuracy": "Test accuracy; dotted: chance for one task of ten classes.",
}


def report(tour: Tour, images: dict[str, bytes]) -> str:
    """One HTML page with everything in it."""
    figures = "".join(
        f'<figure><img alt="{text}" src="data:image/png;base64,{base64.b64encode(images[name]).decode()}">'
        f"<figcaption>{text}</figcaption></figure>" for name, text in CAPTIONS.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>fsmerge_lite: a tour</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}th,td{{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ccc}}
td:first-child{{text-align:left}}img{{max-width:100%}}figure{{margin:2rem 0}}figcaption{{color:#555}}</style>
<h1>Many models in, one out</h1>
<p>Test accuracy in percent. Per task the right head is given; <em>joint</em> is the argmax over all heads.</p>
{tour.table._repr_html_()}
<p>Largest difference between the SuperNet's features and the folded model's: {tour.fold_error:.1e}.</p>
{figures}
<h2>Made with</h2><pre>{html.escape(str(doctor()))}</pre></html>
"""
