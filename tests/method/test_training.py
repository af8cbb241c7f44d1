"""Training against closed forms and losses by hand."""
import copy
import math

import pytest
import torch
from models_for_tests import mlps, pictures, vits

import fsmerge_lite as fsm
from fsmerge_lite.compare.baselines import reconstruction
from fsmerge_lite.engine.fitting import fit
from fsmerge_lite.engine.images import Calibration
from fsmerge_lite.training import target_features, until


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


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 20])
def test_any_number_of_steps_has_a_schedule(steps):
    w = torch.ones(1, requires_grad=True)
    rates = fit([w], lambda step: w.square().sum(), steps=steps, lr=0.1).lr
    assert len(rates) == steps and all(0 < rate <= 0.1 * (1 + 1e-9) for rate in rates)
    assert steps < 10 or max(rates) > 0.08


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


def test_the_unscaled_loss_by_hand():
    models, images = vits([8, 6]), small_images()
    net = fsm.SuperNet(models, rank=2, init="random")
    by_hand = sum((net(x[None])[i] - models[i](x[None])).square().sum().item() / 12
                  for x, i in zip(images.images, images.owner.tolist()))
    history = fsm.train_global(net, images, steps=1, lr=1e-3, batch_size=12, scaled=False)
    assert history.loss[0] == pytest.approx(by_hand)


def test_a_linear_schedule_and_no_clipping():
    weight, seen = torch.zeros(1, requires_grad=True), []
    history = fit([weight], lambda step: 1e6 * weight.sum(), 10, 0.1, warmup=0.5, anneal="linear", clip=math.inf)
    steps = [b - a for a, b in zip(history.lr[5:], history.lr[6:])]
    assert steps == pytest.approx([steps[0]] * 4) and steps[0] < 0  # it falls on a straight line
    for clip in (1.0, math.inf):
        weight = torch.zeros(1, requires_grad=True)
        weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
        fit([weight], lambda step, weight=weight: 3 * weight.sum(), 1, 0.1, clip=clip)
    assert [grad.item() for grad in seen] == pytest.approx([1, 3])  # the one that is stepped on
    for bad, words in (({"anneal": "step"}, "anneal must be one of cos, linear"), ({"clip": 0}, "clip must be .* > 0")):
        with pytest.raises(ValueError, match=words):
            fit([weight], lambda step: weight.sum(), 1, 0.1, **bad)


def test_the_off_task_term_by_hand():
    models, images = vits([8, 6]), small_images()
    net = fsm.SuperNet(models, rank=2, init="random")
    like = next(net.parameters())
    targets = target_features(net.originals, images, like)
    own, both = (reconstruction(net, images, targets, 12, 0, like, weight)(0) for weight in (0.0, 0.3))
    by_hand = 0
    for x, i in zip(images.images, images.owner.tolist()):
        other = models[1 - i](images.of(1 - i))
        by_hand += 0.3 * (net(x[None])[1 - i][0] - other.mean(0)).square().sum() / other.square().sum(1).mean() / 12
    torch.testing.assert_close(both - own, by_hand)


def test_inner_features_add_their_error():
    models, images, depths = vits([8, 6]), small_images(), (0, 1)
    losses = []
    for how in ({}, {"depths": depths, "inner": 0.5}):
        torch.manual_seed(1)
        net = fsm.SuperNet(models, rank=2, init="random")
        start = copy.deepcopy(net)
        losses.append(fsm.train_global(net, images, steps=1, lr=1e-3, batch_size=12, **how).loss[0])
    by_hand = 0
    for depth in depths:
        for i, model in enumerate(models):
            own = images.of(i)
            layer = model.blocks[depth]
            true = layer.norm1(torch.nn.Sequential(*model.blocks[:depth])(model._pos_embed(model.patch_embed(own))))
            error = (start.features(own, [depth])[depth][i] - true).square().sum((1, 2))
            by_hand += 0.5 / 2 * (error / true.square().sum((1, 2)).mean()).sum() / 12
    assert losses[1] - losses[0] == pytest.approx(by_hand.item(), rel=1e-9)


def test_local_training_lowers_the_loss_of_each_block_and_moves_only_that_block():
    models, images = vits([8, 8]), small_images(24)
    net = fsm.SuperNet(models, rank=4)
    histories = fsm.train_local(net, images, steps=60, lr=1e-2, batch_size=24)
    assert [h.name for h in histories] == ["local: depth 0", "local: depth 1", "local: output"]
    assert all(h.loss[-1] < 0.7 * h.loss[0] for h in histories)
    assert all(p.requires_grad for p in net.parameters())
    torch.manual_seed(0)
    fresh, seen = fsm.SuperNet(models, rank=4), []
    before = {name: p.clone() for name, p in fresh.named_parameters()}
    for depth in (0, 1, None):
        seen.append({name for name, _ in until(fresh, depth)})
    assert seen[0] < seen[1] < seen[2] == set(before)
    assert "body.blocks.0.attn.qkv.unmerges.1.A" in seen[0] and "body.blocks.0.attn.qkv.merges.1.A" not in seen[0]
    assert "body.blocks.1.norm1.weight" in seen[1] and "body.blocks.1.norm2.weight" not in seen[1]


def test_a_readout_depends_on_its_own_parameters_and_on_no_others():
    net, x = fsm.SuperNet(vits([8, 8]), rank=2, init="random"), pictures()
    for depth in (0, 1):
        before = dict(until(net, depth))
        net.zero_grad()
        sum(f.square().sum() for f in net.features(x, [depth])[depth]).backward()
        for name, p in net.named_parameters():
            assert (p.grad is not None and p.grad.abs().max() > 0) == (name in before), name


def test_the_layers_of_an_mlp_are_trained_on_true_features():
    models, x = mlps([6, 6]), torch.randn(60, 12).double()
    images = Calibration(x, torch.arange(60) % 2)
    net = fsm.SuperNet(models, structure="full", init="random")
    histories = fsm.train_local(net, images, steps=1, lr=1e-9, batch_size=60)
    by_hand = 0
    for i in range(2):  # the last layer, on what the originals' own last layers read
        own = images.of(i)
        true = [m.act(m.layers[1](m.act(m.layers[0](own)))) for m in models]
        merges = net.body.layers[2].merges
        y = sum(merge.dense() @ model.layers[2](h).T for merge, model, h in zip(merges, models, true))
        target = models[i](own)
        rebuilt = models[0].act(y).T @ net.outputs[i].dense().T
        by_hand += (rebuilt - target).square().sum() / target.square().sum(1).mean() / 60
    assert histories[-1].loss[0] == pytest.approx(by_hand.item(), rel=1e-5)


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
    mean = fsm.distill(models, images, steps=1, lr=1e-12, weight_decay=0, init="average").backbone(pictures())
    torch.testing.assert_close(mean, fsm.average(models).backbone(pictures()))


def test_bad_arguments():
    net, images = fsm.SuperNet(vits([8, 8]), rank=2), small_images()
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        fsm.train_global(net, images, steps=0)
    with pytest.raises(ValueError, match="lr must be a number > 0"):
        fsm.train_global(net, images, lr=-1.0)
    for inner in (-1.0, math.nan):  # also where no depth has any use for it
        with pytest.raises(ValueError, match=f"inner must be a number >= 0, got {inner}"):
            fsm.train_global(net, images, inner=inner)
    with pytest.raises(ValueError, match="no depth None"):
        fsm.train_global(net, images, depths=[None])
    with pytest.raises(ValueError, match=r"no depth 2; this model has features at \[0, 1\]"):
        fsm.train_global(net, images, depths=(0, 2))
    with pytest.raises(ValueError, match="images are of 3 tasks, but there are 2 originals"):
        fsm.train_global(net, small_images(k=3))
    with pytest.raises(ValueError, match="init must be one of first, average, got 'last'"):
        fsm.distill(vits([8, 8]), images, init="last")
    with pytest.raises(ValueError, match="one feature width"):
        fsm.distill(vits([8, 6]), images)
    with pytest.raises(ValueError, match="no average"):
        fsm.average(vits([8, 6]))


class Killed(Exception):
    pass


@pytest.mark.parametrize("train", [fsm.train_global, fsm.train_local])
def test_a_killed_run_resumes_to_the_same_result(train, tmp_path, monkeypatch):
    images, file = small_images(), tmp_path / "run"

    def fresh() -> fsm.SuperNet:
        torch.manual_seed(3)
        return fsm.SuperNet(vits([8, 8]), rank=2)
    unbroken = fresh()
    whole = train(unbroken, images, steps=130, batch_size=4)
    step, calls = torch.optim.AdamW.step, []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 115:  # of three local runs, within the first; checkpoints are at 100 and at the end
            raise Killed
        return step(self, *args, **kwargs)
    with monkeypatch.context() as broken:
        broken.setattr(torch.optim.AdamW, "step", fail)
        with pytest.raises(Killed):
            train(fresh(), images, steps=130, batch_size=4, checkpoint=file)
    resumed = fresh()
    again = train(resumed, images, steps=130, batch_size=4, checkpoint=file)
    for (name, p), q in zip(unbroken.named_parameters(), resumed.parameters()):
        assert torch.equal(p, q), name
    for a, b in zip([whole] if train is fsm.train_global else whole, [again] if train is fsm.train_global else again):
        assert a.loss == b.loss and a.lr == b.lr and len(b.seconds) == 130
    finished = fresh()
    train(finished, images, steps=130, batch_size=4, checkpoint=file)  # nothing left to do
    assert all(torch.equal(p, q) for p, q in zip(unbroken.parameters(), finished.parameters()))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    images, file = small_images(), tmp_path / "run"
    fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=2), images, steps=2, checkpoint=file)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=2), images, steps=3, checkpoint=file)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=3), images, steps=2, checkpoint=file)
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="no checkpoint"):
        fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=2), images, steps=2, checkpoint=file)


def test_bf16_products_give_about_the_same_loss():
    models, images = vits([8, 8], dtype=torch.float32), small_images()
    images = Calibration(images.images.float(), images.owner)
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(2)
        net = fsm.SuperNet(models, rank=2, init="random")
        losses[precision] = fsm.train_global(net, images, steps=3, precision=precision).loss
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05) and losses["bf16"] != losses["fp32"]
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp16'"):
        fsm.train_global(net, images, precision="fp16")


def test_a_diverging_run_says_so_and_damages_nothing():
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="loss is nan and its gradient .* at step 1; try a lower lr than 0.5"):
        fit([w], lambda step: w.sum() * (1 if step == 0 else math.nan), steps=3, lr=0.5)
    assert w.isfinite().all()


def test_an_infinite_gradient_of_a_finite_loss_damages_nothing():
    w = torch.zeros(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="loss is 0.0 and its gradient of size inf at step 0"):
        fit([w], lambda step: w.sqrt().sum(), steps=3, lr=0.5)
    assert w.item() == 0


def test_history_draws_itself():
    history = fsm.train_global(fsm.SuperNet(vits([8, 8]), rank=2), small_images(), steps=4)
    ax = history.plot()
    assert ax.get_lines()[0].get_ydata().tolist() == history.loss
    assert "4 steps" in repr(history) and "no steps" in repr(fsm.History())


def test_the_bar_is_quiet_unless_asked_for(capsys):
    w = torch.ones(1, requires_grad=True)
    fit([w], lambda step: w.square().sum(), steps=2, lr=0.1, name="off_task")
    assert capsys.readouterr().err == ""
    fit([w], lambda step: w.square().sum(), steps=2, lr=0.1, name="shown", progress=True)
    assert "shown: 100%" in capsys.readouterr().err


def test_a_task_without_images_is_named():
    net = fsm.SuperNet(vits([8, 8]), rank=2)
    images = Calibration(pictures(4), torch.ones(4, dtype=torch.long))
    with pytest.raises(ValueError, match="no image of task 0"):
        fsm.train_global(net, images, steps=1)
