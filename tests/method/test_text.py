"""The same method on token ids: the library's own text encoder, pre-norm, and transformers' `BertModel`, post-norm."""
import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import LENGTH, VOCABULARY, berts, both_ways, encoders, randomised, texts
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.architectures import architecture, describe, graph_of, reads
from fsmerge_lite.compare.alignment import undo
from fsmerge_lite.compare.rotation import rotated
from fsmerge_lite.engine.statistics import sensitivity, straight_lines

KINDS = {"TextEncoder": encoders, "TextEncoder of windows": partial(encoders, kernel_size=3), "BertModel": berts,
         "BertModel without pooler": partial(berts, pooler=False)}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def own_forward(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The features as the model's own library gives them."""
    if isinstance(model, fsm.TextEncoder):
        return model(ids)
    found = model(input_ids=ids, attention_mask=(ids != 0).long())
    return found.last_hidden_state[:, 0] if model.pooler is None else found.pooler_output


def calibration(k: int = 2, each: int = 24) -> fsm.Calibration:
    return fsm.Calibration(texts(k * each), torch.arange(k).repeat_interleave(each))


@every_kind
def test_the_graph_names_every_parameter_once(make):
    model, = make([8])
    graph, shapes = graph_of(model), {name: p.shape for name, p in model.named_parameters()}
    named = [vector.name for vector in graph.vectors]
    for layer in graph.layers:
        weight = shapes[f"{layer.name}.weight"]
        assert weight[layer.axis] == sum(graph.spaces[space].size for space in layer.writes)
        assert layer.reads is None or weight[1] == graph.spaces[layer.reads].size
        named += [f"{layer.name}.{part}" for part in ("weight", "bias") if f"{layer.name}.{part}" in shapes]
    assert sorted(named) == sorted(shapes)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_first_layer_is_a_convolution_over_one_hot_tokens(kernel_size):
    model, = encoders([8], kernel_size=kernel_size)
    weight = model.token_embed.weight.view(kernel_size, VOCABULARY, 8).permute(2, 1, 0)  # (out, in, places)
    x = texts()
    hot = F.pad(x, (kernel_size // 2,) * 2)  # what is next to the row is padding
    expected = F.conv1d(F.one_hot(hot, VOCABULARY).double().mT, weight).mT + model.pos_embed
    torch.testing.assert_close(model.embed(x), expected, rtol=0, atol=1e-12)


def test_an_even_window_has_no_middle():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 2"):
        fsm.TextEncoder(8, kernel_size=2)


@every_kind
def test_first_starts_at_original_1(make):
    models = make([8, 8])
    net, x = fsm.SuperNet(models, rank=3), texts()
    torch.testing.assert_close(net(x)[0], own_forward(models[0], x), rtol=0, atol=1e-12)
    torch.testing.assert_close(net.fold().features(x)[0], own_forward(models[0], x), rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize("options", [{"init": "random"}, {"init": "random", "shared": True},
                                     {"init": "random", "structure": "full"}])
def test_unfolded_equals_folded_values_and_gradients(make, options):
    net = fsm.SuperNet(make([8, 12]), rank=3, **options)
    (a, grads), (b, others) = both_ways(net, texts())
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert grads.keys() == others.keys()
    scale = max(g.abs().max() for g in others.values())
    for name, g in grads.items():
        assert (g - others[name]).abs().max() < 1e-9 * scale, name


@every_kind
def test_the_fold_loads_strictly_into_a_fresh_model(make):
    net, x = fsm.SuperNet(make([8, 12]), rank=3, init="random"), texts()
    merged, fresh = net.fold(), randomised(make([8])[0], seed=7)
    fresh.load_state_dict(merged.backbone.state_dict(), strict=True)
    f = own_forward(fresh, x)
    for feature, output in zip(net(x, unfolded=True), net.outputs):
        torch.testing.assert_close(output(f), feature, rtol=0, atol=1e-10)


@every_kind
@pytest.mark.parametrize("fitted", [False, True])
def test_padding_changes_nothing(make, fitted):
    net, x = fsm.SuperNet(make([8, 8]), rank=3, init="random"), texts(8)
    if fitted:
        fsm.fit_subspaces(net, calibration())
    longest = (x != 0).sum(1).max()
    for ids in x:
        alone = ids[ids != 0][None]
        for both, one in zip(net(x[:, :longest]), net(alone)):
            torch.testing.assert_close(both[(x == ids).all(1)][:1], one, rtol=1e-9, atol=1e-11)
    read = reads(net.backbones[0], net.graph.readouts[1], x)
    assert not read[x == 0].any() and read[x != 0].any(-1).all()


@every_kind
def test_the_start_does_not_depend_on_padding(make):
    models, images, nets = make([8, 8]), calibration(), []
    shorter = images.images.clone()
    shorter[:, 6:] = 0  # no text has more than 6 tokens
    for length in (LENGTH, 6):
        cut = fsm.Calibration(shorter[:, :length].contiguous(), images.owner)
        nets.append(fsm.fit_subspaces(fsm.SuperNet(models, rank=2), cut))
    x = texts()[:, :6]
    for a, b in zip(nets[0](x), nets[1](x)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_with_enough_width_the_start_gives_the_originals_back():
    """A model and itself, as in test_start.py; padding there in every length."""
    model, = encoders([8])
    into, = encoders([16], num_heads=4)
    net = fsm.SuperNet([model, copy.deepcopy(model)], rank=2, into=into)
    fsm.fit_subspaces(net, calibration(2, 200), ridge=1e-13, off_task=0, inner_off_task=0)
    unseen = texts(40, seed=1)
    for rebuilt in net.fold().features(unseen):
        torch.testing.assert_close(rebuilt, model(unseen), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooler", [True, False])
def test_with_enough_width_the_start_gives_a_post_norm_model_back(pooler):
    """A BERT and itself, where a norm has one weight for all channels. A share of 10 channels has 9 directions."""
    model, = berts([8], pooler)
    for norm in (part for name, part in model.named_modules() if name.endswith("LayerNorm")):
        nn.init.constant_(norm.weight, 1.3)
    into, = berts([20], pooler, num_attention_heads=4, intermediate_size=48)
    net = fsm.SuperNet([model, copy.deepcopy(model)], rank=2, into=into)
    fsm.fit_subspaces(net, calibration(2, 200), ridge=1e-13, off_task=0, inner_off_task=0)
    unseen = texts(40, seed=1)
    for rebuilt in net.fold().features(unseen):
        torch.testing.assert_close(rebuilt, own_forward(model, unseen), rtol=0, atol=1e-6)


def test_straight_lines_are_those_of_numpy():
    u, t, w = torch.randn(6, 4, 3).double(), torch.randn(6, 4, 3).double(), torch.rand(6, 4).double()
    slopes, intercepts = straight_lines(u, t, w)
    for c in range(3):
        line = np.polyfit(u[..., c].flatten(), t[..., c].flatten(), 1, w=w.flatten().sqrt())
        torch.testing.assert_close(torch.stack([slopes[c], intercepts[c]]), torch.from_numpy(line))
    equal = straight_lines(u, t, torch.full((4,), 3.0))
    torch.testing.assert_close(equal, straight_lines(u, t, torch.ones(6, 4)))


def test_sensitivity_of_token_ids_is_zero_at_padding():
    model, x = encoders([8])[0], texts(50)
    place, counted = "blocks.1", partial(architecture(model).counted, model)
    tokens, _ = sensitivity(model, model, [place], [x], counted)[place]
    often = (x != 0).double().mean(0)
    assert (tokens > 0).all()
    cut = x.clone()
    cut[:, 5:] = 0
    tokens, _ = sensitivity(model, model, [place], [cut], counted)[place]
    assert tokens[5:].max() < 1e-12 < tokens[:5].min()
    torch.testing.assert_close((tokens * often)[:5].sum(), often[:5].sum())  # their mean is 1


@every_kind
def test_a_permuted_model_is_the_same_function(make):
    model, = make([8])
    graph = graph_of(model)
    orders = {name: torch.randperm(space.size) for name, space in graph.spaces.items() if space.kind != "heads"}
    moved = fsm.permuted(model, orders)
    x = texts()
    back = undo(moved.backbone, orders)
    torch.testing.assert_close(own_forward(moved.backbone, x) @ back.T, own_forward(model, x), rtol=1e-9, atol=1e-11)


def test_a_rotated_encoder_is_the_same_function():
    model, = encoders([8])
    original = fsm.Original(model, nn.Linear(8, 3).double())
    keeps = torch.linalg.qr(torch.cat([torch.ones(8, 1), torch.randn(8, 7)], 1).double()).Q
    turned = torch.linalg.qr(torch.randn(7, 7).double()).Q
    rotation = keeps @ torch.block_diag(torch.ones(1, 1).double(), turned) @ keeps.T
    x = texts()
    torch.testing.assert_close(rotated(original, {"features": rotation})(x), original(x), rtol=1e-9, atol=1e-11)


@every_kind
def test_baselines_run_on_token_ids(make):
    models, images, x = make([8, 8]), calibration(), texts()
    twin = [models[0], copy.deepcopy(models[0])]
    for merged in (fsm.average(twin), fsm.slerp(twin), fsm.regmean(twin, images), fsm.align(twin, images)):
        torch.testing.assert_close(merged.features(x)[1], own_forward(models[0], x), rtol=1e-7, atol=1e-8)
    student = fsm.distill(models, images, steps=3, lr=1e-3)
    assert student.history.loss[-1] != student.history.loss[0]


@every_kind
def test_training_saving_and_loading(make, tmp_path):
    net, images, x = fsm.SuperNet(make([8, 8]), rank=2), calibration(), texts()
    history = fsm.train_global(net, images, 8, 1e-2, depths=(1,), off_task=0.2)
    assert history.loss[-1] < history.loss[0]
    assert len(fsm.train_local(net, images, 2)) == 3
    net.fold().save(tmp_path / "merged")
    torch.testing.assert_close(fsm.load_merged(tmp_path / "merged").features(x), net(x), rtol=1e-9, atol=1e-11)
    net.save(tmp_path / "net")
    torch.testing.assert_close(fsm.load_supernet(tmp_path / "net", net.originals)(x), net(x), rtol=0, atol=0)


@every_kind
def test_a_description_builds_the_model_again(make):
    model, = make([8])
    assert describe(fsm.build(describe(model))) == describe(model)
    assert architecture(model).kind in ("text", "bert")


def test_a_description_from_before_there_were_windows_reads_single_tokens():
    config = describe(encoders([8])[0])
    del config["kernel_size"]
    assert fsm.build(config).kernel_size == 1


# ---------------------------------------------------------------- what is refused

@every_kind
@pytest.mark.parametrize("change, error, match", [
    (lambda x: x.double(), TypeError, r"reads token ids \(B, T\) in torch.int64, with 0 for padding, got torch.fl"),
    (lambda x: x.int(), TypeError, "got torch.int32"),
    (lambda x: x[0], TypeError, rf"got torch.int64 \({LENGTH},\)"),
    (lambda x: {"input_ids": x}, TypeError, "got a dict"),
    (lambda x: x + VOCABULARY, ValueError, f"token ids must be from 0 to {VOCABULARY - 1}, got .*another vocabulary"),
    (lambda x: x - 1, ValueError, "got -1 to"),
    (lambda x: torch.cat([x, x], 1), ValueError, f"reads 1 to {LENGTH} tokens, got {2 * LENGTH}"),
    (lambda x: x.flip(1) * 0, ValueError, "6 of the texts begin with padding, 0"),
])
def test_bad_token_ids(make, change, error, match):
    models = make([8, 8])
    for run in (fsm.SuperNet(models, rank=2), fsm.Original(models[0]), fsm.average(models)):
        with pytest.raises(error, match=match):
            run(change(texts()))


@every_kind
def test_another_vocabulary_or_length_is_refused(make):
    own, = make([8])
    other, = make([8], vocab_size=VOCABULARY + 1)
    with pytest.raises(ValueError, match="original 2 has vocab_size = 31, original 1 has 30"):
        fsm.SuperNet([own, other])


def test_windows_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="original 2 has kernel_size = 3, original 1 has 1"):
        fsm.SuperNet(encoders([8]) + encoders([8], kernel_size=3))


def test_a_text_model_and_a_picture_model_are_refused():
    with pytest.raises(TypeError, match="original 2 is of kind 'vit', original 1 of kind 'text'"):
        fsm.SuperNet([encoders([8])[0], fsm.vit(8, 1, 2).double().eval()])
    with pytest.raises(ValueError, match="mean and std are for models that read pictures, not for TextEncoder"):
        fsm.Original(encoders([8])[0], mean=[0.1], std=[0.2])


def test_variants_of_bert_are_refused_by_name():
    with pytest.raises(ValueError, match="this BertModel has is_decoder = True"):
        describe(berts([8], is_decoder=True)[0])
    with pytest.raises(ValueError, match="needs a pad_token_id"):
        describe(berts([8], pad_token_id=None)[0])
    model, = berts([8])
    model.encoder.layer[1].output.dropout = nn.Identity()
    with pytest.raises(ValueError, match=r"other parts than transformers gives it: .*output\.dropout"):
        describe(model)
    model, = berts([8])
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing on"):
        describe(model)


def test_a_changed_text_encoder_is_refused():
    model, = encoders([8])
    model.norm = nn.Identity()
    with pytest.raises(ValueError, match="this TextEncoder has norm = Identity, where LayerNorm was expected"):
        describe(model)


def test_a_model_with_a_head_is_told_what_to_give():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8)
    with pytest.raises(TypeError, match="got BertForSequenceClassification; give its parts, Original"):
        fsm.Original(transformers.BertForSequenceClassification(config))
    whole = transformers.BertForSequenceClassification(config).eval()
    original, ids = fsm.Original(whole.bert, whole.classifier), torch.tensor([[1, 2, 3, 0]])
    logits = whole(input_ids=ids, attention_mask=(ids != 0).long()).logits
    torch.testing.assert_close(original(ids), logits)
