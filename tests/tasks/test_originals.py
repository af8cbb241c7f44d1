"""The shipped models: as good as they say, whole, and made again by the same call."""
import json
from pathlib import Path

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.tasks import originals
from fsmerge_lite.tasks.embedded import EMBEDDED, KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_shipped_originals(name):
    original, = fsm.load_originals(name)
    assert original.name == name and original.task is fsm.task(name)
    assert not original.training and not any(p.requires_grad for p in original.parameters())
    accuracy = fsm.evaluate(original, [original.task]).mean
    assert accuracy >= (95 if name in EMBEDDED else 75)
    assert original.card["accuracy"] == pytest.approx(accuracy, abs=0.5)
    assert original.card["recipe"] == originals.recipe(name)
    assert (originals.DATA / f"{name}.safetensors").stat().st_size < 3e6


def test_originals_come_from_different_initializations():
    models = fsm.load_originals()
    assert [m.name for m in models] == list(EMBEDDED)
    rows = torch.stack([m.backbone.blocks[0].mlp.fc1.weight.flatten() for m in models])
    assert (torch.corrcoef(rows) - torch.eye(4)).abs().max() < 0.05


@pytest.fixture
def short_recipe(monkeypatch):
    recipe = originals.recipe()
    recipe["architecture"] |= {"dim": 16, "depth": 1, "num_heads": 2}
    recipe["pretrain"]["steps"], recipe["finetune"]["steps"] = 3, 40
    monkeypatch.setattr(originals, "recipe", lambda name: recipe)
    return recipe


def test_retraining(tmp_path, short_recipe):
    model, = fsm.load_originals("digits", retrain=True, folder=tmp_path)
    assert fsm.load_original(tmp_path / "digits").card["recipe"] == json.loads(json.dumps(short_recipe))
    again, = fsm.load_originals("digits", folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    twin = fsm.train_original(fsm.task("digits"), short_recipe)
    torch.testing.assert_close(twin.state_dict(), model.state_dict())  # the recipe is the whole of it


def test_an_original_of_texts_is_made_by_its_recipe(tmp_path, monkeypatch):
    recipe = originals.recipe("kind")
    recipe["architecture"] |= {"dim": 16, "depth": 1, "num_heads": 2}
    recipe["pretrain"]["steps"], recipe["finetune"]["steps"] = 3, 60
    classify = originals.classification
    edits = []

    def noted(model, tasks, batch_size, seed, chance):
        edits.append((chance, {m.p for name, m in model.named_modules()
                               if isinstance(m, torch.nn.Dropout) and not name.endswith("attn_drop")}))
        return classify(model, tasks, batch_size, seed, chance)
    monkeypatch.setattr(originals, "classification", noted)
    model = fsm.train_original(fsm.task("kind"), recipe, progress=False)
    assert edits == [(0.1, {0.1}), (0.2, {0.2})]  # of both phases, as the recipe says
    assert isinstance(model.backbone, fsm.TextEncoder) and model.head.out_features == 5
    assert model.card["accuracy"] > 35  # always naming the most frequent kind: 37
    model.save(tmp_path / "kind")
    assert fsm.load_original(tmp_path / "kind").task is fsm.task("kind")


def test_training_learns(short_recipe):
    short_recipe["finetune"]["steps"] = 250
    model = fsm.train_original(fsm.task("textures"), short_recipe)
    assert model.card["accuracy"] > 20  # chance is 10


def test_training_on_a_task_of_ones_own(short_recipe, tmp_path):
    short_recipe["mixture"] = ["textures"]
    short_recipe["finetune"]["steps"] = 2

    def draw(n, generator, split):
        return torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 2
    own = fsm.Task("noise", ("a", "b"), draw)
    one, two = (fsm.train_original(own, short_recipe, seed=s) for s in (1, 2))
    assert one.head.out_features == 2 and one.card["seed"] == 1
    assert not torch.allclose(one.backbone.cls_token, two.backbone.cls_token)
    with pytest.raises(ValueError, match=r"the model reads inputs \(3, 32, 32\) and the task needs classes; got"):
        fsm.train_original(fsm.Task("big", ("a",), draw, size=64), short_recipe)


def test_a_killed_training_resumes(short_recipe, tmp_path, monkeypatch):
    short_recipe["finetune"]["steps"] = 120  # checkpoints come every 100
    whole = fsm.train_original(fsm.task("textures"), short_recipe)
    honest, steps = originals.classification, []

    def killed(model, tasks, batch_size, seed, edits):
        loss = honest(model, tasks, batch_size, seed, edits)

        def step(number):
            steps.append(number)
            if len(tasks) == 1 and number == 110 and steps.count(110) == 1:
                raise KeyboardInterrupt
            return loss(number)
        return step
    monkeypatch.setattr(originals, "classification", killed)
    with pytest.raises(KeyboardInterrupt):
        fsm.train_original(fsm.task("textures"), short_recipe, checkpoint=tmp_path / "part")
    steps.clear()
    steps.append(110)
    resumed = fsm.train_original(fsm.task("textures"), short_recipe, checkpoint=tmp_path / "part")
    assert steps[1:] == list(range(100, 120))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())


def test_a_larger_original_remembers_its_pictures(short_recipe, tmp_path):
    short_recipe["architecture"]["img_size"], short_recipe["mixture"] = 64, ["shapes"]
    for phase in ("pretrain", "finetune"):
        short_recipe[phase]["batch_size"] = 8
    made = fsm.train_original(fsm.task("shapes", 64), short_recipe)
    made.save(tmp_path / "large")
    assert fsm.load_original(tmp_path / "large").task is fsm.task("shapes", 64)
    assert fsm.evaluate(fsm.load_original(tmp_path / "large"), [fsm.task("shapes", 64)]).mean > 0


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no embedded task 'birds'"):
        fsm.load_originals("birds")
    with pytest.raises(FileNotFoundError, match=r"digits\.safetensors is missing"):
        fsm.load_originals("digits", folder=tmp_path)


def test_the_data_card_names_every_file():
    text = (originals.DATA.parent / "README.md").read_text()
    for file in originals.DATA.iterdir():
        assert Path(file).name in text or Path(file).stem in text
