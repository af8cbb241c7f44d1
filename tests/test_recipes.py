"""recipes/gpu/run.py: all its parts on a very small ViT, what it resumes, what it chooses."""
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

import fsmerge_lite as fsm

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "gpu"


@pytest.fixture
def recipes(monkeypatch):
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = module.load_recipe("cpu") | {
        "architecture": {"dim": 16, "depth": 4, "num_heads": 2, "patch_size": 16, "img_size": 48}, "images": {"4": 8},
        "lr": {"distillation": [1e-3], "first": [1e-3], "FS-Merge": [1e-3, 2e-3]},
        "steps": 2, "rank": 2, "ranks": [2, 4]}
    for phase in ("pretrain", "finetune"):
        small[phase] = small[phase] | {"steps": 2, "batch_size": 8}
    monkeypatch.setattr(module, "load_recipe", lambda name: small | {"name": name})
    monkeypatch.delenv("FSMERGE_DATA", raising=False)
    tasks = {name: replace(task, test_size=50) for name, task in module.tasks_of(48).items()}
    monkeypatch.setattr(module, "tasks_of", lambda size: tasks)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_recipes_are_whole(path):
    recipe = json.loads(path.read_text())
    model = fsm.vit(**recipe["architecture"])
    assert model.patch_embed.num_patches >= 16
    names = {name for pair in recipe["pairs"] for name in pair}
    assert names <= recipe["seeds"].keys() and len(set(recipe["seeds"].values())) == len(recipe["seeds"])
    assert set(recipe["lr"]) == {"distillation", "first", "FS-Merge"}


def test_all_parts_run_and_resume(recipes, tmp_path, monkeypatch, capsys):
    arguments = ["cpu", "--out", str(tmp_path), "--device", "cpu"]
    compare, calls = recipes.bench.compare, []

    def cut_short(cell, methods, *ready):
        for n, record in enumerate(compare(cell, methods, *ready)):
            if len(calls) == 0 and n == 5 and not cell.validate:
                calls.append(cell)
                raise KeyboardInterrupt
            yield record
    monkeypatch.setattr(recipes.bench, "compare", cut_short)
    assert recipes.main(arguments) == recipes.AGAIN and "it goes on from here" in capsys.readouterr().err
    before = json.loads((tmp_path / "vit-cpu.json").read_text())
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cpu").glob("*.safetensors")}
    assert len(before) == 4 + 5 and len(made) == 2  # the sweep, five methods; letters and textures
    assert recipes.main(arguments) == 0
    records = json.loads((tmp_path / "vit-cpu.json").read_text())
    assert records[:9] == before and all(path.stat().st_mtime_ns == time for path, time in made.items())
    assert len(records) == 4 + 2 * 15 + 2  # sweep; both orders; two ranks
    keys = [(r["method"], *r["tasks"], r["seed"], r["validate"]) for r in records]
    assert len(set(keys)) == len(keys) and {r["device"] for r in records} == {"cpu"}
    text = (tmp_path / "vit-cpu.md").read_text()
    assert "| FS-Merge, diagonal |" in text and "rank 4" in text and (tmp_path / "vit-cpu-ranks.png").is_file()
    assert recipes.main(arguments) == 0 and json.loads((tmp_path / "vit-cpu.json").read_text()) == records


def test_it_stops_when_the_time_is_up(recipes, tmp_path):
    assert recipes.main(["cpu", "--out", str(tmp_path), "--device", "cpu", "--minutes", "0.02"]) == recipes.AGAIN


def test_the_best_rate_is_chosen(recipes):
    recipe = recipes.load_recipe("cpu")
    recipe["lr"] = {"FS-Merge": [0.001, 0.002, 0.004]}
    records = [{"method": f"FS-Merge {lr:g}", "mean": mean, "joint": joint, "validate": True}
               for lr, mean, joint in ((0.001, 90, 70), (0.002, 88, 80), (0.004, 91, 60))]
    assert recipes.chosen(records, recipe) == {"FS-Merge": 0.002}
