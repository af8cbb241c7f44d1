"""A SuperNet saved half-trained and restored: the same numbers, bit for bit, in every structure, after every start."""
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import mlps, pictures, vits
from safetensors import safe_open

import fsmerge_lite as fsm
from fsmerge_lite.matrices import STRUCTURES

STARTS = ["first", "average", "random", "subspaces"]


def images_of(x: torch.Tensor) -> fsm.Calibration:
    return fsm.Calibration(x, torch.arange(len(x)) % 2)


def half_trained(models, x, structure, start, into=None) -> fsm.SuperNet:
    net = fsm.SuperNet(models, 2, structure, "first" if start == "subspaces" else start, into, seed=5)
    if start == "subspaces":
        fsm.fit_subspaces(net, images_of(x))
    fsm.train_global(net, images_of(x), steps=3, batch_size=8)
    return net


def equal_nets(a: fsm.SuperNet, b: fsm.SuperNet, x: torch.Tensor) -> None:
    """The same features and state, and the same numbers after further training."""
    for unfolded in (False, True):
        assert all(torch.equal(p, q) for p, q in zip(a(x, unfolded=unfolded), b(x, unfolded=unfolded)))
    for depth in list(a.graph.readouts)[:2]:
        assert all(torch.equal(p, q) for p, q in zip(a.features(x, [depth])[depth], b.features(x, [depth])[depth]))
    histories = [fsm.train_global(copy.deepcopy(net), images_of(x), steps=2, batch_size=8, seed=1) for net in (a, b)]
    assert histories[0].loss == histories[1].loss
    assert a.provenance == b.provenance


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_vit_comes_back(structure, start, tmp_path):
    models, x = vits([8, 8], reg_tokens=1), pictures(12)
    net = half_trained(models, x, structure, start)
    net.save(tmp_path / "net")
    equal_nets(net, fsm.load_supernet(tmp_path / "net", models), x)


@pytest.mark.parametrize("start", STARTS)
def test_other_widths_and_an_mlp_come_back(start, tmp_path):
    models, x = vits([8, 6]), pictures(12)
    net = half_trained(models, x, "diagonal_low_rank", start, vits([12])[0])
    net.save(tmp_path / "net")
    equal_nets(net, fsm.load_supernet(tmp_path / "net", models), x)
    models, x = mlps([6, 6]), torch.randn(12, 12).double()
    net = half_trained(models, x, "diagonal_low_rank", start)
    net.save(tmp_path / "mlp")
    equal_nets(net, fsm.load_supernet(tmp_path / "mlp", models), x)


def test_a_fresh_net_cannot_take_over_a_fitted_one_silently():
    models, x = vits([8, 8]), pictures(12)
    fitted = half_trained(models, x, "full", "subspaces")
    with pytest.raises(RuntimeError, match="Unexpected key.*weight0"):
        fsm.SuperNet(models, 2, "full").load_state_dict(fitted.state_dict())


def test_another_process_gets_the_same_numbers(tmp_path):
    a, b = fsm.load_originals("digits", "letters")
    images = fsm.calibration([a, b], per_task=4, augmented=1)
    net = fsm.fit_subspaces(fsm.SuperNet([a, b], rank=4), images)
    fsm.train_global(net, images, steps=2, batch_size=8)
    net.save(tmp_path / "net")
    script = ("import fsmerge_lite as fsm, sys, torch\n"
              "a, b = fsm.load_originals('digits', 'letters')\n"
              "net = fsm.load_supernet(sys.argv[1], [a, b])\n"
              "x = fsm.task('letters').sample(4)[0]\n"
              "print(torch.cat(net(x), 1).double().sum().item().hex())")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "net"], capture_output=True, text=True, check=True,
                          cwd=Path(fsm.__file__).parents[1])
    here = torch.cat(net(fsm.task("letters").sample(4)[0]), 1).double().sum().item()
    assert float.fromhex(done.stdout.strip()) == pytest.approx(here, rel=1e-6)  # other threads add in another order


def test_the_card_tells_how_it_was_made(tmp_path):
    models, x = vits([8, 8]), pictures(12)
    net = half_trained(models, x, "diagonal", "subspaces")
    net.save(tmp_path / "net")
    with safe_open(tmp_path / "net.safetensors", "pt") as opened:
        card = json.loads(opened.metadata()["card"])
    assert [next(iter(step)) for step in card["provenance"]] == ["init", "trained"]
    assert card["provenance"][0]["init"] == "subspaces" and card["provenance"][1]["steps"] == 3


def test_other_originals_are_refused(tmp_path):
    a, b = vits([8, 8])
    fsm.SuperNet([a, b], 2).save(tmp_path / "net")
    for others in ([b, a], [a, a]):
        with pytest.raises(ValueError, match="a SuperNet of other originals, or of these in another order"):
            fsm.load_supernet(tmp_path / "net", others)
    fsm.SuperNet([a, b], 2).fold().save(tmp_path / "merged")
    with pytest.raises(ValueError, match="holds 'fsmerge_lite.Merged', expected 'fsmerge_lite.SuperNet'"):
        fsm.load_supernet(tmp_path / "merged", [a, b])
