"""The originals: models pretrained from different random initializations, each fine-tuned on its own task.

They ship in `data/originals`, one safetensors file and one JSON card each; `recipe.json` there says how
they are made, and `load_originals(..., retrain=True)` makes them anew by it.
"""
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drawing import jitter
from .evaluation import evaluate
from .fitting import fit
from .models import Original, load_original, vit
from .tasks import EMBEDDED, Task, task

DATA = Path(__file__).resolve().parent.parent / "data" / "originals"
REFRESH = 250  # steps after which drawn tasks give new training images


def load_originals(*names: str, retrain: bool = False, folder: str | Path | None = None,
                   progress: bool | None = None) -> list[Original]:
    """The trained models of these embedded tasks: those that ship, or made anew.

    Args:
        names: of digits, letters, shapes, textures; none gives all four.
        retrain: train by the recipe (minutes each on a CPU) and save the models under `folder`.
        folder: where the files are; by default `data/originals`, and `runs/originals` when retraining.
        progress: show a bar while training; None shows it in a terminal or notebook.

    Raises:
        ValueError: no such task, or a damaged file.
        FileNotFoundError: the folder has no such original.
    """
    tasks = [task(name) for name in names or EMBEDDED]
    if retrain:
        folder = Path(folder or "runs/originals")
        for each in tasks:
            train_original(each, recipe(), progress).save(folder / each.name)
    return [load_original(Path(folder or DATA) / each.name) for each in tasks]


def recipe() -> dict:
    """How the shipped originals were made: architecture, seeds, steps and learning rates."""
    return json.loads((DATA / "recipe.json").read_text())


def train_original(own: Task, how: dict, progress: bool | None = None, seed: int | None = None,
                   mixture: Sequence[Task] | None = None, device: torch.device | str = "cpu",
                   checkpoint: str | Path | None = None) -> Original:
    """Pretrain a ViT on the mixture of all tasks from its own random initialization, then fine-tune it on `own`.

    Args:
        own: the task to be good at; your own folders too.
        how: a recipe as in `data/originals/recipe.json`, from `recipe()`.
        progress: show a bar; None shows it in a terminal or notebook.
        seed: of the initialization and the images; by default the recipe's for this task, or one made of its name.
        mixture: what to pretrain on; by default the embedded tasks that the recipe names, in its size.
        device: to train on.
        checkpoint: a file name; a killed run resumes from `checkpoint`.pretrain and `checkpoint`.finetune.

    Raises:
        ValueError: the task's pictures are of another size than the recipe's model reads.
    """
    if own.size != how["architecture"]["img_size"]:
        raise ValueError(f"{own!r} has pictures of another size than the recipe's {how['architecture']['img_size']}")
    seed = how["seeds"].get(own.name, zlib.crc32(own.name.encode())) if seed is None else seed
    mixture = mixture or [task(name, own.size) for name in how["mixture"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = vit(**how["architecture"])
        broad = nn.Linear(backbone.embed_dim, sum(len(t.classes) for t in mixture))
        head = nn.Linear(backbone.embed_dim, len(own.classes))
    for phase, classifier, tasks in (("pretrain", broad, mixture), ("finetune", head, [own])):
        model = nn.Sequential(backbone, classifier).train().to(device)
        settings = dict(how[phase])
        loss = classification(model, tasks, settings.pop("batch_size"), seed=1 + seed)
        fit(model.parameters(), loss, name=f"{own.name}: {phase}", progress=progress,
            checkpoint=checkpoint and f"{checkpoint}.{phase}", **settings)
    original = Original(backbone.eval(), head, own.name, own).eval()
    original.card = {"accuracy": round(evaluate(original, [own]).mean, 2), "seed": seed, "recipe": how}
    return original


def classification(model: nn.Module, tasks: Sequence[Task], batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """The cross entropy of a step, on a batch drawn in equal parts from the tasks, all their classes side by side."""
    offsets = [sum(len(t.classes) for t in tasks[:i]) for i in range(len(tasks))]
    share, pools, device = batch_size // len(tasks), [], next(model.parameters()).device

    def loss(step: int) -> Tensor:
        if step % REFRESH == 0 or not pools:  # drawn tasks never show a picture for long
            sizes = [min(share * REFRESH, t.train_size or share * REFRESH) for t in tasks]
            pools[:] = [t.sample(n, seed=1000 * seed + step - step % REFRESH) for t, n in zip(tasks, sizes)]
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)  # of the step alone: a run can resume
        images, labels = [], []
        for each, offset, (x, y) in zip(tasks, offsets, pools):
            rows = torch.randint(len(x), (share,), generator=generator)
            images.append(jitter(x[rows], generator) if each.train_size else x[rows])
            labels.append(y[rows] + offset)
        return F.cross_entropy(model(torch.cat(images).to(device)), torch.cat(labels).to(device))
    return loss
