"""A merged model out into timm's files and ONNX: what is reloaded gives the logits of `merged(x)[i]`."""
import importlib.util
import json
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from models_for_tests import VIT_OPTIONS, mlps, pictures, randomised, vits
from PIL import Image
from safetensors.torch import load_file
from timm.layers import GELUTanh, LayerNorm, QuickGELU, RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.recipes import export as module
from fsmerge_lite.recipes.export import export

TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}
NAMED = {  # what an entry of timm or a word of its own must say
    "LayerNorm of eps 1e-5": {"norm_layer": partial(LayerNorm, eps=1e-5)},
    "LayerNorm of torch": {"norm_layer": nn.LayerNorm},
    "QuickGELU": {"act_layer": QuickGELU, "pre_norm": True, "norm_layer": nn.LayerNorm},
    "GELUTanh": {"act_layer": GELUTanh},
    "RmsNorm": {"norm_layer": RmsNorm},
    "ReLU": {"act_layer": nn.ReLU},
}


def merge_of(*dims, classes=(3, 4, 2), names="abc", into=None, dtype=torch.float64, **options) -> fsm.Merged:
    originals = [fsm.Original(model, randomised(nn.Linear(dim, n), dtype, n), name)
                 for model, dim, n, name in zip(vits(dims, dtype, **options), dims, classes, names)]
    return fsm.SuperNet(originals, rank=2, init="random", into=into).fold()


def by_folder(folder: Path, dtype) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, dtype=dtype).eval()


def by_readme(folder: Path) -> list[nn.Module]:
    """Both models of the lines in README.md, as a reader would run them."""
    models, scope = [], {}
    for block in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(block, scope)
        models.append(scope["model"])
    return models


def check(merged: fsm.Merged, folders, channels: int = 3) -> None:
    dtype = merged.outputs[0].dtype
    x = pictures(dtype=dtype)[:, :channels]
    for folder, logits in zip(folders, merged(x), strict=True):
        assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
        for model in (by_folder(folder, dtype), *by_readme(folder)):
            assert type(model) is VisionTransformer and model.num_classes == logits.shape[1]
            torch.testing.assert_close(model(x), logits, **TOLERANCE[dtype])


# ---------------------------------------------------------------- both roads

@pytest.mark.parametrize("options", [*VIT_OPTIONS.values(), *NAMED.values()], ids=[*VIT_OPTIONS, *NAMED])
def test_both_roads_give_the_logits(tmp_path, options):
    merged = merge_of(8, 6, **options)
    folders = export(merged, tmp_path)
    assert folders == [tmp_path / "a", tmp_path / "b"]
    check(merged, folders)


def test_float32(tmp_path):
    merged = merge_of(8, 6, dtype=torch.float32, reg_tokens=1)
    check(merged, export(merged, tmp_path))
    assert load_file(tmp_path / "a" / "model.safetensors")["head.weight"].dtype == torch.float32


def test_grey_pictures(tmp_path):
    merged = merge_of(8, 6, in_chans=1, global_pool="avg")
    check(merged, export(merged, tmp_path), channels=1)


def test_three_heads_other_widths_and_a_merge_of_a_merge(tmp_path):
    merged = merge_of(8, 6, 4, into=vits([12], num_heads=3, mlp_ratio=1)[0])
    check(merged, export(merged, tmp_path / "three"))
    other = fsm.Original(vits([8])[0], randomised(nn.Linear(8, 5)), "d")
    again = fsm.SuperNet([merged, other], rank=2, init="random").fold()
    check(again, export(again, tmp_path / "again"))


def test_an_original(tmp_path):
    head, x = randomised(nn.Linear(8, 3)), pictures()
    original = fsm.Original(vits([8])[0], head, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    folder, = export(original, tmp_path)
    torch.testing.assert_close(by_folder(folder, torch.float64)(x), original(x), **TOLERANCE[torch.float64])


def test_a_shipped_merge_without_double_precision_reads_its_own_pictures(tmp_path):
    a, b = fsm.load_originals("digits", "letters")
    merged = fsm.average([a, b])
    folder, = export(merged, tmp_path, ["letters"], [b.task.classes])
    model, (x, _) = by_folder(folder, torch.float32), b.task.test()
    torch.testing.assert_close(model(x[:50]), merged(x[:50])[1], **TOLERANCE[torch.float32])
    assert model.pretrained_cfg["label_names"] == list(b.task.classes)


def test_timm_prepares_pictures_as_they_are_prepared_here(tmp_path):
    grey = 255 * pictures(1, 40)[0, 0, :, :30].sigmoid()
    picture = Image.fromarray(grey.byte().numpy()).convert("RGB")
    (tmp_path / "pictures" / "c").mkdir(parents=True)
    for i in range(5):
        picture.save(tmp_path / "pictures" / "c" / f"{i}.png")
    here, _ = fsm.folder_task(tmp_path / "pictures", size=16).sample(1)
    folder, _ = export(merge_of(8, 6), tmp_path / "out")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(by_folder(folder, torch.float64)))
    torch.testing.assert_close(transform(picture), here[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- what stands in the files

def test_config_json(tmp_path):
    export(merge_of(8, 6), tmp_path, classes=[("x", "y", "z"), None])
    a, b = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert a["label_names"] == ["x", "y", "z"] and "label_names" not in b
    assert (a["num_classes"], b["num_classes"]) == (3, 4) and a["architecture"] == "vit_base_patch16_224"
    known = a["pretrained_cfg"]
    assert known["mean"] == known["std"] == [0.5] * 3 and known["input_size"] == [3, 16, 16]
    assert not known.keys() & {"url", "file", "hf_hub_id", "license", "tag"}  # none of the entry's own
    assert "(p - 0.5) / 0.5" in (tmp_path / "a" / "README.md").read_text()


def test_new_classes_can_be_trained_on_it(tmp_path):
    export(merge_of(8, 6), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True, num_classes=7, dtype=torch.float64)
    assert model.head.out_features == 7
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert torch.equal(model.blocks[0].mlp.fc1.weight, weights["blocks.0.mlp.fc1.weight"])


def test_some_tasks_by_place_and_name(tmp_path):
    merged, x = merge_of(8, 6, 4), pictures()
    folders = export(merged, tmp_path, tasks=["c", 0])
    assert [folder.name for folder in folders] == ["c", "a"] and sorted(os.listdir(tmp_path)) == ["a", "c"]
    for folder, place in zip(folders, (2, 0)):
        torch.testing.assert_close(by_folder(folder, torch.float64)(x), merged(x)[place], **TOLERANCE[torch.float64])


def test_names_that_are_no_folders(tmp_path):
    names = ("../a b", "A/B", "a_b", "", "..", "ü", "x" * 300, "a\nb")
    safe = ["a_b", "A_B-2", "a_b-3", "task", "task-2", "task-3", "x" * 80, "a_b-4"]
    merged = merge_of(8, 6)
    outputs, heads = [merged.outputs[0]] * len(names), [merged.heads[0]] * len(names)
    folders = export(fsm.Merged(merged.backbone, outputs, heads, names), tmp_path / "out")
    assert [folder.name for folder in folders] == safe
    assert {folder.parent for folder in folders} == {tmp_path / "out"} and os.listdir(tmp_path) == ["out"]


def test_it_takes_no_random_numbers_and_leaves_the_model_as_it_is(tmp_path):
    merged, x = merge_of(8, 6).train(), pictures()
    before, state = merged(x), torch.random.get_rng_state()
    export(merged, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state) and merged.training
    assert all(torch.equal(a, b) for a, b in zip(merged(x), before))


# ---------------------------------------------------------------- refused

@pytest.mark.parametrize("options, error, match", [
    ({"tasks": ["c"]}, ValueError, r"'c' fits 0 of the tasks \('a', 'b'\)"),
    ({"tasks": [0, 2]}, ValueError, "2 fits 0 of the tasks"),
    ({"classes": [["x"]]}, ValueError, "names, or None, for each of 2 tasks, got 1"),
    ({"classes": [None, ["x", "y"]]}, ValueError, r"b has 4 classes, but 2 names were given: \['x', 'y'\]"),
])
def test_bad_tasks_and_classes(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        export(merge_of(8, 6), tmp_path, **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("model, error, match", [
    (lambda: nn.Linear(3, 3), TypeError, r"got Linear; net.fold\(\) gives a Merged"),
    (lambda: merge_of(8, 6).to(torch.bfloat16), ValueError, r"got torch.bfloat16; call .float\(\)"),
    (lambda: fsm.SuperNet(mlps([6, 5]), rank=2).fold(), TypeError, "has MLP and Identity"),
    (lambda: fsm.SuperNet(vits([8, 6]), rank=2).fold(), TypeError, "has VisionTransformer and Identity"),
    (lambda: merge_of(8, 6, norm_layer=partial(LayerNorm, eps=0.3)), ValueError, "words for .* LayerNorm of eps 0.3"),
    (lambda: merge_of(8, 6, act_layer=nn.Softplus), ValueError, "no words for Softplus .* merged.to_timm gives"),
])
def test_models_that_are_refused(tmp_path, model, error, match):
    with pytest.raises(error, match=match):
        export(model(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_other_logits_are_never_written(tmp_path, monkeypatch):
    merged = merge_of(8, 6)
    export(merged, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def damaged(model, *args, **options):
        model.blocks[1].mlp.fc2.bias.data[3] += 1e-3
        save_for_hf(model, *args, **options)
    save_for_hf = module.save_for_hf
    monkeypatch.setattr(module, "save_for_hf", damaged)
    with pytest.raises(ArithmeticError, match="a: the logits of config.json differ .* 1e-10; nothing is written"):
        export(merged, tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match=f"{folder} cannot be written .*; give another path"):
            export(merge_of(8, 6), folder)


def test_a_disk_that_is_full_leaves_the_old_files_whole(tmp_path, monkeypatch):
    old, x = merge_of(8, 6), pictures()
    export(old, tmp_path)

    def fail(*_):
        raise OSError("disk full")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cannot be written .*disk full"):
        export(merge_of(8, 6, reg_tokens=1), tmp_path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    torch.testing.assert_close(by_folder(tmp_path / "a", torch.float64)(x), old(x)[0], **TOLERANCE[torch.float64])


# ---------------------------------------------------------------- pickles

class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_is_never_executed(tmp_path):
    merged, x, mark = merge_of(8, 6), pictures(), tmp_path / "executed"
    evil = tmp_path / "evil.pt"
    torch.save({"head.weight": Evil(mark)}, evil)
    folder, _ = export(merged, tmp_path / "out")
    for name in ("pytorch_model.bin", "model.pth", "open_clip_pytorch_model.bin"):
        shutil.copy(evil, folder / name)
    torch.testing.assert_close(by_folder(folder, torch.float64)(x), merged(x)[0], **TOLERANCE[torch.float64])
    export(merged, tmp_path / "out")
    shutil.copy(evil, folder / "model.safetensors")
    shutil.copy(evil, tmp_path / "evil.safetensors")
    for load in (lambda: by_folder(folder, torch.float64), lambda: by_readme(folder), lambda: fsm.load_merged(evil),
                 lambda: fsm.load_merged(tmp_path / "evil"), lambda: fsm.load_original(tmp_path / "evil")):
        with pytest.raises(Exception, match="(?i)header|safetensors"):
            load()
    assert not mark.exists()
    with pytest.raises(Exception, match="(?i)weights_only|pickle"):
        timm.create_model("vit_base_patch16_224", depth=1, checkpoint_path=str(evil))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # so that this test can fail


# ---------------------------------------------------------------- ONNX

def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxscript: pip install 'fsmerge_lite\[onnx\]'"):
        export(merge_of(8, 6), tmp_path / "out", onnx=True)
    assert os.listdir(tmp_path) == []


ONNX_OPTIONS = {
    "class token": {}, "register tokens, average": {"reg_tokens": 2, "global_pool": "avg"},
    "no class token, maximum": {"class_token": False, "global_pool": "max"},
    "qk_norm, LayerScale": {"qk_norm": True, "init_values": 0.1}, "pre_norm, QuickGELU": NAMED["QuickGELU"],
    "RmsNorm, grey": {"norm_layer": RmsNorm, "in_chans": 1}, "no bias": {"qkv_bias": False, "proj_bias": False},
}


@pytest.mark.parametrize("options", ONNX_OPTIONS.values(), ids=ONNX_OPTIONS)
def test_onnx_gives_the_logits_of_batches_of_any_size(tmp_path, options):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    merged = merge_of(8, 6, **options)
    folder, = export(merged, tmp_path, ["b"], onnx=True)
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["pictures"] and [o.name for o in model.graph.output] == ["logits"]
    for n in (1, 5):
        x = pictures(n, dtype=torch.float32)[:, :options.get("in_chans", 3)]
        logits, = reference.ReferenceEvaluator(model).run(None, {"pictures": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), merged(x.double())[1].float(), rtol=1e-4, atol=1e-4)


def test_an_old_onnx_file_does_not_stay_beside_new_weights(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.onnx").write_text("old")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    export(merge_of(8, 6), tmp_path)
    assert sorted(os.listdir(tmp_path / "a")) == ["README.md", "config.json", "model.safetensors", "notes.txt"]


def test_operators_that_are_missing_are_said(tmp_path, monkeypatch):
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")

    def fail(*_, **__):
        raise NotImplementedError("No implementation for Attention")

    def refuse(*_, **__):
        raise torch.onnx.OnnxExporterError("no decomposition")
    monkeypatch.setattr(reference, "ReferenceEvaluator", fail)
    with pytest.raises(NotImplementedError, match="reference evaluator lacks an operator .* for Attention"):
        export(merge_of(8, 6), tmp_path, onnx=True)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(NotImplementedError, match="torch.onnx cannot export this variant.*no decomposition"):
        export(merge_of(8, 6), tmp_path, onnx=True)
    assert os.listdir(tmp_path) == []


def test_other_logits_of_onnx_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    evaluated = module._evaluated
    monkeypatch.setattr(module, "_evaluated", lambda *given: evaluated(*given) + 1e-2)
    with pytest.raises(ArithmeticError, match="the logits of model.onnx differ .* more than 1e-04"):
        export(merge_of(8, 6), tmp_path, onnx=True)
