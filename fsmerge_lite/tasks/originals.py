"""The originals: models pretrained from different random initializations, each fine-tuned on its own task.

They ship in `data/originals`, one safetensors file each; `recipe.json` there says how they are made, and
`load_originals(..., retrain=True)` makes them anew by it.
"""
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import architecture
from ..architectures.text import TextEncoder
from ..architectures.vit import vit
from ..compare.evaluation import evaluate
from ..engine import given, processes
from ..engine.files import check_writable, file_of
from ..engine.fitting import Checkpoint, fit
from ..engine.images import are_texts
from ..models import Original, feature_size, read_original
from .drawing import SIZE, jitter
from .embedded import EMBEDDED, KNOWN, task
from .task import Task
from .texts import TEXTS, edited


def _data() -> Path:
    """The folder of what ships: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    folders = [folder / "data" for folder in (package.parent, package)]
    return next((folder for folder in folders if (folder / "originals" / "recipe.json").is_file()), folders[0])


DATA = _data() / "originals"
NEEDED = dict.fromkeys(("architecture", "seeds", "mixture", "pretrain", "finetune")).keys()  # in a recipe
REFRESH = 250  # steps after which drawn tasks give new training images


def load_originals(*names: str, retrain: bool = False, folder: str | Path | None = None,
                   progress: bool | None = None) -> list[Original]:
    """The trained models of these embedded tasks: those that ship, or made anew.

    Args:
        names: of digits, letters, shapes, textures, language, kind; none gives the first four, which read pictures.
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
            check_writable(file_of(folder / each.name))
        for each in tasks:
            train_original(each, recipe(each.name), progress).save(folder / each.name)
        processes.gather()  # by now process 0 has written the last file
    return [load_original(Path(folder or DATA) / each.name) for each in tasks]


def load_original(path: str | Path) -> Original:
    """Read an `Original` that was saved, with its task if that is an embedded one.

    Raises:
        FileNotFoundError, ValueError: no such file, or it is not whole or not of this format.
    """
    original = read_original(path)
    if original.card.get("task") in KNOWN:
        original.task = task(original.card["task"], original.card.get("size") or SIZE)
    return original


def recipe(name: str = "digits") -> dict:
    """How the shipped original of a task was made: architecture, seeds, steps and learning rates."""
    return json.loads((DATA / ("recipe_texts.json" if name in TEXTS else "recipe.json")).read_text())


def train_original(own: Task, config: dict, progress: bool | None = None, seed: int | None = None,
                   mixture: Sequence[Task] | None = None, device: torch.device | str = "cpu",
                   checkpoint: str | Path | None = None) -> Original:
    """Pretrain a model on the mixture of all tasks from its own random initialization, then fine-tune it on `own`.

    Args:
        own: the task to be good at; your own folders too.
        config: a recipe as in `data/originals/recipe.json`, from `recipe()`. With a vocab_size it is of texts. A phase
            may have `dropout` and `edits`, see `set_dropout` and `classification`.
        progress: show a bar; None shows it in a terminal or notebook.
        seed: of the initialization and the images; by default the recipe's for this task, or one made of its name.
        mixture: what to pretrain on; by default the embedded tasks that the recipe names, in its size.
        device: to train on.
        checkpoint: a file name; a killed run resumes from `checkpoint`.pretrain and `checkpoint`.finetune.

    Raises:
        ValueError: the task's pictures or texts are of another size than the recipe's model reads.
    """
    _check_task(own)
    if not isinstance(config, dict) or not config.keys() >= NEEDED:
        raise ValueError(f"config must be a recipe as in data/originals/recipe.json, with {', '.join(NEEDED)}; got "
                         f"{config!r}")
    seed = config["seeds"].get(own.name, zlib.crc32(own.name.encode())) if seed is None else seed
    given.whole(seed=seed)
    given.device(device)
    mixture = mixture or [task(name, own.size) for name in config["mixture"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = (TextEncoder if "vocab_size" in config["architecture"] else vit)(**config["architecture"])
        _check_shape(own, backbone)
        broad = nn.Linear(feature_size(backbone), sum(len(t.classes) for t in mixture))
        head = nn.Linear(feature_size(backbone), len(own.classes))
    for phase, classifier, tasks in (("pretrain", broad, mixture), ("finetune", head, [own])):
        model = _Classifier(backbone, classifier).train().to(device)
        settings = dict(config[phase])
        if "dropout" in settings:
            set_dropout(model, settings.pop("dropout"))
        loss = classification(model, tasks, settings.pop("batch_size"), 1 + seed, settings.pop("edits", 0.1))
        run = {"phase": phase, "seed": seed, "tasks": [repr(t) for t in tasks], **config[phase]}
        fit(model.parameters(), loss, name=f"{own.name}: {phase}", progress=progress, **settings,
            checkpoint=checkpoint and Checkpoint(f"{checkpoint}.{phase}", run, model))
    original = Original(backbone.eval(), head, own.name, own).eval()
    original.card = {"accuracy": round(evaluate(original, [own]).mean, 2), "seed": seed, "recipe": config}
    return original


def train_on(own: Task, backbone: nn.Module, steps: int = 2000, lr: float = 1e-3, batch_size: int = 64,
             weight_decay: float = 0.05, seed: int = 0, precision: str = "fp32", progress: bool | None = None,
             device: torch.device | str = "cpu", checkpoint: str | Path | None = None) -> Original:
    """Train a backbone of your own, random or pretrained, with a new head on one task.

    Args:
        own: the task.
        backbone: a model without classifier that reads pictures in [-1, 1] of the task's size; it is trained in place.
        steps, lr, batch_size, weight_decay, precision: of AdamW under a one-cycle schedule, see `fit`.
        seed: of the head and the images.
        progress: show a bar; None shows it in a terminal or notebook.
        device: to train on.
        checkpoint: a file that a killed run resumes from.

    Raises:
        ValueError: a task without classes or of another size than the model reads, or a number outside its range.
    """
    _check_task(own)
    given.whole(1, batch_size=batch_size)
    given.whole(seed=seed)
    given.device(device)
    given.finite(next(backbone.parameters()), "the first weight of the backbone")
    if getattr(backbone, "num_classes", 0):
        raise ValueError(f"the backbone has a classifier of {backbone.num_classes} classes, and gets a head of its own "
                         "here; take it off with reset_classifier(0)")
    _check_shape(own, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(feature_size(backbone), len(own.classes)).to(next(backbone.parameters()))
    model = _Classifier(backbone, head).train().to(device)
    settings = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "precision": precision}
    run = {"seed": seed, "tasks": [repr(own)], "batch_size": batch_size, **settings}
    fit(model.parameters(), classification(model, [own], batch_size, seed=1 + seed), name=own.name, progress=progress,
        **settings, checkpoint=checkpoint and Checkpoint(checkpoint, run, model))
    original = Original(backbone.eval(), head, own.name, own).eval()
    original.card = {"accuracy": round(evaluate(original, [own]).mean, 2), "classes": list(own.classes), **run}
    return original


class _Classifier(nn.Sequential):
    """A backbone and a head: logits (B, classes). BERT itself gives more than features."""

    def forward(self, x: Tensor) -> Tensor:
        backbone, head = self
        return head(architecture(backbone).run(backbone, x))


def _check_shape(own: Task, backbone: nn.Module) -> None:
    """Refuse a task whose pictures or texts the model does not read, and one without classes."""
    shape = architecture(backbone).input_shape(backbone)
    if not own.classes or own.shape != shape:
        raise ValueError(f"the model reads inputs {shape} and the task needs classes; got {own!r} with {own.shape}")


def _check_task(own: object) -> None:
    """Refuse what is no task, and test pictures that cannot be read, before any training."""
    if own is None:
        raise TypeError("a task is needed, got None")
    given.task(own)
    own.test()


def set_dropout(model: nn.Module, chance: float) -> None:
    """Let all dropout of a model but that of attention leave out this part; in eval mode there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("attn_drop"):
            module.p = chance


def classification(model: nn.Module, tasks: Sequence[Task], batch_size: int, seed: int, edits: float = 0.1
                   ) -> Callable[[int], Tensor]:
    """The cross entropy of a step, on a batch drawn in equal parts from the tasks, all their classes side by side.

    Real pictures are turned and shifted a little, and the part `edits` of a text's bytes is edited.
    """
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
            images.append(_changed(x[rows], generator, edits) if each.train_size else x[rows])
            labels.append(y[rows] + offset)
        own, weight = processes.share(torch.arange(share * len(tasks)))
        x, y = torch.cat(images)[own], torch.cat(labels)[own]
        return weight * F.cross_entropy(model(x.to(device)), y.to(device))
    return loss


def _changed(x: Tensor, generator: torch.Generator, edits: float) -> Tensor:
    """Real images or texts, which are few, each a little different from what it was."""
    return edited(x, generator, edits) if are_texts(x) else jitter(x, generator)
