"""The orientation benchmark: every library is measured where it is installed, wrong input is named."""

import json

import pytest

from benchmarks.scan import baselines as scan_baselines
from benchmarks.scan.baselines import main
from mimic_engine.scan.cpu import CpuKernels


@pytest.fixture
def arguments(tmp_path):
    return ["--out", str(tmp_path / "baselines.json"), "--n", "600", "--threads", "1", "--seconds", "0"]


@pytest.mark.skipif(not CpuKernels.available(), reason="the compiled kernels are not installed")
def test_every_library_has_a_row(arguments, tmp_path):
    pytest.importorskip("maxsim_cpu", reason="maxsim-cpu is not installed")
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "baselines.json").read_text())["rows"]
    assert [r["name"].split()[0] for r in rows] == ["mimic_engine"] * 2 + ["maxsim-cpu", "faiss", "faiss"]
    assert all(r["n"] == 600 and r["ms"] > 0 and r["top10_contained"] > 0.3 for r in rows)


def test_a_library_that_is_not_there_is_named(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(scan_baselines.sys.modules, "maxsim_cpu", None)
    monkeypatch.setattr(scan_baselines, "_ours", lambda args: [])
    assert main(arguments) == 2
    assert "pip install maxsim-cpu==0.1.0" in capsys.readouterr().err
    assert not (tmp_path / "baselines.json").exists()


def test_too_few_entities_are_refused(arguments, capsys):
    assert main([*arguments, "--n", "5"]) == 2
    assert "--n: at least 512" in capsys.readouterr().err
