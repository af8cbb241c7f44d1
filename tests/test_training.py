"""Training against closed forms and losses by hand."""
import copy
import math

import pytest
import torch
from models_for_tests import mlps, pictures, vits

import fsmerge_lite as fsm
from fsmerge_lite.tasks import Calibration
from fsmerge_lite.training import fit, reconstruction, target_features


def small_images(n: int = 12, k: int = 2) -> Calibration:
    return Calibration(pictures(n), torch.arange(n) % k)


def test_fit_finds_the_least_squares_solution():
    x, y = torch.randn(40, 5).double(), torch.randn(40, 2).double()
    w = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    history = fit([w], lambda step: (x @ w - y).square().mean(), steps=600, lr=0.1, weight_decay=0)
    torch.testing.assert_close(w.detach(), torch.linalg.lstsq(x, y).solution, rtol=0, atol=1e-4)
    assert len(history.loss) == len(history.lr) == len(history.seconds) == 600
    assert max(history.lr) == pytest.approx(0.1) and history.lr.index(max(history.lr)) in range(50, 70)
    assert history.loss[-1] < history.loss[0] and history.seconds == sorted(history.seconds)


def test_the_loss_by_hand():
    models, images = vits([8, 6]), small_images()
    net = fsm.SuperNet(models, rank=2, init="random")
    targets = target_features(net.originals, images, next(net.parameters()))
    loss = reconstruction(net, images, targets, batch_size=12, seed=0, like=next(net.parameters()))
    by_hand = 0
    for x, i in zip(images.images, images.owner.tolist()):
        scale = torch.stack([models[i](other[None])[0].square().mean() for other in images.of(i)]).mean()
        by_hand += (net(x[None])[i] - models[i](x[None])).square().mean() / scale / 12
    torch.testing.assert_close(loss(0), by_hand)


def test_training_fits_and_leaves_the_originals_alone():
    models, images = vits([8, 8]), small_images()
    before = copy.deepcopy([m.state_dict() for m in models])
    net = fsm.SuperNet(models, rank=4)
    history = fsm.train_global(net, images, steps=150, lr=1e-2, batch_size=12)
    assert history.loss[-1] < 0.2 * history.loss[0]
    for model, state in zip(models, before):
        assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
    merged = net.fold()
    for i, target in enumerate(target_features(net.originals, images, next(net.parameters()))):
        error = (merged.features(images.of(i))[i] - target).square().mean() / target.square().mean()
        assert error < 0.5 * history.loss[0]


def test_the_same_seed_gives_the_same_run():
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        net = fsm.SuperNet(vits([8, 8]), rank=2)
        losses.append(fsm.train_global(net, small_images(), steps=5, batch_size=4, seed=3).loss)
    assert losses[0] == losses[1]


def test_a_model_merged_with_its_copy_has_nothing_left_to_learn():
    model, = mlps([6])
    x = torch.randn(20, 12).double()
    net = fsm.SuperNet([model, copy.deepcopy(model)], structure="full", init="average")
    history = fsm.train_global(net, Calibration(x, torch.arange(20) % 2), steps=3, lr=1e-6, weight_decay=0)
    assert max(history.loss) < 1e-8


def test_distilling_one_model_twice_reaches_it():
    model, = vits([8])
    images = small_images()
    student = fsm.distill([model, copy.deepcopy(model)], images, steps=400, lr=5e-3, batch_size=12, weight_decay=0)
    for features in student.features(images.images):
        error = (features - model(images.images)).square().mean() / model(images.images).square().mean()
        assert error < 1e-3


def test_distillation_fits_two_models_with_all_weights():
    models, images = vits([8, 8]), small_images()
    student = fsm.distill(models, images, steps=300, lr=1e-2, weight_decay=0)
    assert student.history.loss[-1] < 0.1 * student.history.loss[0]
    for (name, p), q in zip(student.backbone.named_parameters(), models[0].parameters()):
        assert not torch.equal(p, q), name


def test_distillation_starts_where_it_says():
    models, images = vits([8, 8]), small_images()
    first = fsm.distill(models, images, steps=1, lr=1e-12, weight_decay=0).backbone(pictures())
    torch.testing.assert_close(first, models[0](pictures()))
    mean = fsm.distill(models, images, steps=1, lr=1e-12, weight_decay=0, start="average").backbone(pictures())
    torch.testing.assert_close(mean, fsm.average(models).backbone(pictures()))


def test_bad_arguments():
    net, images = fsm.SuperNet(vits([8, 8]), rank=2), small_images()
    with pytest.raises(ValueError, match="steps must be >= 1"):
        fsm.train_global(net, images, steps=0)
    with pytest.raises(ValueError, match="lr > 0"):
        fsm.train_global(net, images, lr=-1.0)
    with pytest.raises(ValueError, match="images are of 3 tasks, but there are 2 originals"):
        fsm.train_global(net, small_images(k=3))
    with pytest.raises(ValueError, match="'first' or 'average', got 'last'"):
        fsm.distill(vits([8, 8]), images, start="last")
    with pytest.raises(ValueError, match="one feature width"):
        fsm.distill(vits([8, 6]), images)
    with pytest.raises(ValueError, match="no average"):
        fsm.average(vits([8, 6]))


def test_a_diverging_run_says_so():
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; try a lower lr than 0.5"):
        fit([w], lambda step: w.sum() * (1 if step == 0 else math.nan), steps=3, lr=0.5)


def test_history_draws_itself():
    history = fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=2), small_images(), steps=4)
    ax = history.plot()
    assert ax.get_lines()[0].get_ydata().tolist() == history.loss
    assert "4 steps" in repr(history) and "no steps" in repr(fsm.History())


def test_the_bar_is_quiet_unless_asked_for(capsys):
    w = torch.ones(1, requires_grad=True)
    fit([w], lambda step: w.square().sum(), steps=2, lr=0.1, name="quiet")
    assert capsys.readouterr().err == ""
    fit([w], lambda step: w.square().sum(), steps=2, lr=0.1, name="shown", progress=True)
    assert "shown: 100%" in capsys.readouterr().err
