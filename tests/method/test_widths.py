"""Different widths: where an original's channels come to stand, and what the merged model then computes."""
import copy
from itertools import product

import pytest
import torch
from models_for_tests import VIT_OPTIONS, mixed, mlps, pictures, randomised, vits
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.architectures import graph_of
from fsmerge_lite.matrices import INITS, STRUCTURES

# (dim, num_heads, mlp_ratio)
SMALL, FIRST, TALL, WIDE, HEADS = (6, 2, 1), (8, 2, 2), (12, 2, 1), (20, 4, 3), (8, 4, 2)


def test_channels_by_head():
    for own, merged in ((FIRST, WIDE), (WIDE, FIRST), (FIRST, HEADS), (FIRST, (12, 3, 2))):
        (d, h, _), (d_, h_, _) = own, merged
        a, b = (graph_of(model).spaces["blocks.0.v"] for model in mixed(own, merged))
        expected = [(head * (d_ // h_) + j, head * (d // h) + j) for head in range(min(h, h_))
                    for j in range(min(d // h, d_ // h_))]
        assert list(zip(*(index.tolist() for index in b.match(a)))) == expected


@pytest.mark.parametrize("into", [(12, 3, 2), (20, 4, 3), (12, 2, 2), (8, 1, 2)])
def test_resized_weights_are_the_same_function_in_the_wider_models_terms(into):
    model, x = mixed(FIRST)[0], pictures()
    net = fsm.SuperNet([model, model], 1, into=mixed(into)[0])
    resized = net._resized(model, net.graphs[0])
    factor = max(1, into[0] / 8) ** 0.5
    stream, wider = (m._pos_embed(m.patch_embed(x)) for m in (model, resized))
    if factor > 1:
        torch.testing.assert_close(wider, factor * (stream - stream.mean(-1, keepdim=True)))
    for block in resized.blocks:
        block.attn.fused_attn = False  # which has a scale of its own
        block.attn.scale = (into[0] // into[1]) ** -0.5  # what attention multiplies q k by in the wider model
    for norm in (m for m in resized.modules() if isinstance(m, nn.LayerNorm)):
        norm.eps *= factor ** 2
    torch.testing.assert_close(resized(x), model(x), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- one function in two ways

@pytest.mark.parametrize("into", [None, SMALL, TALL, WIDE, HEADS])
@pytest.mark.parametrize("init, structure", list(product(INITS, STRUCTURES)))
def test_explicit_equals_folded(init, structure, into):
    into = into and mixed(into, depth=1)[0]
    net, x = fsm.SuperNet(mixed(FIRST, SMALL, (12, 3, 3), depth=1), 4, structure, init, into), pictures()
    folded, explicit, merged = net(x), net(x, unfolded=True), net.fold()
    assert [y.shape[1] for y in folded] == [8, 6, 12]
    for a, b, c in zip(folded, explicit, merged.features(x)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)
    assert fsm.describe(merged.backbone) == fsm.describe(into or mixed(FIRST, depth=1)[0])


@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_explicit_equals_folded_for_every_option(options):
    net, x = fsm.SuperNet(mixed(FIRST, HEADS, **options), 3, into=mixed(WIDE, **options)[0]), pictures()
    for a, b in zip(net(x), net(x, unfolded=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [(12, 5, 5, 5), (12, 9, 12, 10), (12, 20, 30, 3)])
@pytest.mark.parametrize("init, structure", list(product(INITS, STRUCTURES)))
def test_explicit_equals_folded_mlp(init, structure, sizes):
    net = fsm.SuperNet(mlps([6, 9]), 3, structure, init, fsm.MLP(sizes))
    x = torch.randn(4, 12).double()
    folded, merged = net(x), net.fold()
    torch.testing.assert_close(folded, net(x, unfolded=True), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded, merged.features(x), rtol=1e-10, atol=1e-10)
    assert fsm.describe(merged.backbone)["sizes"] == list(sizes)


# ---------------------------------------------------------------- what a wider model starts at

EXACT = {name: options for name, options in VIT_OPTIONS.items()
         if name not in ("pre_norm", "max pooling", "inner norms, no proj bias")} | {"RmsNorm": {"norm_layer": RmsNorm}}


def starts_at_original_1(into, structure="diagonal_low_rank", rank=3, dtype=torch.float64, bound=1e-12, **options):
    models, x = mixed(FIRST, SMALL, dtype=dtype, **options), pictures(dtype=dtype)
    net = fsm.SuperNet(models, rank, structure, into=mixed(into, dtype=dtype, **options)[0])
    expected = models[0](x)  # timm itself
    for got in (net(x)[0], net(x, unfolded=True)[0], net.fold().features(x)[0]):
        assert (got - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("into", [(12, 3, 3), (20, 4, 3)])  # more heads; larger heads
@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_first_is_original_1_in_a_wider_model(options, into):
    if "qk_norm" in options and into[0] // into[1] > 4:
        pytest.skip("a norm on wider q and k is only a start")
    starts_at_original_1(into, **options)


@pytest.mark.parametrize("structure, rank", [("diagonal", 1), ("diagonal_low_rank", 1), ("full", 1)])
@pytest.mark.parametrize("into", [(12, 2, 2), (16, 2, 1), (8, 2, 3)])
def test_first_is_original_1_in_a_wider_model_of_every_structure(into, structure, rank):
    starts_at_original_1(into, structure, rank)


def test_first_is_original_1_in_float32():
    starts_at_original_1(WIDE, dtype=torch.float32, bound=1e-5)


def test_first_is_original_1_in_a_wider_model_of_full_low_rank():
    models, x = mixed(FIRST, FIRST), pictures()
    net = fsm.SuperNet(models, 8, "low_rank", into=mixed(WIDE)[0])
    torch.testing.assert_close(net(x)[0], models[0](x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("structure", ["diagonal", "diagonal_low_rank", "full"])
def test_first_is_original_1_in_a_wider_mlp(structure):
    models, x = mlps([6, 9]), torch.randn(5, 12).double()
    net = fsm.SuperNet(models, 2, structure, into=fsm.MLP((12, 10, 8, 11)))
    torch.testing.assert_close(net(x)[0], models[0](x), rtol=0, atol=1e-12)


def test_the_average_of_copies_is_the_model_in_a_wider_one():
    model, x = mixed(FIRST)[0], pictures()
    net = fsm.SuperNet([model, copy.deepcopy(model), copy.deepcopy(model)], 2, init="average", into=mixed(WIDE)[0])
    for features in net(x):  # so the channels of all three came to stand in one place
        torch.testing.assert_close(features, model(x), rtol=0, atol=1e-12)


def test_a_narrower_model_starts_with_the_first_channels_by_head():
    big, small = (mixed(shape, scale_attn_norm=True)[0] for shape in (WIDE, FIRST))
    state = fsm.SuperNet([big, small], 2, into=small).fold().backbone.state_dict()
    channels = [head * 5 + j for head in range(2) for j in range(4)]  # of 4 heads of size 5: 2 of size 4
    rows = torch.tensor(channels)
    for part, scale in enumerate([(4 / 5) ** 0.25, (4 / 5) ** 0.25, 1]):
        own = big.blocks[1].attn.qkv.weight[20 * part + rows][:, :8]
        torch.testing.assert_close(state["blocks.1.attn.qkv.weight"][8 * part:8 * part + 8], scale * own)
    torch.testing.assert_close(state["blocks.1.attn.proj.weight"], big.blocks[1].attn.proj.weight[:8][:, rows])
    torch.testing.assert_close(state["blocks.1.attn.norm.weight"], big.blocks[1].attn.norm.weight[rows])
    torch.testing.assert_close(state["blocks.0.mlp.fc1.weight"], big.blocks[0].mlp.fc1.weight[:16, :8])
    for name in ("pos_embed", "norm.weight", "blocks.1.norm2.bias"):
        torch.testing.assert_close(state[name], big.state_dict()[name][..., :8])


def test_pre_norm_starts_close():
    options, x = VIT_OPTIONS["pre_norm"], pictures()
    models = mixed(FIRST, FIRST, **options)
    got = fsm.SuperNet(models, 3, into=mixed(WIDE, **options)[0])(x)[0]
    assert (got - models[0](x)).norm() < 0.05 * models[0](x).norm()


def test_frozen_weights_are_not_copied_where_only_hidden_widths_differ():
    models = mixed(FIRST, (8, 2, 3))
    net = fsm.SuperNet([fsm.Original(model) for model in models], 2)
    for backbone, (weight, _) in zip(net.backbones, net.body.blocks[0].mlp.fc1.frozen()):
        assert weight.data_ptr() == backbone.blocks[0].mlp.fc1.weight.data_ptr()


# ---------------------------------------------------------------- into

@pytest.mark.parametrize("into", [SMALL, WIDE])
def test_fold_loads_strictly_into_the_timm_model_asked_for(into):
    dim, heads, ratio = into
    net, x = fsm.SuperNet(mixed(FIRST, TALL), 3, init="random", into=mixed(into)[0]), pictures()
    fresh = VisionTransformer(img_size=16, patch_size=8, embed_dim=dim, depth=2, num_heads=heads, mlp_ratio=ratio,
                              num_classes=0).double().eval()
    fresh.load_state_dict(net.fold().backbone.state_dict(), strict=True)
    for output, got in zip(net.outputs, net(x)):
        torch.testing.assert_close(fresh(x) @ output.dense().T, got)


def test_into_lends_its_widths_and_nothing_else():
    models, x, results = mixed(FIRST, SMALL), pictures(), []
    for seed in range(2):
        into = randomised(mixed(WIDE)[0], seed=30 + seed).train()
        before = copy.deepcopy(into.state_dict())
        torch.manual_seed(0)
        results.append(fsm.SuperNet(models, 3, into=fsm.Original(into) if seed else into)(x))
        assert all(torch.equal(p, before[name]) for name, p in into.state_dict().items())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_wider_model_can_be_trained():
    net = fsm.SuperNet(mixed(FIRST, SMALL), 3, into=mixed(WIDE)[0])
    images = fsm.Calibration(pictures(12), torch.arange(12) % 2)
    history = fsm.train_global(net, images, steps=60, lr=1e-2)
    assert history.loss[-1] < 0.4 * history.loss[0]
    for name, p in net.named_parameters():  # what lies beyond original 1's channels takes part
        if name.endswith("norm1.weight"):
            assert (p[8:] - (8 / 20) ** 0.5).abs().min() > 0, name


@pytest.mark.parametrize("options, match", [
    ({"depth": 3}, "into has depth = 3, original 1 has 2; only widths may differ"),
    ({"img_size": 24}, r"into has img_size = \[24, 24\]"),
    ({"qk_norm": True}, "into has qk_norm = True, original 1 has False"),
])
def test_into_may_differ_in_widths_only(options, match):
    with pytest.raises(ValueError, match=match):
        fsm.SuperNet(vits([8, 8]), 2, into=vits([8], **options)[0])


def test_bad_into():
    with pytest.raises(TypeError, match="into is of kind 'mlp', original 1 of kind 'vit'"):
        fsm.SuperNet(vits([8, 8]), 2, into=fsm.MLP((12, 8)))
    with pytest.raises(ValueError, match="into has inputs = 11, original 1 has 12"):
        fsm.SuperNet(mlps([6, 6]), 2, into=fsm.MLP((11, 8, 8, 8)))
    with pytest.raises(TypeError, match="got Linear"):
        fsm.SuperNet(vits([8, 8]), 2, into=nn.Linear(3, 3))
    with pytest.raises(ValueError, match="rank must be a whole number from 1 to 6, got 7"):
        fsm.SuperNet(vits([8, 8]), 7, into=vits([6])[0])
    with pytest.raises(ValueError, match="rank must be a whole number from 1 to 8, got 9"):
        fsm.SuperNet(mlps([9, 9]), 9, into=fsm.MLP((12, 8, 4, 9)))


def test_models_of_different_heads_have_no_average():
    with pytest.raises(ValueError, match="original 2 has 4 heads, original 1 has 2: .* no average"):
        fsm.average(mixed(FIRST, HEADS))
