"""Recipes of texts: models trained on text files, merged, evaluated; and what does not go with texts."""
import json

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.recipes.commands import main
from fsmerge_lite.recipes.merging import merge
from fsmerge_lite.recipes.recipe import RecipeError, recipe_of
from fsmerge_lite.tasks.originals import DATA

ANIMALS, COLORS = ("cat", "dog"), ("red", "blue", "green")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two folders of text files, and a small model trained on each by the command line."""
    folder = tmp_path_factory.mktemp("texts")
    for name, labels in (("animals", ANIMALS), ("colors", COLORS)):
        for split in ("train", "test"):
            (folder / name / split).mkdir(parents=True)
            for label in labels:
                lines = [f"{label} {split} {i}" for i in range(20)]
                (folder / name / split / f"{label}.txt").write_text("\n".join(lines))
        assert main(["train-original", "--texts", str(folder / name), "--steps", "25", "--lr", "2e-3",
                     "--out", str(folder / f"{name}_model"), "--device", "cpu", "--batch-size", "32"]) == 0
    return folder


def table_of(folder, **more) -> dict:
    originals = [{"file": str(folder / f"{name}_model.safetensors"), "texts": str(folder / name)}
                 for name in ("animals", "colors")]
    return {"originals": originals, "calibration": {"images": 8, "augmented": 2}, "supernet": {"rank": 4},
            "training": {"steps": 8, "batch_size": 16}, "baselines": ["average", "regmean", "align"],
            "run": {"out": str(folder / "out"), "device": "cpu", "chance": "go"}} | more


def test_a_recipe_of_texts(folder, capsys):
    found = merge(recipe_of(table_of(folder), "texts"), progress=False)
    scores = {record["method"]: record["mean"] for record in found.records}
    assert scores["originals (k models)"] > 90 and scores["FS-Merge (fitted)"] > 60
    plan = capsys.readouterr().out
    assert "texts of 32 tokens" in plan and "mean (" not in plan  # texts are not normalized
    written = {file.name for file in (folder / "out").iterdir()}
    assert {"report.html", "table.md", "tasks.png", "merged.safetensors"} <= written
    assert json.loads((folder / "out" / "records.json").read_text())[-1]["fold_error"] < 1e-4
    merged = fsm.load_merged(folder / "out" / "merged")
    assert isinstance(merged.backbone, fsm.TextEncoder)
    again = merge(recipe_of(table_of(folder), "texts"), progress=False)
    assert again.records == found.records  # nothing runs again


def test_texts_that_do_not_fit(folder, tmp_path):
    digits = DATA / "digits.safetensors"

    def refused(match, *, entry=None, drop=False, **more):
        table = table_of(folder, **more)
        table["run"] = table["run"] | {"out": str(tmp_path / "out")}
        if drop:
            del table["originals"][0]["texts"]
        table["originals"][0] |= entry or {}
        with pytest.raises((RecipeError, ValueError, FileNotFoundError), match=match):
            merge(recipe_of(table, "texts"), progress=False)
        assert not (tmp_path / "out").exists()
    refused("needs one of task, folder, torchvision, texts; it has task and texts", entry={"task": "kind"})
    refused("originals 1: there are no text files in", entry={"texts": str(tmp_path)})
    refused("expected dog, cow", entry={"classes": ["dog", "cow"]})
    refused("originals 1: its model reads texts, so give texts, not folder", drop=True, entry={"folder": str(folder)})
    refused("originals 1: its model reads pictures, so give folder or torchvision, not texts", drop=True,
            entry={"file": str(digits), "texts": str(folder / "animals")})
    refused("augmentation must be 'light', 'paper' .of pictures.", calibration={"images": 4, "augmented": 1,
                                                                               "augmentation": "paper"})


def test_the_command_line_says_what_texts_do_not_have(folder, tmp_path, capsys):
    out = str(tmp_path / "x")
    assert main(["train-original", "--texts", str(folder / "animals"), "--timm", "vit_tiny_patch16_224",
                 "--out", out]) == 2
    assert "timm's vit_tiny_patch16_224 reads pictures; for texts leave --timm out" in capsys.readouterr().err
    assert main(["train-original", "--texts", str(tmp_path), "--out", out]) == 2
    assert "there are no text files in" in capsys.readouterr().err
    merged = fsm.average([fsm.load_original(folder / "animals_model")] * 2)
    merged.save(tmp_path / "merged")
    assert main(["export", str(tmp_path / "merged.safetensors"), "--out", str(tmp_path / "exported")]) == 2
    assert "error: " in capsys.readouterr().err and not (tmp_path / "exported").exists()


def test_a_model_of_texts_is_read_again_with_its_task():
    task = fsm.task("kind")
    torch.manual_seed(0)
    original = fsm.train_on(task, fsm.TextEncoder(258, 32, 16, 1, 2), steps=3, progress=False)
    assert original.task is task and len(original.card["classes"]) == 5
