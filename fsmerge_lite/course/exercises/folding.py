"""The exercises of lesson 10: absorbing a norm, the gradient through a fold, folding an MLP and a block."""
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...architectures.vit import vit
from ...layers import SuperLinear
from ...supernet import SuperNet
from .testing import Exercise

Matrices = Sequence[Tensor]


def _normal(g: torch.Generator, *shapes: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, generator=g) for shape in shapes)


def _probed(function: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, Tensor]:
    """The weight and bias of an affine function, from what it makes of zero and of the unit vectors."""
    bias = function(torch.zeros(size))
    return torch.stack([function(unit) - bias for unit in torch.eye(size)], 1), bias


# ---------------------------------------------------------------- a LayerNorm, a U and a layer in one

ABSORB_NORM = Exercise(
    lambda g: _normal(g, (4, 3), (4,), (3, 3), (3,), (3,)),  # W (o, d), b (o,), U (d, d*), g and c (d*,)
    lambda W, b, U, g, c: _probed(lambda x: F.linear(U @ (g * x + c), W, b), len(g)), {
        "the norm's bias c is missing: W U (g x + c) + b contains W U c": lambda W, b, U, g, c: (W @ U * g, b),
        "the norm's weight g is missing": lambda W, b, U, g, c: (W @ U, b + W @ U @ c),
        "U is missing": lambda W, b, U, g, c: (W * g, b + W @ c),
        "g comes before U, so it scales the columns of W U, not those of W":
            lambda W, b, U, g, c: (W * g @ U, b + W @ U @ c),
        "c was multiplied by the new weight, which contains g; it goes through W U alone":
            lambda W, b, U, g, c: (W @ U * g, b + (W @ U * g) @ c)})


# ---------------------------------------------------------------- the gradient through a fold

def _by_autograd(Delta: Tensor, W: Tensor, D: Tensor, A: Tensor, B: Tensor, U: Tensor) -> tuple[Tensor, ...]:
    learned = [part.clone().requires_grad_() for part in (D, A, B)]
    folded = (learned[0].diag() + learned[1] @ learned[2]) @ W @ U
    return torch.autograd.grad((Delta * folded).sum(), learned)


def _with_respect_to_parts(H: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
    return H.diag(), H @ B.T, A.T @ H


FOLD_GRADIENTS = Exercise(  # Delta (o, d), W (o, d), D (o,), A (o, r), B (r, o), U (d, d)
    lambda g: _normal(g, (5, 4), (5, 4), (5,), (5, 2), (2, 5), (4, 4)), _by_autograd, {
        "U is missing: M multiplies W U, so the gradient with respect to M is Delta (W U)^T":
            lambda Delta, W, D, A, B, U: _with_respect_to_parts(Delta @ W.T, A, B),
        "that is the gradient with respect to the transpose of M":
            lambda Delta, W, D, A, B, U: _with_respect_to_parts(W @ U @ Delta.T, A, B),
        "the gradient with respect to A contains B, and the one with respect to B contains A":
            lambda Delta, W, D, A, B, U: _with_respect_to_parts(Delta @ (W @ U).T, B.T, A.T)})


# ---------------------------------------------------------------- an MLP with LayerScale

def _mlps(g: torch.Generator) -> tuple[list[Matrices], list[Matrices]]:
    """Two originals, into width 4 with 6 hidden units.

    Each has (W_fc1, b_fc1, W_fc2, b_fc2, gamma) and (U_fc1, M_fc1, U_fc2, M_fc2).
    """
    originals, matrices = [], []
    for d, h in ((3, 5), (2, 4)):
        originals.append(_normal(g, (h, d), (h,), (d, h), (d,), (d,)))
        matrices.append(_normal(g, (d, 4), (6, h), (h, 6), (4, d)))
    return originals, matrices


def _unfolded(originals: Sequence[Matrices], matrices: Sequence[Matrices], scaled: bool = True, both: bool = True,
              merged: bool = True, factor: float = 1.0) -> tuple[Tensor, ...]:
    """Weight and bias of fc1 and of fc2 from runs of the unfolded layers; the options make common mistakes."""
    def first(x: Tensor) -> Tensor:
        return factor * sum(M1 @ F.linear(U1 @ x, W1, b1) for (W1, b1, *_), (U1, M1, *_) in zip(originals, matrices))

    def second(x: Tensor) -> Tensor:
        found = 0
        for (*_, W2, b2, gamma), (*_, U2, M2) in zip(originals, matrices):
            scale = gamma if scaled else torch.ones_like(gamma)
            found = found + M2 @ (scale * F.linear(U2 @ x, W2) + (scale if both else 1) * b2)
        return factor * found
    W1, b1 = _probed(first, 4)
    W2, b2 = _probed(second, 6)
    unmerged = sum(F.pad(b, (0, 6 - len(b))) for _, b, *_ in originals)
    return W1, b1 if merged else unmerged, W2, b2


FOLD_MLP = Exercise(_mlps, _unfolded, {
    "the LayerScale gamma is missing from fc2": partial(_unfolded, scaled=False),
    "gamma multiplies all that fc2 outputs, so also its bias": partial(_unfolded, both=False),
    "the biases go through M as well: the bias of fc1 is the sum of M_fc1 b_fc1": partial(_unfolded, merged=False),
    "that is the mean over the originals; a fold is the sum": partial(_unfolded, factor=0.5)})


# ---------------------------------------------------------------- project: a block of a SuperNet

BLOCK = "return a timm Block whose four layers are plain nn.Linear"
NORMS = "the LayerNorms still have a weight and a bias of their own; absorb them, so that they are ones and zeros"
DOUBLE = "the SuperNet is in float64, and your block is not; convert it with .double()"
ATTENTION = "the attention part differs from the SuperNet's: look at norm1, attn.qkv and attn.proj"
PERCEPTRON = "the attention part is right; the MLP part differs: look at norm2, mlp.fc1 and mlp.fc2"
EPS = "almost: the LayerNorms of timm's vision transformers have eps = 1e-6"


def _refuse(*_: object) -> None:
    raise RuntimeError("the library's own fold is switched off in this exercise")


def _net(g: torch.Generator) -> tuple[SuperNet, int]:
    """A SuperNet of two ViTs of two blocks, in float64, where no tensor is zero; and the number of one block."""
    originals = [vit(dim=width, depth=2, num_heads=2, img_size=8).eval() for width in (8, 12)]
    for p in (p for original in originals for p in original.parameters()):
        p.data = torch.randn(p.shape, generator=g) / max(1, p.dim()) ** 2
    net = SuperNet(originals, rank=2, init="random", seed=g.initial_seed()).double()
    net.fold = net.folded = _refuse
    for layer in net.graph.layers:
        net.body.get_submodule(layer.name).fold = _refuse
    return net, g.initial_seed() % 2


def _block_problem(result: object, net: SuperNet, b: int) -> str | None:
    """The first thing that keeps the reader's block from being the SuperNet's."""
    if type(result) is not Block or any(isinstance(module, SuperLinear) for module in result.modules()):
        return BLOCK
    if any(p.dtype != torch.float64 for p in result.parameters()):
        return DOUBLE
    if any((norm.weight != 1).any() or norm.bias.any() for norm in (result.norm1, result.norm2)):
        return NORMS
    block, x = net.body.blocks[b], torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7)).double()
    with torch.no_grad():
        if _far(result.eval()(x), block(x)) < 1e-9:
            return None
        if result.norm1.eps != block.norm1.eps:
            return EPS
        attended = _far(result.attn(result.norm1(x)), block.attn(block.norm1(x)))
    return PERCEPTRON if attended < 1e-9 else ATTENTION


def _far(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item() if found.shape == expected.shape else float("inf")


def _by_hand(net: SuperNet, b: int, biased: str = "", kept: bool = False, single: bool = False,
             eps: float = 1e-6) -> nn.Module:
    """The block folded layer by layer. The options make common mistakes; a layer named `biased` loses its bias."""
    block = net.body.blocks[b]
    plain = Block(8, 2, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=eps)).double().eval()
    if kept:
        plain.norm1, plain.norm2 = block.norm1, block.norm2
    for name, norm in (("attn.qkv", block.norm1), ("attn.proj", None), ("mlp.fc1", block.norm2), ("mlp.fc2", None)):
        layer, weight, bias = block.get_submodule(name), 0, 0
        for M, (W, own), U in zip(layer.merges, layer.frozen(), layer.unmerges):
            weight, bias = weight + M.dense() @ W @ U.dense(), bias + M.dense() @ own
        if norm is not None and not kept:
            weight, bias = weight * norm.weight, bias + weight @ norm.bias
        bias = 0 * bias if name == biased else bias
        plain.get_submodule(name).load_state_dict({"weight": weight, "bias": bias})
    return plain.float() if single else plain


FOLD_BLOCK = Exercise(_net, judge=_block_problem, mistakes={
    BLOCK: lambda net, b: net.body.blocks[b],
    NORMS: partial(_by_hand, kept=True),
    DOUBLE: partial(_by_hand, single=True),
    EPS: partial(_by_hand, eps=1e-5),
    ATTENTION: partial(_by_hand, biased="attn.proj"),
    PERCEPTRON: partial(_by_hand, biased="mlp.fc2")})

EXERCISES = {"absorb_norm": ABSORB_NORM, "fold_gradients": FOLD_GRADIENTS, "fold_mlp": FOLD_MLP,
             "fold_block": FOLD_BLOCK}
