"""benchmarks/bert.py: it runs, goes on where it stopped, and its table is that of the committed records."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bert():
    spec = importlib.util.spec_from_file_location("bert", ROOT / "benchmarks" / "bert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_that_of_the_records(bert):
    results = ROOT / "benchmarks" / "results"
    records = json.loads((results / "bert.json").read_text())
    assert bert.written(records) == (results / "bert.md").read_text()
    assert {r["method"] for r in records} == bert.METHODS.keys()
    for record in records:
        assert record["settings"] == bert.METHODS[record["method"]].settings


def test_it_runs_and_goes_on(bert, tmp_path, monkeypatch):
    every = bert.METHODS
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(bert, "CONFIG", bert.CONFIG | small)
    monkeypatch.setattr(bert, "original", lambda name, folder, make=bert.original: make(name, folder, steps=2))
    monkeypatch.setattr(sys, "argv", ["bert.py", "--texts", "4", "--models", str(tmp_path), "--out", str(tmp_path)])
    names = ("average", "FS-Merge (fitted), untrained")
    for methods in (names[:1], names):  # the second run has the first one's records
        monkeypatch.setattr(bert, "METHODS", {name: every[name] for name in methods})
        bert.main()
    records = json.loads((tmp_path / "bert.json").read_text())
    assert sorted(r["method"] for r in records) == sorted(2 * names)  # both orders, and none of them twice
    assert "| method | 4 texts a task |" in (tmp_path / "bert.md").read_text()
