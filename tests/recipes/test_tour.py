"""The command line, the main job and its report."""
import base64
import re
import subprocess
import sys

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.bench.commands import main
from fsmerge_lite.bench.machine import pick_device
from fsmerge_lite.bench.tour import run_tour


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("tour"), []
    found = run_tour(out=out, device="cpu", steps=60, augmented=4, say=lines.append)
    return found, out, "\n".join(lines)


def test_the_table(toured):
    found, _, said = toured
    assert list(found.table) == ["originals (k models)", "average", "distillation", "FS-Merge (fitted), untrained",
                                 "FS-Merge (fitted)"]
    rows = {method: scores.mean for method, scores in found.table.items()}
    assert rows["originals (k models)"] > 95
    assert rows["average"] < 30
    assert rows["FS-Merge (fitted)"] > rows["average"] + 20
    assert str(found.table) in said and "folded and SuperNet: equal" in said
    assert "distillation 467,808 parameters, FS-Merge 589,056" in said  # as in the records of the benchmark
    assert found.fold_error < 1e-4


def test_what_is_written(toured):
    found, out, _ = toured
    files = {p.name for p in out.iterdir()}
    assert files == {"report.html", "merged.safetensors",
                     "tasks.png", "layer.png", "training.png", "accuracy.png"}
    x = found.merged.names and fsm.task("digits").test()[0][:8]
    for a, b in zip(fsm.load_merged(out / "merged")(x), found.merged(x)):
        torch.testing.assert_close(a, b)


def test_the_report_stands_alone(toured):
    found, out, _ = toured
    page = (out / "report.html").read_text()
    assert found.table._repr_html_() in page
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 4 and all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in images)
    assert "http" not in page and 'src="/' not in page


def test_command_line(capsys, tmp_path):
    assert main(["doctor"]) == 0 and "torch" in capsys.readouterr().out
    assert main(["tour", "--tasks", "digits", "digits", "--out", str(tmp_path / "x")]) == 2
    assert "error: each task once" in capsys.readouterr().err
    assert main(["tour", "--rank", "500", "--out", str(tmp_path / "x")]) == 2
    assert "between 1 and the width 96, got 500" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    for wrong in (["tour", "--tasks", "birds"], ["tour", "--steps", "many"], []):
        with pytest.raises(SystemExit):
            main(wrong)


def test_help_from_a_shell():
    done = subprocess.run([sys.executable, "-m", "fsmerge_lite", "tour", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--device" in done.stdout and not done.stderr


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="auto, cpu or cuda, got 'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")
