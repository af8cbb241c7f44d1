"""A merged model back into plain timm and into ONNX: one folder for each task, and nothing that was not checked."""
import copy
import importlib.util
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from ..architectures import describe
from ..engine import given
from ..engine.files import naming, write_whole
from ..models import Merged, Original

# The largest difference of the logits, over the largest of them or 1.
BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-10}
# The entries of timm that all are built on; by default, their LayerNorms have an eps of 1e-6 and 1e-5.
ENTRIES = ("vit_base_patch16_224", "vit_base_patch16_clip_224")
ACTIVATIONS = (None, "gelu_tanh", "quick_gelu", "silu", "relu")  # None: the entry's own
NORMS = (None, "rmsnorm")
OURS = ("kind", "act_layer", "act_options", "norm_layer", "norm_eps")  # of a description, what is no argument of timm
WEIGHTS, ONNX = "model.safetensors", "model.onnx"

README = """# {name}

One task of a model that fsmerge_lite merged, as a plain timm model. It reads pictures of the shape {shape} and gives
{classes} logits. Pictures p in [0, 1] go in as (p - 0.5) / 0.5.

```python
import timm
import torch
folder = {folder!r}  # where this file lies
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True, dtype={dtype}).eval()
```

The same without config.json:

```python
arguments = {arguments}
model = timm.create_model("{entry}", checkpoint_path=f"{{folder}}/model.safetensors", dtype={dtype}, **arguments).eval()
```

`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes such pictures of PIL's images.
A model.onnx reads `pictures` (batch, ...) and gives `logits` (batch, {classes}), in float32.
"""


def export(merged: Merged | Original, folder: str | Path, tasks: Sequence[int | str] | None = None,
           classes: Sequence[Sequence[str] | None] | None = None, onnx: bool = False) -> list[Path]:
    """Write each task of a merged model as a plain timm model, and give the folders.

    A folder has model.safetensors, config.json, and README.md with the lines that load them: by timm's "local-dir:", or
    with an entry of timm and its arguments. Both are reloaded and compared on random pictures before they are in place:

    max |logits - merged(x)[i]| <= 1e-4 max(1, max |merged(x)[i]|)       (1e-10 in float64; ONNX is always float32)

    Args:
        merged: a `Merged` or an `Original` of timm models, in float32 or float64.
        folder: gets one folder for each task, of its name; files of an earlier export are replaced.
        tasks: places 0..k-1 or names; None: all.
        classes: names of the classes, a list or None for each of these tasks; they become timm's `label_names`.
        onnx: write model.onnx as well, for batches of any size; without it, an old one is removed.

    Raises:
        TypeError: another model, or one that `Merged.to_timm` refuses.
        ValueError: no such task, another number of names or dtype, an activation or norm that timm has no word for.
        ModuleNotFoundError: the packages for ONNX are missing.
        NotImplementedError: torch.onnx or ONNX's reference evaluator lacks an operator for this variant.
        ArithmeticError: the logits differ; nothing is written then.
        OSError: the folder cannot be written to.
    """
    if onnx:
        _need_onnx()
    merged, folder = _checked(merged), Path(folder)
    tasks = range(len(merged.names)) if tasks is None else given.several("tasks", tasks)
    classes = [None] * len(tasks) if classes is None else given.several("classes", classes)
    if len(classes) != len(tasks):
        raise ValueError(f"classes must hold names, or None, for each of {len(tasks)} tasks, got {len(classes)}")
    for task, names in zip(tasks, classes):
        _check_names(names, merged.to_timm(task).num_classes, merged.names[task] if isinstance(task, int) else task)
    with torch.random.fork_rng(devices=[]), naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            made = [_make(merged, task, names, Path(scratch), folder, onnx) for task, names in zip(tasks, classes)]
            return [_put(one, folder / one.name) for one in made]


def _make(merged: Merged, task: int | str, labels: Sequence[str] | None, scratch: Path, folder: Path, onnx: bool
          ) -> Path:
    """The files of one task, checked, in a folder under `scratch` that has the name of the one under `folder`."""
    plain = merged.to_timm(task)
    place = next(i for i, name in enumerate(merged.names) if task in (i, name))
    made = scratch / _folder_name(merged.names[place], [other.name for other in scratch.iterdir()])
    entry, arguments = _write(plain, made, folder / made.name, labels)
    if onnx:
        _write_onnx(plain, made / ONNX)
    _check(merged, place, made, entry, arguments)
    return made


# ---------------------------------------------------------------- what is asked for

def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"onnx=True needs {' and '.join(missing)}: pip install 'fsmerge_lite[onnx]'")


def _checked(merged: nn.Module) -> Merged:
    """A copy on the CPU, in eval mode."""
    if isinstance(merged, Original):
        merged = Merged(merged.backbone, merged.outputs, merged.heads, merged.names)
    if not isinstance(merged, Merged):
        raise TypeError(f"export takes a Merged or an Original, got {type(merged).__name__}; net.fold() gives a Merged")
    dtype = merged.outputs[0].dtype
    if dtype not in BOUNDS:
        raise ValueError(f"export takes float32 or float64, got {dtype}; call .float() on the merged model first")
    return copy.deepcopy(merged).cpu().eval()


def _check_names(names: Sequence[str] | None, outputs: int, task: str) -> None:
    """Refuse other than one name for each output of a head."""
    if names is not None and len(given.several(f"classes of {task}", names)) != outputs:
        raise ValueError(f"{task} has {outputs} classes, but {len(names)} names were given: {names}")


def _folder_name(name: str, taken: Collection[str]) -> str:
    """A name that every file system takes, and unlike those that are taken, in lower case too."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80] or "task"
    names = itertools.chain([safe], (f"{safe}-{n}" for n in itertools.count(2)))
    return next(n for n in names if n.lower() not in map(str.lower, taken))


# ---------------------------------------------------------------- writing

def _write(plain: nn.Module, made: Path, place: Path, labels: Sequence[str] | None) -> tuple[str, dict]:
    """Weights, config.json and README.md in the folder `made`, later `place`; gives what timm.create_model takes."""
    entry, arguments = _timm_arguments(plain)
    own, channels = timm.get_pretrained_cfg(entry), plain.pretrained_cfg["input_size"][0]
    first_conv = own.first_conv if channels == 3 else None  # timm 1.0.26 would take the weights to be of 3 channels
    plain.pretrained_cfg |= {"architecture": entry, "fixed_input_size": own.fixed_input_size,
                             "first_conv": first_conv, "classifier": own.classifier}
    names = {"label_names": list(map(str, labels))} if labels else {}
    save_for_hf(plain, made, names, arguments, safe_serialization=True)
    arguments = {**arguments, "pretrained_cfg": plain.pretrained_cfg}
    lines = fill(repr(arguments), 116, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    text = README.format(name=place.name, folder=str(place), entry=entry, arguments=lines, classes=plain.num_classes,
                         shape=plain.pretrained_cfg["input_size"], dtype=next(plain.parameters()).dtype)
    (made / "README.md").write_text(text, encoding="utf-8")
    return entry, arguments


def _timm_arguments(plain: nn.Module) -> tuple[str, dict]:
    """The entry of timm and the arguments, plain values, that make a model of the same description."""
    config = describe(plain)
    arguments = {key: value for key, value in config.items() if key not in OURS} | {"num_classes": plain.num_classes}
    for entry, act, norm in itertools.product(ENTRIES, ACTIVATIONS, NORMS):
        named = arguments | {key: word for key, word in (("act_layer", act), ("norm_layer", norm)) if word}
        with torch.device("meta"):
            if describe(timm.create_model(entry, **named)) == config:
                return entry, named
    raise ValueError(f"timm's config.json has no words for {config['act_layer']} {config['act_options']} with "
                     f"{config['norm_layer']} of eps {config['norm_eps']}; merged.to_timm gives the model itself")


def _write_onnx(plain: nn.Module, file: Path) -> None:
    x = torch.zeros(2, *plain.pretrained_cfg["input_size"])
    try:
        program = torch.onnx.export(copy.deepcopy(plain).float(), (x,), dynamo=True, verbose=False,
                                    input_names=["pictures"], output_names=["logits"],
                                    dynamic_shapes=({0: torch.export.Dim("batch")},))
    except torch.onnx.OnnxExporterError as error:
        raise NotImplementedError(f"torch.onnx cannot export this variant; go without onnx=True: {error}") from error
    program.save(file)


def _put(made: Path, place: Path) -> Path:
    """Move the files of a task, each as a whole."""
    for file in sorted(made.iterdir()):
        write_whole(place / file.name, file.read_bytes())
    for old in place.glob(f"{ONNX}*"):
        if not (made / old.name).exists():
            old.unlink()
    return place


# ---------------------------------------------------------------- checking

@torch.no_grad()
def _check(merged: Merged, place: int, made: Path, entry: str, arguments: dict) -> None:
    """Refuse what gives other logits on random pictures than the merged model."""
    like, shape = merged.outputs[0], arguments["pretrained_cfg"]["input_size"]
    x = 2 * torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).to(like) - 1
    expected = merged(x)[place]
    for what, logits in _reloaded(made, entry, arguments, x):
        bound = BOUNDS[logits.dtype]
        difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
        if not difference <= bound:
            raise ArithmeticError(f"{made.name}: the logits of {what} differ from the merged model's by "
                                  f"{difference:.1e}, more than {bound:.0e}; nothing is written")


def _reloaded(made: Path, entry: str, arguments: dict, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The logits of x (B, C, H, W) from every form that was written."""
    yield "config.json", timm.create_model(f"local-dir:{made}", pretrained=True, dtype=x.dtype).eval()(x)
    yield WEIGHTS, timm.create_model(entry, checkpoint_path=str(made / WEIGHTS), dtype=x.dtype, **arguments).eval()(x)
    if (made / ONNX).exists():
        yield ONNX, _evaluated(made / ONNX, x)


def _evaluated(file: Path, x: Tensor) -> Tensor:
    """The logits of ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator  # an extra
    try:
        return torch.from_numpy(ReferenceEvaluator(str(file)).run(None, {"pictures": x.float().numpy()})[0])
    except NotImplementedError as error:
        raise NotImplementedError("ONNX's reference evaluator lacks an operator of this variant, so that the file "
                                  f"cannot be checked; go without onnx=True: {error}") from error
