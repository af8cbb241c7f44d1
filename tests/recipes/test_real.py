"""Real MNIST and CIFAR-10: from training the originals to exported timm checkpoints, all by commands."""
import os
from pathlib import Path

import pytest
import timm
import torch

import fsmerge_lite as fsm
from fsmerge_lite.recipes.commands import main

pytestmark = pytest.mark.skipif("FSMERGE_DATA" not in os.environ, reason="FSMERGE_DATA does not point to real data")
RECIPE = """baselines = ["average"]
[[originals]]
file = "mnist"
torchvision = "MNIST"
root = "$FSMERGE_DATA"
[[originals]]
file = "cifar10"
folder = "$FSMERGE_DATA/cifar10_small"
[calibration]
augmented = 1
[training]
steps = 20
[run]
device = "cpu"
test_images = 300
"""


def test_from_pictures_to_timm_checkpoints(tmp_path, capsys):
    data = os.environ["FSMERGE_DATA"]
    options = ["--steps", "150", "--device", "cpu", "--out"]
    assert main(["train-original", "--torchvision", "MNIST", "--root", data, *options, str(tmp_path / "mnist")]) == 0
    assert main(["train-original", "--folder", str(Path(data) / "cifar10_small"), "--seed", "1", *options,
                 str(tmp_path / "cifar10")]) == 0
    (tmp_path / "r.toml").write_text(RECIPE)
    out = str(tmp_path / "out")
    assert main(["merge", str(tmp_path / "r.toml"), "--out", out]) == 0
    assert main(["export", f"{out}/merged.safetensors", "--out", f"{out}/timm"]) == 0
    said = capsys.readouterr().out
    assert "cifar10_small: folders train and test" in said and "written:" in said
    model = timm.create_model(f"local-dir:{out}/timm/mnist", pretrained=True).eval()
    images, labels = fsm.torchvision_task("MNIST", data, test_size=300).test()
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(logits, fsm.load_merged(f"{out}/merged")(images)[0], rtol=1e-4, atol=1e-4)
    assert (logits.argmax(1) == labels).float().mean() > 0.3  # chance is 0.12
    assert model.pretrained_cfg["label_names"][3] == "3 - three"
