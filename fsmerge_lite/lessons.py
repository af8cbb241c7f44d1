"""What the lessons use: checks of what they claim, and tests of their exercises that say what is wrong."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def check(claim: str, holds: bool) -> None:
    """Print a claim behind ✓ where it holds and ✗ where not: what nbval compares in the place of measured numbers."""
    print("✓" if holds else "✗", claim)


class Exercise(NamedTuple):
    """What a reader's function is tested on.

    Args:
        inputs: gives the arguments, from a generator of random numbers.
        solution: the right function.
        mistakes: what one who makes a usual mistake is told -> the function with that mistake.
    """

    inputs: Callable[[torch.Generator], tuple]
    solution: Callable
    mistakes: dict[str, Callable]


def test(student: Callable) -> None:
    """Run the reader's function on small inputs and print whether it is right, or what is wrong with it.

    Args:
        student: a function of the name that its exercise gives it.

    Raises:
        ValueError: there is no exercise of that name.
    """
    name = student.__name__
    if name not in EXERCISES:
        raise ValueError(f"no exercise is called {name!r}; there are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    inputs = exercise.inputs(torch.Generator().manual_seed(0))
    expected = exercise.solution(*inputs)
    try:
        got = student(*exercise.inputs(torch.Generator().manual_seed(0)))  # of its own, to do with what it likes
    except Exception as error:
        print(f"not yet: {name} raised {type(error).__name__}: {error}")
        return
    wrong = _difference(got, expected, name)
    if wrong is None:
        print(f"correct: {name} does what it should")
        return
    for told, mistake in exercise.mistakes.items():
        if _difference(got, mistake(*inputs), name) is None:
            wrong = told
    print("not yet:", wrong)


test.__test__ = False  # not one of pytest's


def _difference(got: object, expected: object, what: str) -> str | None:
    """In what a result differs from the one that is right; None: in nothing."""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            return f"{what} gave {_kind(got)}, expected {len(expected)} things"
        found = (_difference(*pair, f"number {i} of {what}") for i, pair in enumerate(zip(got, expected), 1))
        return next((wrong for wrong in found if wrong), None)
    expected = torch.as_tensor(expected)
    if not isinstance(got, Tensor | float | int):
        return f"{what} gave {_kind(got)}, expected {_kind(expected)}"
    got = torch.as_tensor(got).to(expected.dtype)
    if got.shape != expected.shape:
        return f"{what} gave {_kind(got)}, expected {_kind(expected)}"
    if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5):
        return f"{what} has the right shape, but other numbers than it should"
    return None


def _kind(thing: object) -> str:
    if thing is None:
        return "nothing"
    if isinstance(thing, Tensor) and thing.dim():
        return f"a tensor of shape {tuple(thing.shape)}"
    return "one number" if isinstance(thing, Tensor | float | int) else f"a {type(thing).__name__}"


# ---------------------------------------------------------------- the exercises, by lesson

def _joint_accuracy(logits: Sequence[Tensor], labels: Tensor, own: int) -> float:
    before = sum(head.shape[1] for head in logits[:own])
    return 100 * (torch.cat(list(logits), 1).argmax(1) == before + labels).float().mean().item()


def _reconstruction_loss(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor,
                         scaled: bool = True) -> Tensor:
    errors = [(rebuilt[i][owner == i] - target).square().sum() / (target.square().sum(1).mean() if scaled else 1)
              for i, target in enumerate(targets)]
    return sum(errors) / len(owner)


def _sizes(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.square().mean().sqrt() for f in features]


EXERCISES = {
    # 00: (n, c_i) logits of every head, (n,) labels of images that are all of task `own`
    "joint_accuracy": Exercise(
        lambda g: ([torch.randn(200, 3, generator=g), torch.randn(200, 4, generator=g) + 0.3],
                   torch.randint(4, (200,), generator=g), 1),
        _joint_accuracy, {
            "only the task's own head was asked; the task is unknown here, all heads compete":
                lambda logits, labels, own: 100 * (logits[own].argmax(1) == labels).float().mean().item(),
            "the labels count from 0 within their own head; side by side they start behind the heads before it":
                lambda logits, labels, own: 100 * (torch.cat(logits, 1).argmax(1) == labels).float().mean().item(),
            "that is a share of 1; give it in percent":
                lambda logits, labels, own: _joint_accuracy(logits, labels, own) / 100}),
    # 01: W1 (h, d), b1 (h,), W2 (c, h); new unit j is old unit order[j]
    "reordered": Exercise(
        lambda g: (torch.randn(5, 3, generator=g), torch.randn(5, generator=g), torch.randn(2, 5, generator=g),
                   torch.tensor([2, 0, 1, 4, 3])),
        lambda W1, b1, W2, order: (W1[order], b1[order], W2[:, order]), {
            "the next layer still reads the units in their old order: its columns must move too":
                lambda W1, b1, W2, order: (W1[order], b1[order], W2),
            "a unit takes its bias along: b1 must move too":
                lambda W1, b1, W2, order: (W1[order], b1, W2[:, order]),
            "that is the other way round: new unit j is old unit order[j]":
                lambda W1, b1, W2, order: (W1[order.argsort()], b1[order.argsort()], W2[:, order.argsort()])}),
    # 02: k matrices each: M_i (o*, o_i), W_i (o_i, d_i), U_i (d_i, d*), b_i (o_i,)
    "fold": Exercise(
        lambda g: tuple([torch.randn(*shape, generator=g) for _ in range(2)]
                        for shape in ((4, 3), (3, 2), (2, 5), (3,))),
        lambda Ms, Ws, Us, bs: (sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)), sum(M @ b for M, b in zip(Ms, bs))), {
            "that is the mean over the originals; the fold is their sum":
                lambda Ms, Ws, Us, bs: (sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)) / 2,
                                        sum(M @ b for M, b in zip(Ms, bs)) / 2),
            "only one original is in it; sum over all of them":
                lambda Ms, Ws, Us, bs: (Ms[0] @ Ws[0] @ Us[0], Ms[0] @ bs[0])}),
    # 03: W (3 d, d_in), the rows of q, k and v below each other, and three M (d*, d)
    "merged_qkv": Exercise(
        lambda g: (torch.randn(12, 3, generator=g), [torch.randn(5, 4, generator=g) for _ in range(3)]),
        lambda W, Ms: torch.cat([M @ part for M, part in zip(Ms, W.chunk(3))]), {
            "M_q was used for all three; q, k and v have an M each":
                lambda W, Ms: torch.cat([Ms[0] @ part for part in W.chunk(3)]),
            "the three parts are in another order; qkv holds q, then k, then v":
                lambda W, Ms: torch.cat([M @ part for M, part in zip(Ms, W.chunk(3))][::-1])}),
    # 04: D (o,), A (o, r), B (r, o), W (o, d)
    "merge_weight": Exercise(
        lambda g: tuple(torch.randn(*shape, generator=g) for shape in ((6,), (6, 2), (2, 6), (6, 4))),
        lambda D, A, B, W: D[:, None] * W + A @ (B @ W), {
            "the diagonal is not in it": lambda D, A, B, W: A @ (B @ W),
            "the low-rank part is not in it": lambda D, A, B, W: D[:, None] * W}),
    # 05: k reconstructions (n, d) of ALL images, k targets (n_i, d) of each original's own images, owner (n,)
    "reconstruction_loss": Exercise(
        lambda g: ([torch.randn(6, 3, generator=g) for _ in range(2)],
                   [torch.randn(2, 3, generator=g), 5 * torch.randn(4, 3, generator=g)],
                   torch.tensor([1, 0, 1, 1, 0, 1])),
        _reconstruction_loss, {
            "the originals are not brought to one scale: divide by the mean of ||f_i||^2":
                lambda *inputs: _reconstruction_loss(*inputs, scaled=False),
            "that is the sum over the images; give their mean":
                lambda rebuilt, targets, owner: _reconstruction_loss(rebuilt, targets, owner) * len(owner)}),
    # 06: W (o, d), b (o,) of a layer behind a LayerNorm with weight g (d,) and bias c (d,)
    "absorb_norm": Exercise(
        lambda g: tuple(torch.randn(*shape, generator=g) for shape in ((4, 3), (4,), (3,), (3,))),
        lambda W, b, g, c: (W * g, b + W @ c), {
            "the norm's bias c is missing: W (g x + c) + b has W c in it": lambda W, b, g, c: (W * g, b),
            "the norm's weight g is missing": lambda W, b, g, c: (W, b + W @ c),
            "c goes through the old W, which knows nothing of g yet": lambda W, b, g, c: (W * g, b + (W * g) @ c)}),
    # 07: k features (n_i, d), to be of the first one's size (root mean square)
    "to_one_scale": Exercise(
        lambda g: ([torch.randn(5, 3, generator=g), 4 * torch.randn(2, 3, generator=g) + 1],),
        lambda features: [f * _sizes(features)[0] / s for f, s in zip(features, _sizes(features))], {
            "that makes the large ones larger: divide by their own size":
                lambda features: [f * s / _sizes(features)[0] for f, s in zip(features, _sizes(features))],
            "they have size 1 now, but should have the size of the first":
                lambda features: [f / s for f, s in zip(features, _sizes(features))]}),
    # 08: output matrices O_j (d_j, d) of a merge, U (d, d*) of the merge that it went into
    "composed_outputs": Exercise(
        lambda g: ([torch.randn(3, 4, generator=g), torch.randn(2, 4, generator=g)], torch.randn(4, 5, generator=g)),
        lambda outputs, U: [O @ U for O in outputs], {
            "the matrices are as they were before the second merge": lambda outputs, U: outputs}),
}
