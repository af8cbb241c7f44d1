"""What FS-Merge is compared with: each takes the originals and gives something `evaluate` takes."""
from collections.abc import Sequence

import torch
from torch import nn

from .models import Ensemble, Merged, Original
from .supernet import SuperNet
from .tasks import Calibration
from .training import fit, reconstruction, target_features


def average(originals: Sequence[nn.Module]) -> Merged:
    """The plain average of all weights: W* = sum_i W_i / k, which is a SuperNet that was never trained.

    Raises:
        TypeError, ValueError: what cannot be merged, or originals of different widths.
    """
    net = SuperNet(originals, structure="diagonal", init="average")
    if len({tuple(p.shape for p in o.backbone.parameters()) for o in net.originals}) > 1:
        raise ValueError("weights of different widths have no average; SuperNet can merge them")
    return net.fold()


def ensemble(originals: Sequence[Original]) -> Ensemble:
    """The originals side by side, each with its own head: an upper row, at k times the cost."""
    return Ensemble(originals)


def distill(originals: Sequence[nn.Module], images: Calibration, steps: int = 1000, lr: float = 1e-3,
            batch_size: int = 128, weight_decay: float = 1e-3, start: str = "first", seed: int = 0,
            progress: bool | None = None) -> Merged:
    """Knowledge distillation: train all weights of one model towards the originals' features.

    The same loss, images, optimiser and schedule as FS-Merge, on features brought to one scale, the first original's:
    features_i(x) = (s_i / s_1) f*(x), where s_i is the root mean square of f_i.

    Args:
        originals: k originals of one width.
        images: from `calibration`, of these originals in their order.
        steps, lr, batch_size, weight_decay: of AdamW under a one-cycle schedule.
        start: `first` starts at original 1, `average` at the average of the weights.
        seed: fixes the order of the images.
        progress: show a bar; None shows it in a terminal or notebook.

    Returns:
        the student as a `Merged`, with the `History` of its training as `.history`.

    Raises:
        TypeError, ValueError: originals that do not fit together, or an unknown start.
    """
    if start not in ("first", "average"):
        raise ValueError(f"start must be 'first' or 'average', got {start!r}")
    student = SuperNet(originals, structure="diagonal", init=start)
    originals, student = student.originals, student.fold()
    parameters = list(student.backbone.requires_grad_(True).parameters())
    targets = target_features(originals, images, parameters[0])
    if len({t.shape[1] for t in targets}) > 1:
        raise ValueError("distillation needs originals of one feature width; SuperNet can merge different ones")
    for output, target in zip(student.outputs, targets):
        output.data = (target.square().mean() / targets[0].square().mean()).sqrt() * torch.eye(len(output)).to(output)
    loss = reconstruction(student.features, images, targets, batch_size, seed, parameters[0])
    student.history = fit(parameters, loss, steps, lr, weight_decay, name="distillation", progress=progress)
    return student.requires_grad_(False)
