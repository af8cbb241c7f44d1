"""What goes into a merge (`Original`), what comes out (`Merged`), and their files.

A model here is a backbone, which gives features (B, d), and after it one or more heads, each with an output
matrix before it: an `Original` has one head and the identity, a `Merged` one of each for every original. Both
have `backbone`, `outputs`, `heads` and `names`, so a `Merged` can be merged again. All read pictures in [-1, 1].
"""
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from .architectures import architecture, build, describe, graph_of
from .engine import given
from .engine.files import load_file, load_state, save_file
from .engine.modules import linear, linear_shape

HALF = (0.5, 0.5, 0.5)  # mean and std of pictures in [-1, 1]


def feature_size(backbone: nn.Module) -> int:
    """d of the features (B, d) that a backbone gives."""
    graph = graph_of(backbone)
    return graph.spaces[graph.output].size


class Original(nn.Module):
    """A trained model to be merged: a backbone (B, 3, H, W) -> (B, d) and its head (B, d) -> (B, classes).

    It is a frozen copy; the given model stays as it is. It reads pictures p in [0, 1] as 2 p - 1, in [-1, 1]. Where the
    model was trained on (p - mean) / std instead, that is absorbed into the copy's patch embedding.

    Args:
        backbone: an `MLP` or a timm `VisionTransformer`; one with a classifier is split into the two.
        head: a linear head; none gives the features themselves.
        name, task: what tables and figures call it; the task it was trained on, if known.
        mean, std: of its training pictures, one number a channel; None: as timm's configuration has it, or else 0.5.

    Raises TypeError or ValueError for a model that is not supported, and for mean, std, head or task that do not fit.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None, name: str = "", task: object = None,
                 mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        known, self.backbone = architecture(backbone), copy.deepcopy(backbone)
        self.head = nn.Identity() if head is None else copy.deepcopy(head)
        given.together(mean=mean, std=std)
        if head is None and hasattr(backbone, "get_classifier"):  # as timm's models have
            self.head = self.backbone.get_classifier()
            self.backbone.reset_classifier(0)
        card = getattr(backbone, "pretrained_cfg", None) or {"mean": HALF, "std": HALF}
        if mean is None:
            config = resolve_data_config(pretrained_cfg=card)
            mean, std = config["mean"], config["std"]
        self.backbone.pretrained_cfg = {**card, "mean": HALF, "std": HALF}  # what the copy reads from now on
        self.mean, self.std = (tuple(given.several(name, each)) for name, each in (("mean", mean), ("std", std)))
        if (self.mean, self.std) != (HALF, HALF):
            known.absorb_normalization(self.backbone, self.mean, self.std)
        given.task(task, name)
        given.head(self.head, self.backbone)
        self.name, self.task, self.card = name, task, {}
        self.requires_grad_(False)

    @property
    def outputs(self) -> list[Tensor]:
        """The matrix between features and head, as `Merged` has one for each head: here the identity (d, d)."""
        return [torch.eye(feature_size(self.backbone)).to(next(self.backbone.parameters()))]

    heads = property(lambda self: [self.head])
    names = property(lambda self: (self.name,))

    def to_timm(self) -> nn.Module:
        """A plain timm model with the head as its classifier, see `Merged.to_timm`."""
        return Merged(self.backbone, self.outputs, self.heads, self.names).to_timm(0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(architecture(self.backbone).features(self.backbone, x))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the entries of `self.card` in its card."""
        task = {"task": getattr(self.task, "name", None), "size": getattr(self.task, "size", None)}
        save_file(path, self.state_dict(), self.card | {
            "format": "fsmerge_lite.Original", "name": self.name, **task, "mean": self.mean, "std": self.std,
            "backbone": describe(self.backbone), "head": linear_shape(self.head)})


def read_original(path: str | Path) -> Original:
    """Read an `Original` from its file, without its task, which `original.card` names. Raises as `load_file` does."""
    state, card = load_file(path, "fsmerge_lite.Original", ("backbone", "head", "name"))
    original = Original(build(card["backbone"]), linear(card["head"]), card["name"])
    load_state(original, state, path)
    original.mean, original.std = tuple(card.get("mean", HALF)), tuple(card.get("std", HALF))  # absorbed already
    original.card = card
    return original.eval()


class Merged(nn.Module):
    """One plain backbone that serves k tasks: features f*, an output matrix and a head for each original.

    logits_i = head_i(U_out,i f*(x)),       U_out,i (d_i, d*)       (paper, section 2)

    `backbone` is a plain model of the originals' class; `outputs` are k matrices (d_i, d*), `heads` k heads, `names`
    what tables and figures call the originals.
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

    def to_timm(self, i: int | str) -> nn.Module:
        """A plain timm model of task i, its place 0..k-1 or its name: U_out,i goes into the classifier.

        W = W_head,i U_out,i,       b = b_head,i,       (classes_i, d*) and (classes_i,)

        Raises ValueError for no such task, TypeError for a backbone not of timm or a head that is not one nn.Linear.
        """
        found = [place for place, name in enumerate(self.names) if i in (place, name)]
        if len(found) != 1:
            raise ValueError(f"{i!r} fits {len(found)} of the tasks {self.names}; give a place from 0 or a name of one")
        head, output = self.heads[found[0]], self.outputs[found[0]]
        if type(head) is not nn.Linear or not hasattr(self.backbone, "get_classifier"):
            raise TypeError(f"to_timm needs a timm backbone and a head that is one nn.Linear; {i!r} has "
                            f"{type(self.backbone).__name__} and {head}")
        plain = build(describe(self.backbone) | {"num_classes": len(head.weight)}).to(output)
        plain.load_state_dict(self.backbone.state_dict(), strict=False)  # all but the classifier
        bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
        plain.get_classifier().load_state_dict({"weight": head.weight @ output, "bias": bias})
        shape = architecture(plain).input_shape(plain)  # of pictures as `folder_task` gives them
        plain.pretrained_cfg = {"input_size": shape, "num_classes": plain.num_classes, "mean": HALF[:1] * shape[0],
                                "std": HALF[:1] * shape[0], "crop_pct": 1.0, "interpolation": "bilinear"}
        return plain

    def save(self, path: str | Path, **card) -> None:
        """Write one safetensors file; `card` adds entries to its card."""
        save_file(path, self.state_dict(), {
            "format": "fsmerge_lite.Merged", "names": list(self.names), "mean": HALF, "std": HALF,
            "backbone": describe(self.backbone), "outputs": [list(o.shape) for o in self.outputs],
            "heads": [linear_shape(h) for h in self.heads]}, card)


def load_merged(path: str | Path) -> Merged:
    """Read a `Merged` from its file. Raises as `load_file` does."""
    state, card = load_file(path, "fsmerge_lite.Merged", ("backbone", "outputs", "heads", "names"))
    merged = Merged(build(card["backbone"]), [torch.zeros(*shape) for shape in card["outputs"]],
                    [linear(shape) for shape in card["heads"]], card["names"])
    load_state(merged, state, path)
    return merged.requires_grad_(False).eval()
