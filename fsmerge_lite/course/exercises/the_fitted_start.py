"""The exercises of the lesson on the fitted start, and the small residual nets that it is built on."""
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ...engine import statistics
from .testing import Exercise

TOLERANCE = 1e-6


class Net(NamedTuple):
    """A residual net without norms: z_0 = W_in x, then z <- z + V relu(W z + b) in each block."""

    embed: Tensor           # W_in (d, p)
    W: Sequence[Tensor]     # (h, d) of each block
    b: Sequence[Tensor]     # (h,) of each block
    V: Sequence[Tensor]     # (d, h) of each block


def stream(net: Net, x: Tensor) -> list[Tensor]:
    """The residual stream after the embedding and after each block, (n, d) each, for images x (n, p)."""
    z = [x @ net.embed.T]
    for W, b, V in zip(net.W, net.b, net.V):
        z.append(z[-1] + torch.relu(z[-1] @ W.T + b) @ V.T)
    return z


def small_nets(generator: torch.Generator, widths: Sequence[int] = (12, 12), blocks: int = 1, n: int = 400
               ) -> tuple[list[Net], list[Tensor]]:
    """Two residual nets with random weights and the images (n, 24) of the task of each, in float64."""
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    nets, images = [], []
    for d in widths:
        inside = [(normal(2 * d, d) * d ** -0.5, 0.5 * normal(2 * d), 2 * normal(d, 2 * d) * (2 * d) ** -0.5)
                  for _ in range(blocks)]
        nets.append(Net(normal(d, 24) * 24 ** -0.5, *map(list, zip(*inside))))
        causes = normal(n, 8) * 0.85 ** torch.arange(8)  # what a task's images differ in
        images.append(causes @ normal(8, 24) + 0.05 * normal(n, 24))
    return nets, images


# ---------------------------------------------------------------- easy: share_the_stream

OVERLAP = "two shares overlap: M0_i^T M0_j is not 0, so all B_i need different directions"
STRETCH = "M0_i stretches what it keeps: P_i needs orthonormal rows and B_i orthonormal columns"
DELETED = "a share is written along (1, ..., 1), which LayerNorm deletes: B_i must be at right angles to it"
WITH_MEAN = "the mean of the channels is kept: subtract it from every row of z_i first, as LayerNorm does"
CENTERED = "these are principal directions of the covariance; the mean image counts too, so use E_i z z^T"
MINOR = "these are not the first principal directions; take the eigenvectors of E_i z z^T with the largest values"


def _streams(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two streams (60, 5) whose mean is not 0."""
    z_1, z_2 = (torch.randn(60, 5, generator=generator, dtype=torch.float64)
                @ torch.randn(5, 5, generator=generator, dtype=torch.float64) + 2 for _ in range(2))
    return z_1, z_2


def _several_streams(generator: torch.Generator) -> tuple[list[Tensor], list[int]]:
    """Three streams (60, 6), each with a mean over images and over channels, and the numbers of directions."""
    return [torch.randn(60, 6, generator=generator, dtype=torch.float64)
            @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
            + 3 * torch.randn(6, generator=generator, dtype=torch.float64) + 1 for _ in range(3)], [3, 2, 2]


def _projector(z: Tensor, s: int) -> Tensor:
    """The projector onto the first s principal directions, from a singular value decomposition."""
    directions = torch.linalg.svd(z, full_matrices=False).Vh[:s]
    return directions.T @ directions


def _are_matrices(result: object, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the result holds finite float64 matrices of these shapes."""
    return (isinstance(result, tuple | list) and len(result) == len(shapes)
            and all(isinstance(m, Tensor) and m.dtype == torch.float64 and m.shape == shape and m.isfinite().all()
                    for m, shape in zip(result, shapes)))


def _judge_shares(result: object, streams: Sequence[Tensor], sizes: Sequence[int]) -> str | None:
    shapes = [(sum(sizes) + 1, z.shape[1]) for z in streams]
    if not _are_matrices(result, shapes):
        return f"return a list of M0_1 to M0_{len(shapes)}, float64 tensors of shapes {', '.join(map(str, shapes))}"
    if any((m.T @ n).abs().max() > TOLERANCE for m, n in combinations(result, 2)):
        return OVERLAP
    for m, z, s in zip(result, streams, sizes):
        kept, free = m.T @ m, z - z.mean(1, keepdim=True)
        if (kept @ kept - kept).abs().max() > TOLERANCE:
            return STRETCH
        if m.sum(0).abs().max() > TOLERANCE:
            return DELETED
        if m.sum(1).abs().max() > TOLERANCE:
            return WITH_MEAN
        if (kept - _projector(free - free.mean(0), s)).abs().max() < TOLERANCE:
            return CENTERED
        if (kept - _projector(free, s)).abs().max() > TOLERANCE:
            return MINOR
    return None


def _shares(streams: Sequence[Tensor], sizes: Sequence[int], apart: bool = True, largest: bool = True,
            centered: bool = False, scaled: bool = False, channel_mean: bool = False, ones_free: bool = True
            ) -> list[Tensor]:
    """M0_i of every model, right or with one mistake."""
    d, merges, first = sum(sizes) + 1, [], 0
    directions = statistics.centered_directions(d) if ones_free else torch.eye(d).double()
    for z, s in zip(streams, sizes):
        z = z if channel_mean else z - z.mean(1, keepdim=True)
        z = z - z.mean(0) if centered else z
        values, vectors = torch.linalg.eigh(z.T @ z / len(z))
        order = torch.arange(len(values)).flip(0)[:s] if largest else torch.arange(1, s + 1)  # 0: (1, ..., 1)
        P = vectors[:, order].T * (values[order, None].sqrt() if scaled else 1)
        merges.append(directions[:, first:first + s] @ P)
        first += s if apart else 0
    return merges


# ---------------------------------------------------------------- medium: diagnose_starts

FAULTS = ("fine", "overlap", "directions", "readout")
MISSED = {
    "fine": "a start without a fault is called broken; are your tolerances too small?",
    "overlap": "a start whose two shares overlap is not called 'overlap'; look at M_1^T M_2",
    "directions": "a start whose M_1 keeps the wrong directions of z_1 is not called 'directions'; an M_1 of the right "
                  "form can still keep the wrong ones",
    "readout": "a start whose U_1 is not the least-squares readout is not called 'readout'; on these images its error "
               "must be at right angles to what it reads",
}


def _directions(z: Tensor, s: int, largest: bool = True) -> Tensor:
    """The s principal directions (s, d) of E z z^T with the largest values, or with the smallest."""
    vectors = torch.linalg.eigh(z.T @ z / len(z)).eigenvectors
    return (vectors.flip(1) if largest else vectors).T[:s]


def _start(generator: torch.Generator, fault: str) -> dict[str, Tensor]:
    """A start of two models in one stream, on images of task 1, with one fault."""
    z_1, z_2 = _streams(generator)
    z_1, z_2 = z_1 * torch.tensor([3, 1, 1, 1, 0.3]), z_2 * torch.tensor([1, 0.3, 2, 1, 1])
    B, P_1, P_2 = torch.eye(5).double(), _directions(z_1, 3, fault != "directions"), _directions(z_2, 2)
    M_1, M_2 = B[:, :3] @ P_1, B[:, 3:] @ P_2
    M_2 = M_2 + 0.3 * M_1 if fault == "overlap" else M_2
    u = z_1 @ M_1.T + z_2 @ M_2.T
    U_1 = M_1.T if fault == "readout" else torch.linalg.lstsq(u, z_1).solution.T
    return {"M_1": M_1, "M_2": M_2, "U_1": U_1, "z_1": z_1, "z_2": z_2}


def _starts(generator: torch.Generator) -> tuple[list[dict[str, Tensor]]]:
    order = torch.randperm(len(FAULTS), generator=generator).tolist()
    return ([_start(generator, FAULTS[j]) for j in order],)


def _fault_of(start: dict[str, Tensor]) -> str:
    """The fault of a start, from what a right one would be."""
    M_1, M_2, z_1, z_2 = (start[name] for name in ("M_1", "M_2", "z_1", "z_2"))
    u = z_1 @ M_1.T + z_2 @ M_2.T
    if (M_1.T @ M_2).abs().max() > 1e-3:
        return "overlap"
    if (M_1.T @ M_1 - _projector(z_1, 3)).abs().max() > 1e-3:
        return "directions"
    best = torch.linalg.lstsq(u, z_1).solution
    return "fine" if (u @ best - u @ start["U_1"].T).abs().max() < 1e-3 else "readout"


def _judge_faults(result: object, starts: Sequence[dict[str, Tensor]]) -> str | None:
    if not isinstance(result, tuple | list) or len(result) != len(starts):
        return f"return a list with one word for each of {len(starts)} starts"
    if any(word not in FAULTS for word in result):
        return f"every word must be one of {', '.join(FAULTS)}"
    wrong = {fault for fault, said in zip(map(_fault_of, starts), result) if fault != said}
    return next((MISSED[fault] for fault in FAULTS if fault in wrong), None)


# ---------------------------------------------------------------- project: fit_small_start

LOST = "the features of original 2 are lost; its share must be written in every block, on the images of its own task"
MIXED = ("the hidden units are mixed: every bias of a merged block must be one of an original's, because relu of a "
         "mixture is not the mixture of the relus")
ABOVE = ("the error on unseen images is more than 15 % above that of a reference; compare the merged stream after each "
         "block with B_i P_i z_i to see where it begins")


def _project_inputs(generator: torch.Generator) -> tuple[list[Net], list[Tensor], tuple[int, int], tuple[int, int]]:
    nets, images = small_nets(generator, (12, 8), blocks=3)
    return nets, images, (7, 5), (14, 10)


def _ridge(u: Tensor, t: Tensor) -> Tensor:
    return statistics.least_squares([(1.0, u.T @ u / len(u), u.T @ t / len(u))], 1e-4)


def _reference(nets: Sequence[Net], images: Sequence[Tensor], sizes: Sequence[int], units: Sequence[int],
               mixed: bool = False, fitted: bool = True) -> tuple[Net, list[Tensor]]:
    """The fitted start of small nets without corrected writes, right or with one mistake."""
    own = [stream(net, x) for net, x in zip(nets, images)]
    every = [torch.cat(z) for z in own]
    principal = [torch.linalg.svd(z, full_matrices=False).Vh[:s] for z, s in zip(every, sizes)]
    merges = [B @ P for B, P in zip(torch.eye(sum(sizes)).double().split(list(sizes), 1), principal)]
    merged = Net(sum(M @ net.embed for M, net in zip(merges, nets)), [], [], [])
    there = [x @ merged.embed.T for x in images]
    for layer in range(len(nets[0].W)):
        hidden = [torch.relu(z[layer] @ net.W[layer].T + net.b[layer]) for z, net in zip(own, nets)]
        W, b = [], []
        for i, (net, n) in enumerate(zip(nets, units)):
            U = _ridge(there[i], own[i][layer]) if fitted else merges[i].T
            pick = picked(hidden[i], n, mixed)
            W.append(pick @ net.W[layer] @ U)
            b.append(pick @ net.b[layer])
        W, b = torch.cat(W), torch.cat(b)
        V = sum(merges[i] @ nets[i].V[layer] @ _ridge(torch.relu(there[i] @ W.T + b), hidden[i]) for i in (0, 1))
        for parts, part in zip(merged[1:], (W, b, V)):
            parts.append(part)
        there = [z + torch.relu(z @ W.T + b) @ V.T for z in there]
    return merged, [_ridge(z, o[-1]) for z, o in zip(there, own)]


def picked(hidden: Tensor, n: int, mixed: bool = False) -> Tensor:
    """The matrix (n, h) that picks the n units from which all are rebuilt best, or that mixes them."""
    moment, eye = hidden.T @ hidden / len(hidden), torch.eye(hidden.shape[1]).to(hidden)
    if mixed:
        return torch.linalg.eigh(moment).eigenvectors.flip(1).T[:n]
    return eye[statistics.best_groups(moment + 1e-6 * moment.diagonal().mean() * eye, eye, 1, n)]


def _only_model_1(nets: Sequence[Net], images: Sequence[Tensor], sizes: Sequence[int], units: Sequence[int]
                  ) -> tuple[Net, list[Tensor]]:
    """The paper's start: original 1, with readouts for both."""
    there = [stream(nets[0], x)[-1] for x in images]
    return nets[0], [_ridge(there[0], there[0]), torch.zeros(8, 12).double()]


def _errors(result: tuple[Net, Sequence[Tensor]], nets: Sequence[Net], images: Sequence[Tensor]) -> list[float]:
    """The error of both originals' features over their variance, on images that no fit has seen."""
    errors, (merged, outputs) = [], result
    for net, output, x in zip(nets, outputs, images):
        unseen = (x[:200] + x[200:400]) / 2 ** 0.5  # normal as the images are, with the same covariance
        f = stream(net, unseen)[-1]
        errors.append(((stream(merged, unseen)[-1] @ output.T - f).square().sum()
                       / (f - f.mean(0)).square().sum()).item())
    return errors


def _judge_start(result: object, nets: Sequence[Net], images: Sequence[Tensor], sizes: Sequence[int],
                 units: Sequence[int]) -> str | None:
    d, h, blocks = sum(sizes), sum(units), len(nets[0].W)
    try:
        merged, outputs = result
        merged = Net(*merged)
        flat = [merged.embed, *merged.W, *merged.b, *merged.V, *outputs]
    except (TypeError, ValueError):
        return "return a pair: a Net like those that you were given, and a list of two output matrices"
    shapes = [(d, 24), *[(h, d)] * blocks, *[(h,)] * blocks, *[(d, h)] * blocks, *((len(n.embed), d) for n in nets)]
    if not _are_matrices(flat, shapes) or {len(part) for part in merged[1:]} != {blocks}:
        return ("the merged net or its outputs have wrong shapes, or are not finite float64 tensors; expected "
                f"W_in {(d, 24)}, for each of {blocks} blocks W {(h, d)}, b {(h,)} and V {(d, h)}, then U_out,1 "
                f"{shapes[-2]} and U_out,2 {shapes[-1]}")
    found, best = (_errors(r, nets, images) for r in ((merged, outputs), _reference(nets, images, sizes, units)))
    if sum(found) <= 1.15 * sum(best):
        return None
    if found[1] > 0.8:
        return LOST
    biases = [torch.cat([net.b[layer] for net in nets]) for layer in range(blocks)]
    if any((b[:, None] - own).abs().amin(1).max() > TOLERANCE for b, own in zip(merged.b, biases)):
        return MIXED
    return ABOVE


EXERCISES = {
    # the streams (60, 6) of three models and their numbers of directions
    "share_the_stream": Exercise(_several_streams, judge=_judge_shares, mistakes={
        OVERLAP: lambda *inputs: _shares(*inputs, apart=False),
        STRETCH: lambda *inputs: _shares(*inputs, scaled=True),
        DELETED: lambda *inputs: _shares(*inputs, ones_free=False),
        WITH_MEAN: lambda *inputs: _shares(*inputs, channel_mean=True),
        CENTERED: lambda *inputs: _shares(*inputs, centered=True),
        MINOR: lambda *inputs: _shares(*inputs, largest=False)}),
    # four starts of two models in one stream, on images of task 1, in an unknown order
    "diagnose_starts": Exercise(_starts, judge=_judge_faults, mistakes={
        MISSED["overlap"]: lambda starts: ["fine" if w == "overlap" else w for w in map(_fault_of, starts)],
        MISSED["directions"]: lambda starts: ["fine" if w == "directions" else w for w in map(_fault_of, starts)],
        MISSED["readout"]: lambda starts: ["fine" if w == "readout" else w for w in map(_fault_of, starts)],
        MISSED["fine"]: lambda starts: ["readout" if w == "fine" else w for w in map(_fault_of, starts)]}),
    # two residual nets of widths 12 and 8 with three blocks, images (400, 24) of both tasks, directions, hidden units
    "fit_small_start": Exercise(_project_inputs, judge=_judge_start, mistakes={
        LOST: _only_model_1,
        MIXED: lambda *inputs: _reference(*inputs, mixed=True),
        ABOVE: lambda *inputs: _reference(*inputs, fitted=False)}),
}
