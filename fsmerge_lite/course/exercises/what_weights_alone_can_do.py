"""The exercises of lesson 02: a disguised attention head, the best rotation, and RegMean one and two layers deep."""
from collections.abc import Sequence

import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from .testing import Exercise

Net = tuple[Tensor, Tensor, Tensor, Tensor]  # W1 (h, d), b1 (h,), W2 (o, h), b2 (o,)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# ---------------------------------------------------------------- easy: a disguised attention head


def _head(g: torch.Generator) -> tuple[Tensor, ...]:
    """Wq, bq, Wk, bk, Wv, bv, Wo of one attention head (5 units, width 7), and invertible A and R."""
    layers = [_normal(g, *shape) for _ in range(3) for shape in ((5, 7), (5,))]
    return *layers, _normal(g, 7, 5), *(_normal(g, 5, 5) + 3 * torch.eye(5) for _ in range(2))


def _disguised(*head: Tensor) -> tuple[Tensor, ...]:
    """The keys solve A^T k' = k, for weights and bias at once; Wo' solves Wo' R = Wo."""
    Wq, bq, Wk, bk, Wv, bv, Wo, A, R = head
    keys = torch.linalg.solve(A.T, torch.cat([Wk, bk[:, None]], 1))
    return A @ Wq, A @ bq, keys[:, :-1], keys[:, -1], R @ Wv, R @ bv, torch.linalg.solve(R, Wo, left=False)


def _both_by_a(*head: Tensor) -> tuple[Tensor, ...]:
    queries, keys, A = _disguised(*head)[:2], head[2:4], head[-2]
    return *queries, *(A @ part for part in keys), *_disguised(*head)[4:]


def _not_transposed(*head: Tensor) -> tuple[Tensor, ...]:
    queries, keys, A = _disguised(*head)[:2], head[2:4], head[-2]
    return *queries, *(A.inverse() @ part for part in keys), *_disguised(*head)[4:]


def _old_biases(*head: Tensor) -> tuple[Tensor, ...]:
    return tuple(head[i] if i in (1, 3, 5) else part for i, part in enumerate(_disguised(*head)))


def _not_undone(*head: Tensor) -> tuple[Tensor, ...]:
    return *_disguised(*head)[:-1], head[-3] @ head[-1]


# ---------------------------------------------------------------- medium: the best rotation


def _two_clouds(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points X and Y (40, 4): Y in other coordinates, mirrored, and with some noise."""
    Y = _normal(g, 40, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    Q = torch.linalg.qr(_normal(g, 4, 4))[0]
    Q[0] *= -Q.det().sign()  # its determinant is -1
    return Y @ Q.T + 0.1 * _normal(g, 40, 4), Y


def _by_scipy(X: Tensor, Y: Tensor) -> Tensor:
    """scipy looks for the R that brings Y R closest to X; R is the transpose of Q."""
    return torch.from_numpy(orthogonal_procrustes(Y.numpy(), X.numpy())[0]).T


def _least_squares(X: Tensor, Y: Tensor) -> Tensor:
    return torch.linalg.lstsq(Y, X).solution.T


def _no_mirror(X: Tensor, Y: Tensor) -> Tensor:
    """The best matrix of determinant +1."""
    left, _, right = torch.linalg.svd(X.T @ Y)
    left[:, -1] *= (left @ right).det()
    return left @ right


# ---------------------------------------------------------------- medium: RegMean with a bias


def _one_layer(g: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights (3, 4), biases (3,) and what the layers read (30, 4) and (90, 4), not centered."""
    inputs = [_normal(g, 30, 4) @ _normal(g, 4, 4) + 1, _normal(g, 90, 4) @ _normal(g, 4, 4) - 2]
    return [_normal(g, 3, 4) for _ in range(2)], [_normal(g, 3) for _ in range(2)], inputs


def _stacked(Ws: Sequence[Tensor], bs: Sequence[Tensor], Xs: Sequence[Tensor], equal: bool = True
             ) -> tuple[Tensor, Tensor]:
    """One least-squares problem with the rows of all originals, each original with the same total weight."""
    sizes = [len(X) ** 0.5 if equal else 1 for X in Xs]
    rows = torch.cat([torch.cat([X, torch.ones(len(X), 1).double()], 1) / n for X, n in zip(Xs, sizes)])
    targets = torch.cat([(X @ W.T + b) / n for W, b, X, n in zip(Ws, bs, Xs, sizes)])
    solution = torch.linalg.lstsq(rows, targets).solution.T
    return solution[:, :-1], solution[:, -1]


def _rows_counted(Ws: Sequence[Tensor], bs: Sequence[Tensor], Xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return _stacked(Ws, bs, Xs, equal=False)


def _mean_bias(Ws: Sequence[Tensor], bs: Sequence[Tensor], Xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    grams = [X.T @ X / len(X) for X in Xs]
    return sum(W @ G for W, G in zip(Ws, grams)) @ sum(grams).inverse(), sum(bs) / len(bs)


# ---------------------------------------------------------------- project: RegMean, layer after layer


def _two_layers(g: torch.Generator) -> tuple[list[Net], list[Tensor]]:
    """Two networks of 4 inputs, 6 hidden units and 2 outputs, and what they read (80, 4)."""
    nets = [(_normal(g, 6, 4), _normal(g, 6), _normal(g, 2, 6), _normal(g, 2)) for _ in range(2)]
    return nets, [_normal(g, 80, 4) @ _normal(g, 4, 4) + shift for shift in (-1, 1)]


def _in_sequence(nets: Sequence[Net], Xs: Sequence[Tensor], merged_hidden: bool = True, relu: bool = True) -> Net:
    """Layer 1 as before; layer 2 from what the merged layer 1 writes to what original i puts out."""
    W1s, b1s, W2s, b2s = zip(*nets)
    W1, b1 = _stacked(W1s, b1s, Xs)
    hidden = [(X @ W.T + b).relu() for X, W, b in zip(Xs, W1s, b1s)]
    wanted = torch.cat([h @ W.T + b for h, W, b in zip(hidden, W2s, b2s)])
    if merged_hidden:
        hidden = [X @ W1.T + b1 for X in Xs]
        hidden = [h.relu() for h in hidden] if relu else hidden
    rows = torch.cat([torch.cat(hidden), torch.ones(len(wanted), 1).double()], 1)
    solution = torch.linalg.lstsq(rows, wanted).solution.T
    return W1, b1, solution[:, :-1], solution[:, -1]


def _each_alone(nets: Sequence[Net], Xs: Sequence[Tensor]) -> Net:
    return _in_sequence(nets, Xs, merged_hidden=False)


def _without_relu(nets: Sequence[Net], Xs: Sequence[Tensor]) -> Net:
    return _in_sequence(nets, Xs, relu=False)


def _old_second_layer(nets: Sequence[Net], Xs: Sequence[Tensor]) -> Net:
    return *_in_sequence(nets, Xs)[:2], sum(net[2] for net in nets) / 2, sum(net[3] for net in nets) / 2


EXERCISES = {
    # one attention head, A and R: the new queries are A q, the new values R v, and what the head writes stays
    "disguised_head": Exercise(_head, _disguised, {
        "A was used for the keys too; that keeps the scores only if A is orthogonal": _both_by_a,
        "the scores change: (A q) . (A^-1 k) is q^T A^T A^-1 k, so the inverse must be transposed": _not_transposed,
        "the weights are right, but the biases are part of q, k and v and must be mapped too": _old_biases,
        "Wo must undo R: what the head writes is Wo v, and Wo R^-1 (R v) is the same": _not_undone}),
    # X, Y (n, d): the orthogonal Q with the smallest sum of ||x_n - Q y_n||^2
    "best_rotation": Exercise(_two_clouds, _by_scipy, {
        "that is the transpose of Q: it brings X to Y": lambda X, Y: _by_scipy(X, Y).T,
        "that is the least-squares matrix, which is not orthogonal": _least_squares,
        "that is the best rotation without a mirror image; an orthogonal Q may have determinant -1": _no_mirror}),
    # Ws (o, d), bs (o,), Xs (n_i, d): one W* and b* for all, every original counting the same
    "regmean_with_bias": Exercise(_one_layer, _stacked, {
        "an original with more rows counts for more; divide each original's sums by its number of rows": _rows_counted,
        "that is RegMean without a bias, and the mean of the biases; fit both at once, with an input that is always 1":
            _mean_bias}),
    # nets: (W1, b1, W2, b2) of each; Xs (n, d), as many rows for each: one (W1, b1, W2, b2)
    "sequential_regmean": Exercise(_two_layers, _in_sequence, {
        "layer 2 was fitted to what the originals' hidden layers write; fit it to what the merged layer 1 writes":
            _each_alone,
        "the merged hidden units have no ReLU": _without_relu,
        "layer 1 is right, but layer 2 is the average": _old_second_layer}),
}
