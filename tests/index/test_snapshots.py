"""Snapshots of an index: what is kept, shared, forgotten and never mixed up, and who may write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mimic_engine.errors import (
    IndexFormatError,
    IndexLockedError,
    IndexWriteError,
    InvalidInputError,
)
from mimic_engine.index import snapshots
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity
from tests.index.changes import delete, upsert
from tests.index.contents import content, file_hash, files, named, stored_bytes

pytestmark = pytest.mark.usefixtures("quick_disk")


def test_snapshots_are_kept_listed_opened_and_forgotten(tiny, built):
    index = built(11)
    contents = {1: content(index)}
    with IndexWriter(index, tiny.HashFold(), keep_snapshots=3) as writer:
        for generation in range(2, 7):
            writer.upsert([Entity("Q0", f"{generation}"), Entity(f"n{generation}", "x")])
            writer.delete([f"Q{7 * generation}"])
            contents[2 * generation - 1] = content(writer.index)
    path = index.path
    assert [m.generation for m in index.snapshots()] == [9, 10, 11]
    assert [m.count for m in index.snapshots()] == [11, 12, 11]
    assert files(path) == named(path)
    for generation in (9, 11):
        opened = Index.open(path, generation=generation)
        assert opened.manifest.generation == generation and content(opened) == contents[generation]
    with pytest.raises(IndexFormatError, match=r"snapshot 8 is not kept; there are \[9, 10, 11\]"):
        Index.open(path, generation=8)
    old = Index.open(path, generation=9)
    with IndexWriter(old) as writer:
        assert writer.index.manifest.generation == 11
        writer.forget(1)
        with pytest.raises(InvalidInputError, match="keep: 0"):
            writer.forget(0)
    assert [m.generation for m in old.snapshots()] == [11] and files(path) == named(path)
    assert content(old) == contents[9] and stored_bytes(old)
    newest = old.snapshot()
    assert newest.manifest.generation == 11 and content(newest) == contents[11]
    assert newest.snapshot() is newest


def test_a_snapshot_shares_what_has_not_changed(tiny, built, monkeypatch):
    index = built(11)
    upsert(index, [Entity("Q0", "x")], tiny.HashFold())
    read = []
    real = snapshots.read_snapshot
    monkeypatch.setattr(
        "mimic_engine.index.verify.sha256_of",
        lambda path: read.append(path.parent.name) or file_hash(path),
    )
    newest = index.snapshot()
    assert real(index.path).generation == 2 == newest.manifest.generation
    assert sorted(set(read)) == ["00003", "deleted"]
    assert (
        all(a is b for a, b in zip(index.segments, newest.segments[:3], strict=True))
        and newest.segments[3].rows == 1
    )


def test_two_writers(tiny, built):
    index = built(11)
    with IndexWriter(index, tiny.HashFold()) as first:
        with pytest.raises(IndexLockedError, match=r"kb: another writer is changing this index"):
            IndexWriter(index)
        with pytest.raises(IndexLockedError, match="another writer"):
            delete(index, ["Q0"])
        with pytest.raises(IndexLockedError, match="another writer"):
            build_index(tiny.HashFold(), tiny.knowledge_base(3), index.path, progress=False, overwrite=True)
        first.upsert([Entity("new", "x")])
    with pytest.raises(IndexWriteError, match="closed"):
        first.delete(["Q0"])
    with IndexWriter(index) as second:  # goes on from the newest snapshot, not from the one it was given
        assert second.delete(["new"]).generation == 3
    build_index(tiny.HashFold(), tiny.knowledge_base(3), index.path, progress=False, overwrite=True)
    assert len(index.snapshot()) == 3 and len(index) == 11


def test_an_index_that_is_replaced_is_never_taken_for_the_old_one(tiny, built):
    old = built(11, segment_rows=11)
    build_index(
        tiny.HashFold(),
        lambda: (replace(tiny.entity(row), name="other") for row in range(11)),
        old.path,
        segment_rows=11,
        progress=False,
        overwrite=True,
    )
    newest = old.snapshot()
    assert [s.name for s in newest.manifest.segments] == [s.name for s in old.manifest.segments]
    assert set(content(newest).values()) == {"other"} and "other" not in content(old).values()


def test_numbers_of_segments_are_never_used_twice(tiny, built):
    index, seen = built(5, segment_rows=5), {"00000"}
    with IndexWriter(index, tiny.HashFold(), keep_snapshots=1) as writer:
        for step in range(6):
            writer.upsert([Entity("Q0", f"{step}"), Entity("Q7", f"{step}")])
            [new] = {s.name for s in writer.index.manifest.segments} - seen
            seen.add(new)
            if step % 2:
                before = writer.index.manifest.segments
                writer.compact()
                [new] = {s.name for s in writer.index.manifest.segments} - {s.name for s in before}
                assert new not in seen
                seen.add(new)
    assert len(seen) == 10


def test_leftovers_are_removed_by_the_next_writer(built):
    index = built(5)
    path = index.path
    for stray in (
        "segments/00009/arrays.safetensors",
        "deleted/00000003.safetensors",
        "snapshots/00000001.json.0.tmp",
    ):
        (path / stray).parent.mkdir(exist_ok=True)
        (path / stray).write_bytes(b"cut off")
    (path / "manifest.json.tmp").write_bytes(b"{")
    (path / "notes.txt").write_text("mine")
    assert content(Index.open(path)) == content(index)
    IndexWriter(index).close()
    assert files(path) == named(path) | {"notes.txt"} and not (path / "segments" / "00009").exists()


def test_a_damaged_old_snapshot_is_no_obstacle(tiny, built, caplog):
    index = built(5)
    upsert(index, [Entity("a", "x")], tiny.HashFold())
    old = index.path / "snapshots" / "00000001.json"
    old.write_bytes(b"{")
    with pytest.raises(IndexFormatError, match=r"00000001\.json"):
        Index.open(index.path, generation=1)
    with IndexWriter(index, tiny.HashFold()) as writer:
        writer.delete(["a"])
        assert "00000001.json" in caplog.text
        writer.forget(1)
    assert files(index.path) == named(index.path) and len(index.snapshot()) == 5


def test_manifests_of_old_snapshots_are_what_they_were(tiny, built):
    index = built(5)
    raw = (index.path / "manifest.json").read_bytes()
    upsert(index, [Entity("a", "x")], tiny.HashFold())
    assert (index.path / "snapshots" / "00000001.json").read_bytes() == raw
    (index.path / "snapshots" / "00000001.json").rename(index.path / "snapshots" / "00000000.json")
    with pytest.raises(IndexFormatError, match=r"00000000\.json: holds generation 1"):
        Index.open(index.path, generation=0)
    assert json.loads((index.path / "manifest.json").read_bytes())["generation"] == 2
