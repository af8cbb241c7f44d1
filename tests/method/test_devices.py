"""Everything on a device that is not the CPU: no tensor is left behind, and the numbers are the CPU's."""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch.utils import backend_registration

if not hasattr(backend_registration, "_DummyBackendModule"):
    pytest.skip("this version of torch has no backends in Python", allow_module_level=True)
from models_for_tests import LENGTH, VOCABULARY, texts
from second_device import NAME, register

import fsmerge_lite as fsm
from fsmerge_lite.bench import methods
from fsmerge_lite.bench.methods import Cell
from fsmerge_lite.tasks import originals

HOW = {"steps": 3, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def run():
    """Runs a function of a device in a process of its own, where the second device is known."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=register) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def setting(device):
    torch.manual_seed(0)
    pair = [o.to(device) for o in fsm.load_originals("digits", "letters")]
    return pair, fsm.calibration(pair, per_task=8, augmented=1)


def answers(model, device):
    """The logits of all heads for some pictures, on the CPU."""
    x = fsm.task("letters").sample(8)[0].to(device)
    assert all(p.device.type == torch.device(device).type for p in model.parameters())
    with torch.no_grad():
        return torch.cat(model(x), 1).cpu().double()


def mixed(device):
    x = torch.ones(2, 2, device=device)
    try:
        x + torch.ones(2)
    except RuntimeError as error:
        return str(error)


def test_the_second_device_refuses_what_is_on_two(run):
    assert run(mixed, NAME) == "aten::add: tensors on the CPU and elsewhere"


def baseline(name, device):
    pair, images = setting(device)
    make = getattr(fsm, name)
    return answers(make(pair, images) if name in ("regmean", "align") else make(pair), device)


def distilled(precision, device):
    return answers(fsm.distill(*setting(device), precision=precision, **HOW), device)


def started(start, device):
    pair, images = setting(device)
    net = fsm.SuperNet(pair, rank=4, init="first" if start == "subspaces" else start)
    return (fsm.fit_subspaces(net, images) if start == "subspaces" else net), images


def untrained(start, device):
    return answers(started(start, device)[0].fold(), device)


def trained_globally(device):
    net, images = started("first", device)
    fsm.train_global(net, images, depths=(1, 2), off_task=0.2, **HOW)
    return answers(net.fold(), device)


def trained_locally(device):
    net, images = started("first", device)
    fsm.train_local(net, images, **HOW)
    return answers(net.fold(), device)


def recomputed(device):
    net, images = started("first", device)
    net.set_grad_checkpointing()
    fsm.train_global(net, images, **HOW)
    return answers(net.fold(), device)


def explicit(device):
    net, images = started("average", device)
    with torch.no_grad():
        return torch.cat(net(images.images.to(device), unfolded=True), 1).cpu().double()


def wider_and_in_sequence(device):
    (a, b), images = setting(device)
    wide = fsm.SuperNet([a, b], rank=4, into=fsm.vit(dim=128, num_heads=4)).fold()
    net = fsm.SuperNet([wide, b], rank=4)
    fsm.train_global(net, images, **HOW)
    return answers(net.fold(), device)


def of_texts(device):
    """The fitted start, training with inner features, RegMean and alignment, with padding in most texts."""
    torch.manual_seed(0)
    pair, images = [fsm.TextEncoder(VOCABULARY, LENGTH, 16, 2, 2).eval().to(device) for _ in range(2)], texts(32)
    images = fsm.Calibration(images, torch.arange(32) % 2)
    net = fsm.fit_subspaces(fsm.SuperNet(pair, rank=2), images)
    fsm.train_global(net, images, depths=(1,), off_task=0.2, **HOW)
    with torch.no_grad():
        made = [model.features(images.images.to(device))
                for model in (net.fold(), fsm.regmean(pair, images), fsm.align(pair, images))]
    return torch.cat([f for features in made for f in features]).cpu().double()


@pytest.mark.parametrize("what", [
    *(partial(baseline, name) for name in ("ensemble", "average", "slerp", "regmean", "align")),
    *(partial(distilled, precision) for precision in ("fp32", "bf16")),
    *(partial(untrained, start) for start in ("first", "average", "random", "subspaces")),
    trained_globally, trained_locally, recomputed, explicit, wider_and_in_sequence,
    of_texts],
    ids=lambda f: " ".join([f.func.__name__, *f.args]) if isinstance(f, partial) else f.__name__)
def test_the_same_numbers_as_on_the_cpu(run, what):
    there, here = (run(what, device) for device in (NAME, "cpu"))
    if "bf16" in getattr(what, "args", ()):  # elsewhere they are fp32's
        here = run(partial(distilled, "fp32"), NAME)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3 * here.abs().max().item())


def original(device):
    recipe = originals.recipe()
    recipe["architecture"] |= {"dim": 16, "depth": 1, "num_heads": 2}
    recipe["pretrain"]["steps"], recipe["finetune"]["steps"] = 3, 3
    made = fsm.train_original(fsm.task("digits"), recipe, progress=False, device=device)
    return {name: p.cpu() for name, p in made.state_dict().items()}


def test_originals_are_trained_there(run):
    torch.testing.assert_close(run(original, NAME), run(original, "cpu"), rtol=1e-3, atol=1e-4)


def scores(device):
    pair, images = setting(device)
    tasks = [o.task for o in pair]
    merged = methods.all_weights(1e-3, off_task=0.2, depths=(1,))(pair, images, Cell(("a", "b"), steps=2), {}).model
    along = fsm.path(fsm.alone(pair, 0), fsm.alone(pair, 1), tasks, 3, 20)
    return fsm.evaluate(merged, tasks, limit=100).joint, along.loss


def test_evaluation_and_paths(run):
    (there, path_there), (here, path_here) = (run(scores, device) for device in (NAME, "cpu"))
    assert there == pytest.approx(here, abs=1.5)
    assert path_there == pytest.approx(path_here, rel=1e-3)
