"""recipes/gpu/run.py: all its parts on a very small ViT, what it resumes, what it chooses."""
import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fsmerge_lite as fsm

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "gpu"


@pytest.fixture
def recipes(monkeypatch):
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = module.load_recipe("cpu") | {
        "architecture": {"dim": 16, "depth": 4, "num_heads": 2, "patch_size": 16, "img_size": 48}, "images": {"4": 8},
        "lr": {"distillation": [1e-3], "paper": [1e-3], "fitted": [1e-3, 2e-3]},
        "steps": 2, "rank": 2, "ranks": [2, 4], "seeds_of_merges": [0]}
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
    assert set(recipe["lr"]) == {"distillation", "paper", "fitted"}


def test_all_parts_run_and_resume(recipes, tmp_path, monkeypatch, capsys):
    arguments = ["cpu", "--out", str(tmp_path), "--device", "cpu"]
    checks = iter([False] * (2 + 4 + 5) + [True])  # two originals, the sweep, five methods; then the time is up
    with monkeypatch.context() as patch:
        patch.setattr(recipes.Deadline, "seconds_left", property(lambda self: -1 if next(checks) else 1))
        assert recipes.main(arguments) == recipes.AGAIN and "it goes on from here" in capsys.readouterr().err
    before = json.loads((tmp_path / "vit-cpu.json").read_text())
    saved = {path: path.stat().st_mtime_ns for path in (tmp_path / "cpu").glob("*.safetensors")}
    assert len(before) == 4 + 5 and {path.stem for path in saved} == {"letters", "textures"}
    assert recipes.main(arguments) == 0
    records = json.loads((tmp_path / "vit-cpu.json").read_text())
    assert records[:9] == before and all(path.stat().st_mtime_ns == time for path, time in saved.items())
    assert len(records) == 4 + 2 * 15 + 2  # sweep; both orders; two ranks
    keys = [(r["method"], *r["tasks"], r["seed"], r["validate"]) for r in records]
    assert len(set(keys)) == len(keys)
    assert all(r["device"] == "cpu" and r["settings"] and r["versions"] and r["commit"] for r in records)
    text = (tmp_path / "vit-cpu.md").read_text()
    assert "| fitted, diagonal |" in text and "rank 4" in text and (tmp_path / "vit-cpu-ranks.png").is_file()
    assert recipes.main([*arguments, "--minutes", "0"]) == 0  # nothing is missing
    assert json.loads((tmp_path / "vit-cpu.json").read_text()) == records


def test_nothing_starts_after_the_deadline(recipes, tmp_path):
    assert recipes.main(["cpu", "--out", str(tmp_path), "--device", "cpu", "--minutes", "0"]) == recipes.AGAIN
    assert not list(tmp_path.rglob("*.*"))


def test_a_method_that_has_started_is_finished(recipes):
    ran = []
    slow = recipes.Method(lambda *arguments: ran.append(time.sleep(0.2)), {"name": "slow"})
    timed = recipes.Deadline(time.monotonic() + 0.1).before(slow)
    timed([], None, None, {})
    assert len(ran) == 1 and timed.settings == {"name": "slow"}
    with pytest.raises(recipes.OutOfTime):
        timed([], None, None, {})


def test_fp32_beside_bf16(recipes):
    cell = recipes.Cell(("a", "b"), precision="bf16")
    method = recipes.Method(lambda originals, images, cell, seconds: cell.precision, {"name": "x"})
    assert recipes.in_fp32(method)([], None, cell, {}) == "fp32"
    assert recipes.in_fp32(method).settings == {"name": "x", "precision": "fp32"}
    bf16 = json.loads((FOLDER / "S.json").read_text())
    _, methods = recipes.ranks(bf16, {"fitted": 1e-3}, [cell])
    assert list(methods) == [*(f"FS-Merge (fitted) @ {rank}" for rank in bf16["ranks"]), "FS-Merge (fitted), fp32 @ 12"]
    settings = methods["FS-Merge (fitted) @ 64"].settings
    assert settings["rank"] == 64 and settings["depths"] == [3, 6, 9]


def test_committed_records_need_not_run_again(recipes):
    recipe = json.loads((FOLDER / "cpu.json").read_text()) | {"name": "cpu"}
    results = FOLDER.parents[1] / "benchmarks" / "results"
    records = recipes.runner.load_records(results / "vit-cpu.json")
    tasks = dict.fromkeys(recipe["seeds"])
    for cells, methods in recipes.parts(recipe, records, tasks):
        assert recipes.runner.up_to_date(records, cells, methods) == records
        assert all(methods.keys() <= recipes.runner.done_of(records, cell).keys() for cell in cells)


def test_committed_table_is_what_the_committed_records_say(recipes, tmp_path):
    recipe = json.loads((FOLDER / "cpu.json").read_text()) | {"name": "cpu"}
    results = FOLDER.parents[1] / "benchmarks" / "results"
    text = recipes.write(recipe, recipes.runner.load_records(results / "vit-cpu.json"), tmp_path)
    committed = (results / "vit-cpu.md").read_text()
    assert text.split("\n\n")[1:3] == committed.split("\n\n")[1:3]  # all methods; the lead of FS-Merge


def test_the_best_rate_is_chosen(recipes):
    recipe = recipes.load_recipe("cpu")
    recipe["lr"] = {"fitted": [0.001, 0.002, 0.004]}
    records = [{"method": f"fitted {lr:g}", "mean": mean, "joint": joint, "validate": True}
               for lr, mean, joint in ((0.001, 90, 70), (0.002, 88, 80), (0.004, 91, 60))]
    assert recipes.chosen(records, recipe) == {"fitted": 0.002}
