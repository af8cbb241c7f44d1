"""Helpers of the lessons: checks of their claims, and tests of their exercises that say what is wrong."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def check(claim: str, holds: bool) -> None:
    """Print ✓ or ✗ and the claim. nbval compares these lines instead of measured numbers."""
    print(f"{'✓' if holds else '✗'} {claim}")


class Exercise(NamedTuple):
    """How a reader's function is tested.

    Args:
        inputs: makes the arguments from a generator of random numbers.
        solution: the correct function.
        mistakes: message to the reader -> a function that makes this common mistake.
    """

    inputs: Callable[[torch.Generator], tuple]
    solution: Callable
    mistakes: dict[str, Callable]


def test(student: Callable) -> None:
    """Run the reader's function on small inputs. Print that it is correct, or what is wrong with it.

    Args:
        student: the reader's function, with the name that the exercise asks for.

    Raises:
        ValueError: no exercise has this name.
    """
    name = student.__name__
    if name not in EXERCISES:
        raise ValueError(f"no exercise is called {name!r}; the exercises are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    inputs = exercise.inputs(torch.Generator().manual_seed(0))
    expected = exercise.solution(*inputs)
    try:
        result = student(*exercise.inputs(torch.Generator().manual_seed(0)))  # a copy, which it may modify
    except Exception as error:
        print(f"not yet: {name} raised {type(error).__name__}: {error}")
        return
    problem = _difference(result, expected, name)
    if problem is None:
        print(f"correct: {name} returns the right result")
        return
    for message, mistake in exercise.mistakes.items():
        if _difference(result, mistake(*inputs), name) is None:
            problem = message
    print(f"not yet: {problem}")


test.__test__ = False  # pytest must not collect it


def _difference(result: object, expected: object, name: str, number: int | None = None) -> str | None:
    """How the result of function `name`, or one of its results, differs from the expected one. None: equal."""
    what = f"the result of {name}" if number is None else f"result {number} of {name}"
    if isinstance(expected, tuple | list):
        if not isinstance(result, tuple | list) or len(result) != len(expected):
            return f"{what} is {_kind(result)}, expected {len(expected)} results"
        problems = (_difference(*pair, name, i) for i, pair in enumerate(zip(result, expected), 1))
        return next((problem for problem in problems if problem), None)
    expected = torch.as_tensor(expected)
    if not isinstance(result, Tensor | float | int):
        return f"{what} is {_kind(result)}, expected {_kind(expected)}"
    result = torch.as_tensor(result).to(expected.dtype)
    if result.shape != expected.shape:
        return f"{what} is {_kind(result)}, expected {_kind(expected)}"
    if not torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
        return f"{what} has the right shape, but wrong values"
    return None


def _kind(thing: object) -> str:
    """What a result is, in a few words."""
    if thing is None:
        return "None"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of length {len(thing)}"
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


def _root_mean_squares(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.square().mean().sqrt() for f in features]


EXERCISES = {
    # 00: logits (n, c_i) of every head, labels (n,) of images that all belong to task `own`
    "joint_accuracy": Exercise(
        lambda g: ([torch.randn(200, 3, generator=g), torch.randn(200, 4, generator=g) + 0.3],
                   torch.randint(4, (200,), generator=g), 1),
        _joint_accuracy, {
            "only the task's own head was used; the task is unknown here, so all heads compete":
                lambda logits, labels, own: 100 * (logits[own].argmax(1) == labels).float().mean().item(),
            "the labels count from 0 within their own head; side by side, its columns come after those of the heads "
            "before it":
                lambda logits, labels, own: 100 * (torch.cat(logits, 1).argmax(1) == labels).float().mean().item(),
            "that is a fraction of 1; return percent":
                lambda logits, labels, own: _joint_accuracy(logits, labels, own) / 100}),
    # 01: W1 (h, d), b1 (h,), W2 (c, h); new unit j is old unit order[j]
    "reordered": Exercise(
        lambda g: (torch.randn(5, 3, generator=g), torch.randn(5, generator=g), torch.randn(2, 5, generator=g),
                   torch.tensor([2, 0, 1, 4, 3])),
        lambda W1, b1, W2, order: (W1[order], b1[order], W2[:, order]), {
            "the next layer still reads the units in their old order; reorder its columns too":
                lambda W1, b1, W2, order: (W1[order], b1[order], W2),
            "every unit keeps its own bias; reorder b1 too":
                lambda W1, b1, W2, order: (W1[order], b1, W2[:, order]),
            "that is the inverse order: new unit j is old unit order[j]":
                lambda W1, b1, W2, order: (W1[order.argsort()], b1[order.argsort()], W2[:, order.argsort()])}),
    # 02: k matrices each: M_i (o*, o_i), W_i (o_i, d_i), U_i (d_i, d*), b_i (o_i,)
    "fold": Exercise(
        lambda g: tuple([torch.randn(*shape, generator=g) for _ in range(2)]
                        for shape in ((4, 3), (3, 2), (2, 5), (3,))),
        lambda Ms, Ws, Us, bs: (sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)), sum(M @ b for M, b in zip(Ms, bs))), {
            "that is the mean over the originals; the fold is the sum":
                lambda Ms, Ws, Us, bs: (sum(M @ W @ U for M, W, U in zip(Ms, Ws, Us)) / 2,
                                        sum(M @ b for M, b in zip(Ms, bs)) / 2),
            "that contains only one original; sum over all of them":
                lambda Ms, Ws, Us, bs: (Ms[0] @ Ws[0] @ Us[0], Ms[0] @ bs[0])}),
    # 03: W (3 d, d_in) holds the rows of q, then k, then v; three M (d*, d)
    "merged_qkv": Exercise(
        lambda g: (torch.randn(12, 3, generator=g), [torch.randn(5, 4, generator=g) for _ in range(3)]),
        lambda W, Ms: torch.cat([M @ part for M, part in zip(Ms, W.chunk(3))]), {
            "M_q was used for all three parts; q, k and v each have an M of their own":
                lambda W, Ms: torch.cat([Ms[0] @ part for part in W.chunk(3)]),
            "the three parts are in the wrong order; qkv holds q, then k, then v":
                lambda W, Ms: torch.cat([M @ part for M, part in zip(Ms, W.chunk(3))][::-1])}),
    # 04: D (o,), A (o, r), B (r, o), W (o, d)
    "merge_weight": Exercise(
        lambda g: tuple(torch.randn(*shape, generator=g) for shape in ((6,), (6, 2), (2, 6), (6, 4))),
        lambda D, A, B, W: D[:, None] * W + A @ (B @ W), {
            "the diagonal part D W is missing": lambda D, A, B, W: A @ (B @ W),
            "the low-rank part A B W is missing": lambda D, A, B, W: D[:, None] * W}),
    # 05: k reconstructions (n, d) of ALL images, k targets (n_i, d) of each original's own images, owner (n,)
    "reconstruction_loss": Exercise(
        lambda g: ([torch.randn(6, 3, generator=g) for _ in range(2)],
                   [torch.randn(2, 3, generator=g), 5 * torch.randn(4, 3, generator=g)],
                   torch.tensor([1, 0, 1, 1, 0, 1])),
        _reconstruction_loss, {
            "the originals are not on one scale; divide each error by the mean of ||f_i||^2":
                lambda *inputs: _reconstruction_loss(*inputs, scaled=False),
            "that is the sum over the images; return the mean":
                lambda rebuilt, targets, owner: _reconstruction_loss(rebuilt, targets, owner) * len(owner)}),
    # 06: W (o, d) and b (o,) of a layer after a LayerNorm with weight g (d,) and bias c (d,)
    "absorb_norm": Exercise(
        lambda g: tuple(torch.randn(*shape, generator=g) for shape in ((4, 3), (4,), (3,), (3,))),
        lambda W, b, g, c: (W * g, b + W @ c), {
            "the norm's bias c is missing: W (g x + c) + b contains W c": lambda W, b, g, c: (W * g, b),
            "the norm's weight g is missing": lambda W, b, g, c: (W, b + W @ c),
            "c was multiplied by the new weight W g; it goes through W alone":
                lambda W, b, g, c: (W * g, b + (W * g) @ c)}),
    # 07: k features (n_i, d), to be scaled to the root mean square of the first
    "to_one_scale": Exercise(
        lambda g: ([torch.randn(5, 3, generator=g), 4 * torch.randn(2, 3, generator=g) + 1],),
        lambda features: [f * _root_mean_squares(features)[0] / size
                          for f, size in zip(features, _root_mean_squares(features))], {
            "that makes large features larger; divide by their own root mean square":
                lambda features: [f * size / _root_mean_squares(features)[0]
                                  for f, size in zip(features, _root_mean_squares(features))],
            "every root mean square is 1 now; it should be that of the first":
                lambda features: [f / size for f, size in zip(features, _root_mean_squares(features))]}),
    # 08: output matrices O_j (d_j, d) of a first merge; U (d, d*) with which a second merge reads it
    "composed_outputs": Exercise(
        lambda g: ([torch.randn(3, 4, generator=g), torch.randn(2, 4, generator=g)], torch.randn(4, 5, generator=g)),
        lambda outputs, U: [O @ U for O in outputs], {
            "these are the output matrices from before the second merge": lambda outputs, U: outputs}),
}
