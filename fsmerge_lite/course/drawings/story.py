"""The drawings of lesson 00 (why one model) and lesson 13 (your own models), and the pictures and models of 13."""
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from ...bench import results, runner
from ...bench.figures import arrow, box
from ...bench.palette import BLUE, DARK, GREEN, GREY, MERGED, MODELS, NEUTRAL, ORANGE, style_of
from ...compare.evaluation import logits
from ...models import Original
from ...recipes.merging import merge
from ...recipes.recipe import RecipeError, read_recipe
from ...tasks.originals import DATA
from ...tasks.task import Task
from .parts import bare, canvas

LOWDATA = DATA.parents[1] / "benchmarks" / "results" / "lowdata.json"
ROWS = ("originals (k models)", "average", "distillation", "distillation, same time", "FS-Merge (paper)",
        "FS-Merge (fitted), untrained", "FS-Merge (fitted)")

# ---------------------------------------------------------------- lesson 00


def two_into_one(first: str = "digits", second: str = "letters") -> Figure:
    """Two backbones with a classification head each become one backbone with two classification heads."""
    figure, ax = canvas(20.7, 6.2, (12, 3.9))
    for y, i, color, task in ((4.5, 1, BLUE, first), (2.3, 2, ORANGE, second)):
        ax.text(0.2, y, task, va="center", fontsize=11)
        box(ax, 3.6, y, f"backbone {i}", color, 2.4, "--")
        box(ax, 6.9, y, f"classification\nhead {i}", color, 2.4, "--")
        arrow(ax, (1.6, y), (2.3, y))
        arrow(ax, (4.9, y), (5.6, y))
        box(ax, 15.2, y, f"$U_{{out,{i}}}$", GREEN, 1.3)
        box(ax, 17.9, y, f"classification\nhead {i}", color, 2.4, "--")
        arrow(ax, (13.55, 3.4 + 0.25 * (3 - 2 * i)), (14.45, y))
        arrow(ax, (15.95, y), (16.6, y))
        ax.text(19.35, y, task, va="center", fontsize=11)
    box(ax, 12.2, 3.4, "one backbone", MERGED, 2.5)
    arrow(ax, (8.4, 3.4), (10.8, 3.4))
    ax.text(9.6, 3.65, "merge", ha="center", va="bottom", fontsize=11)
    ax.text(4.5, 5.7, "two originals, trained separately", ha="center", fontsize=11)
    ax.text(15.0, 5.7, "one model, about the size of one original", ha="center", fontsize=11)
    ax.text(9.6, 0.75, "a few pictures without labels;\nthe task of each one is known", ha="center", va="top",
            fontsize=10)
    arrow(ax, (9.6, 0.95), (9.6, 3.1))
    ax.text(12.2, 4.95, "a picture\nof either task", ha="center", va="center", fontsize=10)
    arrow(ax, (12.2, 4.5), (12.2, 3.8))
    ax.text(16.6, 0.75, "$U_{out,i}$: output matrix, learned\ndashed: frozen", ha="center", va="top", fontsize=10)
    return figure


def heads_compete(names: Sequence[str], first: Tensor, second: Tensor, classes: Sequence[str]) -> Figure:
    """The logits of two classification heads for some images: the largest of the own one, and the largest of all.

    Args:
        names: the true class of each image, one of `classes`.
        first, second: the logits (n, c) of both heads.
        classes: the classes of both heads, in the order of the logits.
    """
    every, own = torch.cat([first, second], 1), first.shape[1]
    figure, ax = canvas(2.2 + len(classes) + 5.0, len(names) + 1.7, (9.6, 0.46 * (len(names) + 1.7)))
    for j, name in enumerate(classes):
        ax.text(2.7 + j + 0.4 * (j >= own), len(names) + 0.35, name, ha="center", fontsize=11,
                color=MODELS[int(j >= own)], weight="bold")
    for left, text, i in ((2.2, "classification head 1", 0), (2.6 + own, "classification head 2", 1)):
        ax.text(left + own / 2, len(names) + 1.05, text, ha="center", fontsize=11, color=MODELS[i])
    ax.text(2.2 + len(classes) + 1.4, len(names) + 0.35, "per task\n(dashed)", ha="center", fontsize=11)
    ax.text(2.2 + len(classes) + 3.4, len(names) + 0.35, "joint\n(solid)", ha="center", fontsize=11)
    for row, (name, values) in enumerate(zip(names, every)):
        _one_image(ax, len(names) - 0.5 - row, f"an image of {name}", values, own, classes, classes.index(name))
    return figure


def _one_image(ax: Axes, y: float, text: str, values: Tensor, own: int, classes: Sequence[str], right: int) -> None:
    """The row of one image: the own head's largest logit in a dashed frame, the largest of all in a solid one."""
    start, stop = (0, own) if right < own else (own, len(values))
    per_task, joint = start + values[start:stop].argmax().item(), values.argmax().item()
    ax.text(0.1, y, text, va="center", fontsize=11)
    for j, value in enumerate(values.tolist()):
        x = 2.2 + j + 0.4 * (j >= own)
        ax.add_patch(Rectangle((x + 0.06, y - 0.42), 0.88, 0.84, fc=MODELS[int(j >= own)] + "22", ec="none"))
        ax.text(x + 0.5, y, f"{value:g}", ha="center", va="center", fontsize=11)
        for winner, style, inset in ((joint, "-", 0.06), (per_task, "--", 0.13)):
            if j == winner:
                ax.add_patch(Rectangle((x + inset, y - 0.48 + inset), 1 - 2 * inset, 0.96 - 2 * inset, fc="none",
                                       ec=DARK, ls=style, lw=1.5))
    for x, winner in ((1.4, per_task), (3.4, joint)):
        ax.text(2.2 + len(values) + x, y, f"{classes[winner]} {'✓' if winner == right else '✗'}", ha="center",
                va="center", fontsize=11)


def test_logits(model: nn.Module, tasks: Sequence[Task]) -> list[tuple[list[Tensor], Tensor]]:
    """For each task, the logits of every classification head for its test images, and their labels."""
    return [(logits(model, images), labels) for images, labels in (task.test() for task in tasks)]


def shifted(found: Sequence[tuple[list[Tensor], Tensor]], names: Sequence[str], added_to_head_2: float = 0) -> Figure:
    """Both accuracies when a constant is added to all logits of classification head 2. `found`: `test_logits`."""
    figure, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
    own, right, total = [], 0, 0
    for i, (heads, labels) in enumerate(found):
        heads = [head + added_to_head_2 * (j == 1) for j, head in enumerate(heads)]
        hits = torch.cat(heads, 1).argmax(1) == labels + sum(head.shape[1] for head in heads[:i])
        own.append((100 * (heads[i].argmax(1) == labels).float().mean().item(), 100 * hits.float().mean().item()))
        right, total = right + hits.sum().item(), total + len(labels)
    own.append((sum(accuracy for accuracy, _ in own) / len(own), 100 * right / total))
    for i, (pair, color) in enumerate(zip(own, (*MODELS[:len(found)], GREY))):
        for shift, value, look in ((-0.2, pair[0], {"color": color}),
                                   (0.2, pair[1], {"color": "white", "ec": color, "hatch": "////"})):
            ax.bar_label(ax.bar(i + shift, value, 0.38, **look), fmt="%.1f", fontsize=9)
    counts = [f"{name}\n{len(labels)} images" for name, (_, labels) in zip(names, found)]
    ax.set_xticks(range(len(own)), [*counts, f"both\nmean of tasks | all {total} images"])
    ax.set(ylim=(0, 125), yticks=range(0, 101, 20), ylabel="test accuracy, %",
           title=f"{added_to_head_2:.3g} added to all logits of classification head 2")
    ax.legend(handles=[Patch(fc=DARK, label="per task"), Patch(fc="white", ec=DARK, hatch="////", label="joint")],
              frameon=False, ncols=2, loc="upper right")
    bare(ax)
    return figure


def costs(rows: Mapping[str, nn.Module], x: Tensor, rounds: int = 5) -> pd.DataFrame:
    """Parameters and milliseconds for the images x of some models, one row each. Of the times, the shortest."""
    table = {}
    for name, model in rows.items():
        seconds = []
        with torch.no_grad():
            for _ in range(rounds):
                start = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - start)
        table[name] = {"parameters": f"{sum(p.numel() for p in model.parameters()):,}",
                       f"ms for {len(x)} images": f"{1000 * min(seconds):.1f}"}
    return pd.DataFrame(table).T


def recorded(images: int) -> pd.DataFrame:
    """The benchmark `lowdata` for so many images per task: means and standard deviations over its 36 merges."""
    records = [r for r in runner.load_records(LOWDATA) if r["images"] == images]
    return results.summary(records).xs(images, level="images").loc[list(ROWS)]


def benchmark(scores: Mapping[str, pd.DataFrame], guessing: tuple[float, float] = (10, 5)) -> Figure:
    """Per-task and joint accuracy of methods with standard deviations: title of a panel -> rows from `recorded`."""
    figure, axes = plt.subplots(1, len(scores), figsize=(5.3 + 3.2 * len(scores), 4.8), sharey=True, squeeze=False,
                                layout="constrained")
    for ax, (title, rows) in zip(axes[0], scores.items()):
        y = np.arange(len(rows))[::-1]
        colors = [style_of(name)["color"] for name in rows.index]
        for shift, column, look in ((0.2, "mean", {"color": colors}),
                                    (-0.2, "joint", {"color": "white", "edgecolor": colors, "hatch": "////"})):
            ax.barh(y + shift, rows[column], 0.38, xerr=rows[f"{column}_std"], ecolor=DARK, capsize=2, **look)
            for place, value, spread in zip(y + shift, rows[column], rows[f"{column}_std"]):
                ax.text(value + spread + 2, place, f"{value:.1f}", va="center", fontsize=9)
        for chance, style in zip(guessing, (":", "--")):
            ax.axvline(chance, color=DARK, lw=1, ls=style)
        ax.set_yticks(y, rows.index)
        ax.set(title=title, xlim=(0, 118), xticks=range(0, 101, 20), xlabel="test accuracy, %")
        bare(ax)
    drawn = [Patch(fc=DARK, label="per task"), Patch(fc="white", ec=DARK, hatch="////", label="joint"),
             *(axes[0, 0].plot([], [], color=DARK, lw=1, ls=style, label=f"guessing, {name} ({chance:g} %)")[0]
               for chance, style, name in zip(guessing, (":", "--"), ("per task", "joint")))]
    figure.legend(handles=drawn, frameon=False, loc="outside lower center", ncols=4)
    return figure


# ---------------------------------------------------------------- lesson 13

def write_pictures(folder: Path, task: Task, classes: Sequence[str], n: int, seed: int = 0, flat: bool = False) -> None:
    """Save n pictures of some classes of a task as PNG: in a subfolder for each class, or `flat`, without classes."""
    images, labels = task.sample(4 * n, seed)
    chosen = [row for row, label in enumerate(labels.tolist()) if task.classes[label] in classes][:n]
    for row in chosen:
        place = folder if flat else folder / task.classes[labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(images[row] / 2 + 0.5).save(place / f"{row:04d}.png")


def trained_by_a_team(original: Original, task: Task, mean: Sequence[float], std: Sequence[float], steps: int = 60
                      ) -> nn.Module:
    """A plain timm classifier as a team makes it: a pretrained backbone, fine-tuned on (p - mean) / std.

    Its outputs are in the order of `task.classes`.
    """
    model = original.to_timm().requires_grad_(True).train()
    images, labels = task.sample(task.train_size)
    pixels = (images / 2 + 0.5 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.reset_classifier(len(task.classes))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[rows]), labels[rows]).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


def dry_run(recipe: Path) -> str:
    """What `python -m fsmerge_lite merge RECIPE --dry-run` says, or the message of the error with which it stops."""
    said: list[str] = []
    try:
        merge(read_recipe(recipe), dry_run=True, say=said.append)
    except RecipeError as error:
        return str(error)
    return "\n".join(said)


def road() -> Figure:
    """The way of own models: from timm models and folders of pictures to one model and back to timm."""
    figure, ax = canvas(21.2, 6.6, (12, 3.8))
    for y, i, color in ((4.6, 1, BLUE), (2.4, 2, ORANGE)):
        box(ax, 1.6, y, f"timm model {i}", color, 2.8, "--")
        box(ax, 5.9, y, f"Original {i}", color, 2.4, "--")
        arrow(ax, (3.1, y), (4.6, y))
        arrow(ax, (7.2, y), (8.4, 3.5 + 0.2 * (3 - 2 * i)))
        box(ax, 18.9, y, f"timm model, task {i}", MERGED, 3.7)
        arrow(ax, (15.7, 3.5 + 0.2 * (3 - 2 * i)), (16.9, y))
    ax.text(3.9, 3.5, "mean, std\nclass order", ha="center", va="center", fontsize=10)
    box(ax, 9.9, 3.5, "SuperNet", GREEN, 2.4)
    box(ax, 14.3, 3.5, "Merged", MERGED, 2.2)
    arrow(ax, (11.2, 3.5), (13.1, 3.5))
    ax.text(12.15, 3.75, "fold", ha="center", va="bottom", fontsize=10)
    ax.text(18.9, 3.5, "to_timm, export", ha="center", va="center", fontsize=10)
    for x, text in ((5.9, "labeled test pictures:\nis each original still good?"),
                    (9.9, "a few unlabeled\npictures of each task"),
                    (14.3, "labeled test pictures:\nper task and joint")):
        ax.text(x, 0.9, text, ha="center", va="top", fontsize=10)
        arrow(ax, (x, 1.0), (x, 3.1 if x > 6 else 2.0))
    for x, text in ((3.75, "what you have"), (11.0, "what FS-Merge does"), (18.9, "what you get")):
        ax.text(x, 6.1, text, ha="center", fontsize=11)
    return figure


def confusion(model: Callable, task: Task, i: int) -> Tensor:
    """The test pictures of a task by true class (rows) and by answer of head i (columns): counts."""
    images, labels = task.test()
    answers = logits(model, images)[i].argmax(1)
    c = len(task.classes)
    return torch.bincount(c * labels + answers, minlength=c * c).view(c, c)


def confusions(cases: Mapping[str, tuple[Tensor, Sequence[str]]], outputs: Sequence[str], columns: int = 3) -> Figure:
    """Confusion matrices in percent of each row: title -> counts, and the true classes in the order of the rows."""
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns + 0.9, 3.2 * rows), squeeze=False,
                                layout="constrained")
    for ax, (title, (counts, names)) in zip(axes.flat, cases.items()):
        percent = 100 * counts / counts.sum(1, keepdim=True)
        image = ax.imshow(percent, cmap="Greys", vmin=0, vmax=100)
        for (r, c), value in np.ndenumerate(percent.numpy()):
            if value >= 1:
                ax.text(c, r, f"{value:.0f}", ha="center", va="center", fontsize=8,
                        color="white" if value > 50 else "black")
        ax.set_title(title, fontsize=10)
        ax.set_xticks(range(len(outputs)), outputs, rotation=90, fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
    for ax in axes.flat[len(cases):]:
        ax.set_visible(False)
    figure.supylabel("true class", fontsize="medium")
    figure.supxlabel("answer", fontsize="medium")
    figure.colorbar(image, ax=axes, label="% of the row", shrink=0.6)
    return figure


def as_seen(pictures: Tensor, accuracy: Mapping[float, float], factor: float = 1) -> Figure:
    """What a model reads when its std is given `factor` times too large, and its accuracy for all factors.

    Args:
        pictures: (n, 3, H, W) in [-1, 1].
        accuracy: factor -> accuracy in percent.
        factor: one of them.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.9), width_ratios=(1.3, 1), layout="constrained")
    strip = torch.cat(list(pictures / factor), -1).movedim(0, -1)
    left.imshow((strip / 2 + 0.5).clamp(0, 1).cpu())
    left.set(xticks=[], yticks=[], title=f"what the backbone reads: contrast times {1 / factor:g}")
    right.plot(list(accuracy), list(accuracy.values()), color=NEUTRAL, marker="o", ms=5)
    right.plot(factor, accuracy[factor], color=BLUE, marker="o", ms=11)
    right.set_xscale("log", base=2)
    right.set_xticks(list(accuracy), [f"{f:g}" if f >= 1 else f"1/{1 / f:g}" for f in accuracy])
    right.set(xlabel="given std / true std", ylabel="accuracy of original 1, %", ylim=(0, 106),
              title=f"accuracy {accuracy[factor]:.1f} %")
    bare(right)
    return figure
