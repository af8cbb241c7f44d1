"""Architectures as dicts, and files: equal after a round trip, whole or not there."""
import json
import os

import pytest
import torch
from models_for_tests import VIT_OPTIONS, mlps, pictures, randomised, vits
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fsmerge_lite as fsm


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


def test_save_and_load_give_the_same_logits(tmp_path):
    model, x = merged(), pictures(dtype=torch.float32)
    model.save(tmp_path / "deep" / "model", note="a remark")
    again = fsm.load_merged(tmp_path / "deep" / "model")
    for a, b in zip(model(x), again(x)):
        assert torch.equal(a, b)
    assert again.names == ("a", "b") and not again.training
    assert json.loads((tmp_path / "deep" / "model.json").read_text())["note"] == "a remark"
    assert sorted(os.listdir(tmp_path / "deep")) == ["model.json", "model.safetensors"]


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


@pytest.mark.parametrize("damage, match", [
    (lambda w, c: w.write_bytes(w.read_bytes()[:-7]), "cut short or replaced"),
    (lambda w, c: w.write_bytes(b"PK\x03\x04 something else"), "cut short or replaced"),
    (lambda w, c: c.write_text('{"format"'), "no JSON card"),
    (lambda w, c: c.write_text("[1, 2]"), "describes 'list', expected 'fsmerge_lite.Merged'"),
    (lambda w, c: c.write_text('{"format": "other"}'), "describes 'other'"),
])
def test_damaged_files(tmp_path, damage, match):
    merged().save(tmp_path / "m")
    damage(tmp_path / "m.safetensors", tmp_path / "m.json")
    with pytest.raises(ValueError, match=match):
        fsm.load_merged(tmp_path / "m")


def test_foreign_checkpoints(tmp_path):
    import hashlib

    from safetensors.torch import save_file
    model = merged()
    model.save(tmp_path / "m")
    card = json.loads((tmp_path / "m.json").read_text())

    def with_weights(write):
        write(tmp_path / "m.safetensors")
        digest = hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
        (tmp_path / "m.json").write_text(json.dumps(card | {"sha256": digest}))
        fsm.load_merged(tmp_path / "m")
    with pytest.raises(ValueError, match="do not fit the architecture"):
        with_weights(lambda path: save_file({"other": torch.zeros(2)}, path))
    with pytest.raises(ValueError, match="no safetensors file"):
        with_weights(lambda path: torch.save({"a": 1}, path))
    with pytest.raises(ValueError, match="describes 'fsmerge_lite.Merged', expected 'fsmerge_lite.Original'"):
        fsm.load_original(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is missing"):
        fsm.load_merged(tmp_path / "none")
    (tmp_path / "m.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.json is missing"):
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
    with pytest.raises(ValueError, match="kind 'mlp' or 'vit', got 'cnn'"):
        fsm.build({"kind": "cnn"})
    with pytest.raises(ValueError, match="at least an input and one layer"):
        fsm.MLP((3,))
