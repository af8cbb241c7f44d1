"""From a recipe to files: resuming, sweeps side by side, what is checked first, what ends with one line."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import fsmerge_lite as fsm
from fsmerge_lite.engine.files import load_file
from fsmerge_lite.recipes import commands, merging
from fsmerge_lite.recipes.commands import main
from fsmerge_lite.recipes.entries import BASELINES, STARTS, STRUCTURES
from fsmerge_lite.recipes.recipe import RecipeError, recipe_of
from fsmerge_lite.recipes.sources import load_all, pictures

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def folder_of(path: Path, names=COLOURS, pictures: int = 8) -> Path:
    """CLASS/*.png: squares of one color with some noise."""
    noise = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        for n in range(pictures):
            square = noise.integers(-30, 30, (32, 32, 3)) + COLOURS[name]
            Image.fromarray(square.clip(0, 255).astype("uint8")).save(path / name / f"{n}.png")
    return path


def weights_of(path: Path, seed: int, **more) -> Path:
    torch.manual_seed(seed)
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL | more).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here and in all processes that are started: sums over other numbers of threads are rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table(tmp_path) -> dict:
    """A recipe of two small random timm models with a folder of pictures each; they are at chance."""
    originals = [{"timm": "vit_tiny_patch16_224", "arguments": SMALL, "name": name, "folder": f"{name}",
                  "checkpoint": f"{name}.safetensors"} for name in ("one", "two")]
    for seed, name in enumerate(("one", "two")):
        folder_of(tmp_path / name)
        weights_of(tmp_path / f"{name}.safetensors", seed)
    return {"originals": originals, "baselines": ["average", "distillation"], "supernet": {"rank": 2},
            "calibration": {"images": 4, "augmented": 1}, "training": {"steps": 3, "batch_size": 4},
            "run": {"out": str(tmp_path / "out"), "chance": "go", "device": "cpu"}}


def as_toml(table: dict, path: Path) -> str:
    """Write a recipe: values as in JSON, but tables inside a line."""
    def value(x):
        return f"{{{', '.join(f'{k} = {value(v)}' for k, v in x.items())}}}" if isinstance(x, dict) else json.dumps(x)
    tables = [("[[originals]]", each) for each in table["originals"]]
    tables += [(f"[{name}]", each) for name, each in table.items() if isinstance(each, dict)]
    lines = [f"{name} = {value(x)}" for name, x in table.items() if not isinstance(x, dict) and name != "originals"]
    for title, each in tables:
        lines += [title, *(f"{name} = {value(x)}" for name, x in each.items())]
    path.write_text("\n".join(lines))
    return str(path)


def run(table: dict, tmp_path: Path, **options) -> merging.Results:
    return merging.merge(recipe_of(table, "small", tmp_path), say=lambda line: None, **options)


def without_times(records: list[dict]) -> list[dict]:
    records = json.loads(json.dumps(records))
    for record in records:
        for curve in record.get("curves", []):
            del curve["seconds"]
        del record["seconds"]
    return records


def test_own_models_and_folders(table, tmp_path):
    found = run(table, tmp_path)
    assert [r["method"] for r in found.records] == ["originals (k models)", "average", "distillation",
                                                    "FS-Merge (fitted)"]
    merged = fsm.load_merged(tmp_path / "out" / "merged")
    assert merged.names == ("one", "two") and [head.out_features for head in merged.heads] == [3, 3]
    for path in ("report.html", "table.md", "records.json", "training.png"):
        assert (tmp_path / "out" / path).stat().st_size > 100
    assert not list((tmp_path / "out").glob("training.*.*")), "checkpoints are removed"
    first, again = (tmp_path / "out" / "records.json").read_text(), run(table, tmp_path)
    assert (tmp_path / "out" / "records.json").read_text() == first and again.records == found.records


@pytest.mark.parametrize("more", [
    {"method": "paper"}, {"training": {"how": "local", "local_steps": 2}}, {"training": {"how": "none"}},
    {"training": {"how": "both", "steps": 2, "local_steps": 2, "depths": [1]}}, {"supernet": {"structure": "diagonal"}},
    {"supernet": {"width": 48, "num_heads": 4}}, {"supernet": {"start": "average"}},
    {"start": {"heads": [1, 1], "floor": 1.0}},
    {"calibration": {"augmentation": "paper", "images": 4, "augmented": 2}},
    {"calibration": {"augmentation": [{"name": "RandomHorizontalFlip", "p": 0.5}], "images": 4, "augmented": 2}},
], ids=str)
def test_what_a_recipe_can_vary(more, table, tmp_path):
    for section, values in more.items():
        table[section] = {**table.get(section, {}), **values} if isinstance(values, dict) else values
    label = f"FS-Merge ({table.get('method', 'fitted')})"
    record = next(r for r in run(table, tmp_path).records if r["method"] == label)
    assert record["fold_error"] < merging.FOLD_BOUND
    assert (record["training_steps"] == 0) == (table["training"].get("how") == "none")


def test_a_folder_without_classes_to_merge_on(table, tmp_path):
    folder_of(tmp_path / "pool", ["green"])
    table["originals"][0]["unlabeled"] = "pool/green"
    table["calibration"] = {"images": 8, "augmented": 0}
    recipe = recipe_of(table, "small", tmp_path)
    own = pictures(recipe, load_all(recipe)).of(0)
    assert (own.mean((0, 2, 3)).argmax() == 1) and len(own) == 8, "all of them are green"
    assert run(table, tmp_path).records[-1]["fold_error"] < merging.FOLD_BOUND


def test_every_baseline_runs(table, tmp_path):
    table["baselines"] = list(BASELINES)
    records = run(table, tmp_path).records
    assert {r["method"] for r in records} == {*BASELINES, "originals (k models)", "FS-Merge (fitted)"}
    assert records[-1]["method"] == "distillation, same time"


def test_a_killed_run_goes_on_to_the_same_result(table, tmp_path):
    table["training"] |= {"steps": 150}
    expected = run(table | {"run": table["run"] | {"out": str(tmp_path / "whole")}}, tmp_path)
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps(table))
    script = ("import json, sys; from fsmerge_lite.recipes import merging; from fsmerge_lite.recipes.recipe import "
              f"recipe_of; merging.merge(recipe_of(json.load(open(r'{recipe}')), 'small', r'{tmp_path}'))")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (tmp_path / "out" / "training.global").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out" / "training.global").exists() or (tmp_path / "out" / "merged.safetensors").exists()
    resumed = run(table, tmp_path)
    assert without_times(resumed.records) == without_times(expected.records)
    a, b = (fsm.load_merged(tmp_path / name / "merged").state_dict() for name in ("out", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_sweep_side_by_side_gives_the_records_of_one_after_the_other(table, tmp_path):
    table |= {"sweep": {"supernet.rank": [1, 2]}, "baselines": ["average"]}
    one = run(table, tmp_path)
    other = run(table | {"run": table["run"] | {"out": str(tmp_path / "jobs")}}, tmp_path, jobs=2)
    key = str
    assert sorted(without_times(one.records), key=key) == sorted(without_times(other.records), key=key)
    assert {path.name for path in (tmp_path / "jobs").iterdir() if path.is_dir()} == {"rank=1, seed=0",
                                                                                        "rank=2, seed=0"}
    assert (tmp_path / "jobs" / "sweep.png").is_file()
    table["sweep"] = {"supernet.rank": [1, 2, 3]}  # a longer sweep runs what is new
    longer = run(table, tmp_path)
    assert [r for r in longer.records if r["values"]["supernet.rank"] < 3] == one.records


def test_a_sweep_on_two_dask_workers(table, tmp_path):
    pytest.importorskip("distributed")
    table |= {"sweep": {"supernet.rank": [1, 2]}, "baselines": ["average"]}
    one = run(table, tmp_path)
    other = run(table | {"run": table["run"] | {"out": str(tmp_path / "dask")}}, tmp_path, jobs=2, executor="dask")
    assert sorted(without_times(one.records), key=str) == sorted(without_times(other.records), key=str)


def test_two_processes_of_accelerate_merge_as_one_does(table, tmp_path):
    pytest.importorskip("accelerate")
    one, recipe = run(table, tmp_path).records[-1], as_toml(table, tmp_path / "r.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--main_process_port", port, "-m", "fsmerge_lite", "merge", recipe, "--out", tmp_path / "two"]
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "records.json").read_text())[-1]
    assert two["curves"][0]["loss"] == pytest.approx(one["curves"][0]["loss"], rel=1e-4)
    a, b = (fsm.load_merged(tmp_path / name / "merged").state_dict() for name in ("out", "two"))
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in a)


def test_a_dry_run_writes_nothing(table, tmp_path, capsys):
    found = merging.merge(recipe_of(table, "small", tmp_path), dry_run=True)
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not found.records
    for words in ("original 1: one", "on its own task (chance", "unlabeled images", "numbers to train", "MB",
                  "a training step takes", "minutes"):
        assert words in said


VALID = st.fixed_dictionaries({}, optional={
    "method": st.sampled_from(["fitted", "paper"]),
    "baselines": st.lists(st.sampled_from(BASELINES[:9]), unique=True, max_size=3),
    "calibration": st.fixed_dictionaries({}, optional={
        "images": st.integers(1, 5), "augmented": st.integers(1, 2),
        "augmentation": st.sampled_from(["light", "paper"])}),
    "supernet": st.fixed_dictionaries({}, optional={
        "rank": st.integers(1, 24), "structure": st.sampled_from(STRUCTURES), "start": st.sampled_from(STARTS),
        "width": st.sampled_from([24, 36, 48]), "num_heads": st.integers(1, 4)}),
    "start": st.fixed_dictionaries({}, optional={
        "ridge": st.floats(1e-4, 1), "floor": st.floats(0, 1), "corrected": st.booleans(),
        "heads": st.lists(st.integers(1, 3), min_size=2, max_size=2)}),
    "training": st.fixed_dictionaries({}, optional={
        "how": st.sampled_from(["global", "local", "both", "none"]), "steps": st.integers(1, 9),
        "batch_size": st.integers(1, 9), "depths": st.lists(st.integers(0, 2), unique=True),
        "warmup": st.floats(0, 1), "anneal": st.sampled_from(["cos", "linear"])}),
})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=VALID)
def test_drawn_recipes_run_to_the_plan_or_say_why_not(drawn, table, tmp_path, capsys):
    path = as_toml({**table, **drawn}, tmp_path / "drawn.toml")
    code, said = main(["merge", path, "--dry-run"]), capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in said.err
    if code == 0:
        assert "a training step takes" in said.out
    else:
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) > 40


def test_what_cannot_work_is_said_before_anything_runs(table, tmp_path):
    table["supernet"] |= {"width": 24, "num_heads": 1}
    with pytest.raises(ValueError, match="2 originals meet 1 heads"):
        run(table, tmp_path)
    weights_of(tmp_path / "two.safetensors", 1, embed_dim=36, num_heads=3)
    table["originals"][1]["arguments"] = SMALL | {"embed_dim": 36, "num_heads": 3}
    table |= {"supernet": {"rank": 2}, "baselines": ["average"]}
    with pytest.raises(ValueError, match="original 2 has 3 heads.*baselines that need equal widths: average"):
        run(table, tmp_path)
    table["baselines"] = ["distillation"]
    with pytest.raises(ValueError, match="features are of different widths; leave out distillation"):
        run(table, tmp_path)
    assert not (tmp_path / "out" / "records.json").exists()
    table["baselines"] = []
    assert run(table, tmp_path).frame()["method"].tolist() == ["originals (k models)", "FS-Merge (fitted)"]


def test_a_model_of_another_run_is_not_replaced(table, tmp_path):
    run(table, tmp_path)
    before = (tmp_path / "out" / "merged.safetensors").read_bytes()
    table["training"]["steps"] = 4
    with pytest.raises(RecipeError, match="holds the model of another run"):
        run(table, tmp_path)
    assert (tmp_path / "out" / "merged.safetensors").read_bytes() == before
    run(table, tmp_path, overwrite=True)
    assert (tmp_path / "out" / "merged.safetensors").read_bytes() != before


def test_an_original_at_chance_stops_the_run(table, tmp_path):
    table["run"]["chance"] = "stop"
    with pytest.raises(RecipeError, match="original 1, one, has .* on its own task, and chance is 33 %"):
        run(table, tmp_path)
    assert not (tmp_path / "out" / "records.json").exists()


def test_the_command_line(table, tmp_path, capsys):
    stops = as_toml(table | {"run": {"device": "cpu"}}, tmp_path / "stops.toml")
    goes = as_toml(table, tmp_path / "goes.toml")
    out = str(tmp_path / "cli")
    assert main(["merge", stops, "--out", out]) == 2
    assert "chance = \"go\" in [run]" in capsys.readouterr().err
    assert main(["merge", goes, "--out", out, "--seed", "1", "--dry-run"]) == 0
    assert main(["merge", goes, "--out", out, "--seed", "1"]) == 0
    assert "written:" in capsys.readouterr().out
    assert main(["evaluate", f"{out}/merged.safetensors", goes]) == 0
    assert "joint" in capsys.readouterr().out
    assert main(["export", f"{out}/merged.safetensors", "--out", f"{out}/timm"]) == 0
    model = timm.create_model(f"local-dir:{out}/timm/two", pretrained=True).eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), fsm.load_merged(f"{out}/merged")(x)[1], rtol=1e-4, atol=1e-5)


def test_a_folder_that_cannot_be_written_to(table, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(OSError, match="out/records.json cannot be written .*; give another path"):
        run(table, tmp_path)


def test_a_disk_that_fills_up_in_a_run_loses_nothing(table, tmp_path, monkeypatch, capsys):
    assert main(["merge", as_toml(table, tmp_path / "r.toml")]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if data:
            raise OSError(28, "No space left on device")
        return write(path, data)
    monkeypatch.setattr(Path, "write_bytes", full)
    longer = as_toml(table | {"baselines": ["average", "slerp"]}, tmp_path / "r.toml")  # there is more to write
    capsys.readouterr()
    assert main(["merge", longer]) == 2
    said = capsys.readouterr().err
    assert "records.json cannot be written (No space left on device)" in said and said.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_card_says_where_a_model_comes_from(table, tmp_path):
    table["originals"][0] |= {"mean": [0.4] * 3, "std": [0.2] * 3}
    run(table, tmp_path)
    card = load_file(tmp_path / "out" / "merged", "fsmerge_lite.Merged")[1]
    assert card["tasks"] == ["one", "two"] and card["classes"] == 2 * [["blue", "green", "red"]]
    assert card["normalization"] == [[[0.4] * 3, [0.2] * 3], [[0.5] * 3, [0.5] * 3]]
    assert card["recipe"]["supernet"]["rank"] == 2 and len(card["hashes"]["originals"]) == 2


def test_ctrl_c_and_a_full_disk_are_one_line(monkeypatch, capsys, table, tmp_path):
    full = OSError(28, "No space left on device")
    for error, code, words in ((KeyboardInterrupt(), 130, "stopped"), (full, 2, "No space left")):
        def raising(*arguments, error=error, **options):
            raise error
        monkeypatch.setattr(commands, "merge", raising)
        assert main(["tour", "--out", str(tmp_path / "x")]) == code
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_was_here",)


@pytest.mark.parametrize(("broken", "words"), [
    ("missing", "there is no checkpoint"), ("cut", "cannot be read as weights"), ("pickle", "would run code"),
    ("head", "has no classifier"), ("shape", "do not fit the model: .* has shape"),
    ("list", "cannot be read as weights"),
    ("nan", "must be finite"), ("classes", "its head has 3 outputs, but its task one has 2 classes: blue, green"),
    ("no timm", "timm has no model 'vit_tny_patch16_224'; did you mean 'vit_tiny_patch16_224'"),
    ("argument", "does not take"), ("no folder", "nowhere"), ("variable", "an environment variable that is not set"),
])
def test_broken_originals_are_refused_by_number(broken, words, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, file = table["originals"][0], tmp_path / "one.safetensors"
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL).state_dict()
    if broken == "missing":
        file.unlink()
    elif broken == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif broken in ("pickle", "list"):
        first["checkpoint"] = "one.pt"
        torch.save({"model": Evil()} if broken == "pickle" else [1, 2], tmp_path / "one.pt")
    elif broken == "head":
        save_file({k: v for k, v in state.items() if not k.startswith("head")}, file)
    elif broken == "shape":
        weights_of(file, 0, embed_dim=48)
    elif broken == "nan":
        save_file({k: v * float("nan") for k, v in state.items()}, file)
    elif broken == "classes":
        folder_of(tmp_path / "fewer", ["green", "blue"])
        first["folder"] = "fewer"
    else:
        first |= {"no timm": {"timm": "vit_tny_patch16_224"}, "argument": {"arguments": {"nonsense": 1}},
                  "no folder": {"folder": "nowhere"}, "variable": {"folder": "$NO_SUCH_VARIABLE/x"}}[broken]
    with pytest.raises((RecipeError, ValueError), match=words) as refused:
        run(table, tmp_path)
    assert "original" in str(refused.value) and not (tmp_path / "evil_was_here").exists()
