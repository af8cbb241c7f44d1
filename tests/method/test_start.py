"""The start by least squares against exact cases, normal equations and finite differences."""
import copy

import pytest
import torch
from models_for_tests import VIT_OPTIONS, mixed, mlps, pictures, vits
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.engine.images import Calibration
from fsmerge_lite.engine.running import inputs_of
from fsmerge_lite.engine.statistics import best_groups, divided, least_squares, lost, sensitivity

PLAIN = {"off_task": 0.0, "inner_off_task": 0.0, "floor": 1.0, "corrected": False}  # the first version of this start
# The last three cannot be shared out, and are refused by name; a maximum is not linear in the stream.
EXACT = VIT_OPTIONS.keys() - {"max pooling", "qk_norm", "pre_norm", "inner norms, no proj bias"}


def images_of(x: torch.Tensor, k: int = 2) -> Calibration:
    return Calibration(x, torch.arange(len(x)) % k)


def read_by(model, layer: str, x: torch.Tensor) -> torch.Tensor:
    return inputs_of(model, [layer], lambda: model(x))[layer]


def half_idle_mlp(width: int = 8) -> fsm.MLP:
    """An MLP of which every second unit is dead: half the width would do."""
    mlp, = mlps([width])
    for layer in mlp.layers:
        layer.weight.data[::2], layer.bias.data[::2] = 0, 0
    return mlp


# ---------------------------------------------------------------- exact cases

def test_two_half_idle_mlps_fit_into_one_exactly():
    models, x = [half_idle_mlp(), half_idle_mlp()], torch.randn(200, 12).double()
    net = fsm.SuperNet(models, structure="full")
    fsm.fit_subspaces(net, images_of(x), ridge=1e-12, off_task=0, inner_off_task=0)
    unseen = torch.randn(50, 12).double()
    for i, model in enumerate(models):
        torch.testing.assert_close(net.fold().features(unseen)[i], model(unseen), rtol=0, atol=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("options", sorted(EXACT))
def test_enough_width_gives_the_original_back_exactly(options, corrected):
    """A model and itself: the two shares of the stream have one size, so that a LayerNorm of both is that of one.

    The merged stream is the truth, so that nothing is left to correct.
    """
    model, = vits([8], **VIT_OPTIONS[options])
    into, = vits([16], num_heads=4, **VIT_OPTIONS[options])
    net = fsm.SuperNet([model, copy.deepcopy(model)], rank=2, into=into)
    fsm.fit_subspaces(net, images_of(pictures(200)), ridge=1e-13, off_task=0, inner_off_task=0, corrected=corrected)
    unseen = pictures(220)[200:]
    for rebuilt in net.fold().features(unseen):
        torch.testing.assert_close(rebuilt, model(unseen), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the pieces

def test_sensitivity_is_that_of_finite_differences():
    model, = vits([8])
    place, x, eps = "blocks.0.mlp.fc1", pictures(1), 1e-6
    before, read, columns = model(x)[0], read_by(model, place, x), []
    for at in range(read.numel()):
        moved = read.clone()
        moved.view(-1)[at] += eps
        hook = model.get_submodule(place).register_forward_pre_hook(lambda *_, moved=moved: (moved,))
        columns.append((model(x)[0] - before) / eps)
        hook.remove()
    jacobian = torch.stack(columns, 1).unflatten(1, read.shape[1:])  # (features, tokens, channels)
    tokens, channels = sensitivity(model, model, [place], [x.expand(20000, -1, -1, -1)])[place]
    exact = jacobian.square().sum((0, 2))
    torch.testing.assert_close(tokens, exact / exact.mean(), rtol=0.05, atol=0)
    exact = torch.einsum("otc, otd -> cd", jacobian, jacobian)
    torch.testing.assert_close(channels, exact, rtol=0, atol=0.03 * exact.abs().max().item())


def test_tokens_that_nothing_depends_on_have_no_weight():
    model, = vits([8])
    first, last = "blocks.0.attn.proj", "blocks.1.attn.proj"
    found = sensitivity(model, model, [first, last], [pictures(50)])
    assert found[last][0].tolist() == pytest.approx([5, 0, 0, 0, 0])  # only the class token goes on
    assert (found[first][0] > 0.001).all()
    model.norm.weight.data.zero_()
    assert torch.equal(sensitivity(model, model, [first], [pictures(5)])[first][0], torch.ones(5).double())


def test_least_squares_is_that_of_weighed_rows():
    torch.manual_seed(0)
    rows = [(0.3, torch.randn(20, 5).double(), torch.randn(20, 3).double()),
            (2.0, torch.randn(30, 5).double(), torch.randn(30, 3).double())]
    parts = [(weight, u.T @ u / len(u), u.T @ t / len(u)) for weight, u, t in rows]
    u, t = (torch.cat([(row[0] / len(row[1])) ** 0.5 * row[i] for row in rows]) for i in (1, 2))
    torch.testing.assert_close(least_squares(parts, 1e-14).T, torch.linalg.lstsq(u, t).solution)
    ridge = 0.1 * (u.T @ u).diagonal().mean()
    u, t = torch.cat([u, ridge.sqrt() * torch.eye(5)]), torch.cat([t, torch.zeros(5, 3)])
    torch.testing.assert_close(least_squares(parts, 0.1).T, torch.linalg.lstsq(u, t).solution)


@pytest.mark.parametrize(("unit", "best", "unless"), [(1, [2, 3, 6, 7], {2, 3}), (2, [1, 3], {1})])
def test_the_best_groups_are_those_that_tell_all(unit, best, unless):
    torch.manual_seed(0)
    x = torch.randn(100, 4).double() @ torch.randn(4, 12).double()
    x[:, [2, 3, 6, 7]] = 10 * torch.randn(100, 4).double()  # which the others do not tell
    errors = torch.ones(12).double()
    assert best_groups(x.T @ x / 100, errors.diag(), unit, len(best)).tolist() == best
    errors[[2, 3]] = 0  # errors there do not count
    assert not unless & set(best_groups(x.T @ x / 100, errors.diag(), unit, len(best)).tolist())


def test_lost_is_the_part_of_the_features_that_is_wrong():
    """For features that are linear in the tokens, f = J z, it is E ||J e||^2 over that of z less its mean."""
    torch.manual_seed(0)
    jacobian = torch.randn(1, 5, 4).double() * torch.randn(3, 1, 1).double()  # of every token; to one factor the same
    tokens, channels = jacobian.square().sum((1, 2)), jacobian[0].T @ jacobian[0] / jacobian[0].square().sum()
    z, e = (torch.randn(20, 3, 4).double() + shift for shift in (7, 0))
    found, exact = lost(e, z, tokens, channels), [torch.einsum("tod, ntd -> nto", jacobian, x).square().sum().item()
                                                  for x in (e, z - z.mean(0))]
    assert found == pytest.approx(exact[0] / exact[1])


@pytest.mark.parametrize("needs", [(1, 1), (5, 1), (1, 30), (2, 3), (1, 1e6)])
def test_two_numbers_are_divided_as_no_others_are_better(needs):
    def errors(numbers):
        return [need / number for need, number in zip(needs, numbers)]
    best = min(([n, 8 - n] for n in range(1, 8)), key=lambda numbers: sum(errors(numbers)))
    assert divided([4, 4], errors) == best


def test_more_numbers_keep_their_sum_and_none_falls_below_one():
    tried = []

    def errors(numbers):
        tried.append(numbers)
        return [need / number for need, number in zip((100, 1, 1, 1), numbers)]
    assert divided([2, 2, 1, 1], errors) == [3, 1, 1, 1]
    assert divided([1, 1, 1, 3], errors) == [3, 1, 1, 1]
    assert all(sum(numbers) == 6 and min(numbers) == 1 for numbers in tried)


@pytest.mark.parametrize("easy", [0, 1])
def test_an_original_with_idle_heads_leaves_them_to_the_other(easy):
    """The stream has room for both. One needs a head, the other needs three: more than an equal share."""
    models, (into,), images = vits([12, 12], num_heads=4), vits([24], num_heads=4), images_of(pictures(80))
    for i, model in enumerate(models):
        for block in model.blocks:
            block.attn.proj.weight.data *= 5
            block.attn.proj.weight.data[:, 3 if i == easy else 9:] = 0  # nobody hears the other heads
    nets = [fsm.fit_subspaces(fsm.SuperNet(models, rank=2, into=into), images, heads=heads)
            for heads in (None, (1, 3) if easy == 0 else (3, 1))]
    for p, q in zip(*(net.fold().parameters() for net in nets)):
        torch.testing.assert_close(p, q)
    assert nets[0].provenance[0]["heads"] is None


def test_the_output_draws_the_features_for_other_heads_to_their_mean():
    models, images = vits([12, 12]), images_of(pictures(80))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, ridge=1e-12, off_task=0.3)
    merged = net.fold().backbone
    for i, model in enumerate(models):
        own, other, f = images.of(i), images.of(1 - i), model(images.of(i))
        rows = torch.cat([merged(own), 0.3 ** 0.5 * merged(other)])
        targets = torch.cat([f, 0.3 ** 0.5 * f.mean(0).expand(len(other), -1)])
        best = torch.linalg.lstsq(rows, targets).solution.T
        torch.testing.assert_close(net.outputs[i].dense(), best, rtol=0, atol=1e-6)


def test_hidden_units_are_asked_to_be_off_on_the_images_of_others():
    models, images, layer, means = vits([12, 12]), images_of(pictures(80)), "blocks.1.mlp.fc1", []
    for weight in (0.0, 0.5):
        net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, inner_off_task=weight)
        merged = net.fold().backbone
        first, second = (w.abs().sum(1) > 0 for w, _ in net.body.get_submodule(layer).frozen())
        assert not (first & second).any()
        written = merged.get_submodule(layer)(read_by(merged, layer, images.of(1)))
        means.append(written[..., first].mean().item())
    assert means[1] < means[0] - 0.3


def test_units_that_are_never_off_are_not_asked_to_be():
    models, images = [fsm.MLP((12, 6, 6), nn.Tanh).double().eval() for _ in range(2)], images_of(torch.randn(60, 12))
    images = Calibration(images.images.double(), images.owner)
    asked, not_asked = (fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, inner_off_task=weight).fold()
                        for weight in (0.5, 0.0))
    assert all(torch.equal(p, q) for p, q in zip(asked.parameters(), not_asked.parameters()))


def merges_of(net, models) -> list[torch.Tensor]:
    """M0_i = B_i P_i (d*, d_i) of all that is written to the stream, from what the patch embedding became."""
    frozen = [w.flatten(1) for w, _ in net.body.patch_embed.proj.frozen()]
    return [w @ torch.linalg.pinv(m.patch_embed.proj.weight.flatten(1)) for w, m in zip(frozen, models)]


def test_corrected_writes_bring_each_share_nearer_to_the_truth():
    models, images, errors = vits([12, 12], depth=4), images_of(pictures(80)), []
    for corrected in (False, True):
        net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, **PLAIN | {"corrected": corrected})
        error, merged = 0, net.fold().backbone
        for i, (model, merge) in enumerate(zip(models, merges_of(net, models))):
            onto = merge @ torch.linalg.pinv(merge, rtol=1e-6)  # B_i B_i^T
            there, own = (read_by(m, "norm", images.of(i)) for m in (merged, model))
            error += (there @ onto - own @ merge.T).square().mean().item()
        errors.append(error)
    assert errors[1] < 0.9 * errors[0]


def test_without_its_new_terms_it_is_the_first_version():
    """Every W_i becomes M0_i W_i U0_i, where U0_i is the plain least squares from what the merged layer reads."""
    models, images = vits([12, 12]), images_of(pictures(80))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, ridge=1e-12, **PLAIN)
    merged, merges = net.fold().backbone, merges_of(net, models)
    for layer in net.graph.layers[1:]:
        for i, (frozen, _) in enumerate(net.body.get_submodule(layer.name).frozen()):
            u, t = (read_by(m, layer.name, images.of(i)).flatten(0, -2) for m in (merged, models[i]))
            fitted = models[i].get_submodule(layer.name).weight @ torch.linalg.lstsq(u, t).solution.T
            if layer.adds_to:
                torch.testing.assert_close(frozen, merges[i] @ fitted, rtol=0, atol=1e-6)
            else:  # M0_i picks rows
                kept = frozen[frozen.abs().sum(1) > 0]
                assert len(kept) == len(frozen) // 2
                assert torch.cdist(kept, fitted).min(1).values.max() < 1e-6


# ---------------------------------------------------------------- the whole

def test_full_models_do_not_fit_and_the_fit_is_the_best_there_is():
    models, images = vits([12, 12]), images_of(pictures(40))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, ridge=1e-12, **PLAIN)
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


@pytest.mark.parametrize(("k", "shares", "owners"), [
    (4, None, [0, 1, 2, 3]), (2, (1, 1), [0, 0, 1, 1]), (2, (3, 1), [0, 0, 0, 1]), (2, (0.25, 0.75), [0, 1, 1, 1]),
    (3, (1, 1, 2), [0, 1, 2, 2]), (2, (99, 1), [0, 0, 0, 1])])
def test_every_original_has_its_share_of_the_heads(k, shares, owners):
    models, images = vits([12] * k, num_heads=4), images_of(pictures(32), k)
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images, heads=shares)
    for block in net.body.blocks:
        found = torch.stack([w.unflatten(0, (3, 4, 3)).abs().sum((0, 2, 3)) for w, _ in block.attn.qkv.frozen()])
        # each head reads its owner alone
        assert torch.equal(found > 0, torch.arange(k)[:, None] == torch.tensor(owners))
    assert net.provenance[0]["heads"] == (shares and list(shares))


def test_one_image_of_each_task_is_enough_to_run():
    models, images = vits([12, 12], num_heads=4), images_of(pictures(2))
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    assert all(f.isfinite().all() for f in net(images.images))


def test_shipped_originals_merge_without_a_training_step():
    originals = fsm.load_originals("digits", "letters")
    images = fsm.calibration(originals, per_task=16, augmented=5)
    merged = fsm.fit_subspaces(fsm.SuperNet(originals), images).fold()
    tasks = [o.task for o in originals]
    scores = fsm.evaluate(merged, tasks, limit=300)
    assert min(scores.per_task.values()) > 80 and scores.mean > fsm.evaluate(fsm.average(originals), tasks).mean + 60


@pytest.mark.parametrize("case", ["wider", "narrower", "unequal", "registers, average", "MLPs", "three", "in sequence"])
def test_all_that_can_be_merged_can_be_started(case):
    models, x, into = vits([12, 12], num_heads=4, **VIT_OPTIONS["register tokens"]), pictures(90), None
    if case in ("wider", "narrower"):
        into, = vits([20 if case == "wider" else 8], num_heads=4, **VIT_OPTIONS["register tokens"])
    elif case == "unequal":
        models = mixed((12, 4, 2), (8, 4, 3), (6, 2, 2))
    elif case == "registers, average":
        models = vits([12, 12], reg_tokens=2, global_pool="avg", fc_norm=False)
    elif case == "MLPs":
        models, x = mlps([12, 12]), torch.randn(90, 12).double()
    elif case == "three":
        models = vits([12] * 3, num_heads=4)
    else:
        first = fsm.SuperNet(models, rank=2).fold()
        models = [first, vits([12] * 3, num_heads=4, **VIT_OPTIONS["register tokens"])[2]]
    images = images_of(x, len(models))
    if case == "narrower":
        with pytest.raises(ValueError, match="heads of size 3, the merged model of size 2"):
            fsm.fit_subspaces(fsm.SuperNet(models, rank=2, into=into), images)
        return
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2, into=into), images)
    for folded, unfolded in zip(net(x), net(x, unfolded=True)):
        torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-9)
    error = fsm.training.errors_of(net, images, {None: 1.0})[None]
    with torch.no_grad():
        assert error(net(images.images), torch.arange(len(x))) < 0.8  # 1 is what a feature of zeros gets


@pytest.mark.parametrize("depth", [2, 6])
def test_few_passes_whatever_the_depth(depth):
    """By multiplications in the models' own layers, forward: of all originals' passes and the merged model's."""
    models, images = vits([12, 12], depth=depth), images_of(pictures(400))
    net, work = fsm.SuperNet(models, rank=2), [0]

    def count(module, args, output):
        if isinstance(module, torch.nn.Linear):
            work[0] += output.numel() * module.in_features
    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        models[0](images.images)
        one, work[0] = work[0], 0
        fsm.fit_subspaces(net, images)
    finally:
        hook.remove()
    assert 2 * one < work[0] < 5 * one


def test_bad_settings_are_refused():
    net, images = fsm.SuperNet(vits([8, 8]), rank=2), images_of(pictures(8))
    for setting in ({"ridge": 0}, {"floor": 1.1}, {"off_task": -1}, {"inner_off_task": -0.1}, {"batch_size": 0},
                    {"heads": (1, 1, 1)}, {"heads": (1, 0)}, {"heads": ()}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must be .*, got"):
            fsm.fit_subspaces(net, images, **setting)


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
