"""Lesson 03: the fold, the places of M and U in an MLP, and a SuperNet layer as a module."""
import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..drawings.layers import super_linear
from .testing import Exercise

# ---------------------------------------------------------------- fold


def _unequal(g: torch.Generator) -> tuple[list, ...]:
    """M_i (4, o_i), W_i (o_i, d_i), U_i (d_i, 5) and b_i (o_i,) of three originals, the last of which has no bias."""
    sizes = ((3, 2), (2, 4), (5, 3))
    Ms, Ws, Us = ([torch.randn(shape, generator=g) for shape in shapes] for shapes in (
        [(4, o) for o, d in sizes], sizes, [(d, 5) for o, d in sizes]))
    return Ms, Ws, Us, [torch.randn(3, generator=g), torch.randn(2, generator=g), None]


def _probed(Ms: Sequence[Tensor], Ws: Sequence[Tensor], Us: Sequence[Tensor], bs: Sequence[Tensor | None]
            ) -> tuple[Tensor, Tensor]:
    """W* and b*, found by feeding the unfolded layer with zero and with one-hot vectors."""
    def unfolded(x: Tensor) -> Tensor:
        return sum(F.linear(F.linear(F.linear(x, U), W, b), M) for M, W, U, b in zip(Ms, Ws, Us, bs))
    bias = unfolded(torch.zeros(5))
    return (unfolded(torch.eye(5)) - bias).T, bias


FOLD = Exercise(_unequal, _probed, {
    "that is the mean over the originals; the fold is the sum":
        lambda Ms, Ws, Us, bs: [part / len(Ms) for part in _probed(Ms, Ws, Us, bs)],
    "that contains only original 1; sum over all of them":
        lambda Ms, Ws, Us, bs: _probed(Ms[:1], Ws[:1], Us[:1], bs[:1]),
    "the last original is missing; one without a bias still adds M W U to W*":
        lambda Ms, Ws, Us, bs: _probed(Ms[:2], Ws[:2], Us[:2], bs[:2]),
    "b* is zero; every b_i goes through M_i and is added":
        lambda Ms, Ws, Us, bs: (_probed(Ms, Ws, Us, bs)[0], torch.zeros(4))})

# ---------------------------------------------------------------- places


def _shuffled(g: torch.Generator) -> tuple[list, list, tuple]:
    """Nine shapes in a random order, the widths of two originals and of the merged model."""
    inputs, *widths = (torch.randperm(12, generator=g)[:7] + 2).tolist()
    originals, merged = [(inputs, *widths[:2]), (inputs, *widths[2:4])], (inputs, *widths[4:])
    shapes = [*_names(originals, merged), (originals[0][1], merged[2])]  # the last one fits nowhere
    return [shapes[i] for i in torch.randperm(9, generator=g)], originals, merged


def _names(originals: Sequence[tuple], merged: tuple) -> dict[tuple[int, int], str]:
    """Shape -> name of every place."""
    names = {}
    for i, own in enumerate(originals, 1):
        for layer in (1, 2):
            names[merged[layer], own[layer]] = f"M{i}({layer})"
            names[own[layer], merged[layer]] = f"U{i}(2)" if layer == 1 else f"Uout{i}"
    return names


def _right(shapes: list, originals: list, merged: tuple) -> list[str]:
    return [_names(originals, merged).get(shape, "none") for shape in shapes]


def _renamed(replace: dict[str, str]) -> Callable[..., list[str]]:
    """The right places with parts of the names replaced."""
    def mistake(shapes: list, originals: list, merged: tuple) -> list[str]:
        return ["".join(replace.get(letter, letter) for letter in name) if name != "none" else name
                for name in _right(shapes, originals, merged)]
    return mistake


def _transposed(shapes: list, originals: list, merged: tuple) -> list[str]:
    return _right([shape[::-1] for shape in shapes], originals, merged)


def _by_writer(shapes: list, originals: list, merged: tuple) -> list[str]:
    return [name.replace("U1(2)", "U1(1)").replace("U2(2)", "U2(1)") for name in _right(shapes, originals, merged)]


PLACES_MISTAKES = {
    "M and U are exchanged: M_i is (merged, original's), U_i is (original's, merged)": _transposed,
    "originals 1 and 2 are exchanged": _renamed({"1": "2", "2": "1"}),
    "U is placed before layer 2 and belongs to it: its upper index is (2); layer 1 has no U": _by_writer}


def _judge_places(result: object, *inputs: object) -> str | None:
    right = _right(*inputs)
    if not isinstance(result, list | tuple) or len(result) != len(right):
        return "the result of places is not a list of nine names"
    for message, mistake in PLACES_MISTAKES.items():
        if list(result) == mistake(*inputs) != right:
            return message
    wrong = [(shape, name) for shape, name, true in zip(inputs[0], result, right) if name != true]
    return f"{len(wrong)} of 9 are wrong; the shape {wrong[0][0]} is not {wrong[0][1]!r}" if wrong else None


# ---------------------------------------------------------------- SuperLayer


def _layer(g: torch.Generator) -> tuple[list, ...]:
    """Two originals of unequal shapes, in float64: M_i (3, o_i), W_i (o_i, d_i), U_i (d_i, 4), b_i (o_i,)."""
    def random(*shapes: tuple) -> list[Tensor]:
        return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    return random((3, 2), (3, 5)), random((2, 3), (5, 2)), random((3, 4), (2, 4)), random((2,), (5,))


PARAMETERS = "parameters() must return the two M and the two U and nothing else; W and b are frozen"
NO_BIAS = "forward leaves the biases out: it is M (W U x + b)"
MEAN = "forward gives the mean over the originals; the layer is the sum"
NO_GRADIENT = "the gradient through fold() does not reach M and U as through forward; do not detach, use no no_grad"
WRONG_FOLD = "forward is right, but fold() gives another function"
NO_SCALE = "step(): the squared error of original i is divided by s_i^2, the mean of ||f_i||^2"
EACH_MEAN = "step(): sum the errors of all inputs and divide once, by the number of inputs of both originals together"
KEPT = "step(): the gradients of earlier steps are still there; set them to zero"
UNFOLDED = "step() must fold, and only once: the merged layer is the same for all originals"
WRONG_STEP = "step() gives other losses than the same training without a fold"


def _judge_layer(layer: object, Ms: list, Ws: list, Us: list, bs: list) -> str | None:
    if not isinstance(layer, nn.Module):
        return f"SuperLayer must be an nn.Module, got a {type(layer).__name__}"
    learned = list(layer.parameters())
    if sorted(p.shape for p in learned) != sorted(matrix.shape for matrix in (*Ms, *Us)):
        return PARAMETERS
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    try:
        unfolded, folded = layer(x), F.linear(x, *layer.fold())
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        return f"SuperLayer raised {type(error).__name__}: {error}"
    oracle = super_linear(Ms, Ws, Us, bs)
    known = {NO_BIAS: oracle(x) - oracle.fold()[1], MEAN: oracle(x) / 2}
    if not _same(unfolded, oracle(x)):
        named = (message for message, wrong in known.items() if _same(unfolded, wrong))
        return next(named, "forward gives wrong values")
    if not _same(folded, oracle(x)):
        return WRONG_FOLD
    return _judge_steps(layer, oracle) if _same_gradients(folded, unfolded, learned) else NO_GRADIENT


def _batches() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Inputs (n_i, 4), targets (n_i, o_i) and U_out,i (o_i, 3) of both originals, n_i = 6 and 4."""
    g = torch.Generator().manual_seed(5)
    return tuple([torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
                 for shapes in (((6, 4), (4, 4)), ((6, 2), (4, 5)), ((2, 3), (5, 3))))


def _step(merged: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, xs: list, targets: list, outs: list,
          scaled: bool = True, each: bool = False, kept: bool = False) -> float:
    """A training step, right or with one of the common mistakes. `merged` runs the layer. Returns the loss."""
    errors = [(merged(x) @ out.T - f).square().sum() / (f.square().sum() / len(f) if scaled else 1)
              for x, f, out in zip(xs, targets, outs)]
    total = sum(map(len, xs))
    loss = sum(error / (len(x) if each else total) for error, x in zip(errors, xs))
    if not kept:
        optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


STEP_MISTAKES = {NO_SCALE: {"scaled": False}, EACH_MEAN: {"each": True}, KEPT: {"kept": True}}


def _losses(layer: nn.Module, step: Callable[..., float]) -> list[float]:
    """The losses of three steps of SGD."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    return [float(step(optimizer, *_batches())) for _ in range(3)]


def _judge_steps(layer: nn.Module, oracle: nn.Module) -> str | None:
    """Three steps of the reader's `step`, against the frozen layers run one by one."""
    fold, folds = layer.fold, []
    layer.fold = lambda: folds.append(None) or fold()  # counts
    try:
        losses = _losses(layer, layer.step)
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        return f"step() raised {type(error).__name__}: {error}"

    def given_by(**mistake: bool) -> bool:
        own = copy.deepcopy(oracle)
        expected = _losses(own, lambda *inputs: _step(own, *inputs, **mistake))
        return all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(losses, expected))
    if given_by():
        return None if len(folds) == 3 else UNFOLDED
    return next((message for message, mistake in STEP_MISTAKES.items() if given_by(**mistake)), WRONG_STEP)


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding in float64."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-10)


def _same_gradients(folded: Tensor, unfolded: Tensor, learned: Sequence[Tensor]) -> bool:
    """Whether the gradient through the fold is the gradient through the frozen layers."""
    if not folded.requires_grad or not unfolded.requires_grad:
        return False
    return all(map(_same, *(torch.autograd.grad(out.square().sum(), learned, allow_unused=True, materialize_grads=True)
                            for out in (folded, unfolded))))


def _affine(folded: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, *folded)


def _faulty(fault: str) -> type[nn.Module]:
    """A SuperLayer with one of the common mistakes."""
    class SuperLayer(nn.Module):
        def __init__(self, Ms: list, Ws: list, Us: list, bs: list):
            super().__init__()
            self.Ms, self.Us, self.bs = nn.ParameterList(Ms), nn.ParameterList(Us), bs
            self.Ws = nn.ParameterList(Ws) if fault == PARAMETERS else Ws

        def forward(self, x: Tensor) -> Tensor:
            parts = [F.linear(x @ U.T, W, None if fault == NO_BIAS else b) @ M.T
                     for M, W, U, b in zip(self.Ms, self.Ws, self.Us, self.bs)]
            return sum(parts) / (2 if fault == MEAN else 1)

        def fold(self) -> tuple[Tensor, Tensor]:
            W = sum(M @ W @ U for M, W, U in zip(self.Ms, self.Ws, self.Us))
            b = sum(b.sum() if fault == WRONG_FOLD else M @ b for M, b in zip(self.Ms, self.bs))
            return (W.detach(), b.detach()) if fault == NO_GRADIENT else (W, b.expand(3))

        def step(self, *inputs: object) -> float:
            merged = self if fault == UNFOLDED else partial(_affine, self.fold())
            return _step(merged, *inputs, **STEP_MISTAKES.get(fault, {}))
    return SuperLayer


LAYER_MISTAKES = {fault: _faulty(fault) for fault in (
    PARAMETERS, NO_BIAS, MEAN, WRONG_FOLD, NO_GRADIENT, *STEP_MISTAKES, UNFOLDED)}

EXERCISES = {
    "fold": FOLD,
    "places": Exercise(_shuffled, mistakes=PLACES_MISTAKES, judge=_judge_places),
    "SuperLayer": Exercise(_layer, mistakes=LAYER_MISTAKES, judge=_judge_layer),
}
