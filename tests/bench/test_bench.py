"""Benchmarks: what is run and what is not, and numbers by hand."""
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

import fsmerge_lite as fsm
from fsmerge_lite.bench import palette, results, runner
from fsmerge_lite.bench.experiments import EXPERIMENTS, SMALL, Experiment
from fsmerge_lite.bench.methods import (
    Cell,
    Method,
    Outcome,
    cell_of,
    distillation,
    fs_merge,
    in_sequence,
    untrained,
    validation,
    without_images,
)
from fsmerge_lite.compare.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]


def record(method: str, mean: float, joint: float, tasks=("a", "b"), images: int = 16, seed: int = 0, **more) -> dict:
    return asdict(Cell(tasks, images, seed)) | {"method": method, "mean": mean, "joint": joint, "seconds": 2.0,
                                                "trained": 10, "training_steps": 5, "k": 2, "width": 8} | more


RECORDS = [record("FS-Merge", 90, 80), record("distillation", 84, 70), record("FS-Merge", 80, 70, seed=1),
           record("distillation", 82, 69, seed=1), record("FS-Merge", 95, 90, images=100)]


def test_summary_by_hand():
    found = results.summary(RECORDS)
    row = found.loc["FS-Merge", 16]
    assert row[["mean", "mean_std"]].tolist() == pytest.approx([85, 50 ** 0.5])  # 90 and 80: deviation sqrt(2 * 25)
    assert row["cells"] == 2 and found.loc["FS-Merge", 100][["joint", "joint_std"]].tolist() == pytest.approx(
        [90, float("nan")], nan_ok=True)  # one cell has no deviation
    assert list(found.index) == [("FS-Merge", 16), ("FS-Merge", 100), ("distillation", 16)]
    text = results.table(found)
    assert "| method | images 16: per task | joint | images 100: per task | joint | trained | s | cells |" in text
    assert "| FS-Merge | 85.0 ± 7.1 | 75.0 ± 7.1 | 95.0 | 90.0 | 10 | 2 | 3 |" in text
    assert "| distillation | 83.0 ± 1.4 | 69.5 ± 0.7 |  |  | 10 | 2 | 2 |" in text


def test_the_lead_of_a_method_is_taken_on_the_same_cells():
    lead = results.ahead(RECORDS, "FS-Merge", "distillation")
    assert lead.to_numpy().tolist() == [[6, 10], [-2, 1]]
    assert lead.groupby("images")["mean"].mean().to_dict() == {16: 2} and lead.index.unique("tasks") == ["a, b"]
    assert "| distillation | 16 | +2.0 ± 5.7 | +5.5 ± 6.4 | 1 and 2 of 2 |" in results.comparisons(
        RECORDS, "FS-Merge", ["distillation"])


def test_both_orders_of_a_pair_are_put_together():
    records = [record("m", 90, 0), record("m", 70, 0, tasks=("b", "a")), record("m", 80, 0, tasks=("b", "a"), seed=1),
               record("m", 10, 0, tasks=("a", "c"))]
    found = results.both_orders(records, ["m"])
    assert found.to_dict("index") == {("a, b", "m"): {"as written": 90, "reversed": 75}}
    assert results.both_orders(records[:1], ["m"]).empty


def test_forgetting_is_told_by_task_and_number_of_models():
    records = [record("m", 0, 0, k=k, per_task=scores) for k, scores in (
        (3, {"a": 70, "b": 60, "c": 50}), (2, {"a": 90, "b": 80}), (2, {"a": 80, "b": 81}))]
    found = results.by_task(records, ["m"])
    assert {row: found.loc[row].dropna().to_dict() for row in found.index} == {
        ("a", "m"): {2: 85, 3: 70}, ("b", "m"): {2: 80.5, 3: 60}, ("c", "m"): {3: 50}}
    text = results.markdown(found)
    assert text.startswith("| task | method | 2 | 3 |\n|---|---|---:|---:|\n")
    assert "| b | m | 80.5 | 60.0 |" in text and "| c | m |  | 50.0 |" in text


def test_costs_are_told_by_number():
    records = [record("m", 0, 0, k=3, seconds=seconds, trained=1200) for seconds in (2.0, 4.0)]
    text = results.costs(results.summary(records, "k"))
    assert text.splitlines()[0] == "| method | k 3: trained | steps | s |" and "| m | 1,200 | 5 | 3 |" in text


def test_names_with_a_number_are_one_method():
    records = [record("m @ 64", 1, 2, width=64), record("m @ 96", 3, 4, width=96)]
    assert results.summary(records, "width")["mean"].to_dict() == {("m", 64): 1, ("m", 96): 3}


def test_a_record_tells_its_cell():
    cell = Cell(("digits", "letters"), 16, 2, validate=True)
    assert cell_of(json.loads(json.dumps(asdict(cell) | {"method": "m"}))) == cell


@pytest.fixture
def few_tested(monkeypatch):
    """100 test inputs of each task are enough for a trial."""
    monkeypatch.setattr(runner, "evaluate", partial(evaluate, limit=100))


@pytest.fixture
def counted(monkeypatch, few_tested):
    """An experiment of two cells and two methods that notes what is run."""
    ran = []

    def run(name):
        def outcome(originals, images, cell, seconds):
            ran.append((cell.seed, name, sorted(seconds)))
            return Outcome(fsm.ensemble(originals), 7, 3)
        return outcome
    cells = [replace(SMALL, seed=seed) for seed in (0, 1)]
    made = Experiment(cells, {name: Method(run(name), {"name": name}) for name in ("one", "two")})
    monkeypatch.setitem(EXPERIMENTS, "counted", lambda small: made)
    return ran


def test_a_benchmark_runs_what_is_missing(counted, tmp_path):
    records = runner.run("counted", tmp_path)
    assert counted == [(0, "one", []), (0, "two", ["one"]), (1, "one", []), (1, "two", ["one"])]
    assert [(r["seed"], r["method"], r["trained"], r["training_steps"]) for r in records] == [
        (0, "one", 7, 3), (0, "two", 7, 3), (1, "one", 7, 3), (1, "two", 7, 3)]
    oracle = fsm.evaluate(fsm.ensemble(fsm.load_originals(*SMALL.tasks)), [fsm.task(name) for name in SMALL.tasks],
                          limit=100)
    assert all(r["mean"] == oracle.mean and r["joint"] == oracle.joint for r in records)
    assert runner.load_records(tmp_path / "counted.json") == json.loads(json.dumps(records))
    counted.clear()
    assert len(runner.run("counted", tmp_path)) == 4 and not counted
    (tmp_path / "counted.json").write_text(json.dumps(records[:3]))
    assert len(runner.run("counted", tmp_path)) == 4 and counted == [(1, "two", ["one"])]
    (tmp_path / "counted.json").write_text(json.dumps(records[1:]))
    again = runner.run("counted", tmp_path)  # what is filled in later stands where it belongs
    assert [(r["seed"], r["method"]) for r in again] == [(r["seed"], r["method"]) for r in records]


def test_a_record_tells_settings_versions_commit_and_device(counted, tmp_path):
    record = runner.run("counted", tmp_path, device="cpu")[0]
    assert record["settings"] == {"name": "one"} and record["device"] == "cpu" and record["commit"]
    assert record["versions"].keys() == {"fsmerge_lite", "torch", "timm"}
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_settings_are_all_arguments_of_a_method_as_json():
    settings = fs_merge(1e-3, depths=(1, 2), into=fsm.vit(dim=64, num_heads=2, depth=1), inner=3.0).settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["method"] == "fs_merge" and settings["depths"] == [1, 2] and settings["inner"] == 3.0
    assert settings["init"] == "subspaces" and settings["into"]["embed_dim"] == 64
    assert untrained(fsm.align).settings == {"method": "untrained", "baseline": "align"}


def test_settings_of_a_sequence_are_those_of_its_steps():
    assert in_sequence(fs_merge(rank=4)).settings == {"method": "in_sequence", "step": fs_merge(rank=4).settings}


def test_an_edited_method_runs_again(counted, tmp_path):
    before = runner.run("counted", tmp_path)
    counted.clear()
    methods = EXPERIMENTS["counted"](False).methods
    methods["two"] = Method(methods["two"].run, {"name": "two", "lr": 0.1})
    records = runner.run("counted", tmp_path)
    assert [name for _, name, _ in counted] == ["two", "two"]
    assert [(r["seed"], r["method"]) for r in records] == [(r["seed"], r["method"]) for r in before]
    assert [r["settings"] for r in records] == 2 * [{"name": "one"}, {"name": "two", "lr": 0.1}]


def test_records_without_settings_count_as_done(counted, tmp_path):
    records = json.loads(json.dumps(runner.run("counted", tmp_path)))
    for record in records:
        del record["settings"]
    (tmp_path / "counted.json").write_text(json.dumps(records))
    counted.clear()
    assert runner.run("counted", tmp_path) == records and not counted


def test_methods_leave_the_random_numbers_of_the_caller_alone(few_tested):
    before = torch.random.get_rng_state()
    assert len(list(runner.run_cell(SMALL, EXPERIMENTS["lowdata"](True).methods))) == 11
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_killed_benchmark_keeps_the_cells_it_has_finished(counted, tmp_path, monkeypatch):
    run_cell = runner.run_cell

    def killed(cell, *rest):
        if cell.seed == 1:
            raise KeyboardInterrupt
        return run_cell(cell, *rest)
    monkeypatch.setattr(runner, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        runner.run("counted", tmp_path)
    assert {r["seed"] for r in runner.load_records(tmp_path / "counted.json")} == {0}


@pytest.mark.parametrize("name", ["lowdata", "rivals", "many", "longer", "widths", "room", "heads", "sweep",
                                  "text", "text_sweep", "many_sweep"])
def test_every_experiment_runs_small_and_writes_it_up(name, tmp_path, few_tested):
    records = runner.run(name, tmp_path, jobs=2 if name == "sweep" else 1, small=True)
    methods = EXPERIMENTS[name](True).methods
    assert [r["method"] for r in records] == list(methods)
    assert all(0 <= r["joint"] <= 100 and r["seconds"] >= 0 for r in records)
    text = results.write_results(name, records, tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == text and f"bench {name}" in text
    figures = {"lowdata": ["images"], "many": ["forgetting", "k"], "longer": ["steps"],
               "widths": ["width"], "room": ["kept"], "text": ["bars"]}
    expected = [f"{name}-{figure}.png" for figure in figures.get(name, [])]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == expected


def test_the_ablation_runs_small(tmp_path, few_tested):
    records = runner.run("ablation", tmp_path, small=True)
    by_name = {r["method"]: r for r in records}
    trained = [by_name[f"fitted, {what}"]["trained"] for what in ("diagonal", "rank 4", "rank 32")]
    assert trained == sorted(trained) and len(set(trained)) == 3 and by_name["start"]["trained"] == 0
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
    method = distillation(as_long_as="other")
    assert method(originals, images, SMALL, {"distillation": 2.0, "other": 5.0}).steps == 8  # 3 * 5 / 2, rounded
    assert method(originals, images, SMALL, {"distillation": 2.0, "other": 1.0}).steps == 3  # never fewer
    assert distillation(times=3)(originals, images, SMALL, {}).steps == 9


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'speed'; there are lowdata"):
        runner.run("speed", tmp_path)
    with pytest.raises(ValueError, match="jobs must be a whole number >= 1, got 0"):
        runner.run("lowdata", tmp_path, jobs=0)
    for text in ("not json", '[{"method": "x"}]', "{}x"):
        (tmp_path / "lowdata.json").write_text(text)
        with pytest.raises(ValueError, match="does not hold benchmark records"):
            runner.run("lowdata", tmp_path, small=True)
    assert untrained(without_images(fsm.average))(*SMALL.load("cpu")[:2], SMALL, {}).trained == 0
    assert torch.is_tensor(SMALL.load("cpu")[1].images)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_records_are_whole_and_their_tables_say_what_they_say(name):
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    records, experiment = runner.load_records(file), EXPERIMENTS[name](False)
    assert [(cell_of(r), r["method"]) for r in records] == [
        (cell, method) for cell in experiment.cells for method in experiment.methods]
    by, _ = results.VARIED.get(name, ("images", ""))
    text = file.with_suffix(".md").read_text()
    assert results.table(results.summary(records, by)) in text
    if name in ("lowdata", "rivals", "text"):
        others = results.LENT if name == "rivals" else results.RIVALS
        assert results.comparisons(records, results.MAIN, others) in text
    if name in ("lowdata", "rivals", "heads", "text"):
        assert results.by_merge(records, ordered=name in ("heads", "text")) in text
    if name == "room":
        assert results.markdown(results.kept_of(records)) in text
    if name == "many":
        assert results.costs(results.summary(records, by)) in text


def short(found, method: str, images: int) -> list[str]:
    return [" / ".join(f"{found.loc[(method, images), column]:.1f}" for column in ("mean", "joint"))]


def long(found, method: str, images: int) -> list[str]:
    return [results.points(*found.loc[(method, images), [column, f"{column}_std"]]) for column in ("mean", "joint")]


@pytest.mark.parametrize("file, cells", [("README.md", short), ("benchmarks/README.md", long)])
def test_the_main_table_has_the_committed_numbers(file, cells):
    found = results.summary(runner.load_records(ROOT / "benchmarks" / "results" / "lowdata.json"))
    table = (ROOT / file).read_text().split("| originals (k models) |")[1]
    rows = [line.strip("| ").split(" | ") for line in ("| originals (k models) |" + table).splitlines()]
    rows = {method: values for method, *values in rows[:found.index.unique("method").size]}
    assert list(rows) == list(found.index.unique("method"))
    for method, values in rows.items():
        assert values == [cell for images in (16, 50, 100) for cell in cells(found, method, images)], method


def test_every_method_has_one_color_and_no_two_share_it():
    assert len(set(palette.METHODS.values())) == len(palette.METHODS) - 1  # "originals" is written in two ways
    for name in ("lowdata", "many", "room"):
        for method in EXPERIMENTS[name](False).methods:
            assert method.split(" @ ")[0] in palette.METHODS, method
    assert palette.style_of("FS-Merge (fitted) @ 96") == palette.style_of("FS-Merge (fitted) @ 192")
    assert palette.style_of("something else", 1)["color"] == palette.COLOURS[1]
