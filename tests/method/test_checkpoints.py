"""Training that resumes: to the same result, and only its own run."""
import copy

import pytest
import torch
from models_for_tests import pictures, vits

import fsmerge_lite as fsm

SETTINGS = {"steps": 4, "batch_size": 4, "seed": 0, "depths": (1,), "inner": 1.0, "off_task": 0.1, "lr": 1e-3}


def small_images(seed: int = 0) -> fsm.Calibration:
    x = pictures(12, dtype=torch.float32)
    return fsm.Calibration(x if seed == 0 else x.flip(0), torch.arange(12) % 2)


def net_of(models, start: str = "first", **options) -> fsm.SuperNet:
    net = fsm.SuperNet(models, **{"rank": 2} | options)
    return fsm.fit_subspaces(net, small_images()) if start == "subspaces" else net


@pytest.fixture
def models():
    return vits([8, 8], torch.float32)


CHANGES = {
    "seed": {"seed": 1}, "batch_size": {"batch_size": 8}, "off_task": {"off_task": 0.2}, "inner": {"inner": 0.5},
    "depths": {"depths": (0, 1)}, "no depths": {"depths": ()}, "precision": {"precision": "bf16"}, "lr": {"lr": 2e-3},
    "weight_decay": {"weight_decay": 0.1}, "warmup": {"warmup": 0.5}, "steps": {"steps": 5},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_of_other_settings_is_refused_by_name(change, models, tmp_path):
    file = tmp_path / "run"
    fsm.train_global(net_of(models), small_images(), checkpoint=file, **SETTINGS)
    with pytest.raises(ValueError, match=f"another run, which differs in {next(iter(change))}"):
        fsm.train_global(net_of(models), small_images(), checkpoint=file, **SETTINGS | change)


def test_other_images_are_refused(models, tmp_path):
    fsm.train_global(net_of(models), small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match="differs in images"):
        fsm.train_global(net_of(models), small_images(1), checkpoint=tmp_path / "run", **SETTINGS)


def test_other_originals_are_refused(models, tmp_path):
    fsm.train_global(net_of(models), small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    changed = copy.deepcopy(models)
    changed[1].blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    with pytest.raises(ValueError, match="differs in originals"):
        fsm.train_global(net_of(changed), small_images(), checkpoint=tmp_path / "run", **SETTINGS)


@pytest.mark.parametrize("other, match", [
    ({"start": "subspaces"}, "provenance"), ({"seed": 1}, "provenance"), ({"init": "average"}, "provenance"),
    ({"rank": 3}, "rank"), ({"structure": "diagonal"}, "structure"),
])
def test_another_start_is_refused(other, match, models, tmp_path):
    fsm.train_global(net_of(models), small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match=f"differs in .*{match}"):
        fsm.train_global(net_of(models, **other), small_images(), checkpoint=tmp_path / "run", **SETTINGS)


def test_a_start_changed_by_hand_is_refused(models, tmp_path):
    fsm.train_global(net_of(models), small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    net = net_of(models)
    net.body.blocks[0].mlp.fc1.merges[1].D.data += 0.01
    with pytest.raises(ValueError, match="differs in what it starts from"):
        fsm.train_global(net, small_images(), checkpoint=tmp_path / "run", **SETTINGS)


def test_a_run_resumes_from_a_start_that_differs_by_rounding_and_signs(models, tmp_path):
    """As eigenvectors do from machine to machine: the checkpoint brings the frozen weights along that it trained on."""
    def flipped(net: fsm.SuperNet) -> fsm.SuperNet:
        layer = net.body.blocks[0].attn.qkv
        layer.readout0[0] *= -1
        layer.weight0 *= 1 + 1e-6
        return net
    whole = net_of(models, "subspaces")
    fsm.train_global(whole, small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    resumed = flipped(net_of(models, "subspaces"))
    fsm.train_global(resumed, small_images(), checkpoint=tmp_path / "run", **SETTINGS)
    for (name, p), q in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(p, q), name


def test_distillation_has_checkpoints_of_its_own(models, tmp_path):
    def run(**change):
        settings = {"steps": 3, "batch_size": 4, "checkpoint": tmp_path / "run"}
        return fsm.distill(models, small_images(), **settings | change)
    first, again = run(), run()
    assert first.history.loss == again.history.loss
    for change in ({"seed": 1}, {"batch_size": 6}, {"init": "average"}):
        with pytest.raises(ValueError, match=f"differs in {next(iter(change))}"):
            run(**change)
    with pytest.raises(ValueError, match="another run"):
        fsm.train_global(net_of(models), small_images(), checkpoint=tmp_path / "run", **SETTINGS)


def test_local_training_continues_block_by_block(models, tmp_path):
    how = {"steps": 3, "batch_size": 4, "checkpoint": tmp_path / "run"}
    whole, again = net_of(models), net_of(models)
    histories = [fsm.train_local(net, small_images(), **how) for net in (whole, again)]
    assert [h.loss for h in histories[0]] == [h.loss for h in histories[1]]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))
    with pytest.raises(ValueError, match="differs in seed"):
        fsm.train_local(net_of(models), small_images(), seed=1, **how)


def test_what_is_no_checkpoint_is_refused(models, tmp_path):
    file = tmp_path / "run"
    for data in (b"", b"cut short", torch.serialization.MAGIC_NUMBER.to_bytes(16, "little")):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="no checkpoint that can be read"):
            fsm.train_global(net_of(models), small_images(), checkpoint=file, **SETTINGS)
    torch.save({"a": 1}, file)
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        fsm.train_global(net_of(models), small_images(), checkpoint=file, **SETTINGS)
