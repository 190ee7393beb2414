"""Writing codes: neither a kill nor a new clustering loses anything, and readers go on."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mimic_engine.errors import IndexFormatError, IndexLockedError
from mimic_engine.index.codes import write as recode
from mimic_engine.index.codes.read import open_codes
from mimic_engine.index.codes.write import recode_index
from mimic_engine.index.snapshots import hold
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import IndexWriter


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_recode_swaps_the_codes_under_readers(tiny, tmp_path):
    out = tmp_path / "kb"
    before = tiny.coded_index(
        out, 60, segment_rows=25, measure=lambda index: {"coded": {}, "storage": {"a": 1}}
    )
    kept = [c.copy() for c in before.codes.segments]
    manifest = recode_index(out, 9, threads=1)
    after = Index.open(out)
    assert after.manifest == manifest and (manifest.codes.folder, manifest.codes.centroids) == ("00001", 9)
    assert manifest.generation == before.manifest.generation + 1
    assert manifest.agreement == {"storage": {"a": 1}}
    for own, arrays in zip(after.codes.segments, after.segments, strict=True):
        np.testing.assert_array_equal(own, after.codes.assign(arrays.tglu_query))
    late = open_codes(out, before.manifest, before.segments)  # a reader that is just opening the old ones
    for old, opened, expected in zip(before.codes.segments, late.segments, kept, strict=True):
        np.testing.assert_array_equal(old, expected)
        np.testing.assert_array_equal(opened, expected)
    recode_index(out, 3, threads=1)
    assert sorted(p.name for p in (out / "codes").iterdir()) == ["00000", "00001", "00002"]
    assert [m.codes.folder for m in before.snapshots()] == ["00000", "00001", "00002"]
    with IndexWriter(before) as writer:
        writer.forget(1)
    assert [p.name for p in (out / "codes").iterdir()] == ["00002"]
    np.testing.assert_array_equal(before.codes.segments[2], kept[2])
    assert Index.open(out).manifest.codes.folder == "00002" and verify_index(out).ok


def test_recode_gives_codes_to_an_index_without(tiny, tmp_path):
    tiny.coded_index(tmp_path / "kb", 8, centroids=0)
    measured = []
    manifest = recode_index(
        tmp_path / "kb",
        3,
        threads=1,
        measure=lambda i: measured.append(len(i.codes.centroids)) or {"coded": {"x": 1}},
    )
    assert measured == [3] and manifest.agreement == {"coded": {"x": 1}}
    assert Index.open(tmp_path / "kb").manifest == manifest and manifest.codes.folder == "00000"


def test_recode_of_an_index_that_another_writer_changes(tiny, tmp_path):
    tiny.coded_index(tmp_path / "kb", 8)
    with hold(tmp_path / "kb"), pytest.raises(IndexLockedError, match="another writer"):
        recode_index(tmp_path / "kb", 3)
    with pytest.raises(IndexFormatError, match="no such index folder"):
        recode_index(tmp_path / "nowhere", 3)


class Crash(BaseException):
    pass


class CrashPoint:
    """Stands in for fsync and rename in ``recode``: the k-th call (from 0) crashes instead."""

    def __init__(self, monkeypatch):
        self.left = 10**9
        real_write, real_rename, real_array = (
            recode.write_atomic,
            recode.Path.replace,
            recode.write_array_file,
        )
        real_publish = recode.publish
        monkeypatch.setattr(recode, "write_atomic", lambda *a: self.step() or real_write(*a))
        monkeypatch.setattr(recode, "write_array_file", lambda *a: self.step() or real_array(*a))
        monkeypatch.setattr(recode, "publish", lambda *a: self.step() or real_publish(*a) or self.step())
        monkeypatch.setattr(recode.Path, "replace", lambda *a: self.step() or real_rename(*a))

    def step(self):
        self.left -= 1
        if self.left == -1:
            raise Crash

    def crashes(self, at, call):
        self.left = at
        try:
            call()
        except Crash:
            return True
        finally:
            self.left = 10**9
        return False


def test_recode_crashed_anywhere_keeps_the_index_and_goes_on(tiny, tmp_path, monkeypatch):
    point, at, seen = CrashPoint(monkeypatch), 0, set()
    tiny.coded_index(tmp_path / "kb", 30, segment_rows=11)
    shutil.copytree(tmp_path / "kb", tmp_path / "whole")
    recode_index(tmp_path / "whole", 9, threads=1)
    while True:
        out = tmp_path / f"kb{at}"
        shutil.copytree(tmp_path / "kb", out)
        crashed = point.crashes(at, lambda out=out: recode_index(out, 9, threads=1))
        index = Index.open(out)
        seen.add((index.manifest.codes.folder, index.codes.centroids.shape[0]))
        if not crashed:
            break
        if index.manifest.codes.folder == "00000":
            recode_index(out, 9, threads=1)
            assert files_of(out / "codes") == files_of(tmp_path / "whole" / "codes")
        at += 1
    assert seen == {("00000", 6), ("00001", 9)} and at > 10


def test_a_killed_run_clusters_and_codes_nothing_twice(tiny, tmp_path, monkeypatch):
    clustered, coded = [], []
    real_cluster, real_add = recode.cluster_tokens, recode.add_segment_codes

    def add(index, record, centroids, segment, arrays):
        if segment == "00002" and "00002" not in coded:
            coded.append(segment)
            raise Crash
        coded.append(segment)
        return real_add(index, record, centroids, segment, arrays)

    monkeypatch.setattr(
        recode, "cluster_tokens", lambda *a, **k: clustered.append(1) or real_cluster(*a, **k)
    )
    monkeypatch.setattr(recode, "add_segment_codes", add)
    with pytest.raises(Crash):
        tiny.coded_index(tmp_path / "kb", 40, segment_rows=10)
    folded = []
    index = tiny.coded_index(tmp_path / "kb", 40, segment_rows=10, fold=tiny.MaskedFold(folded.append))
    assert not folded and len(clustered) == 1
    assert coded == ["00000", "00001", "00002", "00002", "00003"]
    assert len(index.codes.segments) == 4 and verify_index(tmp_path / "kb").ok


def test_a_build_killed_while_measuring_goes_on_there(tiny, tmp_path, monkeypatch):
    clustered, real = [], recode.cluster_tokens
    monkeypatch.setattr(recode, "cluster_tokens", lambda *a, **k: clustered.append(1) or real(*a, **k))

    def killed(index):
        raise Crash

    with pytest.raises(Crash):
        tiny.coded_index(tmp_path / "kb", 20, measure=killed)
    assert not (tmp_path / "kb").exists()
    index = tiny.coded_index(tmp_path / "kb", 20, measure=lambda index: {"coded": {"n": len(index)}})
    assert index.manifest.agreement == {"coded": {"n": 20}} and len(clustered) == 1
    assert [p.name for p in (tmp_path / "kb" / "codes" / "00000").glob("*.json")] == []


@pytest.mark.parametrize("damage", ["centroids", "request", "note", "codes"])
def test_an_unfinished_run_that_does_not_fit_is_started_anew(tiny, tmp_path, monkeypatch, damage):
    def killed(index):
        raise Crash

    with pytest.raises(Crash):
        tiny.coded_index(tmp_path / "kb", 20, segment_rows=7, measure=killed)
    folder = tmp_path / "kb.partial" / "codes" / "00000"
    if damage == "note":
        (folder / "progress.json").write_bytes(b"[]")
    elif damage != "request":
        file = folder / ("centroids.safetensors" if damage == "centroids" else "00001.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    wanted = 5 if damage == "request" else 6
    index = tiny.coded_index(tmp_path / "kb", 20, segment_rows=7, centroids=wanted)
    assert len(index.codes.centroids) == wanted
    tiny.coded_index(tmp_path / "whole", 20, segment_rows=7, centroids=wanted)
    assert files_of(tmp_path / "kb" / "codes") == files_of(tmp_path / "whole" / "codes")
