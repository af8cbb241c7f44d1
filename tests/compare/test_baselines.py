"""Training-free baselines against closed forms, brute force and known permutations."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import VIT_OPTIONS, mlps, pictures, randomised, vits
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.compare.alignment import correlations
from fsmerge_lite.engine.images import Calibration

EXACT = {"rtol": 0, "atol": 1e-10}


def calibrated(*images: torch.Tensor) -> Calibration:
    owner = torch.arange(len(images)).repeat_interleave(torch.tensor([len(x) for x in images]))
    return Calibration(torch.cat(images), owner)


def layer(weight: torch.Tensor) -> fsm.MLP:
    """A single linear layer without nonlinearity, whose bias is zero."""
    mlp = fsm.MLP(weight.T.shape, nn.Identity).to(weight).eval()
    mlp.layers[0].weight.data, mlp.layers[0].bias.data = weight.clone(), torch.zeros(len(weight)).to(weight)
    return mlp


def inputs(model: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """What a layer reads."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, args, out: seen.append(args[0]))
    model(x)
    handle.remove()
    return seen[0]


def weight_of(merged: fsm.Merged) -> torch.Tensor:
    return merged.backbone.layers[0].weight


# ---------------------------------------------------------------- alone, slerp

@pytest.mark.parametrize("i", [0, 1])
def test_alone_is_that_original_behind_all_heads(i):
    models = [fsm.Original(vit, nn.Linear(8, classes).double(), str(classes))
              for vit, classes in zip(vits([8, 8], init_values=0.3), (3, 5))]
    merged, x = fsm.alone(models, i), pictures()
    assert merged.names == ("3", "5")
    for logits, original in zip(merged(x), models):
        torch.testing.assert_close(logits, original.head(models[i].backbone(x)), **EXACT)


def test_average_is_the_fold_of_a_supernet_at_the_average():
    models = vits([8, 8], init_values=0.3)
    folded = fsm.SuperNet(models, structure="diagonal", init="average").fold().state_dict()
    merged = fsm.average(models).state_dict()
    assert folded.keys() == merged.keys()
    for name, p in merged.items():
        torch.testing.assert_close(p, folded[name], **EXACT)
    a, b = mlps([6, 6])
    for p, q, mean in zip(a.parameters(), b.parameters(), fsm.average([a, b]).backbone.parameters()):
        torch.testing.assert_close(mean, (p + q) / 2, **EXACT)


def test_slerp_ends_at_the_originals():
    for models in (vits([8, 8]), mlps([6, 6])):
        for t in (0, 1):
            merged = fsm.slerp(models, t)
            assert all(torch.equal(p, models[t].state_dict()[name]) for name, p in merged.backbone.state_dict().items())


def test_slerp_by_hand():
    a, b = torch.tensor([[1., 0, 0]]).double(), torch.tensor([[0., 0, 1]]).double()
    torch.testing.assert_close(weight_of(fsm.slerp([layer(a), layer(b)])), (a + b) / math.sqrt(2))
    torch.testing.assert_close(weight_of(fsm.slerp([layer(a), layer(b)], 1 / 3)), math.cos(math.pi / 6) * a + 0.5 * b)
    torch.testing.assert_close(weight_of(fsm.slerp([layer(a), layer(3 * a)], 0.25)), 1.5 * a)  # parallel: straight
    torch.testing.assert_close(weight_of(fsm.slerp([layer(a), layer(-a)], 0.25)), 0.5 * a)  # opposite: straight
    torch.testing.assert_close(weight_of(fsm.slerp([layer(a), layer(0 * a)], 0.25)), 0.75 * a)  # zero: straight


def test_slerp_keeps_the_norm_of_equal_norms():
    a, b = (w / w.norm() for w in torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double())
    for t in (0.1, 0.5, 0.8):
        assert weight_of(fsm.slerp([layer(a), layer(b)], t)).norm().item() == pytest.approx(1)


def test_slerp_of_a_model_with_itself_is_the_model():
    model, = vits([8])
    for p, q in zip(fsm.slerp([model, model], 0.3).backbone.parameters(), model.parameters()):
        torch.testing.assert_close(p, q, **EXACT)


# ---------------------------------------------------------------- RegMean

def test_regmean_is_least_squares_of_all_tasks_weighing_the_same():
    w, x = torch.randn(2, 4, 5).double(), [torch.randn(n, 5).double() + 1 for n in (10, 30)]
    merged = fsm.regmean([layer(w[0]), layer(w[1])], calibrated(*x), off_diagonal=1.0, batch_size=7)
    rows = torch.cat([x_i / math.sqrt(len(x_i)) for x_i in x])
    targets = torch.cat([x_i @ w_i.T / math.sqrt(len(x_i)) for x_i, w_i in zip(x, w)])
    torch.testing.assert_close(weight_of(merged), torch.linalg.lstsq(rows, targets).solution.T)


def test_regmean_scales_what_is_off_the_diagonal():
    w, x = torch.randn(2, 4, 5).double(), [torch.randn(n, 5).double() + 1 for n in (10, 30)]
    grams = [x_i.T @ x_i / len(x_i) for x_i in x]
    for gram in grams:
        for a, b in itertools.permutations(range(5), 2):
            gram[a, b] *= 0.7
    by_hand = (w[0] @ grams[0] + w[1] @ grams[1]) @ torch.linalg.inv(grams[0] + grams[1])
    torch.testing.assert_close(weight_of(fsm.regmean([layer(w[0]), layer(w[1])], calibrated(*x))), by_hand)


def test_regmean_regresses_every_layer_of_a_vit_on_its_own_inputs():
    models, x = vits([8, 8]), [pictures(8), pictures(30)[8:]]
    merged = fsm.regmean(models, calibrated(*x), off_diagonal=1.0, batch_size=5).backbone
    for name, module in models[0].named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        rows, targets = [], []
        for model, images in zip(models, x):
            seen = inputs(model, name, images)
            if isinstance(module, nn.Conv2d):  # 8 x 8 patches of 16 x 16 pictures, cut by hand
                seen = seen.reshape(-1, 3, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * 64)
            seen = seen.flatten(0, -2)
            rows.append(seen / math.sqrt(len(seen)))
            targets.append(rows[-1] @ model.get_submodule(name).weight.flatten(1).T)
        rows, targets = torch.cat(rows), torch.cat(targets)
        found, best = merged.get_submodule(name).weight.flatten(1), torch.linalg.lstsq(rows, targets, driver="gelsd")
        torch.testing.assert_close(rows @ found.T, rows @ best.solution, rtol=0, atol=1e-7)


def test_regmean_averages_the_rest():
    models = vits([8, 8])
    merged = fsm.regmean(models, calibrated(pictures(6), pictures(4))).backbone
    for (name, p), mean in zip(merged.named_parameters(), fsm.average(models).backbone.parameters()):
        linear = name.endswith("weight") and "norm" not in name
        assert torch.equal(p, mean) != linear, name


def test_regmean_finds_the_weight_that_fits_all():
    common, x = torch.randn(4, 6).double(), [torch.randn(20, 3).double() @ torch.randn(3, 6).double() for _ in range(2)]
    models = []
    for x_i in x:  # equal on its own inputs, anything off them
        off = torch.eye(6).double() - torch.linalg.pinv(x_i) @ x_i
        models.append(layer(common + torch.randn(4, 6).double() @ off))
    merged = fsm.regmean(models, calibrated(*x), off_diagonal=1.0)
    torch.testing.assert_close(weight_of(merged), common, rtol=0, atol=1e-8)
    assert not torch.allclose(weight_of(fsm.average(models)), common, atol=0.1)


def test_regmean_of_a_model_with_itself_is_the_model():
    for model in vits([8]) + vits([8], init_values=0.3):
        for off_diagonal in (0.7, 1.0):  # three images excite few of the patches' 192 inputs
            merged = fsm.regmean([model, model], calibrated(pictures(1), pictures(2)), off_diagonal)
            torch.testing.assert_close(merged.backbone(pictures(9)), model(pictures(9)), **EXACT)


def test_regmean_averages_where_no_image_says_anything():
    w, x = torch.randn(2, 4, 5).double(), torch.randn(2, 9, 5).double()
    x[:, :, 2] = 0
    merged = fsm.regmean([layer(w[0]), layer(w[1])], calibrated(*x))
    torch.testing.assert_close(weight_of(merged)[:, 2], w.mean(0)[:, 2])
    assert not torch.allclose(weight_of(merged)[:, 1], w.mean(0)[:, 1], atol=1e-3)


# ---------------------------------------------------------------- alignment

def shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def known_permutations(model: nn.Module) -> dict[str, torch.Tensor]:
    """A permutation of every space, none of them the identity; with qk_norm one order of units in all heads."""
    if isinstance(model, fsm.MLP):
        spaces = [*(f"layers.{i}" for i in range(len(model.layers) - 1)), "features"]
        return {space: shuffled(linear.out_features, 1) for space, linear in zip(spaces, model.layers)}
    found = {"features": shuffled(model.embed_dim, 0)}
    for b, block in enumerate(model.blocks):
        h, size = block.attn.num_heads, block.attn.head_dim
        heads, shared = [1, 0] if h == 2 else shuffled(h, b).tolist(), isinstance(block.attn.q_norm, nn.LayerNorm)
        for s, part in enumerate(("qk", "v")):
            units = [shuffled(size, 100 * b + 10 * s + (0 if shared and part == "qk" else a)) for a in range(h)]
            found[f"blocks.{b}.{part}"] = torch.cat([head * size + unit for head, unit in zip(heads, units)])
        found[f"blocks.{b}.hidden"] = shuffled(block.mlp.fc1.out_features, b + 7)
    return found


EVERY_MODEL = [*VIT_OPTIONS, "mlp"]


def model_of(name: str, seed: int = 0) -> nn.Module:
    return mlps([5], inputs=3 * 256)[0] if name == "mlp" else vits([8] * (seed + 1), **VIT_OPTIONS[name])[seed]


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_a_permuted_model_is_the_same_function(name):
    model, x = model_of(name), pictures()
    known = known_permutations(model)
    features, d = model(x), len(known["features"])
    other = fsm.permuted(model, known)
    torch.testing.assert_close(other.backbone(x), features[:, known["features"]], **EXACT)
    for (what, p), q in zip(other.backbone.named_parameters(), model.parameters()):
        assert not torch.equal(p, q) or len(p.unique()) == 1, what  # nothing was left in its old order
    for head in (nn.Linear(d, 3).double(), nn.Identity(), nn.Sequential(nn.Linear(d, 4), nn.Tanh()).double()):
        original = fsm.Original(model, head, "name")
        other = fsm.permuted(original, known)
        torch.testing.assert_close(other(x), original(x), **EXACT)
        assert other.name == "name" and not other.training and type(other.backbone) is type(model)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_alignment_finds_a_known_permutation(name):
    model, images = model_of(name), calibrated(pictures(40)[:20], pictures(40)[20:])
    known = known_permutations(model)
    other = fsm.Original(fsm.permuted(model, known).backbone)  # a model of its own: its features are in its own order
    identity, found = fsm.alignment([model, other], images, batch_size=16)
    assert identity == {} and found.keys() == known.keys()
    for space, p in found.items():
        assert torch.equal(p, known[space].argsort()), space
    merged, x = fsm.align([model, other, model], images), pictures(5)
    torch.testing.assert_close(merged.backbone(x), model(x), **EXACT)
    for features, original in zip(merged.features(x), (model, other, model)):
        torch.testing.assert_close(features, original(x), **EXACT)


def test_aligned_models_keep_their_heads():
    model, images = vits([8])[0], calibrated(pictures(20), pictures(20))
    a = fsm.Original(model, nn.Linear(8, 3).double(), "a")
    b = fsm.Original(fsm.permuted(model, known_permutations(model)).backbone, nn.Linear(8, 5).double(), "b")
    merged = fsm.align([a, b], images)
    assert type(merged) is fsm.Merged and merged.names == ("a", "b")
    assert torch.equal(merged.heads[1].weight, b.head.weight)
    for logits, original in zip(merged(pictures()), (a, b)):
        torch.testing.assert_close(logits, original(pictures()), **EXACT)


def test_correlations_are_pearsons():
    a, b = vits([8, 8])
    fc1 = a.blocks[0].mlp.fc1
    fc1.weight.data[3:5], fc1.bias.data[3:5] = 0, torch.tensor([1., -100]).double()  # channels that never change
    x = pictures(20)
    seen = [inputs(model, "blocks.0.mlp.fc2", x).flatten(0, 1) for model in (a, b)]
    n = seen[0].shape[1]
    by_hand = torch.corrcoef(torch.cat(seen, 1).T)[:n, n:]
    by_hand[3:5] = 0
    torch.testing.assert_close(correlations(a, b, x, batch_size=6)["blocks.0.hidden"], by_hand)


@pytest.mark.parametrize("name", ["plain", "qk_norm"])
def test_no_other_order_of_heads_and_units_matches_better(name):
    a, b = model_of(name), model_of(name, seed=1)
    images = calibrated(pictures(10), pictures(20)[10:])
    table, found = correlations(a, b, images.images), fsm.alignment([a, b], images)[1]
    assert all(c.max() <= 1 + 1e-9 and len(found[space]) == len(c) for space, c in table.items())

    def best_units(*blocks: torch.Tensor) -> tuple[float, list[int]]:
        """Brute force over the 24 orders of the 4 units of a head."""
        orders = [list(p) for p in itertools.permutations(range(4))]
        return max((sum(c[i, j].item() for c in blocks for i, j in enumerate(p)), p) for p in orders)
    for block in ("blocks.0", "blocks.1"):
        qk, v = ([[table[f"{block}.{part}"][4 * i:4 * i + 4, 4 * j:4 * j + 4] for j in range(2)] for i in range(2)]
                 for part in ("qk", "v"))
        heads = max(([0, 1], [1, 0]), key=lambda h: sum(best_units(c[i][h[i]])[0] for c in (qk, v) for i in range(2)))
        shared = best_units(*(qk[i][j] for i, j in enumerate(heads)))[1]
        for part, c in (("qk", qk), ("v", v)):
            by_hand = [shared if (name, part) == ("qk_norm", "qk") else best_units(c[i][j])[1]
                       for i, j in enumerate(heads)]
            assert found[f"{block}.{part}"].tolist() == [4 * j + u for j, p in zip(heads, by_hand) for u in p]


def test_alignment_takes_the_barrier_between_permuted_copies_away():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    model, head = randomised(fsm.MLP((6, 16, 8)), seed=3), nn.Linear(8, 3).double()
    head.weight.data, head.bias.data = 20 * torch.randn(3, 8, generator=generator).double(), torch.zeros(3).double()
    labels = head(model(x)).argmax(1)
    task = fsm.Task("own", ("a", "b", "c"), lambda n, g, split: (x[:n], labels[:n]), test_size=200)
    a = fsm.Original(model, head)
    b = fsm.permuted(a, known_permutations(model))
    c = fsm.permuted(b, fsm.alignment([a, b], calibrated(x[:100], x[100:]))[1])
    before, after = fsm.path(a, b, [task], steps=5), fsm.path(a, c, [task], steps=5)
    assert before.barrier > 0.1 and before.loss[-1] == pytest.approx(before.loss[0])
    assert after.barrier == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- what is refused

def test_an_ensemble_is_moved_without_its_originals():
    originals = [fsm.Original(model) for model in vits([8, 8])]
    fsm.ensemble(originals).float()
    assert {p.dtype for original in originals for p in original.parameters()} == {torch.float64}


def test_bad_arguments():
    a, b = vits([8, 8])
    images = calibrated(pictures(4), pictures(4))
    with pytest.raises(ValueError, match="between two originals, got 3; average, regmean and align take k"):
        fsm.slerp([a, b, a])
    with pytest.raises(ValueError, match="t must be a number from 0 to 1, got 1.5"):
        fsm.slerp([a, b], 1.5)
    with pytest.raises(ValueError, match="off_diagonal must be a number from 0 to 1, got -1"):
        fsm.regmean([a, b], images, off_diagonal=-1)
    for owners in (3, 1):
        with pytest.raises(ValueError, match=f"images are of {owners} tasks, but there are 2 originals"):
            fsm.regmean([a, b], calibrated(*[pictures(2)] * owners))
    with pytest.raises(ValueError, match="i must be a whole number from 0 to 1, got 2"):
        fsm.alone([a, b], 2)
    for merge in (fsm.average, fsm.alone, fsm.slerp, lambda o: fsm.regmean(o, images), lambda o: fsm.align(o, images),
                  lambda o: fsm.alignment(o, images)):
        with pytest.raises(ValueError, match=r"original 2 has .* of shape \(.*6.*\), original 1 \(.*8.*\): weights of"):
            merge(vits([8, 6]))
        with pytest.raises((TypeError, ValueError), match="original 2 is of kind 'mlp'"):
            merge([a, *mlps([8])])
    small = calibrated(*[F.interpolate(pictures(2), size=8)] * 2)
    for merge in (fsm.regmean, fsm.align):
        with pytest.raises(ValueError, match=r"reads inputs \(B, 3, 16, 16\)"):
            merge([a, b], small)


def test_all_weights_start_at_the_loss_of_the_supernet_and_leave_it_alone():
    models = vits([12, 12])
    images = fsm.Calibration(pictures(24), torch.arange(24) % 2)
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    before, how = net(pictures(3)), {"batch_size": 8, "depths": (1,), "inner": 0.5, "off_task": 0.3}
    merged = fsm.train_folded(net, images, steps=40, lr=3e-3, **how)
    for a, b in zip(before, net(pictures(3))):
        assert torch.equal(a, b)
    by_supernet = fsm.train_global(net, images, steps=1, lr=1e-3, **how)
    assert merged.history.loss[0] == pytest.approx(by_supernet.loss[0])
    assert merged.history.loss[-1] < 0.8 * merged.history.loss[0]
    assert not any(p.requires_grad for p in merged.parameters())
    with pytest.raises(ValueError, match="inner must be a number >= 0"):
        fsm.train_folded(net, images, steps=1, inner=-1)
    with pytest.raises(ValueError, match="no depth 9"):
        fsm.train_folded(net, images, steps=1, depths=(9,))
