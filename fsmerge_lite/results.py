"""What a benchmark found: means over cells, tables in Markdown, figures."""
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from . import plots
from .experiments import EXPERIMENTS, cell_of
from .files import write_whole

COLUMNS = ("mean", "joint", "seconds", "trained", "training_steps")
# Rows of the ablation that differ in what is trained, and in nothing else, and what they are compared with.
TRAINED = ("FS-Merge, diagonal", "FS-Merge, rank 4", "subspaces, inner, quiet = FS-Merge", "FS-Merge, rank 32",
           "subspaces, inner, quiet, all weights", "first (paper)", "distillation")
# The number that an experiment varies, and what the axis is called; a method's name may end in " @ number".
VARIED = {"many": ("k", "models"), "widths": ("width", "width of the merged model"),
          "longer": ("steps", "training steps")}


def summary(records: Sequence[dict], by: str = "images") -> dict[str, dict]:
    """method -> value of `by` -> number of cells, and (mean, standard deviation) over them of each of `COLUMNS`."""
    cells: dict[str, dict] = {}
    for record in sorted(records, key=lambda r: r[by]):
        cells.setdefault(record["method"].split(" @ ")[0], {}).setdefault(record[by], []).append(record)
    order = dict.fromkeys(r["method"].split(" @ ")[0] for r in records)
    return {method: {value: {"cells": len(rows)} | {column: _spread([r[column] for r in rows]) for column in COLUMNS}
                     for value, rows in cells[method].items()} for method in order}


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def points(spread: tuple[float, float], sign: str = "") -> str:
    """`mean ± deviation`, or the mean alone of a single cell."""
    mean, deviation = spread
    return f"{mean:{sign}.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def table(found: dict[str, dict], by: str = "images") -> str:
    """A summary in Markdown: per-task mean and joint accuracy in percent, mean and standard deviation over cells."""
    values = sorted({value for rows in found.values() for value in rows})
    lines = ["| method | " + " | ".join(f"{by} {v}: per task | joint" for v in values) + " | trained | s | cells |",
             "|---|" + "---:|" * (2 * len(values) + 3)]
    for method, rows in found.items():
        cells = [points(rows[v][c]) if v in rows else "" for v in values for c in ("mean", "joint")]
        trained, seconds = (statistics.fmean(row[c][0] for row in rows.values()) for c in ("trained", "seconds"))
        count = sum(row["cells"] for row in rows.values())
        lines.append(f"| {method} | {' | '.join(cells)} | {trained:,.0f} | {seconds:.0f} | {count} |")
    return "\n".join(lines)


def ahead(records: Sequence[dict], method: str, other: str, column: str) -> dict[int, list[float]]:
    """By number of images: `method` - `other` in points, for every cell that has both."""
    cells = [{cell_of(r): r for r in records if r["method"] == name} for name in (method, other)]
    made: dict[int, list[float]] = {}
    for cell in sorted((cell for cell in cells[0] if cell in cells[1]), key=lambda cell: cell.images):
        made.setdefault(cell.images, []).append(cells[0][cell][column] - cells[1][cell][column])
    return made


def comparisons(records: Sequence[dict], method: str, others: Sequence[str]) -> str:
    """By how many points a method is ahead of others on the same cells, in Markdown."""
    lines = [f"| {method} less | images | per task | joint | ahead in |", "|---|---:|---:|---:|---:|"]
    for other in others:
        gaps = [ahead(records, method, other, column) for column in ("mean", "joint")]
        for images in gaps[0]:
            by = [points(_spread(gap[images]), "+") for gap in gaps]
            wins = [str(sum(point > 0 for point in gap[images])) for gap in gaps]
            lines.append(f"| {other} | {images} | {' | '.join(by)} | {' and '.join(wins)} of "
                         f"{len(gaps[0][images])} |")
    return "\n".join(lines)


def both_orders(records: Sequence[dict], methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """pair -> method -> mean per-task accuracy as written and with the second model first, over images and seeds."""
    pairs = list(dict.fromkeys(tuple(r["tasks"]) for r in records))
    made = {}
    for pair in (pair for n, pair in enumerate(pairs) if pair[::-1] in pairs[n + 1:]):
        made[", ".join(pair)] = {method: {name: statistics.fmean(
            r["mean"] for r in records if tuple(r["tasks"]) == order and r["method"] == method)
            for name, order in (("as written", pair), ("reversed", pair[::-1]))} for method in methods}
    return made


def by_task(records: Sequence[dict], methods: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """task -> method -> number of merged models -> mean accuracy on that task: what later models make it forget."""
    found: dict[str, dict] = {}
    for record in sorted(records, key=lambda r: r["k"]):
        for name, accuracy in record["per_task"].items():
            found.setdefault(name, {}).setdefault(record["method"], {}).setdefault(record["k"], []).append(accuracy)
    return {name: {method: {k: statistics.fmean(values) for k, values in rows[method].items()} for method in methods}
            for name, rows in found.items()}


def forgetting(found: dict[str, dict[str, dict[int, float]]]) -> str:
    """What `by_task` gives, in Markdown."""
    ks = sorted({k for rows in found.values() for line in rows.values() for k in line})
    lines = ["| task | method | " + " | ".join(f"{k} models" for k in ks) + " |", "|---|---|" + "---:|" * len(ks)]
    for name, rows in found.items():
        lines += [f"| {name} | {method} | " + " | ".join(f"{line[k]:.1f}" if k in line else "" for k in ks) + " |"
                  for method, line in rows.items()]
    return "\n".join(lines)


def costs(found: dict[str, dict], by: str) -> str:
    """What a summary's methods took, in Markdown: numbers trained, training steps and mean seconds."""
    values = sorted({value for rows in found.values() for value in rows})
    lines = ["| method | " + " | ".join(f"{by} {v}: trained | steps | s" for v in values) + " |",
             "|---|" + "---:|" * (3 * len(values))]
    for method, rows in found.items():
        cells = [f"{rows[v][c][0]:,.0f}" if v in rows else "" for v in values for c in ("trained", "training_steps",
                                                                                     "seconds")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_results(name: str, records: Sequence[dict], out: str | Path) -> str:
    """Write `out`/NAME.md and the figures `out`/NAME-*.png of a benchmark's records; gives the text."""
    by, label = VARIED.get(name, ("images", "real images a task"))
    found, figures = summary(records, by), {}
    text = f"`python -m fsmerge_lite bench {name}`: {EXPERIMENTS[name].__doc__.strip()}\n\n{table(found, by)}\n"
    if name == "lowdata":
        others = ("distillation", "distillation, same time", "distillation, inner, quiet", "FS-Merge, first", "average")
        text += f"\n{comparisons(records, 'FS-Merge', others)}\n"
        figures["images"] = plots.against(found, label, log=True)
        if pairs := both_orders(records, ("distillation", "FS-Merge, first", "FS-Merge")):
            figures["orders"] = plots.panels(pairs)
    elif name == "ablation":
        figures |= _ablation_figures(found)
    elif name in VARIED:
        figures[by] = plots.against(found, label, log=by == "steps")
    if name == "many":
        tasks = by_task(records, ("FS-Merge", "FS-Merge, in sequence", "distillation, same time"))
        text += f"\nAccuracy on each task after the merge of so many models:\n\n{forgetting(tasks)}\n"
        text += f"\nWhat it took:\n\n{costs(found, by)}\n"
        figures["forgetting"] = plots.panels(tasks, label)
    for what, figure in figures.items():
        write_whole(Path(out) / f"{name}-{what}.png", plots.png(figure))
    write_whole(Path(out) / f"{name}.md", text.encode())
    return text


def _ablation_figures(found: dict[str, dict]) -> dict[str, Figure]:
    """All rows as bars, and accuracy against trained numbers; means over numbers of images."""
    columns = ("mean", "joint", "trained")
    over = {method: [statistics.fmean(row[column][0] for row in rows.values()) for column in columns]
            for method, rows in found.items()}
    return {"bars": plots.bars({method: (mean, joint) for method, (mean, joint, _) in over.items()}),
            "parameters": plots.parameters({method: (over[method][2], sum(over[method][:2]) / 2)
                                            for method in TRAINED})}
