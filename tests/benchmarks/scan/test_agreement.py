"""The agreement benchmark: shares over every mention, several runs in one file, a wrong answer stops it."""

import json
import shutil

import pytest

from benchmarks.scan.agreement import main
from mimic_engine.index.codes.write import recode_index
from mimic_engine.scan.passes import Passes
from tests.scan.compiled import compiled


@pytest.fixture
def arguments(tiny_model, tiny_index, tiny_kb, tmp_path):
    shutil.copytree(tiny_index, tmp_path / "index")
    recode_index(tmp_path / "index", 9)
    data = tmp_path / "data"
    shutil.copytree(tiny_kb.parent, data)
    lines = [json.dumps({"mention": c, "sentence": f"{c} d e", "answer": "E01"}) + "\n" for c in "abcde"]
    (data / "test.jsonl").write_text("".join(lines), "utf-8")
    options = {"out": tmp_path / "agreement.json", "model": tiny_model, "index": tmp_path / "index"}
    options |= {"data": data, "scorer": "onnx", "threads": 1}
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]


def test_every_run_is_kept_under_its_name(arguments, tmp_path):
    assert main([*arguments, "--name", "all"]) == 0
    assert main([*arguments, "--name", "few", "--limit", "2"]) == 0
    runs = json.loads((tmp_path / "agreement.json").read_text())["runs"]
    assert {name: run["mentions"] for name, run in runs.items()} == {"all": 5, "few": 2}
    run = runs["all"]
    assert run["entities"] == 13
    assert 0 < run["certified"]["survivor_share"]["mean"] <= run["certified"]["survivor_share"]["max"] <= 1
    assert [row["r"] for row in run["coded"]] == [16, 32, 64, 128, 256]
    # 13 entities are all re-scored: the coded answer is the exact one.
    assert all(row["agreement_top1"] == row["whole_top10"] == 1 for row in run["coded"])
    assert run["header"]["command"]


@compiled
def test_a_certified_answer_that_is_not_the_exact_one_stops_the_run(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("benchmarks.scan.agreement.TOP_K", 1)
    monkeypatch.setattr("mimic_engine.scan.certified._FIRST_ROWS", 1)
    monkeypatch.setattr(Passes, "bounds", lambda passes, prepared: -passes.totals(prepared))
    assert main([*arguments, "--name", "wrong", "--scorer", "cpu"]) == 2
    assert "certified: [" in capsys.readouterr().err
    assert not (tmp_path / "agreement.json").exists()
