"""Result files: what they say of their making, and that they are written whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from importlib import metadata

import numpy as np
import pytest

from mimic_engine import provenance as record
from mimic_engine.errors import InvalidInputError
from mimic_engine.provenance import command, write_result


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    (folder / "benchmarks" / "results").mkdir(parents=True)
    git(folder, "init", "-q")
    monkeypatch.setattr(record, "REPOSITORY", folder.resolve())
    return folder


def test_file_holds_header_and_payload(tmp_path):
    path = write_result(tmp_path / "new" / "r.json", {"mrr": 0.5, "n": np.int64(3), "x": np.float32(0.25)})
    data = json.loads(path.read_text())
    assert tuple(data)[: len(record.HEADER)] == record.HEADER
    assert (data["mrr"], data["n"], data["x"]) == (0.5, 3, 0.25)
    assert data["command"].startswith("python ")
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["memory_bytes"] > 2**20
    assert data["versions"]["numpy"] == np.__version__
    assert data["versions"]["mimic_engine"] == metadata.version("mimic-engine")
    assert datetime.fromisoformat(data["date"]).utcoffset().total_seconds() == 0
    assert path.stat().st_mode & 0o777 == 0o644


def test_command_names_no_place_of_this_machine(monkeypatch):
    monkeypatch.setattr(
        "sys.orig_argv", ["/usr/bin/python3", "-m", "x", "--data", "/home/me/WikiMEL", "a/b.py"]
    )
    assert command() == "python -m x --data WikiMEL a/b.py"


def test_command_can_be_given(tmp_path):
    path = write_result(tmp_path / "r.json", {}, command_line="python -m benchmarks.scan --n 2000")
    assert json.loads(path.read_text())["command"] == "python -m benchmarks.scan --n 2000"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"commit": "x", "date": 1}, r"\['commit', 'date'\] belong to the header"),
        ({"a": float("nan")}, "r.json"),
        ({"a": [float("inf")]}, "r.json"),
        ({"a": object()}, "object is no JSON value"),
        ({"a": np.zeros(1)}, "ndarray is no JSON value"),
    ],
)
def test_bad_payload_leaves_the_old_file(tmp_path, payload, message):
    path = write_result(tmp_path / "r.json", {"a": 1})
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match=message):
        write_result(path, payload)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_no_temporary_file(tmp_path):
    target = tmp_path / "r.json"
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"r\.json"):
        write_result(target, {"a": 1})
    assert list(tmp_path.iterdir()) == [target]


def test_commit_and_changes(checkout):
    assert record.commit() == (None, False)
    source = checkout / "a.py"
    source.write_text("1")
    assert record.commit() == (None, True)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "x")
    head = git(checkout, "rev-parse", "HEAD")
    assert record.commit() == (head, False)
    (checkout / "benchmarks" / "results" / "r.json").write_text("{}")
    assert record.commit() == (head, False)
    source.write_text("2")
    assert record.commit() == (head, True)


def test_checkout_of_another_project_is_not_ours(checkout, monkeypatch):
    monkeypatch.setattr(record, "REPOSITORY", checkout / "benchmarks")
    assert record.commit() == (None, None)


def test_cpu_is_read_from_cpuinfo(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some CPU: X\nflags\t\t: fpu avx2 avx512f avx512_vnni_not\n\n"
    )
    assert record.machine(cpuinfo)["cpu"] == "Some CPU: X"
    assert record.machine(cpuinfo)["flags"] == ["avx2", "avx512f"]
    assert record.machine(tmp_path / "absent")["flags"] == []


def test_absent_package_has_no_version(monkeypatch):
    monkeypatch.setattr(record, "_PACKAGES", {"ghost": "mimic-engine-ghost"})
    assert record.versions() == {"python": ".".join(map(str, sys.version_info[:3])), "ghost": None}


def test_writing_a_result_imports_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from mimic_engine.provenance import write_result; "
        f"write_result(Path({str(tmp_path / 'r.json')!r}), {{'a': 1}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=record.REPOSITORY)
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["a"] == 1
    assert data["versions"]["torch"] == metadata.version("torch")
