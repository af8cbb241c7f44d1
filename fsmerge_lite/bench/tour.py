"""The tour: two trained models in, one model out, and a table that compares methods."""
import base64
import html
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch

from ..compare.baselines import average, distill, ensemble
from ..compare.evaluation import Table, evaluate
from ..engine.files import write_whole
from ..engine.fitting import History
from ..engine.images import Calibration
from ..models import Merged
from ..start import fit_subspaces
from ..supernet import SuperNet
from ..tasks.calibration import calibration
from ..tasks.originals import load_originals
from ..training import train_global
from . import figures
from .machine import doctor, pick_device
from .methods import BATCH, DEPTHS, LR_DISTILL, LR_SUBSPACES, OFF_TASK

FOLD_BOUND = 1e-4  # fp32; features are of size 1


@dataclass
class Tour:
    """The results of a tour: table, merged model, error of the fold, training runs, seconds and written files."""

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
    """Merge shipped originals by averaging, distillation and FS-Merge; write model, figures and report.

    Args:
        names: two or more different embedded tasks; the first is model 1.
        out: the folder to write to.
        device: auto, cpu or cuda.
        seed: of images and training.
        steps: of distillation and of FS-Merge, each.
        rank: of M and U.
        per_task, augmented: unlabeled images per task, and augmented copies of each.
        progress: show bars; None shows them in a terminal or notebook.
        say: called with each line of text.

    Raises:
        ValueError: unknown or repeated tasks, or numbers outside their range.
        ArithmeticError: the folded model differs from its SuperNet.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"each task once, got {', '.join(names)}")
    start, device = time.perf_counter(), pick_device(device)
    originals = [o.to(device) for o in load_originals(*names)]
    net = SuperNet(originals, rank=rank, seed=seed, shared=True)
    images = calibration(originals, per_task, augmented, seed)
    say(f"originals: {', '.join(names)}, on {device}; {per_task} unlabeled images a task, "
        f"{augmented} augmented copies of each")
    table, merged, histories = _compare(net, images, steps, seed, progress)
    say(f"trained: distillation {sum(p.numel() for p in originals[0].backbone.parameters()):,} parameters, "
        f"FS-Merge {sum(p.numel() for p in net.parameters() if p.requires_grad):,}")
    tour = Tour(table, merged, fold_error(net, merged, images.images[:64].to(device)), histories,
                time.perf_counter() - start)
    write(tour, Path(out), {original.name: original.task.test()[0] for original in originals})
    say(str(tour))
    if tour.fold_error >= FOLD_BOUND:
        raise ArithmeticError(f"the folded model differs from its SuperNet by {tour.fold_error:.1e}")
    return tour


def _compare(net: SuperNet, images: Calibration, steps: int, seed: int, progress: bool | None
             ) -> tuple[Table, Merged, list[History]]:
    """Scores of all methods, the merged model, and the training runs of distillation and FS-Merge."""
    originals = net.originals
    tasks = [original.task for original in originals]
    table = Table({"originals (k models)": evaluate(ensemble(originals), tasks),
                   "average": evaluate(average(originals), tasks)})
    student = distill(originals, images, steps, LR_DISTILL, BATCH, seed=seed, progress=progress)
    table["distillation"] = evaluate(student, tasks)
    fit_subspaces(net, images, progress=progress)
    table["FS-Merge (fitted), untrained"] = evaluate(net.fold(), tasks)
    history = train_global(net, images, steps, LR_SUBSPACES, BATCH, seed=seed, progress=progress, depths=DEPTHS,
                           off_task=OFF_TASK)
    merged = net.fold()
    table["FS-Merge (fitted)"] = evaluate(merged, tasks)
    return table, merged, [student.history, history]


@torch.no_grad()
def fold_error(net: SuperNet, merged: Merged, x: torch.Tensor) -> float:
    """The largest difference between the features of the unfolded SuperNet and of the folded model, in true fp32."""
    with torch.backends.cudnn.flags(allow_tf32=False):  # by default, convolutions on a GPU keep 10 of 23 bits
        return max((a - b).abs().max().item() for a, b in zip(net(x, unfolded=True), merged.features(x)))


def write(tour: Tour, out: Path, examples: dict[str, torch.Tensor]) -> None:
    """Write merged model, figures and HTML report, each file atomically."""
    tour.merged.save(out / "merged", table={method: s.row() for method, s in tour.table.items()})
    with matplotlib.rc_context({"figure.dpi": 120}):
        drawn = {"tasks": figures.pictures(examples), "accuracy": figures.accuracies(tour.table),
                   "training": figures.histories(tour.histories).figure, "layer": figures.layer_diagram()}
        images = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, data in images.items():
        write_whole(out / f"{name}.png", data)
    write_whole(out / "report.html", report(tour, images).encode())
    tour.files = [out / "report.html", out / "merged.safetensors"]


CAPTIONS = {
    "tasks": "Test images of the tasks. Each original was fine-tuned on one task; the merge sees no labels.",
    "layer": "One layer of the SuperNet, and the plain layer that it folds into.",
    "training": "Reconstruction loss on the unlabeled images during training.",
    "accuracy": "Test accuracy. Dotted: chance for one task of ten classes.",
}


def report(tour: Tour, images: dict[str, bytes]) -> str:
    """One self-contained HTML page."""
    drawn = "".join(
        f'<figure><img alt="{text}" src="data:image/png;base64,{base64.b64encode(images[name]).decode()}">'
        f"<figcaption>{text}</figcaption></figure>" for name, text in CAPTIONS.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>fsmerge_lite: a tour</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}th,td{{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ccc}}
td:first-child{{text-align:left}}img{{max-width:100%}}figure{{margin:2rem 0}}figcaption{{color:#555}}</style>
<h1>Many models in, one out</h1>
<p>Test accuracy in percent. Per task, the right head is given. <em>joint</em> is the argmax over all heads.</p>
{tour.table._repr_html_()}
<p>Largest difference between the SuperNet's features and the folded model's: {tour.fold_error:.1e}.</p>
{drawn}
<h2>Made with</h2><pre>{html.escape(str(doctor()))}</pre></html>
"""
