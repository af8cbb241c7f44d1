"""Benchmarks: what is run and what is not, and numbers by hand."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite import bench, experiments, results
from fsmerge_lite.experiments import EXPERIMENTS, SMALL, Cell, Experiment, Outcome, cell_of, untrained, validation

ROOT = Path(__file__).resolve().parent.parent


def record(method: str, mean: float, joint: float, tasks=("a", "b"), images: int = 16, seed: int = 0, **more) -> dict:
    return asdict(Cell(tasks, images, seed)) | {"method": method, "mean": mean, "joint": joint, "seconds": 2.0,
                                                "trained": 10, "training_steps": 5, "k": 2, "width": 8} | more


RECORDS = [record("FS-Merge", 90, 80), record("distillation", 84, 70), record("FS-Merge", 80, 70, seed=1),
           record("distillation", 82, 69, seed=1), record("FS-Merge", 95, 90, images=100)]


def test_summary_by_hand():
    found = results.summary(RECORDS)
    assert found["FS-Merge"][16]["mean"] == pytest.approx((85, 50 ** 0.5))  # 90 and 80: deviation sqrt(2 * 25)
    assert found["FS-Merge"][16]["cells"] == 2 and found["FS-Merge"][100]["joint"] == pytest.approx(
        (90, float("nan")), nan_ok=True)  # one cell has no deviation
    assert list(found) == ["FS-Merge", "distillation"] and list(found["distillation"]) == [16]
    text = results.table(found)
    assert "| FS-Merge | 85.0 ± 7.1 | 75.0 ± 7.1 | 95.0 | 90.0 | 10 | 2 | 3 |" in text
    assert "| distillation | 83.0 ± 1.4 | 69.5 ± 0.7 |  |  | 10 | 2 | 2 |" in text


def test_what_one_is_ahead_of_another_is_taken_on_the_same_cells():
    assert results.ahead(RECORDS, "FS-Merge", "distillation", "mean") == {16: [6, -2]}
    assert "| distillation | 16 | +2.0 ± 5.7 | +5.5 ± 6.4 | 1 and 2 of 2 |" in results.comparisons(
        RECORDS, "FS-Merge", ["distillation"])


def test_both_orders_of_a_pair_are_put_together():
    records = [record("m", 90, 0), record("m", 70, 0, tasks=("b", "a")), record("m", 80, 0, tasks=("b", "a"), seed=1),
               record("m", 10, 0, tasks=("a", "c"))]
    assert results.both_orders(records, ["m"]) == {"a, b": {"m": {"as written": 90, "reversed": 75}}}


def test_forgetting_is_told_by_task_and_number_of_models():
    records = [record("m", 0, 0, k=k, per_task=scores) for k, scores in (
        (3, {"a": 70, "b": 60, "c": 50}), (2, {"a": 90, "b": 80}), (2, {"a": 80, "b": 81}))]
    found = results.by_task(records, ["m"])
    assert found == {"a": {"m": {2: 85, 3: 70}}, "b": {"m": {2: 80.5, 3: 60}}, "c": {"m": {3: 50}}}
    assert "| b | m | 80.5 | 60.0 |" in results.forgetting(found)
    assert "| c | m |  | 50.0 |" in results.forgetting(found)


def test_costs_are_told_by_number():
    records = [record("m", 0, 0, k=3, seconds=seconds, trained=1200) for seconds in (2.0, 4.0)]
    text = results.costs(results.summary(records, "k"), "k")
    assert text.splitlines()[0] == "| method | k 3: trained | steps | s |" and "| m | 1,200 | 5 | 3 |" in text


def test_names_with_a_number_are_one_method():
    records = [record("m @ 64", 1, 2, width=64), record("m @ 96", 3, 4, width=96)]
    assert {w: row["mean"][0] for w, row in results.summary(records, "width")["m"].items()} == {64: 1, 96: 3}


def test_a_record_tells_its_cell():
    cell = Cell(("digits", "letters"), 16, 2, validate=True)
    assert cell_of(json.loads(json.dumps(asdict(cell) | {"method": "m"}))) == cell


@pytest.fixture
def counted(monkeypatch):
    """An experiment of two cells and two methods that notes what is run."""
    ran = []

    def method(name):
        def run(originals, images, cell, seconds):
            ran.append((cell.seed, name, sorted(seconds)))
            return Outcome(fsm.ensemble(originals), 7, 3)
        return run
    cells = [replace(SMALL, seed=seed) for seed in (0, 1)]
    made = Experiment(cells, {name: method(name) for name in ("one", "two")})
    monkeypatch.setitem(EXPERIMENTS, "counted", lambda small: made)
    return ran


def test_a_benchmark_runs_what_is_missing(counted, tmp_path):
    records = bench.run("counted", tmp_path)
    assert counted == [(0, "one", []), (0, "two", ["one"]), (1, "one", []), (1, "two", ["one"])]
    assert [(r["seed"], r["method"], r["trained"], r["training_steps"]) for r in records] == [
        (0, "one", 7, 3), (0, "two", 7, 3), (1, "one", 7, 3), (1, "two", 7, 3)]
    oracle = fsm.evaluate(fsm.ensemble(fsm.load_originals(*SMALL.tasks)), [fsm.task(name) for name in SMALL.tasks])
    assert all(r["mean"] == oracle.mean and r["joint"] == oracle.joint for r in records)
    assert bench.load_records(tmp_path / "counted.json") == json.loads(json.dumps(records))
    counted.clear()
    assert len(bench.run("counted", tmp_path)) == 4 and not counted
    (tmp_path / "counted.json").write_text(json.dumps(records[:3]))
    assert len(bench.run("counted", tmp_path)) == 4 and counted == [(1, "two", ["one"])]
    (tmp_path / "counted.json").write_text(json.dumps(records[1:]))
    again = bench.run("counted", tmp_path)  # what is filled in later stands where it belongs
    assert [(r["seed"], r["method"]) for r in again] == [(r["seed"], r["method"]) for r in records]


def test_a_killed_benchmark_keeps_the_cells_it_has_finished(counted, tmp_path, monkeypatch):
    run_cell = bench.run_cell

    def killed(cell, *rest):
        if cell.seed == 1:
            raise KeyboardInterrupt
        return run_cell(cell, *rest)
    monkeypatch.setattr(bench, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.run("counted", tmp_path)
    assert {r["seed"] for r in bench.load_records(tmp_path / "counted.json")} == {0}


@pytest.mark.parametrize("name", ["lowdata", "many", "longer", "widths", "sweep"])
def test_every_experiment_runs_small_and_writes_it_up(name, tmp_path):
    records = bench.run(name, tmp_path, jobs=2 if name == "sweep" else 1, small=True)
    methods = EXPERIMENTS[name](True).methods
    assert [r["method"] for r in records] == list(methods)
    assert all(0 <= r["joint"] <= 100 and r["seconds"] >= 0 for r in records)
    text = results.write_results(name, records, tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == text and f"bench {name}" in text
    figures = {"lowdata": ["images"], "many": ["forgetting", "k"], "longer": ["steps"],
               "widths": ["width"], "sweep": []}
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"{name}-{figure}.png" for figure in figures[name]]


def test_the_ablation_runs_small(tmp_path):
    records = bench.run("ablation", tmp_path, small=True)
    by_name = {r["method"]: r for r in records}
    assert by_name["FS-Merge, diagonal"]["trained"] < by_name["FS-Merge, rank 4"]["trained"] < by_name[
        "FS-Merge, rank 32"]["trained"]
    assert by_name["subspaces, untrained"]["trained"] == 0
    results.write_results("ablation", records, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["ablation-bars.png", "ablation-parameters.png"]


def test_settings_are_chosen_on_images_that_are_not_tested_on():
    for name in ("digits", "letters"):
        task = fsm.task(name)
        images, labels = validation(task).test()
        tested = {image.numpy().tobytes() for image in task.test()[0]}
        assert not any(image.numpy().tobytes() in tested for image in images)
        assert len(images) == len(labels) == 500 and labels.unique().numel() == 10


def test_distillation_may_take_as_long_as_another_method():
    originals, images, _ = SMALL.load("cpu")
    method = experiments.distillation(as_long_as="other")
    assert method(originals, images, SMALL, {"distillation": 2.0, "other": 5.0}).steps == 8  # 3 * 5 / 2, rounded
    assert method(originals, images, SMALL, {"distillation": 2.0, "other": 1.0}).steps == 3  # never fewer
    assert experiments.distillation(times=3)(originals, images, SMALL, {}).steps == 9


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'speed'; there are lowdata"):
        bench.run("speed", tmp_path)
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        bench.run("lowdata", tmp_path, jobs=0)
    for text in ("not json", '[{"method": "x"}]', "{}x"):
        (tmp_path / "lowdata.json").write_text(text)
        with pytest.raises(ValueError, match="holds no benchmark's records"):
            bench.run("lowdata", tmp_path, small=True)
    assert untrained(fsm.average)(*SMALL.load("cpu")[:2], SMALL, {}).trained == 0
    assert torch.is_tensor(SMALL.load("cpu")[1].images)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_records_are_whole_and_their_tables_say_what_they_say(name):
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    records, experiment = bench.load_records(file), EXPERIMENTS[name](False)
    assert [(cell_of(r), r["method"]) for r in records] == [
        (cell, method) for cell in experiment.cells for method in experiment.methods]
    by, _ = results.VARIED.get(name, ("images", ""))
    assert results.table(results.summary(records, by), by) in file.with_suffix(".md").read_text()


def test_the_readme_has_the_committed_numbers():
    found = results.summary(bench.load_records(ROOT / "benchmarks" / "results" / "lowdata.json"))
    rows = [line.split("|") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    checked = 0
    for _, method, *cells, _ in rows:
        if row := found.get(method.strip()):
            told = [results.points(row[images][column])
                    for images in (16, 100) for column in ("mean", "joint")]
            assert [cell.strip() for cell in cells] == told, method
            checked += 1
    assert checked >= 6
