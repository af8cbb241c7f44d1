"""The start by least squares against exact cases and normal equations."""
import pytest
import torch
from models_for_tests import mlps, pictures, vits

import fsmerge_lite as fsm
from fsmerge_lite.engine.images import Calibration
from fsmerge_lite.engine.running import inputs_of


def images_of(x: torch.Tensor, k: int = 2) -> Calibration:
    return Calibration(x, torch.arange(len(x)) % k)


def half_idle_mlp(width: int = 8) -> fsm.MLP:
    """An MLP of which every second unit is dead: half the width would do."""
    mlp, = mlps([width])
    for layer in mlp.layers:
        layer.weight.data[::2], layer.bias.data[::2] = 0, 0
    return mlp


def test_two_half_idle_mlps_fit_into_one_exactly():
    models, x = [half_idle_mlp(), half_idle_mlp()], torch.randn(200, 12).double()
    net = fsm.fit_subspaces(fsm.SuperNet(models, structure="full"), images_of(x), ridge=1e-12)
    unseen = torch.randn(50, 12).double()
    for i, model in enumerate(models):
        torch.testing.assert_close(net.fold().features(unseen)[i], model(unseen), rtol=0, atol=1e-5)


def test_full_models_do_not_fit_and_the_fit_is_the_best_there_is():
    models, images = vits([12, 12]), images_of(pictures(40))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, ridge=1e-12)
    depth = 1
    for i in range(2):
        own = images.of(i)
        layer = net.graph.readouts[depth]
        read = inputs_of(net.body, [layer], lambda own=own: net.backbone(own, unfolded=True))[layer].flatten(0, -2)
        true = net.original_features(own, [depth])[depth][i].flatten(0, -2)
        best = read @ torch.linalg.lstsq(read, true).solution
        rebuilt = net.features(own, [depth])[depth][i].flatten(0, -2)
        error = (best - true).square().mean()
        assert error > 1e-6  # half the width is not enough: something is left to fit
        torch.testing.assert_close((rebuilt - true).square().mean(), error, rtol=1e-4, atol=0)


def test_what_the_originals_write_is_kept_apart_and_has_no_mean():
    models, images = vits([12, 12]), images_of(pictures(20))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    first, second = (w for w, _ in net.body.patch_embed.proj.frozen())
    torch.testing.assert_close(first.flatten(1).T @ second.flatten(1), torch.zeros(192, 192, dtype=first.dtype),
                               rtol=0, atol=1e-10)
    assert first.sum(0).abs().max() < 1e-10 and first.abs().max() > 1e-3


def test_folded_is_explicit_and_training_goes_on_from_there():
    models, images = vits([12, 12]), images_of(pictures(20))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    x = pictures(3)
    for folded, explicit, merged in zip(net(x), net(x, unfolded=True), net.fold().features(x)):
        torch.testing.assert_close(folded, explicit, rtol=0, atol=1e-10)
        torch.testing.assert_close(folded, merged, rtol=0, atol=1e-10)
    history = fsm.train_global(net, images, steps=60, lr=3e-3, batch_size=20)
    assert history.loss[-1] < 0.9 * history.loss[0]
    for folded, explicit in zip(net(x), net(x, unfolded=True)):
        torch.testing.assert_close(folded, explicit, rtol=0, atol=1e-10)


def test_four_originals_share_four_heads():
    models, images = vits([12] * 4, num_heads=4), images_of(pictures(32), 4)
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    qkv = [w for w, _ in net.body.blocks[0].attn.qkv.frozen()]
    heads = torch.stack([w.unflatten(0, (3, 4, 3)).abs().sum((0, 2, 3)) for w in qkv])
    assert torch.equal(heads > 0, torch.eye(4).bool())  # head i reads original i alone


def test_shipped_originals_merge_without_a_training_step():
    originals = fsm.load_originals("digits", "letters")
    images = fsm.calibration(originals, per_task=16, augmented=5)
    merged = fsm.fit_subspaces(fsm.SuperNet(originals), images).fold()
    tasks = [o.task for o in originals]
    scores = fsm.evaluate(merged, tasks, limit=300)
    assert min(scores.per_task.values()) > 80 and scores.mean > fsm.evaluate(fsm.average(originals), tasks).mean + 60


def test_what_mixes_the_shares_is_refused():
    images = images_of(pictures(8))
    for option, norm in (("pre_norm", "norm_pre"), ("qk_norm", "blocks.0.attn.q_norm"),
                         ("scale_mlp_norm", "blocks.0.mlp.norm")):
        net = fsm.SuperNet([fsm.vit(dim=8, depth=1, num_heads=2, patch_size=4, img_size=8, **{option: True}).eval()
                            for _ in range(2)], rank=2)
        with pytest.raises(ValueError, match=f"{norm} is a norm that mixes .* start with init='first'"):
            fsm.fit_subspaces(net, Calibration(images.images.float(), images.owner))
    with pytest.raises(ValueError, match="3 originals meet 2 heads"):
        fsm.fit_subspaces(fsm.SuperNet(vits([8, 8, 8]), rank=2), images_of(pictures(9), 3))
    with pytest.raises(ValueError, match="images are of 3 tasks, but there are 2 originals"):
        fsm.fit_subspaces(fsm.SuperNet(vits([8, 8]), rank=2), images_of(pictures(9), 3))
