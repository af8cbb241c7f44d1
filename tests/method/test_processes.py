"""Two processes of a launcher train what one process trains, and end together."""
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from models_for_tests import pictures, vits

import fsmerge_lite as fsm
from fsmerge_lite.engine import processes
from fsmerge_lite.engine.files import write_whole
from fsmerge_lite.engine.fitting import fit, hidden_bar
from fsmerge_lite.tasks.originals import classification

IMAGES = fsm.Calibration(pictures(12), torch.arange(12) % 2)
LONG = {"steps": 130, "batch_size": 3, "off_task": 0.2}


def fresh(start: str = "first", seed: int = 0) -> fsm.SuperNet:
    torch.manual_seed(seed)
    net = fsm.SuperNet(vits([8, 6]), rank=2, init="first" if start == "subspaces" else start)
    return fsm.fit_subspaces(net, IMAGES) if start == "subspaces" else net


def globally(start="first", **settings):
    net = fresh(start)
    history = fsm.train_global(net, IMAGES, **{"steps": 12, "batch_size": 3} | settings)
    return history.loss, list(net.parameters())


def locally():
    net = fresh()
    histories = fsm.train_local(net, IMAGES, steps=5, batch_size=5)
    return [loss for history in histories for loss in history.loss], list(net.parameters())


def distilled():
    torch.manual_seed(0)
    student = fsm.distill(vits([8, 8]), IMAGES, steps=12, batch_size=3)
    return student.history.loss, list(student.parameters())


def with_all_weights():
    merged = fsm.train_folded(fresh(), IMAGES, steps=12, batch_size=5, depths=(1,))
    return merged.history.loss, list(merged.parameters())


def classified():
    def draw(n, generator, split):
        return torch.randn(n, 3, 16, 16, generator=generator).double(), torch.arange(n) % 2
    torch.manual_seed(0)
    model = torch.nn.Sequential(*vits([8]), torch.nn.Linear(8, 4).double())
    loss = classification(model, [fsm.Task(name, ("a", "b"), draw, size=16) for name in "xy"], 6, seed=0)
    return fit(model.parameters(), loss, 5, 1e-3).loss, list(model.parameters())


TRAINING = {
    "three images a step": globally,  # process 1 has one: of one task
    "one image a step": lambda: globally(batch_size=1),  # process 1 has none
    "inner features, off-task": lambda: globally("subspaces", batch_size=5, depths=(0, 1), off_task=0.2),
    "local": locally, "distillation": distilled, "all weights": with_all_weights, "an original": classified,
}


def killed(checkpoint: Path):
    """A run that ends at step 115, its checkpoint being of step 100."""
    step, calls = torch.optim.AdamW.step, []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 115:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)
    with mock.patch.object(torch.optim.AdamW, "step", fail), pytest.raises(KeyboardInterrupt):
        globally(checkpoint=checkpoint, **LONG)


def message(function) -> str:
    with pytest.raises((ValueError, FloatingPointError)) as raised:
        function()
    return str(raised.value)


def gradients(index: int) -> list:
    """Of three parameters: one that both processes use, one that only process 1 uses, one that none uses."""
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss = (a.sum() * index + b.sum()) if index else (a * 4).sum()
    loss.backward()
    return [processes.average([a, b, c], loss).item(), a.grad, b.grad, c.grad]


def one_of_two(folder: Path) -> None:
    """What each of two processes does: train, and leave behind what it found."""
    assert processes.join(cpu=True) == torch.device("cpu")
    index = int(os.environ["RANK"])
    found = {name: train() for name, train in TRAINING.items()}
    killed(folder / "two")
    found["resumed"] = globally(checkpoint=folder / "one", **LONG)
    write_whole(folder / f"by{index}", b"")
    found["places"], found["main"], found["bar"] = processes.gather(index), processes.is_main(), hidden_bar(True)
    found["gradients"] = gradients(index)
    w = torch.ones(1, requires_grad=True)
    found["nan"] = message(lambda: fit([w], lambda step: w.sum() * (math.nan if step * index else 1.0), 3, 0.5))
    found["other seeds"] = message(lambda: fsm.train_global(fresh("random", seed=index), IMAGES, steps=1))
    globally(steps=2, checkpoint=folder / "short")
    own = folder / ("elsewhere" if index else "short")
    found["other steps"] = message(lambda: globally(steps=2, checkpoint=own))
    processes.leave()
    assert processes.is_main() and processes.gather(index) == [index]
    torch.save(found, folder / f"results{index}")


def one_that_fails() -> None:
    """Process 1 meets an error in its third step, while process 0 waits for its gradient."""
    processes.join(cpu=True)
    w = torch.ones(1, requires_grad=True)

    def loss(step):
        if step == 2 and not processes.is_main():
            raise OSError("no more images")
        return w.square().sum()
    fit([w], loss, 1000, 0.1)


def launched(*arguments) -> subprocess.CompletedProcess:
    """Accelerate's launcher runs this file in two processes, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parents[1]), str(here.parents[2])])
    return subprocess.run([*launcher, here, *arguments], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HOME": "/nowhere"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have been; before them one process left a checkpoint there."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("processes")
    killed(folder / "one")
    done = launched(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"results{index}") for index in range(2)]


def assert_same(one, two, tolerance: float = 1e-9):
    assert len(one[0]) == len(two[0]) and len(one[1]) == len(two[1])
    assert one[0] == pytest.approx(two[0], rel=tolerance, abs=0)
    for p, q in zip(one[1], two[1]):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TRAINING)
def test_two_processes_train_what_one_trains(name, found):
    alone = TRAINING[name]()
    assert_same(alone, found[0][name])
    assert_same(found[0][name], found[1][name], 0.0)


def test_a_run_resumes_in_another_number_of_processes(folder, found):
    whole = globally(**LONG)
    assert_same(whole, found[0]["resumed"])
    assert_same(whole, globally(checkpoint=folder / "two", **LONG))


def test_process_0_alone_writes_and_shows(folder, found):
    assert {path.name for path in folder.iterdir()} == {"one", "two", "short", "by0", "results0", "results1"}
    assert [f["main"] for f in found] == [True, False] and [f["bar"] for f in found] == [False, True]
    assert [f["places"] for f in found] == [[0, 1]] * 2


def test_missing_gradients_count_as_zero(found):
    for loss, a, b, c in (f["gradients"] for f in found):
        assert loss == 6.0 and a.tolist() == [2.5, 2.5] and b.tolist() == [0.5, 0.5]
        assert c is None  # as in one process, where AdamW passes over it: no weight decay


def test_what_stops_one_process_stops_both_with_the_same_message(found):
    for name, text in {
        "nan": "the loss is nan and its gradient of size nan at step 1; try a lower lr than 0.5",
        "other steps": r"begin at steps \(2, 0\), with gradients .*; give all the same files, checkpoints, seed",
        "other seeds": r"begin at steps \(0, 0\), with gradients \(0.0, .*; give all the same files, checkpoints, seed",
    }.items():
        first, second = (f[name] for f in found)
        assert first == second
        with pytest.raises(ValueError, match=text):
            raise ValueError(first)


def test_an_error_in_one_process_ends_both():
    pytest.importorskip("accelerate")
    done = launched()  # comes back at all
    assert done.returncode != 0 and "OSError: no more images" in done.stderr


@pytest.mark.parametrize("count, size", [(2, 5), (3, 7), (4, 2), (2, 1), (1, 3)])
def test_the_shares_give_the_mean_of_the_batch(count, size, monkeypatch):
    values, mean, seen = torch.randn(10).double(), 0.0, []
    rows = torch.randperm(10)[:size]
    for index in range(count):
        monkeypatch.setattr(processes, "_here", mock.Mock(index=index, count=count))
        own, weight = processes.share(rows)
        mean += weight * values[own].mean() / count
        seen += own.tolist() if weight else []
    torch.testing.assert_close(mean, values[rows].mean())
    assert sorted(seen) == sorted(rows.tolist())


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert processes.join() is None
    rows, loss = torch.arange(3), torch.ones(())
    assert processes.share(rows) == (rows, 1.0) and processes.average([], loss) is loss
    assert processes.is_main() and processes.gather("here") == ["here"]
    processes.leave()


def test_without_accelerate_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match=r"2 processes.*pip install 'fsmerge_lite\[devices\]'"):
        processes.join()


if __name__ == "__main__":
    if sys.argv[1:]:
        one_of_two(Path(sys.argv[1]))
    else:
        one_that_fails()
