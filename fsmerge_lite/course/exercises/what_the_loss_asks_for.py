"""The exercises of lesson 07."""
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .testing import Exercise

QS = (0.0, 0.05, 0.2, 1.0, 50.0)  # off-task weights of the project
Fitted = tuple[Tensor, Tensor]  # output matrices (q, k, d, d*) and scores (q, 2)


# ---------------------------------------------------------------- scales

def _root_mean_squares(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.square().mean().sqrt() for f in features]


def _scaled(features: Sequence[Tensor], inverse: bool = False, to_first: bool = True) -> list[Tensor]:
    sizes = _root_mean_squares(features)
    goal = sizes[0] if to_first else torch.ones(())
    return [f * (size / goal if inverse else goal / size) for f, size in zip(features, sizes)]


# ---------------------------------------------------------------- the whole loss

def _features(g: Generator) -> tuple[list[Tensor], list[Tensor], Tensor, float]:
    """k reconstructions (n, d_i) of all images, k targets (n_i, d_i) of each original's own images, owner (n,), q."""
    owner, widths = torch.tensor([1, 0, 1, 2, 1, 0, 2]), (3, 5, 2)
    rebuilt = [torch.randn(len(owner), d, generator=g) for d in widths]
    targets = [(1 + 3 * i) * torch.randn(int((owner == i).sum()), d, generator=g) for i, d in enumerate(widths)]
    return rebuilt, targets, owner, 0.3


def _full_loss(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor, q: float, scaled: bool = True,
               zero: bool = False) -> float:
    """The loss, image by image and original by original."""
    total, seen = 0.0, [0] * len(targets)
    for image, own in enumerate(owner.tolist()):
        for j, target in enumerate(targets):
            goal = target[seen[j]] if j == own else target.mean(0) * (not zero)
            size = sum(row.square().sum().item() for row in target) / len(target) if scaled or j == own else 1.0
            total += (1.0 if j == own else q) * (rebuilt[j][image] - goal).square().sum().item() / size
        seen[own] += 1
    return total / len(owner)


def _all_images(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], owner: Tensor, q: float) -> float:
    """With the second term also for the image's own original."""
    own = sum((rebuilt[j][owner == j] - target.mean(0)).square().sum().item() / target.square().sum(1).mean().item()
              for j, target in enumerate(targets))
    return _full_loss(rebuilt, targets, owner, q) + q * own / len(owner)


# ---------------------------------------------------------------- who answers

def _decisions(g: Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """Logits (n, c_j) of every head, labels (n,) within the own head, owner (n,)."""
    owner = torch.tensor([0] * 30 + [1] * 50 + [2] * 20)
    heads = [torch.randn(100, c, generator=g) + loud for c, loud in ((3, 0.0), (4, 0.4), (2, 0.8))]
    labels = torch.cat([torch.randint(head.shape[1], (int((owner == i).sum()),), generator=g)
                        for i, head in enumerate(heads)])
    for i, head in enumerate(heads):
        head[owner == i, labels[owner == i]] += 2
    return heads, labels, owner


def _lost_to(heads: Sequence[Tensor], labels: Tensor, owner: Tensor, right_only: bool = True,
             of_all: bool = False) -> Tensor:
    counts = torch.zeros(len(heads), len(heads))
    for image, (label, own) in enumerate(zip(labels.tolist(), owner.tolist())):
        largest = [head[image].max().item() for head in heads]
        answers = largest.index(max(largest))
        if not right_only or heads[own][image].argmax().item() == label:
            counts[own, answers] += 1
    sizes = torch.bincount(owner).float()[:, None]
    return 100 * counts / (len(owner) if of_all else sizes)


# ---------------------------------------------------------------- the ablation of two linear models

def toy(g: Generator | None = None) -> tuple:
    """Two linear originals of three classes each, and a merged backbone, linear too, that is too narrow for both.

    Returns f* (n, d*), targets (n_i, d) and owner (n,) of the calibration images, then f*, labels and owner of the
    test images, and the off-task weights. A head gives the features themselves as logits.
    """
    g = g or torch.Generator().manual_seed(0)
    centers, project = 2 * torch.randn(2, 3, 8, generator=g), torch.randn(6, 8, generator=g)

    def images(n: int) -> tuple[Tensor, Tensor, Tensor]:
        owner, labels = torch.arange(2).repeat_interleave(n), torch.randint(3, (2 * n,), generator=g)
        x = centers[owner, labels] + 0.9 * torch.randn(2 * n, 8, generator=g)
        return torch.cat([x, torch.ones(2 * n, 1)], 1).double(), labels, owner
    (x, labels, owner), (x_test, labels_test, owner_test) = images(60), images(300)
    originals = [torch.linalg.lstsq(x[owner == i], torch.eye(3).double()[labels[owner == i]]).solution for i in (0, 1)]
    targets = [x[owner == i] @ original for i, original in enumerate(originals)]

    def merged(x: Tensor) -> Tensor:
        return torch.cat([x[:, :8] @ project.T.double(), x[:, 8:]], 1)
    return merged(x), targets, owner, merged(x_test), labels_test, owner_test, QS


def _scores(outputs: Sequence[Tensor], f_star: Tensor, labels: Tensor, owner: Tensor) -> list[float]:
    """Mean of the per-task accuracies and joint accuracy, in percent."""
    heads = [f_star @ output.T for output in outputs]
    per_task = [(heads[i][owner == i].argmax(1) == labels[owner == i]).double().mean().item() for i in (0, 1)]
    joint = (torch.cat(heads, 1).argmax(1) == labels + 3 * owner).double().mean().item()
    return [50 * sum(per_task), 100 * joint]


def _by_newton(f_star: Tensor, targets: Sequence[Tensor], owner: Tensor, j: int, q: float) -> Tensor:
    """The minimizer of the loss of output matrix j: one Newton step with autograd's derivatives is exact."""
    d, width, mean = targets[j].shape[1], f_star.shape[1], targets[j].mean(0)

    def loss(flat: Tensor) -> Tensor:
        read = f_star @ flat.view(d, width).T
        return (read[owner == j] - targets[j]).square().sum() + q * (read[owner != j] - mean).square().sum()
    zero = torch.zeros(d * width, dtype=f_star.dtype)
    gradient, curvature = torch.func.grad(loss)(zero), torch.func.hessian(loss)(zero)
    return -torch.linalg.solve(curvature, gradient).view(d, width)


def _by_rows(weight: Callable[[float], float], goal: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Callable:
    """An output matrix by least squares, other tasks' rows multiplied by `weight(q)`, with the target `goal`."""
    def fit(f_star: Tensor, targets: Sequence[Tensor], owner: Tensor, j: int, q: float) -> Tensor:
        own = owner == j
        off = goal(targets[j], targets).expand(int((~own).sum()), -1)
        rows = torch.cat([f_star[own], weight(q) * f_star[~own]])
        return torch.linalg.lstsq(rows, torch.cat([targets[j], weight(q) * off])).solution.T
    return fit


def _ablation(fit: Callable) -> Callable[..., Fitted]:
    def ablation(f_star: Tensor, targets: Sequence[Tensor], owner: Tensor, test: Tensor, labels: Tensor,
                 test_owner: Tensor, qs: Sequence[float]) -> Fitted:
        outputs = torch.stack([torch.stack([fit(f_star, targets, owner, j, q) for j in (0, 1)]) for q in qs])
        return outputs, torch.tensor([_scores(each, test, labels, test_owner) for each in outputs])
    return ablation


EXERCISES = {
    "to_one_scale": Exercise(
        lambda g: ([torch.randn(5, 3, generator=g), 4 * torch.randn(2, 3, generator=g) + 1],), _scaled, {
            "that makes large features larger; divide by their own root mean square":
                lambda features: _scaled(features, inverse=True),
            "every root mean square is 1 now; it should be that of the first":
                lambda features: _scaled(features, to_first=False)}),
    "full_loss": Exercise(_features, _full_loss, {
        "the off-task term is missing": lambda rebuilt, targets, owner, q: _full_loss(rebuilt, targets, owner, 0.0),
        "the off-task term is not divided by s_j^2": lambda *inputs: _full_loss(*inputs, scaled=False),
        "the target on other tasks' images is the mean feature m_j, not zero": lambda *i: _full_loss(*i, zero=True),
        "the off-task term is for the other originals only; an image's own original has the first term": _all_images}),
    "lost_to": Exercise(_decisions, _lost_to, {
        "count only the images that the task's own head would have answered rightly; the rest is lost anyway":
            lambda *inputs: _lost_to(*inputs, right_only=False),
        "divide by the number of images of task i, not of all": lambda *inputs: _lost_to(*inputs, of_all=True),
        "that is a fraction of 1; return percent": lambda *inputs: _lost_to(*inputs) / 100,
        "that is the transpose; row i is for the images of task i": lambda *inputs: _lost_to(*inputs).T}),
    "off_task_ablation": Exercise(toy, _ablation(_by_newton), {
        "the rows of other tasks were multiplied by q; then their squared errors have the weight q^2":
            _ablation(_by_rows(lambda q: q, lambda target, targets: target.mean(0))),
        "the target on other tasks' images is the mean of the features f_j, not zero":
            _ablation(_by_rows(lambda q: q ** 0.5, lambda target, targets: 0 * target.mean(0))),
        "m_j is the mean of f_j over the images of task j alone":
            _ablation(_by_rows(lambda q: q ** 0.5, lambda target, targets: torch.cat(list(targets)).mean(0))),
        "q is not used: all output matrices are those without the off-task term":
            _ablation(_by_rows(lambda q: 0.0, lambda target, targets: target.mean(0)))}),
}
