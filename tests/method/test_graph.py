"""The graph of spaces: it names every parameter, its sizes are the model's, and what it does not name is refused."""
import copy
from functools import partial

import pytest
import torch
from models_for_tests import VIT_OPTIONS, mixed, mlps, pictures, randomised, vits
from timm.layers import RmsNorm
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.architectures import graph_of
from fsmerge_lite.engine.statistics import Moments

MODELS = {**{name: partial(lambda options: vits([8], **options)[0], options) for name, options in VIT_OPTIONS.items()},
          "RmsNorm": lambda: vits([8], norm_layer=RmsNorm)[0], "mlp": lambda: mlps([6])[0],
          "other widths": lambda: mixed((20, 4, 3))[0]}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_parameter_is_named_once_and_its_sizes_are_those_of_its_spaces(make):
    model = make()
    graph, shapes = graph_of(model), {name: tuple(p.shape) for name, p in model.named_parameters()}
    named = []
    for layer in graph.layers:
        weight = shapes[f"{layer.name}.weight"]
        assert weight[0] == sum(graph.spaces[space].size for space in layer.writes)
        assert layer.reads is None or weight[1] == graph.spaces[layer.reads].size
        named += [f"{layer.name}.{part}" for part in ("weight", "bias") if f"{layer.name}.{part}" in shapes]
    for vector in graph.vectors:
        space = graph.spaces[vector.space]
        assert shapes[vector.name][-1] == (space.unit if vector.role == "per_head" else space.size)
        named.append(vector.name)
    assert sorted(named) == sorted(shapes)
    x = pictures() if graph.residual else torch.randn(2, 12).double()
    assert model(x).shape[1] == graph.spaces[graph.output].size


def test_a_parameter_that_the_graph_does_not_name_is_refused():
    a, b = vits([8, 8])
    b.extra = nn.Parameter(torch.ones(8).double())
    with pytest.raises(ValueError, match="a parameter extra that the graph of its architecture does not name"):
        graph_of(b)
    with pytest.raises(ValueError, match="has extra"):
        fsm.SuperNet([a, b], rank=2)
    with_classifier = fsm.vit(8, 1, 2)
    with_classifier.reset_classifier(3)
    with pytest.raises(ValueError, match=r"a parameter head\.weight"):
        graph_of(with_classifier)
    with pytest.raises(ValueError, match=r"a parameter act\.weight"):
        graph_of(fsm.MLP((4, 3), act_layer=nn.PReLU))


def test_forward_hooks_would_be_lost_by_a_fold():
    a, b = vits([8, 8])
    b.blocks[1].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    with pytest.raises(ValueError, match=r"original 2 has a forward hook on blocks\.1"):
        fsm.SuperNet([a, b], rank=2)


ACTIVATIONS = {
    "tanh": partial(nn.GELU, approximate="tanh"), "exact": nn.GELU, "leaky": partial(nn.LeakyReLU, 0.3),
    "elu": partial(nn.ELU, alpha=0.4), "softplus": partial(nn.Softplus, beta=3, threshold=5), "silu": nn.SiLU,
}


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_options_of_an_activation_survive(act, tmp_path):
    x = pictures(dtype=torch.float32)
    models = [*vits([8, 8], torch.float32, act_layer=act)]
    merged = fsm.SuperNet(models, rank=2).fold()
    torch.testing.assert_close(merged.features(x)[0], models[0](x), rtol=0, atol=1e-5)
    merged.save(tmp_path / "m")
    torch.testing.assert_close(fsm.load_merged(tmp_path / "m").features(x)[0], models[0](x), rtol=0, atol=1e-5)
    mlp, y = randomised(fsm.MLP((12, 8, 7), act_layer=act), torch.float32), torch.randn(4, 12)
    twin = fsm.build(fsm.describe(mlp))
    twin.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(twin(y), mlp(y))


def test_activations_that_differ_in_an_option_are_refused():
    a, b = vits([8])[0], vits([8], act_layer=partial(nn.GELU, approximate="tanh"))[0]
    with pytest.raises(ValueError, match=r"act_options = \{'approximate': 'tanh'\}"):
        fsm.SuperNet([a, b], rank=2)
    b = copy.deepcopy(a)
    b.blocks[1].mlp.act = nn.GELU(approximate="tanh")  # in one block only
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.act\.approximate = tanh, where none was expected"):
        fsm.SuperNet([a, b], rank=2)
    b = copy.deepcopy(a)
    b.blocks[1].norm2.eps = 0.3
    with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.eps = 0\.3"):
        fsm.SuperNet([a, b], rank=2)


# ---------------------------------------------------------------- nothing of the caller's is disturbed

def test_no_global_random_number_is_drawn():
    models, x = vits([8, 8], torch.float32), pictures(8, dtype=torch.float32)
    heads = [nn.Linear(8, 3), nn.Linear(8, 4)]
    originals, images = [fsm.Original(m, h) for m, h in zip(models, heads)], fsm.Calibration(x, torch.arange(8) % 2)
    state = torch.random.get_rng_state()
    for init in ("first", "average", "random"):
        net = fsm.SuperNet(originals, rank=2, init=init, into=fsm.Original(models[0]))
    fsm.train_global(fsm.fit_subspaces(net, images), images, steps=1)
    net.fold()
    fsm.distill(originals, images, steps=1)
    fsm.align(originals, images), fsm.regmean(originals, images), fsm.average(originals)
    fsm.build(fsm.describe(models[0]))
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_seed_gives_the_same_numbers_whatever_was_drawn_before():
    models, nets = vits([8, 8]), []
    for seed in (3, 3, 4):
        torch.randn(len(nets) + 1)
        nets.append(fsm.SuperNet(models, rank=2, init="random", seed=seed).state_dict())
    assert all(torch.equal(p, nets[1][name]) for name, p in nets[0].items())
    assert not any(torch.equal(p, nets[2][name]) for name, p in nets[0].items() if name.endswith(".A"))


def test_dropout_never_runs_in_a_supernet():
    options = {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5, "drop_path_rate": 0.5}
    models, x = vits([8, 8], **options), pictures()
    net = fsm.SuperNet(models, rank=2).train()
    torch.testing.assert_close(net(x)[0], models[0](x), rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x, unfolded=True)[0], models[0](x), rtol=0, atol=1e-12)
    torch.testing.assert_close(net.fold().features(x)[0], models[0](x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: vits([8, 8], torch.float32), lambda: mlps([6, 6], torch.float32)])
def test_a_net_that_is_converted_takes_everything_along(make):
    models = make()
    net = fsm.SuperNet(models, rank=2).double()
    x = pictures(8) if net.graph.residual else torch.randn(8, 12).double()
    depths = list(net.graph.readouts)
    for depth in depths:
        assert {features.dtype for features in net.original_features(x, [depth])[depth]} == {torch.float64}
    fsm.train_local(net, fsm.Calibration(x, torch.arange(8) % 2), steps=1, batch_size=8)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert all(p.dtype == torch.float32 for model in models for p in model.parameters())  # what was given stays


def test_moments_add_up_in_double():
    """Many equal large numbers: a sum of all batches in float32 would miss the small ones."""
    u = torch.cat([torch.full((1, 2), 4096.0), torch.full((9999, 2), 0.5)])
    moments = Moments.of(u, u, torch.ones(()), 1)
    torch.testing.assert_close(moments.gram, u.double().T @ u.double() / 10000, rtol=1e-9, atol=0)
    assert moments.gram.dtype == torch.float64


# ---------------------------------------------------------------- copies, types and flags

def test_a_copy_folds_its_own_weights():
    models, x = vits([8, 8], depth=3), pictures()
    images = fsm.Calibration(pictures(8), torch.arange(8) % 2)
    net = fsm.fit_subspaces(fsm.SuperNet(models, rank=2), images)
    other = {name: 2 * p for name, p in net.state_dict().items()}
    for state in (other, net.state_dict()):
        net.load_state_dict(state)
    net(x)
    twin = copy.deepcopy(net)
    twin.load_state_dict(other)
    torch.testing.assert_close(twin(x), twin(x, unfolded=True), rtol=1e-8, atol=1e-8)


def test_scales_are_never_learned(tmp_path):
    models = vits([8, 8], init_values=0.3)
    net = fsm.SuperNet(models, rank=2)
    net.save(tmp_path / "net")
    for other in (fsm.SuperNet(models, rank=2, into=models[0]), fsm.load_supernet(tmp_path / "net", models)):
        assert [n for n, p in other.named_parameters() if p.requires_grad] == [
            n for n, p in net.named_parameters() if p.requires_grad]
        assert not any(p.requires_grad for n, p in other.named_parameters() if "gamma" in n)


def test_a_converted_net_folds_with_its_heads_and_comes_back_in_its_type(tmp_path):
    originals = [fsm.Original(model, nn.Linear(8, 3)) for model in vits([8, 8], torch.float32)]
    net, x = fsm.SuperNet(originals, rank=2).double(), pictures()
    assert net.fold()(x)[0].dtype == torch.float64
    net.save(tmp_path / "net")
    assert all(torch.equal(p, q) for p, q in zip(net(x), fsm.load_supernet(tmp_path / "net", originals)(x)))


def test_timms_gradient_checkpointing_is_refused():
    a, b = vits([8, 8])
    b.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="gradient checkpointing on"):
        fsm.SuperNet([a, b], rank=2)


def test_distillation_takes_originals_of_one_task():
    a, b, c = vits([8, 8, 8])
    with pytest.raises(ValueError, match="original 1 is a merge of 2"):
        images = fsm.Calibration(pictures(4), torch.arange(4) % 2)
        fsm.distill([fsm.SuperNet([a, b], rank=2).fold(), c], images, steps=1)
