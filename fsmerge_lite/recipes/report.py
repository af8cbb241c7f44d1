"""What is written about a recipe that has run: table, figures, and one HTML page with all of it."""
import base64
import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from ..bench import figures
from ..bench.machine import doctor
from ..bench.results import markdown
from ..compare.evaluation import Scores
from ..engine.files import write_whole
from ..engine.fitting import History
from ..models import Original
from ..tasks.texts import decode
from .recipe import Recipe

CAPTIONS = {
    "tasks": "Test inputs of the tasks. The merge sees no labels.",
    "layer": "One layer of the SuperNet, and the plain layer that it folds into.",
    "training": "Reconstruction loss on the unlabeled pictures during training.",
    "accuracy": "Test accuracy. Per task, the right head is given. Joint is the argmax over all heads.",
    "sweep": "Test accuracy of the merge against what was varied; bars are standard deviations over seeds.",
}
CURVES = 6  # training curves in one figure


def frame(recipe: Recipe, records: Sequence[dict]) -> pd.DataFrame:
    """One row for each record of the recipe: the values of the sweep, seed, method, accuracies in percent, seconds.

    Records of other runs in the same folder are left out.
    """
    cells = [values for values, _ in recipe.cells()]
    rows = [{**r["values"], "method": r["method"], **r["per_task"], "mean": r["mean"], "joint": r["joint"],
             "seconds": r["seconds"]} for r in records if r["values"] in cells]
    return pd.DataFrame(rows)


def scores(recipe: Recipe, records: Sequence[dict]) -> pd.DataFrame:
    """Means over seeds: index (values of the sweep ..., method), a column for each task, mean, joint, seconds."""
    rows = frame(recipe, records).drop(columns="seed")
    for key in recipe.sweep:
        rows[key] = rows[key].astype(str)  # lists can be swept too
    return rows.groupby([*recipe.sweep, "method"], sort=False).mean()


def drawn(recipe: Recipe, records: Sequence[dict], originals: Sequence[Original]) -> dict[str, Figure]:
    """The figures of a report by name."""
    found = scores(recipe, records)
    made = {"tasks": _tasks(originals), "layer": figures.layer_diagram(), "accuracy": _accuracy(found, originals)}
    curves = [History(**curve) for r in records for curve in r.get("curves", [])]
    if curves:
        made["training"] = figures.histories(curves[:CURVES]).figure
    if recipe.sweep:
        made["sweep"] = _swept(recipe, records)
    return made


def _tasks(originals: Sequence[Original]) -> Figure:
    """Test pictures or texts of every task. Token ids of a vocabulary of your own are shown as bytes all the same."""
    if all(original.task.channels for original in originals):
        return figures.pictures({o.name: o.task.test()[0] for o in originals})
    return figures.texts({o.name: decode(o.task.test()[0][:8]) for o in originals})


def _accuracy(found: pd.DataFrame, originals: Sequence[Original]) -> Figure:
    """Bars by method; means over all values of a sweep."""
    means = found.groupby(level="method", sort=False).mean()
    if len(originals) > 3:
        return figures.bars(means)
    tasks = means.columns[:len(originals)]
    table = {method: Scores({task: row[task] for task in tasks}, row["joint"]) for method, row in means.iterrows()}
    numbers = {len(original.task.classes) for original in originals}
    return figures.accuracies(table, 100 / numbers.pop() if len(numbers) == 1 else None)


def _swept(recipe: Recipe, records: Sequence[dict]) -> Figure:
    """Accuracy against the one number that was varied, or bars for all combinations of values."""
    rows, keys = frame(recipe, records), list(recipe.sweep)
    if len(keys) == 1 and all(type(value) in (int, float) for value in recipe.sweep[keys[0]]):
        groups = rows.groupby(["method", keys[0]], sort=False)[["mean", "joint"]]
        return figures.against(groups.mean().join(groups.std().add_suffix("_std")), keys[0])
    own = scores(recipe, records).xs(recipe.label, level="method")[["mean", "joint"]]
    return figures.bars(own.set_axis([", ".join(row if isinstance(row, tuple) else [row]) for row in own.index]))


def write(recipe: Recipe, records: Sequence[dict], originals: Sequence[Original], said: Sequence[str]) -> list[Path]:
    """Write table.md, the figures and report.html into the folder of the results. Returns the files."""
    text = markdown(scores(recipe, records))
    with matplotlib.rc_context({"figure.dpi": 120}):
        images = {name: figures.png(figure) for name, figure in drawn(recipe, records, originals).items()}
    for name, data in images.items():
        write_whole(recipe.out / f"{name}.png", data)
    write_whole(recipe.out / "table.md", (text + "\n").encode())
    write_whole(recipe.out / "report.html", page(recipe, records, images, said).encode())
    return [recipe.out / "report.html", recipe.out / "table.md"]


def page(recipe: Recipe, records: Sequence[dict], images: dict[str, bytes], said: Sequence[str]) -> str:
    """One self-contained HTML page."""
    pictures = "".join(
        f'<figure><img alt="{CAPTIONS[name]}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{CAPTIONS[name]}</figcaption></figure>" for name, data in images.items())
    errors = [r["fold_error"] for r in records if "fold_error" in r]
    table = scores(recipe, records).to_html(float_format="%.1f", border=0)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>fsmerge_lite: {html.escape(recipe.name)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}th,td{{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ccc}}
th{{text-align:left}}img{{max-width:100%}}figure{{margin:2rem 0}}figcaption{{color:#555}}
pre{{white-space:pre-wrap}}</style>
<h1>{html.escape(recipe.name)}: {len(recipe.originals)} models in, one out</h1>
<p>Test accuracy in percent. Per task, the right head is given; <em>mean</em> is over the tasks. <em>joint</em> is the
argmax over all heads.</p>
{table}
<p>Largest difference between the SuperNet's features and the folded model's, in units of their size:
{max(errors, default=float("nan")):.1e}.</p>
{pictures}
<h2>What went in</h2><pre>{html.escape(chr(10).join(said))}</pre>
<h2>Made with</h2><pre>{html.escape(str(doctor()))}</pre></html>
"""
