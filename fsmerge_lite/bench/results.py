"""The results of a benchmark as pandas frames, as Markdown tables and as figures."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..architectures.vit import vit
from ..engine.files import write_whole
from . import figures
from .experiments import EXPERIMENTS
from .methods import cell_of

# The number that an experiment varies, and the label of its axis. A method's name may end in " @ number".
VARIED = {"many": ("k", "models"), "many_sweep": ("k", "models"), "widths": ("width", "width of the merged model"),
          "room": ("width", "width of the merged model"),
          "longer": ("steps", "training steps"), "text_sweep": ("total", "texts a task, with edited copies")}
MAIN = "FS-Merge (fitted)"
RIVALS = ("distillation", "distillation, same time", "FS-Merge (paper)", "align, orthogonal, then regmean",
          "FS-Merge (fitted), untrained")
LENT = ("distillation, our losses", "all weights from the fitted start", "distillation")
# Rows of the ablation that differ only in what is trained, and the two baselines.
TRAINED = ("fitted, diagonal", "fitted, rank 4", "FS-Merge (fitted)", "fitted, not shared", "fitted, rank 32",
           "all weights from the fitted start", "FS-Merge (paper)", "distillation")


def frame(records: Sequence[dict]) -> pd.DataFrame:
    """One row for each record. `tasks` is text: "digits, letters"."""
    return pd.DataFrame([{**r, **vars(cell_of(r)), "tasks": ", ".join(r["tasks"])} for r in records])


def summary(records: Sequence[dict], by: str = "images") -> pd.DataFrame:
    """Means over cells with index (method, `by`); `mean` and `joint` also have standard deviations (`mean_std`)."""
    rows = frame(records)
    rows["method"] = rows["method"].str.split(" @ ").str[0]
    groups = rows.groupby(["method", by])
    means = groups[["mean", "joint", "seconds", "trained", "training_steps"]].mean()
    means = means.join(groups[["mean", "joint"]].std().add_suffix("_std")).assign(cells=groups.size())
    return pd.concat([means.loc[[method]] for method in rows["method"].unique()])  # in the records' order


def points(mean: float, deviation: float, sign: str = "") -> str:
    """`mean ± deviation`, or only the mean where there is a single cell."""
    return f"{mean:{sign}.1f}" + ("" if pd.isna(deviation) else f" ± {deviation:.1f}")


def markdown(cells: pd.DataFrame) -> str:
    """A frame in Markdown: its index first, floats with one digit, nothing where a value is missing."""
    text = cells.reset_index().map(lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
    head, *rows = (f"| {' | '.join(row)} |" for row in (map(str, text), *text.replace("nan", "").to_numpy()))
    return "\n".join([head, "|" + "---|" * cells.index.nlevels + "---:|" * len(cells.columns), *rows])


def _side_by_side(cells: pd.DataFrame) -> pd.DataFrame:
    """From index (method, value) to one row for each method, with a group of columns for each value."""
    by, (first, *others) = cells.index.names[1], cells.columns
    groups = [part.droplevel(1).set_axis([f"{by} {value}: {first}", *others], axis=1)
              for value, part in cells.groupby(level=1)]
    return pd.concat(groups, axis=1).reindex(cells.index.unique(0))


def table(means: pd.DataFrame) -> str:
    """A summary in Markdown: accuracies in percent, trained parameters, seconds, number of cells."""
    scores = {name: [points(*row) for row in means[[column, f"{column}_std"]].to_numpy()]
              for name, column in (("per task", "mean"), ("joint", "joint"))}
    methods = means.groupby(level=0)
    return markdown(_side_by_side(pd.DataFrame(scores, means.index)).assign(
        trained=methods["trained"].mean().map("{:,.0f}".format), s=methods["seconds"].mean().map("{:.0f}".format),
        cells=methods["cells"].sum()))


def costs(means: pd.DataFrame) -> str:
    """A summary in Markdown: trained parameters, training steps and seconds."""
    names = {"trained": "trained", "training_steps": "steps", "seconds": "s"}
    return markdown(_side_by_side(means[list(names)].rename(columns=names).map("{:,.0f}".format)))


def ahead(records: Sequence[dict], method: str, other: str) -> pd.DataFrame:
    """`method` minus `other` in points: columns `mean` and `joint`, a row for each cell (the index) that has both."""
    cells = frame(records).set_index(list(vars(cell_of(records[0]))))
    first, second = (cells.loc[cells["method"] == name, ["mean", "joint"]] for name in (method, other))
    return (first - second).dropna()


def comparisons(records: Sequence[dict], method: str, others: Sequence[str]) -> str:
    """The lead of a method over others on the same cells, in Markdown."""
    rows = []
    for other in others:
        for images, lead in ahead(records, method, other).groupby("images"):
            wins = " and ".join(map(str, (lead > 0).sum()))
            rows.append([images, *(points(lead[column].mean(), lead[column].std(), "+") for column in lead),
                         f"{wins} of {len(lead)}", other])
    columns = ["images", "per task", "joint", "ahead in", f"{method} less"]
    return markdown(pd.DataFrame(rows, columns=columns).set_index(columns[-1]))


def _pivot(rows: pd.DataFrame, value: str, title: str, column: str, methods: Sequence[str]) -> pd.DataFrame:
    """Means of a value with index (title, method), titles and methods in their own order."""
    index = pd.MultiIndex.from_product([rows[title].unique(), methods], names=[title, "method"])
    return rows.pivot_table(value, [title, "method"], column).reindex(index)


def both_orders(records: Sequence[dict], methods: Sequence[str]) -> pd.DataFrame:
    """Mean per-task accuracy with index (pair, method), columns "as written" and "reversed" (second model first)."""
    pairs: dict[frozenset, str] = {}
    rows = frame(records)
    rows["pair"] = [pairs.setdefault(frozenset(r["tasks"]), ", ".join(r["tasks"])) for r in records]
    rows["order"] = (rows["pair"] == rows["tasks"]).map({True: "as written", False: "reversed"})
    return _pivot(rows, "mean", "pair", "order", methods).reindex(columns=["as written", "reversed"]).dropna()


def by_task(records: Sequence[dict], methods: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy on each task with index (task, method), a column for each number k of merged models."""
    rows = [{"task": task, "method": r["method"], "k": r["k"], "accuracy": accuracy}
            for r in sorted(records, key=lambda r: r["k"]) for task, accuracy in r["per_task"].items()]
    return _pivot(pd.DataFrame(rows), "accuracy", "task", "k", methods)


def by_merge(records: Sequence[dict], ordered: bool = False) -> str:
    """Per-task and joint accuracy of every merge in Markdown: `ordered`, or the mean over both orders of a pair."""
    rows = frame(records)
    rows["merge"] = rows["tasks"] if ordered else [", ".join(sorted(r["tasks"])) for r in records]
    tables = []
    for images, some in rows.groupby("images"):
        means = some.pivot_table(["mean", "joint"], "method", "merge", sort=False)
        cells = means["mean"].map("{:.1f}".format) + " / " + means["joint"].map("{:.1f}".format)
        tables.append(f"{images} images a task, per task / joint:\n\n{markdown(cells)}")
    return "\n\n".join(tables)


def kept_of(records: Sequence[dict]) -> pd.DataFrame:
    """Percent of the originals' mean accuracy that a merge keeps: index (tasks, method), a column for each width."""
    rows = frame(records)
    rows["method"] = rows["method"].str.split(" @ ").str[0]
    whole = rows[rows["method"].str.startswith("originals")].groupby("tasks")["mean"].mean()
    rows = rows[~rows["method"].str.startswith("originals")]
    return rows.assign(kept=100 * rows["mean"] / rows["tasks"].map(whole)).pivot_table(
        "kept", ["tasks", "method"], "width", sort=False)


@torch.no_grad()
def costs_of(models: Mapping[int, nn.Module], pixels: int = 32) -> pd.DataFrame:
    """What a model of each width has and takes, in those of the first: columns `weights` and `operations`.

    Operations are the multiplications of one forward of one image, as torch counts them.
    """
    rows = {}
    for width, model in models.items():
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, pixels, pixels))
        rows[width] = sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2
    costs = pd.DataFrame.from_dict(rows, orient="index", columns=["weights", "operations"])
    return (costs / costs.iloc[0]).rename_axis("width")


def write_results(name: str, records: Sequence[dict], out: str | Path) -> str:
    """Write `out`/NAME.md and the figures `out`/NAME-*.png of a benchmark's records. Returns the text."""
    by, label = VARIED.get(name, ("images", "real images a task"))
    means, drawn = summary(records, by), {}
    text = f"`python -m fsmerge_lite bench {name}`: {EXPERIMENTS[name].__doc__.strip()}\n\n{table(means)}\n"
    if name in ("lowdata", *VARIED) and not name.endswith("sweep"):
        drawn[by] = figures.against(means, label, log=by in ("images", "steps"))
    if name == "rivals":
        text += f"\n{comparisons(records, MAIN, LENT)}\n\n{by_merge(records)}\n"
    elif name == "heads":
        text += f"\nModel 1 stands first.\n\n{by_merge(records, ordered=True)}\n"
    elif name == "room":
        kept = kept_of(records)
        beside = costs_of({width: vit(dim=width, num_heads=width // 24) for width in kept.columns})
        text += f"\nPercent of the originals' accuracy that is kept:\n\n{markdown(kept)}\n"
        text += f"\nOne model of each width beside one original; k originals cost k:\n\n{markdown(beside)}\n"
        drawn = {"kept": figures.room(kept, beside["operations"])}
    elif name == "lowdata":
        text += f"\n{comparisons(records, MAIN, RIVALS)}\n\n{by_merge(records)}\n"
        orders = both_orders(records, ("distillation", "FS-Merge (paper)", MAIN))
        drawn |= {} if orders.empty else {"orders": figures.panels(orders)}
    elif name == "text":
        text += f"\n{comparisons(records, MAIN, RIVALS)}\n\nModel 1 stands first.\n"
        text += f"\n{by_merge(records, ordered=True)}\n"
        panels = means.swaplevel().rename(lambda images: f"{images} texts a task", level=0)
        drawn["bars"] = figures.bar_panels(panels, "%.1f", 6)
    elif name == "many":
        tasks = by_task(records, (MAIN, "FS-Merge (fitted), in sequence", "distillation, same time"))
        text += "\nAccuracy on each task after the merge of so many models:\n\n"
        text += f"{markdown(tasks.add_suffix(' models'))}\n"
        text += f"\nWhat it took:\n\n{costs(means)}\n"
        drawn["forgetting"] = figures.panels(tasks, label)
    elif name == "ablation":
        over_images = means.groupby(level=0, sort=False).mean()
        drawn = {"bars": figures.bars(over_images),
                 "parameters": figures.parameters(over_images.loc[list(TRAINED)])}
    for what, figure in drawn.items():
        write_whole(Path(out) / f"{name}-{what}.png", figures.png(figure))
    write_whole(Path(out) / f"{name}.md", text.encode())
    return text
