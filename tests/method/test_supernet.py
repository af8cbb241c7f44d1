"""The SuperNet against the originals, timm, and its own second way of running."""
import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_for_tests import VIT_OPTIONS, both_ways, mlps, pictures, randomised, vits
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite import layers
from fsmerge_lite.engine.images import Calibration
from fsmerge_lite.matrices import STRUCTURES


def widest_rank(structure: str, dim: int) -> int:
    return dim if structure == "low_rank" else 3


def set_all(net: fsm.SuperNet, which: int) -> None:
    """M_which = I and the other M = 0, all U = I, norms of original `which`."""
    for name, p in net.originals[which].backbone.named_parameters():
        if "norm" in name:
            net.body.get_parameter(name).data.copy_(p)
    for module in net.modules():
        if hasattr(module, "merges"):
            for i, m in enumerate(module.merges):
                m.set_identity(float(i == which))
        for u in getattr(module, "unmerges", None) or ():
            u.set_identity()


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_first_starts_at_original_1(options, structure, dtype, bound):
    models, x = vits([8, 8], dtype, **options), pictures(dtype=dtype)
    net = fsm.SuperNet(models, widest_rank(structure, 8), structure, "first")
    expected = models[0](x)  # timm itself
    for got in (net(x)[0], net(x, unfolded=True)[0], net.fold().features(x)[0]):
        assert (got - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_first_starts_at_original_1_mlp(structure):
    models = [randomised(fsm.MLP((12, 8, 8, 8)), seed=i) for i in range(3)]
    x = torch.randn(5, 12).double()
    net = fsm.SuperNet(models, widest_rank(structure, 8), structure)
    torch.testing.assert_close(net(x)[0], models[0](x), rtol=0, atol=1e-12)


def test_layers_run_explicitly_again_after_an_error():
    net, x = fsm.SuperNet(vits([8, 8]), rank=2), pictures()
    with mock.patch.object(net.body.norm, "forward", side_effect=RuntimeError), pytest.raises(RuntimeError):
        net(x)
    assert all(layer.as_one is None for layer in net.modules() if isinstance(layer, fsm.SuperLinear))


@settings(max_examples=40)
@given(structure=st.sampled_from(STRUCTURES), init=st.sampled_from(["first", "average", "random"]),
       k=st.sampled_from([2, 3]), equal=st.booleans(), options=st.sampled_from(list(VIT_OPTIONS.values())),
       rank=st.integers(1, 6), stacked=st.booleans())
def test_explicit_equals_folded_vit(structure, init, k, equal, options, rank, stacked):
    net = fsm.SuperNet(vits([8] * k if equal else [8, 6, 10][:k], **options), rank, structure, init)
    with mock.patch.object(layers, "STACKED", 10 ** 6 if stacked else 0):
        (folded, grads), (explicit, grads_explicit) = both_ways(net, pictures())
    for a, b in zip(folded, explicit):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert grads.keys() == grads_explicit.keys()
    for name, grad in grads.items():
        if grad is None:  # nothing depends on it: then in both ways
            assert grads_explicit[name] is None, name
        else:
            torch.testing.assert_close(grad, grads_explicit[name], rtol=1e-8, atol=1e-9, msg=name)


@settings(max_examples=40)
@given(structure=st.sampled_from(STRUCTURES), init=st.sampled_from(["first", "average", "random"]),
       hidden=st.lists(st.integers(4, 9), min_size=2, max_size=3), rank=st.integers(1, 4), alike=st.booleans())
def test_explicit_equals_folded_mlp(structure, init, hidden, rank, alike):
    models = [randomised(fsm.MLP((12, h, h, h, h)), seed=h) for h in hidden] if alike else mlps(hidden)
    net = fsm.SuperNet(models, rank, structure, init)
    (folded, grads), (explicit, grads_explicit) = both_ways(net, torch.randn(4, 12).double())
    torch.testing.assert_close(folded, explicit)
    torch.testing.assert_close(grads, grads_explicit)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_identity_gives_any_original_back(options, which):
    models, x = vits([8, 8, 8], **options), pictures()
    net = fsm.SuperNet(models, rank=3, init="random")
    set_all(net, which)
    net.outputs[which].set_identity()
    torch.testing.assert_close(net(x)[which], models[which](x), rtol=0, atol=1e-10)


def test_a_permuted_copy_is_undone_exactly_mlp():
    model = randomised(fsm.MLP((12, 8, 7)))
    p = [torch.eye(n, dtype=torch.float64)[torch.randperm(n)] for n in (8, 7)]
    twin = copy.deepcopy(model)
    for i, layer in enumerate(twin.layers):
        layer.weight.data = p[i] @ layer.weight.data @ (p[i - 1].T if i else torch.eye(12).double())
        layer.bias.data = p[i] @ layer.bias.data
    net, x = fsm.SuperNet([model, twin], structure="full"), torch.randn(6, 12).double()
    for i in range(2):
        layer = net.body.layers[i]
        for merge, inverse in zip(layer.merges, (torch.eye(len(p[i])).double(), p[i].T)):
            merge.S.data[0] = inverse / 2
        if i:
            layer.unmerges[1].S.data[0] = p[i - 1]
    net.outputs[1].S.data[0] = p[1]
    a, b = net.fold().features(x)
    torch.testing.assert_close(a, model(x))
    torch.testing.assert_close(b, twin(x))
    averaged = fsm.average([model, twin]).features(x)[0]
    assert (averaged - model(x)).abs().max() > 0.1  # what the right M and U undo


def test_permuted_hidden_units_of_a_vit_are_undone_exactly():
    model, = vits([8])
    twin, p, x = copy.deepcopy(model), torch.eye(16).double()[torch.randperm(16)], pictures()
    for block in twin.blocks:
        block.mlp.fc1.weight.data, block.mlp.fc1.bias.data = p @ block.mlp.fc1.weight, p @ block.mlp.fc1.bias
        block.mlp.fc2.weight.data = block.mlp.fc2.weight @ p.T
    torch.testing.assert_close(twin(x), model(x))
    net = fsm.SuperNet([model, twin], structure="full", init="average")
    assert (net(x)[0] - model(x)).abs().max() > 0.01
    for block in net.body.blocks:
        block.mlp.fc1.merges[1].S.data[0] = p.T / 2
        block.mlp.fc2.unmerges[1].S.data[0] = p
    torch.testing.assert_close(net(x)[0], model(x))


@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_fold_loads_strictly_into_plain_timm(options):
    net, x = fsm.SuperNet(vits([8, 6], **options), rank=3, init="random"), pictures()
    fresh = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2,
                              num_classes=0, **options).double().eval()
    fresh.load_state_dict(net.fold().backbone.state_dict(), strict=True)
    for output, got in zip(net.outputs, net(x)):
        torch.testing.assert_close(fresh(x) @ output.dense().T, got)


def test_average_init_is_the_mean_of_the_weights():
    models, x = vits([8, 8, 8]), pictures()
    mean = copy.deepcopy(models[0])
    mean.load_state_dict({key: torch.stack([m.state_dict()[key] for m in models]).mean(0) for key in mean.state_dict()})
    for features in fsm.average(models).features(x):
        torch.testing.assert_close(features, mean(x))


def test_features_at_depth_are_what_the_next_layer_reads():
    models, x = vits([8, 8]), pictures()
    net = fsm.SuperNet(models, rank=3)
    for d in (0, 1):
        expected = []
        for m in models:
            stream = m._pos_embed(m.patch_embed(x))
            expected.append(m.blocks[d].norm1(m.blocks[:d](stream)))
        for got, want in zip(net.original_features(x, [d])[d], expected):
            torch.testing.assert_close(got, want)
        for explicit in (False, True):
            torch.testing.assert_close(net.features(x, [0, 1], explicit)[d][0], expected[0])
    with pytest.raises(ValueError, match=r"no depth 2.*\[0, 1\]"):
        net.features(x, [2])


def test_features_at_depth_mlp():
    models, x = mlps([6, 5]), torch.randn(4, 12).double()
    net = fsm.SuperNet(models, rank=2, init="random")
    got = net.original_features(x, [1, 2])
    for m, one, two in zip(models, got[1], got[2]):
        torch.testing.assert_close(one, m.act(m.layers[0](x)))
        torch.testing.assert_close(two, m.act(m.layers[1](one)))
    torch.testing.assert_close(net.features(x, [1, 2]), net.features(x, [1, 2], unfolded=True))


def test_rank_grows_with_the_hidden_width_inside_the_mlp():
    net = fsm.SuperNet(vits([8, 8], mlp_ratio=4), rank=2)
    block = net.body.blocks[0]
    assert [block.attn.qkv.merges[0].rank, block.attn.proj.unmerges[0].rank, block.mlp.fc2.merges[0].rank] == [2, 2, 2]
    assert [block.mlp.fc1.merges[0].rank, block.mlp.fc2.unmerges[0].rank] == [8, 8]


def test_only_m_u_and_norms_are_learned_and_nothing_else_is_stored():
    net = fsm.SuperNet(vits([8, 8]), rank=2)
    assert {n.split(".")[-1] for n, p in net.named_parameters() if p.requires_grad} == {"D", "A", "B", "weight", "bias"}
    assert all("norm" in n for n, _ in net.named_parameters() if n.endswith(("weight", "bias")))
    stored = {p.data_ptr(): p.numel() for p in net.state_dict().values()}  # the shared input M is named more than once
    assert sum(stored.values()) == sum(p.numel() for p in net.parameters())
    frozen = dict(net.body.blocks[0].mlp.fc1.named_buffers())
    assert frozen.keys() == {"weight0", "bias0", "weight1", "bias1"}


def test_a_classifier_is_split_into_backbone_and_head():
    full = [randomised(VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=n),
                       torch.float32, n) for n in (3, 4)]
    x = pictures(dtype=torch.float32)
    merged = fsm.SuperNet(full, rank=2).fold()
    torch.testing.assert_close(merged(x)[0], full[0](x))
    assert [y.shape[1] for y in merged(x)] == [3, 4]
    assert full[0].head.out_features == 3  # the given model stays as it was


# ---------------------------------------------------------------- merging what is merged

def originals(*dims: int) -> list[fsm.Original]:
    heads = [randomised(nn.Linear(dim, 3 + i), seed=20 + i) for i, dim in enumerate(dims)]
    return [fsm.Original(m, head, name).eval() for m, head, name in zip(vits(dims), heads, "abcde")]


def test_sequential_merging_with_first_stays_at_original_1():
    a, b, c, d = originals(8, 6, 10, 8)
    merged, x = fsm.SuperNet([a, b], rank=2).fold(), pictures()
    for further in (c, d):
        merged = fsm.SuperNet([merged, further], rank=2).fold()
        torch.testing.assert_close(merged.features(x)[0], a.backbone(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(merged(x)[0], a(x), rtol=0, atol=1e-12)
    assert merged.names == ("a", "b", "c", "d") and [y.shape[1] for y in merged(x)] == [3, 4, 5, 6]


@pytest.mark.parametrize("order", [("ab", "c"), ("c", "ab"), ("ab", "cd")])
def test_output_matrices_are_composed(order):
    one = dict(zip("abcd", originals(8, 6, 10, 12)))
    parts = [one[names] if names in one else
             fsm.SuperNet([one[n] for n in names], structure="full", init="random").fold() for names in order]
    net, x, expected = fsm.SuperNet(parts, structure="full", init="random"), pictures(), {}
    for names, part, unmerge in zip(order, parts, net.outputs):
        for j, name in enumerate(names):
            u = unmerge.S[0] if names == name else part.outputs[j] @ unmerge.S[0]
            expected[name] = u, one[name].head(net.backbone(x, unfolded=True) @ u.T)
    merged = net.fold()
    assert merged.names == tuple("".join(order))
    torch.testing.assert_close(list(merged.outputs), [u for u, _ in expected.values()])
    torch.testing.assert_close(merged(x), [logits for _, logits in expected.values()])


def test_a_merge_without_names_counts_on():
    ab = fsm.SuperNet(vits([8, 8]), rank=2).fold()
    assert fsm.SuperNet([ab, *vits([6])], rank=2).fold().names == ("model 1", "model 2", "model 3")


def test_a_trained_sequential_merge(tmp_path):
    a, b, c = originals(8, 6, 10)
    images = Calibration(pictures(24), torch.arange(24) % 3)
    ab = fsm.SuperNet([a, b], rank=2)
    fsm.train_global(ab, Calibration(images.images[images.owner < 2], images.owner[images.owner < 2]), steps=20)
    ab, before = ab.fold(), copy.deepcopy(ab.fold().state_dict())
    net = fsm.SuperNet([ab, c], rank=2)
    ours = {p.data_ptr() for p in net.parameters()}
    assert not ours & {p.data_ptr() for model in (ab, c) for p in model.parameters()}
    history = fsm.train_global(net, images.grouped([0, 0, 1]), steps=60, lr=5e-3)
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert all(torch.equal(p, before[name]) for name, p in ab.state_dict().items())
    merged, x = net.fold(), pictures()
    rebuilt, theirs = net(x, unfolded=True)
    expected = [a.head(rebuilt @ ab.outputs[0].T), b.head(rebuilt @ ab.outputs[1].T), c.head(theirs)]
    torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-12)
    merged.save(tmp_path / "abc")
    again = fsm.load_merged(tmp_path / "abc").double()
    assert again.names == ("a", "b", "c")
    torch.testing.assert_close(again(x), merged(x), rtol=1e-5, atol=1e-6)  # it is read as float32


def test_a_merge_in_train_mode_is_refused():
    a, b, c = originals(8, 6, 10)
    ab = fsm.SuperNet([a, b], rank=2).fold()
    refused([ab.train(), c], ValueError, "original 1 is in train mode")


# ---------------------------------------------------------------- what is refused

def refused(models, error, match, **options):
    with pytest.raises(error, match=match):
        fsm.SuperNet(models, **({"rank": 2} | options))


@pytest.mark.parametrize("options, match", [
    ({"depth": 3}, "original 2 has depth = 3, original 1 has 2"),
    ({"img_size": 24}, r"img_size = \[24, 24\], original 1 has \[16, 16\]"),
    ({"reg_tokens": 1}, "reg_tokens = 1"),
    ({"qkv_bias": False}, "qkv_bias = False"),
    ({"act_layer": nn.ReLU}, "act_layer = ReLU"),
    ({"global_pool": "avg", "fc_norm": False}, "global_pool = avg"),
])
def test_originals_that_differ_are_refused_by_what_differs(options, match):
    refused([*vits([8]), *vits([8], **options)], ValueError, match)


@pytest.mark.parametrize("options, match", [
    ({"global_pool": "map"}, "global_pool must be .* got 'map'"),
    ({"global_pool": "", "class_token": False}, "global_pool must be .* got ''"),
    ({"dynamic_img_size": True}, "dynamic_img_size = True, where False was expected"),
    ({"embed_norm_layer": nn.LayerNorm}, "patch_embed.norm = LayerNorm, where Identity was expected"),
    ({"patch_drop_rate": 0.5}, "patch_drop = PatchDropout, where Identity was expected"),
])
def test_unsupported_variants_are_refused_by_name(options, match):
    refused(vits([8, 8], **options), ValueError, match)


def test_unsupported_blocks_are_refused_by_name():
    from timm.layers import SwiGLU
    from timm.models.vision_transformer import ParallelScalingBlock
    refused(vits([8, 8], mlp_layer=SwiGLU), ValueError,
            "the MLP of this VisionTransformer is a SwiGLU, SuperNet supports Mlp")
    refused(vits([8, 8], block_fn=ParallelScalingBlock), ValueError,
            "the block of this VisionTransformer is a ParallelScalingBlock")


def test_a_variant_nobody_named_is_refused_all_the_same():
    models = vits([8, 8])
    for m in models:
        m.blocks[1].mlp.act = nn.Tanh()
    refused(models, ValueError, r"blocks\.1\.mlp\.act = Tanh")


def test_other_bad_originals():
    a, b = vits([8, 8])
    refused([], ValueError, "at least two originals, got 0")
    refused([a], ValueError, "at least two originals, got 1")
    refused([a, *mlps([6])], TypeError, "of kind 'mlp', original 1 of kind 'vit'")
    refused([a, nn.Linear(3, 3)], TypeError, "got Linear")
    refused([a, copy.deepcopy(b).train()], ValueError, "original 2 is in train mode")
    refused([a, copy.deepcopy(b).float()], ValueError, "original 2 is torch.float32 on cpu, original 1 is")
    b.norm.weight.data[0] = float("nan")
    refused([a, b], ValueError, "norm.weight of original 2 must be finite")
    refused([*mlps([6]), randomised(fsm.MLP((5, 6, 7, 8)))], ValueError, "has inputs = 5, original 1 has 12")


def test_bad_numbers_and_names():
    models = vits([8, 8])
    for rank in (0, 9, -3):
        refused(models, ValueError, f"from 1 to 8, got {rank}", rank=rank)
    refused(mlps([9, 6]), ValueError, "from 1 to 6, got 7", rank=7)
    refused(models, ValueError, "structure must be one of", structure="sparse")
    refused(models, ValueError, "init must be one of", init="zero")


def test_images_of_the_wrong_size_or_type():
    net = fsm.SuperNet(vits([8, 8]), rank=2)
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), got \(2, 3, 24, 24\)"):
        net(torch.zeros(2, 3, 24, 24).double())
    with pytest.raises(TypeError, match="torch.float64, got torch.uint8"):
        net(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(3, 16, 16\)"):
        net(torch.zeros(3, 16, 16).double())
