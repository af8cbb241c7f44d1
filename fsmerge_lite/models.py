"""What goes into a merge (`Original`), what comes out (`Merged`), and their files.

A model here is a backbone, which gives features (B, d), and after it one or more heads, each with an output
matrix before it: an `Original` has one head and the identity, a `Merged` one of each for every original. Both
have `backbone`, `outputs`, `heads` and `names`, so a `Merged` can be merged again. All read pictures in [-1, 1].

A file is one safetensors file: the weights, and in its metadata a JSON card that says what they are.
"""
import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .architectures import architecture, build, describe, graph_of

HALF = (0.5, 0.5, 0.5)  # mean and std of pictures in [-1, 1]


def feature_size(backbone: nn.Module) -> int:
    """d of the features (B, d) that a backbone gives."""
    graph = graph_of(backbone)
    return graph.spaces[graph.output].size


# ---------------------------------------------------------------- what goes in, what comes out

class Original(nn.Module):
    """A trained model to be merged: a backbone (B, 3, H, W) -> (B, d) and its head (B, d) -> (B, classes).

    It is a frozen copy; the given model stays as it is. It reads pictures p in [0, 1] as 2 p - 1, in [-1, 1]. Where the
    model was trained on (p - mean) / std instead, that is absorbed into the copy's patch embedding.

    Args:
        backbone: an `MLP` or a timm `VisionTransformer`; one with a classifier is split into the two.
        head: a linear head; none gives the features themselves.
        name: what tables and figures call it.
        task: the task it was trained on, if known.
        mean, std: of the pictures it was trained on, one number a channel. None: what timm knows of the model
            (`timm.data.resolve_model_data_config`), or 0.5 for a model that timm has no configuration of.

    Raises:
        TypeError, ValueError: a model that is not supported, or mean and std that do not fit it.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None, name: str = "", task: object = None,
                 mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        known, self.backbone, head = architecture(backbone), copy.deepcopy(backbone), copy.deepcopy(head)
        if head is None:
            head = known.take_classifier(self.backbone)
        self.head = nn.Identity() if head is None else head
        self.mean, self.std = _normalization(backbone, mean, std)
        if (self.mean, self.std) != (HALF, HALF):
            self.backbone = known.absorb_normalization(self.backbone, self.mean, self.std)
        if getattr(self.backbone, "pretrained_cfg", None):  # what the copy reads from now on
            self.backbone.pretrained_cfg = {**self.backbone.pretrained_cfg, "mean": HALF, "std": HALF}
        self.name, self.task, self.card = name, task, {}
        self.requires_grad_(False)

    @property
    def outputs(self) -> list[Tensor]:
        """The matrix between features and head, as `Merged` has one for each head: here the identity (d, d)."""
        like = next(self.backbone.parameters())
        return [torch.eye(feature_size(self.backbone), dtype=like.dtype, device=like.device)]

    @property
    def heads(self) -> list[nn.Module]:
        return [self.head]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(architecture(self.backbone).features(self.backbone, x))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the entries of `self.card` in its card."""
        task = {"task": getattr(self.task, "name", None), "size": getattr(self.task, "size", None)}
        save_file(path, self.state_dict(), self.card | {
            "format": "fsmerge_lite.Original", "name": self.name, **task, "mean": self.mean, "std": self.std,
            "backbone": describe(self.backbone), "head": _linear_shape(self.head)})


def _normalization(backbone: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple:
    """Mean and std of the pictures that a model was trained on: given, known to timm, or 0.5."""
    if (mean is None) != (std is None):
        raise ValueError(f"give mean and std, or neither; got mean={mean}, std={std}")
    if mean is not None:
        return tuple(mean), tuple(std)
    if not getattr(backbone, "pretrained_cfg", None):
        return HALF, HALF
    config = resolve_model_data_config(backbone)
    return tuple(config["mean"]), tuple(config["std"])


def read_original(path: str | Path) -> Original:
    """Read an `Original` from its file, without its task, which `original.card` names.

    Raises:
        FileNotFoundError, ValueError: no such file, or it is not whole or not of this format.
    """
    state, card = load_file(path, "fsmerge_lite.Original")
    original = Original(build(card["backbone"]), _linear(card["head"]), card["name"])
    _load_state(original, state, path)
    original.mean, original.std = tuple(card.get("mean", HALF)), tuple(card.get("std", HALF))  # absorbed already
    original.card = card
    return original.eval()


class Merged(nn.Module):
    """One plain backbone that serves k tasks: features f*, an output matrix and a head for each original.

    logits_i = head_i(U_out,i f*(x)),       U_out,i (d_i, d*)       (paper, section 2)

    Args:
        backbone: a plain model of the originals' class.
        outputs: k output matrices (d_i, d*).
        heads: k heads.
        names: the originals' names.
    """

    def __init__(self, backbone: nn.Module, outputs: Sequence[Tensor], heads: Sequence[nn.Module],
                 names: Sequence[str] = ()):
        super().__init__()
        self.backbone = backbone
        self.outputs = nn.ParameterList([nn.Parameter(o.detach().clone(), requires_grad=False) for o in outputs])
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
        self.names = tuple(names) or tuple(f"model {i + 1}" for i in range(len(heads)))
        self.history = None  # set by `distill`: the `History` of its training

    def features(self, x: Tensor) -> list[Tensor]:
        """The k originals' features, reconstructed: U_out,i f*(x), each (B, d_i)."""
        f = architecture(self.backbone).features(self.backbone, x)
        return [f @ output.T for output in self.outputs]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits of all k heads, each (B, classes_i)."""
        return [head(f) for head, f in zip(self.heads, self.features(x))]

    def save(self, path: str | Path, **card) -> None:
        """Write one safetensors file; `card` adds entries to its card."""
        save_file(path, self.state_dict(), {
            "format": "fsmerge_lite.Merged", "names": list(self.names), "mean": HALF, "std": HALF,
            "backbone": describe(self.backbone), "outputs": [list(o.shape) for o in self.outputs],
            "heads": [_linear_shape(h) for h in self.heads], **card})


def load_merged(path: str | Path) -> Merged:
    """Read a `Merged` from its file.

    Raises:
        FileNotFoundError, ValueError: no such file, or it is not whole or not of this format.
    """
    state, card = load_file(path, "fsmerge_lite.Merged")
    merged = Merged(build(card["backbone"]), [torch.zeros(*shape) for shape in card["outputs"]],
                    [_linear(shape) for shape in card["heads"]], card["names"])
    _load_state(merged, state, path)
    return merged.requires_grad_(False).eval()


def _linear_shape(head: nn.Module) -> list[int] | None:
    if isinstance(head, nn.Identity):
        return None
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(f"only linear heads with a bias can be saved, got {head}")
    return [head.in_features, head.out_features]


def _linear(shape: list[int] | None) -> nn.Module:
    return nn.Identity() if shape is None else nn.utils.skip_init(nn.Linear, *shape)


def _load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load weights strictly, in the dtype that they were saved in."""
    try:
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights at {path} do not fit the architecture in their card: {error}") from None


# ---------------------------------------------------------------- files

def fingerprint(tensors: Mapping[str, Tensor], card: str = "") -> str:
    """SHA-256 of tensors with their names, types and shapes, and of a text: equal only where all of it is equal."""
    digest = hashlib.sha256(card.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_of(path: str | Path) -> Path:
    """`path` with the ending .safetensors."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all: a temporary file, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_file(path: str | Path, state: Mapping[str, Tensor], card: dict) -> None:
    """Write weights and card as one safetensors file, with the SHA-256 of both in its metadata."""
    tensors = {name: _alone(tensor) for name, tensor in state.items()}
    text = json.dumps(card)
    write_whole(file_of(path), save(tensors, {"card": text, "sha256": fingerprint(tensors, text)}))


def _alone(tensor: Tensor) -> Tensor:
    """A tensor on the CPU that shares its memory with no other, as safetensors asks for."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load_file(path: str | Path, expected: str) -> tuple[dict[str, Tensor], dict]:
    """The weights and the card that `save_file` wrote, checked for being whole and of the `expected` format.

    Files of version 0.1, whose card is a JSON file beside the weights, are read too.

    Raises:
        FileNotFoundError, ValueError: no such file, or not whole, or not of that format.
    """
    file = file_of(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a saved model is one .safetensors file")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or it was cut short ({error}); "
                         "make or fetch it again") from None
    if "card" in metadata:
        card, whole = json.loads(metadata["card"]), fingerprint(state, metadata["card"]) == metadata.get("sha256")
    else:
        card, whole = _card_beside(file)
    if card.get("format") != expected:
        raise ValueError(f"{file} holds {card.get('format')!r}, expected {expected!r}")
    if not whole:
        raise ValueError(f"{file} is not what was saved (SHA-256 differs): it was changed; make or fetch it again")
    return state, card


def _card_beside(file: Path) -> tuple[dict, bool]:
    """The JSON card of version 0.1, and whether it describes the file beside it."""
    beside = file.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(f"{file} has no card: it was not saved by fsmerge_lite")
    try:
        card = json.loads(beside.read_text())
    except ValueError as error:
        raise ValueError(f"{beside} is no JSON card: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{beside} is no JSON card: it holds a {type(card).__name__}")
    return card, hashlib.sha256(file.read_bytes()).hexdigest() == card.pop("sha256", None)
