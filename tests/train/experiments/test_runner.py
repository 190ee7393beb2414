"""Whole experiments on tiny data."""

from __future__ import annotations

import json

import pytest


def test_every_run_is_trained_tested_and_reported(runner, tmp_path):
    path = runner().run()
    assert path == tmp_path / "out" / "tiny-tiny.json"
    result = json.loads(path.read_text())
    assert [c["name"] for c in result["configurations"]] == ["full", "no-text"]
    print(json.dumps(result["configurations"][1]["runs"][0], indent=1))
    print((tmp_path / "out" / "tiny-tiny.md").read_text())
    for c in result["configurations"]:
        assert [r["seed"] for r in c["runs"]] == [0, 1]
        for run in c["runs"]:
            assert (
                run["status"] == "done" and run["dev"]["candidates"] == 18 and run["test"]["mentions"] == 12
            )
            assert [row["epoch"] for row in run["curve"]] == [1, 2]
            assert not (tmp_path / "out" / "runs" / c["name"] / str(run["seed"]) / "last.pt").exists()
    full, no_text = (c["summary"] for c in result["configurations"])
    assert full["difference"]["test"]["mrr"]["mean"] == 0
    assert no_text["difference"]["dev"]["mrr"]["mean"] == pytest.approx(
        no_text["dev"]["mrr"]["mean"] - full["dev"]["mrr"]["mean"]
    )
    assert (tmp_path / "out" / "tiny-tiny.png").read_bytes().startswith(b"\x89PNG")
