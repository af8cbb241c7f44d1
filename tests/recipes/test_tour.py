"""The command line, the main job and its report."""
import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.bench.machine import pick_device
from fsmerge_lite.recipes import commands
from fsmerge_lite.recipes.commands import main
from fsmerge_lite.recipes.recipe import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ROWS = ["originals (k models)", "average", "distillation", "FS-Merge (fitted), untrained", "FS-Merge (fitted)"]


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    out = tmp_path_factory.mktemp("tour")
    arguments = ["tour", "--out", str(out), "--device", "cpu", "--steps", "60", "--augmented", "4"]
    done = subprocess.run([sys.executable, "-m", "fsmerge_lite", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {r["method"]: r for r in json.loads((out / "records.json").read_text())}, out, done.stdout


def test_the_table(toured):
    records, _, said = toured
    assert list(records) == ROWS
    assert records["originals (k models)"]["mean"] > 95 and records["average"]["mean"] < 30
    assert records["FS-Merge (fitted)"]["mean"] > records["average"]["mean"] + 20
    assert records["FS-Merge (fitted)"]["trained"] == 589_056 and records["distillation"]["trained"] == 467_808
    assert records["FS-Merge (fitted)"]["fold_error"] < 1e-4
    for method, record in records.items():
        row = next(line for line in said.splitlines() if line.startswith(f"{method}  "))
        assert row.split()[-5:-1] == [f"{n:.1f}" for n in (*record["per_task"].values(), record["mean"],
                                                          record["joint"])]


def test_what_is_written(toured):
    records, out, said = toured
    assert {p.name for p in out.iterdir()} == {"report.html", "table.md", "records.json", "merged.safetensors",
                                               "tasks.png", "layer.png", "training.png", "accuracy.png"}
    merged, tasks = fsm.load_merged(out / "merged"), [fsm.task("digits"), fsm.task("letters")]
    assert fsm.evaluate(merged, tasks).per_task == pytest.approx(records["FS-Merge (fitted)"]["per_task"])
    assert all(str(out / name) in said for name in ("report.html", "table.md", "records.json"))


def test_the_report_stands_alone(toured):
    records, out, _ = toured
    page = (out / "report.html").read_text()
    for method, record in records.items():
        row = re.search(rf"<th>{re.escape(method)}</th>\s+((<td>[\d.]+</td>\s+)+)", page).group(1)
        assert re.findall(r"[\d.]+", row)[2:4] == [f"{record['mean']:.1f}", f"{record['joint']:.1f}"]
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 4 and all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in images)
    assert "http" not in page and 'src="/' not in page


def test_command_line(capsys, tmp_path):
    assert main(["doctor"]) == 0 and "torch" in capsys.readouterr().out
    assert main(["tour", "--tasks", "digits", "digits", "--out", str(tmp_path / "x")]) == 2
    assert "error: originals 2 is the same as originals 1" in capsys.readouterr().err
    assert main(["tour", "--rank", "500", "--out", str(tmp_path / "x")]) == 2
    assert "rank must be a whole number from 1 to 96, got 500" in capsys.readouterr().err
    for wrong in (["tour", "--tasks", "birds"], ["tour", "--steps", "many"], []):
        with pytest.raises(SystemExit):
            main(wrong)


def test_the_tour_of_texts_has_the_settings_of_the_committed_recipe(monkeypatch):
    recipes = []
    monkeypatch.setattr(commands, "merge", lambda recipe, **_: recipes.append(recipe))
    monkeypatch.setattr(commands, "_finish", lambda results: None)
    assert main(["tour", "--tasks", "language", "kind"]) == 0 and main(["tour"]) == 0
    committed = [read_recipe(RECIPES / name) for name in ("texts.toml", "tour.toml")]
    assert [(r.start, r.training) for r in recipes] == [(r.start, r.training) for r in committed]
    assert recipes[0].start.off_task == recipes[0].training.off_task == 0 < recipes[1].training.off_task


def test_help(capsys):
    for command in ("tour", "merge", "export"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        said = capsys.readouterr()
        assert "--out" in said.out and not said.err


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="auto, cpu or cuda, got 'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")
