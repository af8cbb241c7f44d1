"""The exercises of the lesson on errors in the fitted start, and on what repairs them."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .testing import Exercise
from .the_fitted_start import Net, picked, small_nets, stream

# ---------------------------------------------------------------- easy: token_weights

def _features_inputs(generator: torch.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """A model from tokens (n, 5, 3) to features (n, 4) that forgets one token, its tokens, and the floor."""
    mix, inside, outside = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                            for shape in ((5, 5), (3, 6), (6, 4)))
    taken = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0]).double()
    x = torch.randn(7, 5, 3, generator=generator, dtype=torch.float64)

    def features(tokens: Tensor) -> Tensor:
        between = torch.tanh((tokens + 0.3 * torch.tril(mix, -1).T @ tokens.tanh() * taken[:, None]) @ inside)
        return torch.einsum("t, nth -> nh", taken, between) @ outside
    return features, x, 0.2


def _token_weights(features: Callable[[Tensor], Tensor], x: Tensor, floor: float, square: bool = True,
                   one_sum: bool = False, mean_first: bool = False, scaled: bool = True, early: bool = False) -> Tensor:
    """Weights (T,) from central differences, right or with one mistake."""
    tokens, channels = x.shape[1:]
    steps = 1e-5 * torch.eye(tokens * channels).to(x).view(-1, 1, tokens, channels)
    jacobian = torch.stack([(features(x + step) - features(x - step)) / 2e-5 for step in steps])  # (T c, n, e)
    jacobian = jacobian.unflatten(0, (tokens, channels))
    jacobian = jacobian.sum(-1, keepdim=True) if one_sum else jacobian
    jacobian = jacobian.mean(2, keepdim=True) if mean_first else jacobian
    found = jacobian.square().sum((1, 3)) if square else jacobian.square().sum((1, 3)).sqrt()
    weights = found.mean(1)
    if early:
        return ((1 - floor) * weights + floor) / ((1 - floor) * weights + floor).mean()
    return (1 - floor) * (weights / weights.mean() if scaled else weights) + floor


# ---------------------------------------------------------------- medium: corrected_write

def _write_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
    """W (6, 8), x (60, 8), z (60, 6), u (60, 5), z_star (60, 7), P (3, 6), B (7, 3), ridge."""
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    W, x, z = normal(6, 8), normal(60, 8), normal(60, 6)
    P, B = (torch.linalg.qr(normal(d, 3)).Q for d in (6, 7))
    z_star = z @ P @ B.T + 0.3 * normal(60, 7)  # the share is not what it should be
    return W, x, z, x @ normal(8, 5) + 0.5 * normal(60, 5), z_star, P.T, B, 0.05


def _write(W: Tensor, x: Tensor, z: Tensor, u: Tensor, z_star: Tensor, P: Tensor, B: Tensor, ridge: float,
           corrected: bool = True, added: bool = True, before: bool = True, shrunk: bool = True) -> Tensor:
    """U0 (h, h*) by ordinary least squares of stacked rows, right or with one mistake."""
    wrong = z @ P.T - z_star @ B if corrected else 0 * z @ P.T  # what the share lacks before the layer
    wanted = (wrong if before else -wrong) + (x @ W.T @ P.T if added else 0)
    rows = torch.cat([u / len(u) ** 0.5, (ridge if shrunk else 0.0) ** 0.5 * torch.eye(u.shape[1]).to(u)])
    targets = torch.cat([wanted / len(u) ** 0.5, u.new_zeros(u.shape[1], len(P))])
    fitted = torch.linalg.lstsq(rows, targets).solution.T
    return torch.linalg.lstsq(P @ W, fitted, driver="gelsd").solution  # of all U0 with P W U0 = V, the smallest


# ---------------------------------------------------------------- medium: off_task_readout

def _readout_inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float, float]:
    u, f, u_other = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                     for shape in ((30, 4), (30, 3), (50, 4)))
    return u, f + u[:, :3] + 1, u_other + 0.5, 0.2, 0.1


def _readout(u: Tensor, f: Tensor, u_other: Tensor, off_task: float, ridge: float, means: bool = True,
             target: float = 1.0, power: float = 0.5, per_feature: bool = True) -> Tensor:
    """Ordinary least squares of stacked rows, each times the square root of its weight; right or with one mistake."""
    own, other = (len(u) ** -0.5, len(u_other) ** -0.5) if means else (1.0, 1.0)
    beside = off_task ** power * other
    wanted = target * f.mean(0) if per_feature else f.mean(0) * 0 + f.mean()
    rows = torch.cat([own * u, beside * u_other, ridge ** 0.5 * torch.eye(u.shape[1]).to(u)])
    targets = torch.cat([own * f, beside * wanted.expand(len(u_other), -1), u.new_zeros(u.shape[1], f.shape[1])])
    return torch.linalg.lstsq(rows, targets).solution.T


# ---------------------------------------------------------------- project: ablate_small_start

def _project_inputs(generator: torch.Generator) -> tuple:
    """Two nets of three blocks, images of the fit and unseen ones (300, 24) of each task, directions, units."""
    nets, images = small_nets(generator, (12, 8), blocks=3, n=600)
    return nets, [x[:300] for x in images], [x[300:] for x in images], (7, 5), (14, 10)


def _fit(parts: Sequence[tuple[float, Tensor, Tensor]]) -> Tensor:
    """Least squares of weighted rows (weight, u, t), with a ridge of 1e-4 of the mean square of all of them."""
    u = torch.cat([(weight / len(u)) ** 0.5 * u for weight, u, _ in parts])
    t = torch.cat([(weight / len(t)) ** 0.5 * t for weight, _, t in parts])
    ridge = (1e-4 * u.square().sum() / u.shape[1]).sqrt() * torch.eye(u.shape[1]).to(u)
    return torch.linalg.lstsq(torch.cat([u, ridge]), torch.cat([t, t.new_zeros(len(ridge), t.shape[1])])).solution.T


def _merged(nets: Sequence[Net], images: Sequence[Tensor], sizes: Sequence[int], units: Sequence[int],
            corrected: bool, own_stream: bool = False) -> Net:
    """The merged net, with or without corrected writes; a mistake corrects by the original's own stream instead."""
    own = [stream(net, x) for net, x in zip(nets, images)]
    P = [torch.linalg.svd(torch.cat(z), full_matrices=False).Vh[:s] for z, s in zip(own, sizes)]
    B = torch.eye(sum(sizes)).double().split(list(sizes), 1)
    merged = Net(sum(B[i] @ P[i] @ net.embed for i, net in enumerate(nets)), [], [], [])
    for layer in range(len(nets[0].W)):
        there = [stream(merged, x)[-1] for x in images]
        picks = [picked(torch.relu(z[layer] @ net.W[layer].T + net.b[layer]), n)
                 for net, z, n in zip(nets, own, units)]
        W = torch.cat([pick @ net.W[layer] @ _fit([(1.0, z, x[layer])])
                       for pick, net, z, x in zip(picks, nets, there, own)])
        b = torch.cat([pick @ net.b[layer] for pick, net in zip(picks, nets)])
        V = 0
        for z_star, z, P_i, B_i in zip(there, own, P, B):
            holds = z_star @ B_i if corrected and not own_stream else z[layer] @ P_i.T
            V = V + B_i @ _fit([(1.0, torch.relu(z_star @ W.T + b), z[layer + 1] @ P_i.T - holds)])
        for parts, part in zip(merged[1:], (W, b, V)):
            parts.append(part)
    return merged


def _ablation(nets: Sequence[Net], images: Sequence[Tensor], new: Sequence[Tensor], sizes: Sequence[int],
              units: Sequence[int], own_stream: bool = False, seen: bool = False, zero: bool = False,
              swapped: bool = False) -> Tensor:
    """Own error and deviation on the other task's images, in percent, in four settings; right or with one mistake."""
    rows, where = [], images if seen else new
    for corrected, off_task in ((False, 0.0), (True, 0.0), (False, 0.2), (True, 0.2)):
        merged, errors = _merged(nets, images, sizes, units, corrected, own_stream), []
        for i, net in enumerate(nets):
            f, f_new = (stream(net, x[i])[-1] for x in (images, where))
            mean = 0 * f.mean(0) if zero else f.mean(0)
            there, other = (stream(merged, images[j])[-1] for j in (i, 1 - i))
            output = _fit([(1.0, there, f), (off_task, other, mean.expand(len(other), -1))])
            own, off = (stream(merged, where[j])[-1] @ output.T for j in (i, 1 - i))
            variance = (f_new - f_new.mean(0)).square().sum(1).mean()
            errors.append([(own - f_new).square().sum(1).mean() / variance,
                           (off - f.mean(0)).square().sum(1).mean() / variance])
        rows.append(50 * torch.tensor(errors).double().sum(0))
    return torch.stack([rows[0], rows[2], rows[1], rows[3]] if swapped else rows)


EXERCISES = {
    # a model from tokens (n, 5, 3) to features (n, 4), tokens, the floor
    "token_weights": Exercise(_features_inputs, _token_weights, {
        "this is the gradient of the sum of the features; each feature has a gradient of its own, and their squares "
        "are added": lambda *inputs: _token_weights(*inputs, one_sum=True),
        "the Jacobian's norm must be squared": lambda *inputs: _token_weights(*inputs, square=False),
        "square first, then average over the images: gradients of different images must not cancel":
            lambda *inputs: _token_weights(*inputs, mean_first=True),
        "the weights must have mean 1 over the tokens before the floor is mixed in":
            lambda *inputs: _token_weights(*inputs, scaled=False),
        "normalize before the floor is mixed in, not after it": lambda *inputs: _token_weights(*inputs, early=True)}),
    # W (6, 8), x (n, 8), z (n, 6), u (n, 5), z_star (n, 7), P (3, 6), B (7, 3), ridge
    "corrected_write": Exercise(_write_inputs, _write, {
        "this layer aims at P W x only; it must also make up for what the share lacks before it":
            lambda *inputs: _write(*inputs, corrected=False),
        "this layer only repairs the share before it; it must also write P W x":
            lambda *inputs: _write(*inputs, added=False),
        "the correction has the wrong sign: the share lacks P z - B^T z_star":
            lambda *inputs: _write(*inputs, before=False),
        "the ridge is missing": lambda *inputs: _write(*inputs, shrunk=False)}),
    # u (n, 4) and u_other (m, 4) are merged features on images of the own task and the other, f (n, 3) the features
    "off_task_readout": Exercise(_readout_inputs, _readout, {
        "each task must count by the mean over its own images, not by the sum":
            lambda *inputs: _readout(*inputs, means=False),
        "on images of the other task the target is the mean of f, not 0":
            lambda *inputs: _readout(*inputs, target=0.0),
        "the mean of f is one number here; every feature has its own mean":
            lambda *inputs: _readout(*inputs, per_feature=False),
        "the off-task weight comes in squared: rows are multiplied by the square root of their weight":
            lambda *inputs: _readout(*inputs, power=1.0)}),
    # two residual nets of widths 12 and 8 with three blocks, images of the fit and unseen ones, directions, units
    "ablate_small_start": Exercise(_project_inputs, _ablation, {
        "rows 2 and 4 are those of a start that is not corrected: what the share holds is B_i^T z*, of the merged net":
            lambda *inputs: _ablation(*inputs, own_stream=True),
        "these are the errors on the images of the fit; measure on the unseen ones":
            lambda *inputs: _ablation(*inputs, seen=True),
        "on images of the other task the output must aim at the mean of f_i over the own images, not at 0":
            lambda *inputs: _ablation(*inputs, zero=True),
        "the rows stand in another order: plain, corrected, off-task, both":
            lambda *inputs: _ablation(*inputs, swapped=True)}),
}
