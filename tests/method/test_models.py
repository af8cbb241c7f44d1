"""Architectures as dicts, and files: equal after a round trip, whole or not there."""
import hashlib
import json
import os

import pytest
import torch
from models_for_tests import VIT_OPTIONS, mlps, pictures, randomised, vits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite import models


@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_build_makes_what_describe_describes(options):
    model, = vits([8], **options)
    config = json.loads(json.dumps(fsm.describe(model)))
    twin = fsm.build(config).double()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(pictures()), model(pictures()))
    assert type(twin) is VisionTransformer and not twin.training


def test_build_keeps_norm_eps_and_activation():
    from functools import partial

    from timm.layers import LayerNorm
    model, = vits([8], norm_layer=partial(LayerNorm, eps=0.3), act_layer=nn.SiLU)
    twin = fsm.build(fsm.describe(model)).double()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(pictures()), model(pictures()))


@pytest.mark.parametrize("dim, hidden", [(28, 244), (8, 16), (28, 488), (12, 7), (49, 1)])
def test_every_hidden_width_comes_back(dim, hidden):
    model = fsm.vit(dim, depth=1, num_heads=1, mlp_ratio=(hidden + 0.5) / dim)
    assert model.blocks[0].mlp.fc1.out_features == hidden
    assert fsm.build(json.loads(json.dumps(fsm.describe(model)))).blocks[0].mlp.fc1.out_features == hidden


def merged() -> fsm.Merged:
    heads = [randomised(nn.Linear(8, 3), torch.float32), randomised(nn.Linear(6, 4), torch.float32)]
    originals = [fsm.Original(m, h, n) for m, h, n in zip(vits([8, 6], torch.float32), heads, "ab")]
    return fsm.SuperNet(originals, rank=2, init="random").fold()


def card_of(file) -> dict:
    """Read by safetensors alone."""
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["card"])


def test_save_and_load_give_the_same_logits(tmp_path):
    model, x = merged(), pictures(dtype=torch.float32)
    model.save(tmp_path / "deep" / "model", note="a remark")
    again = fsm.load_merged(tmp_path / "deep" / "model")
    for a, b in zip(model(x), again(x)):
        assert torch.equal(a, b)
    assert again.names == ("a", "b") and not again.training
    assert card_of(tmp_path / "deep" / "model.safetensors")["note"] == "a remark"
    assert os.listdir(tmp_path / "deep") == ["model.safetensors"]


def test_save_and_load_an_mlp_without_heads(tmp_path):
    model, x = fsm.SuperNet(mlps([6, 5], torch.float32), rank=2).fold(), torch.randn(3, 12)
    model.save(tmp_path / "mlp.safetensors")
    torch.testing.assert_close(fsm.load_merged(tmp_path / "mlp.safetensors")(x), model(x))


def test_an_original_looks_like_a_merge_of_one():
    model, x = fsm.Original(vits([8])[0], randomised(nn.Linear(8, 3)), "a"), pictures()
    assert model.names == ("a",) and model.heads == [model.head]
    assert torch.equal(model.outputs[0], torch.eye(8).double())
    as_merged = fsm.Merged(model.backbone, model.outputs, model.heads, model.names)
    torch.testing.assert_close(as_merged(x)[0], model(x))
    assert not any("output" in name for name in model.state_dict())


def test_a_merge_into_other_widths_comes_back_from_its_files(tmp_path):
    into = vits([12], torch.float32, num_heads=3, mlp_ratio=1)[0]
    originals = [fsm.Original(m, nn.Linear(d, 5)) for m, d in zip(vits([8, 6], torch.float32), (8, 6))]
    model, x = fsm.SuperNet(originals, rank=2, init="random", into=into).fold(), pictures(dtype=torch.float32)
    assert fsm.describe(model.backbone) == fsm.describe(into)
    model.save(tmp_path / "m")
    again = fsm.load_merged(tmp_path / "m")
    assert fsm.describe(again.backbone) == fsm.describe(into) and [o.shape for o in again.outputs] == [(8, 12), (6, 12)]
    for a, b in zip(model(x), again(x)):
        assert torch.equal(a, b)


def test_a_saved_original_keeps_its_card(tmp_path):
    model = fsm.Original(vits([8], torch.float32)[0], nn.Linear(8, 10), "mine", fsm.task("shapes")).eval()
    model.card = {"accuracy": 12.5}
    model.save(tmp_path / "mine")
    again = fsm.load_original(tmp_path / "mine")
    assert (again.name, again.task, again.card["accuracy"]) == ("mine", fsm.task("shapes"), 12.5)
    assert not any(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(again(pictures(dtype=torch.float32)), model(pictures(dtype=torch.float32)))


def rewritten(file, change) -> None:
    """The file with other metadata."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, change(metadata))


@pytest.mark.parametrize("damage, match", [
    (lambda f: f.write_bytes(f.read_bytes()[:-7]), "no safetensors file, or it was cut short"),
    (lambda f: f.write_bytes(b"PK\x03\x04 something else"), "no safetensors file, or it was cut short"),
    (lambda f: torch.save({"a": 1}, f), "no safetensors file, or it was cut short"),
    (lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])), "SHA-256 differs"),
    (lambda f: rewritten(f, lambda m: m | {"card": m["card"].replace('"num_heads": 2', '"num_heads": 4')}),
     "SHA-256 differs"),  # the weights would fit, and compute something else
    (lambda f: rewritten(f, lambda m: m | {"card": m["card"].replace('"a", "b"', '"b", "a"')}), "SHA-256 differs"),
    (lambda f: rewritten(f, lambda m: {}), "has no card: it was not saved by fsmerge_lite"),
])
def test_damaged_files(tmp_path, damage, match):
    merged().save(tmp_path / "m")
    damage(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=match):
        fsm.load_merged(tmp_path / "m")


def test_foreign_files(tmp_path):
    merged().save(tmp_path / "m")
    with pytest.raises(ValueError, match="holds 'fsmerge_lite.Merged', expected 'fsmerge_lite.Original'"):
        fsm.load_original(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is missing"):
        fsm.load_merged(tmp_path / "none")
    models.save_file(tmp_path / "other", {"x": torch.zeros(2)}, card_of(tmp_path / "m.safetensors"))
    with pytest.raises(ValueError, match="do not fit the architecture"):
        fsm.load_merged(tmp_path / "other")


# ---------------------------------------------------------------- files of version 0.1: weights and a card beside them

def old_files(model: fsm.Merged, stem) -> None:
    """As version 0.1 wrote them."""
    model.save(stem)
    file = stem.with_name(stem.name + ".safetensors")
    card = {key: value for key, value in card_of(file).items() if key not in ("mean", "std")}
    save_file(load_file(file), file)
    card["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    card["backbone"].pop("act_options")
    file.with_suffix(".json").write_text(json.dumps(card))


def test_files_of_version_0_1_are_read(tmp_path):
    model, x = merged(), pictures(dtype=torch.float32)
    old_files(model, tmp_path / "old")
    for a, b in zip(model(x), fsm.load_merged(tmp_path / "old")(x)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage, match", [
    (lambda w, c: w.write_bytes(w.read_bytes()[:-4] + b"1234"), "SHA-256 differs"),
    (lambda w, c: c.write_text('{"format"'), "no JSON card"),
    (lambda w, c: c.write_text("[1, 2]"), "no JSON card"),
    (lambda w, c: c.write_text('{"format": "other"}'), "holds 'other', expected 'fsmerge_lite.Merged'"),
    (lambda w, c: c.unlink(), "has no card"),
])
def test_damaged_files_of_version_0_1(tmp_path, damage, match):
    old_files(merged(), tmp_path / "m")
    damage(tmp_path / "m.safetensors", tmp_path / "m.json")
    with pytest.raises(ValueError, match=match):
        fsm.load_merged(tmp_path / "m")


def test_an_interrupted_save_leaves_the_old_files_whole(tmp_path, monkeypatch):
    old, x = merged(), pictures(dtype=torch.float32)
    old.save(tmp_path / "m")
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}

    def fail(*_):
        raise OSError("disk full")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        merged().save(tmp_path / "m")
    monkeypatch.undo()
    assert {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)} == before
    torch.testing.assert_close(fsm.load_merged(tmp_path / "m")(x), old(x))


def test_unknown_kind_and_small_mlp():
    with pytest.raises(ValueError, match="kind 'vit' or 'mlp' or 'text' or 'bert', got 'cnn'"):
        fsm.build({"kind": "cnn"})
    with pytest.raises(ValueError, match="at least an input and one layer"):
        fsm.MLP((3,))


# ---------------------------------------------------------------- back into plain timm

EXACT = {"rtol": 0, "atol": 1e-10}


def merge_of(*dims, classes=(3, 4, 2), names="abc", into=None, dtype=torch.float64, **options) -> fsm.Merged:
    originals = [fsm.Original(model, randomised(nn.Linear(dim, n), dtype, n), name)
                 for model, dim, n, name in zip(vits(dims, dtype, **options), dims, classes, names)]
    return fsm.SuperNet(originals, rank=2, init="random", into=into).fold()


@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_a_timm_model_of_each_task_gives_its_logits(options):
    model, x = merge_of(8, 6, **options), pictures()
    for i, (name, logits) in enumerate(zip("ab", model(x))):
        for plain in (model.to_timm(i), model.to_timm(name)):
            torch.testing.assert_close(plain(x), logits, **EXACT)
            assert type(plain) is VisionTransformer and plain.num_classes == logits.shape[1] and not plain.training
            assert all(p.requires_grad for p in plain.parameters())
            assert plain.state_dict().keys() == {*model.backbone.state_dict(), "head.weight", "head.bias"}


def test_three_heads_other_widths_and_a_merge_of_a_merge():
    into = vits([12], num_heads=3, mlp_ratio=1)[0]
    first, x = merge_of(8, 6, 4, into=into), pictures()
    other = fsm.Original(vits([8])[0], randomised(nn.Linear(8, 5)), "d")
    for model in (first, fsm.SuperNet([first, other], rank=2, init="random").fold()):
        for i, logits in enumerate(model(x)):
            plain = model.to_timm(i)
            assert plain.embed_dim == 12
            torch.testing.assert_close(plain(x), logits, **EXACT)


def test_grey_pictures_and_what_timm_knows_of_them():
    model, x = merge_of(8, 6, in_chans=1, global_pool="avg", reg_tokens=1), pictures()[:, :1]
    plain = model.to_timm("b")
    torch.testing.assert_close(plain(x), model(x)[1], **EXACT)
    assert (plain.pretrained_cfg["input_size"], plain.pretrained_cfg["num_classes"]) == ((1, 16, 16), 4)
    assert plain.pretrained_cfg["mean"] == plain.pretrained_cfg["std"] == (0.5,)
    torch.testing.assert_close(fsm.Original(plain)(x), model(x)[1], **EXACT)  # nothing is absorbed twice


def test_a_head_without_bias():
    model, x = merge_of(8, 6), pictures()
    model.heads[0] = randomised(nn.Linear(8, 3, bias=False))
    torch.testing.assert_close(model.to_timm(0)(x), model(x)[0], **EXACT)


def test_an_original_as_a_timm_model():
    model, x = vits([8])[0], pictures()
    model.reset_classifier(3)
    original = fsm.Original(randomised(model), name="a", mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    torch.testing.assert_close(original.to_timm()(x), original(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(fsm.Original(original.to_timm())(x), original(x), rtol=0, atol=1e-12)


def test_the_timm_model_is_a_copy_and_takes_no_random_numbers():
    model, state = merge_of(8, 6), torch.random.get_rng_state()
    plain, kept = model.to_timm(0), {name: p.clone() for name, p in model.state_dict().items()}
    assert torch.equal(torch.random.get_rng_state(), state)
    for p in plain.parameters():
        p.data.zero_()
    assert all(torch.equal(p, kept[name]) for name, p in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("i", [2, -1, "c", None, ""])
def test_no_such_task(i):
    with pytest.raises(ValueError, match=r"fits 0 of the tasks \('a', 'b'\); give a place from 0 or a name of one"):
        merge_of(8, 6).to_timm(i)


def test_a_name_of_two_tasks():
    model, x = merge_of(8, 6, names="aa"), pictures()
    with pytest.raises(ValueError, match="'a' fits 2 of the tasks"):
        model.to_timm("a")
    torch.testing.assert_close(model.to_timm(1)(x), model(x)[1], **EXACT)


@pytest.mark.parametrize("head, match", [
    (nn.Identity(), "has VisionTransformer and Identity"),
    (nn.Sequential(nn.Linear(8, 3)), "has VisionTransformer and Sequential"),
])
def test_heads_that_are_not_one_linear_layer(head, match):
    model = merge_of(8, 6)
    model.heads[0] = head
    with pytest.raises(TypeError, match=f"to_timm needs a timm backbone and a head that is one nn.Linear; 'a' {match}"):
        model.to_timm("a")


def test_backbones_that_are_not_timms():
    originals = [fsm.Original(m, nn.Linear(m.layers[-1].out_features, 3).double()) for m in mlps([6, 5])]
    for model in (fsm.SuperNet(originals, rank=2).fold(), fsm.Original(*originals[0].children())):
        with pytest.raises(TypeError, match="needs a timm backbone .* 0 has MLP and Linear"):
            model.to_timm() if isinstance(model, fsm.Original) else model.to_timm(0)
