"""Changes of an index: what the next snapshot holds, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mimic_engine.errors import (
    DataError,
    IndexMismatchError,
    InvalidInputError,
    ModelError,
    UnknownEntityError,
)
from mimic_engine.index import plan
from mimic_engine.index.segment import quantise_rows
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import Change, IndexWriter
from mimic_engine.types import Entity, EntityArrays
from tests.index.changes import delete, upsert
from tests.index.contents import content, files, named, stored_bytes

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_upsert_adds_and_replaces_in_the_next_snapshot(tiny, built, dtype):
    old = built(11, dtype=dtype)
    before, rows = content(old), stored_bytes(old)
    fresh = [Entity("new", "a name", "text", (b"bytes", "path.png"), "type"), Entity("Q35", "other", "words")]
    index = upsert(old, fresh, tiny.HashFold())
    assert content(index) == before | {"new": "a name", "Q35": "other"}
    assert (len(index), index.row_count, index.manifest.generation) == (12, 13, 2)
    assert index.alive is not None and not index.alive.flags.writeable
    assert index.alive.shape == (13,) and np.flatnonzero(~index.alive).tolist() == [5]
    assert index.entity(int(index.rows(["new"])[0])).images[1] == "path.png"
    after = stored_bytes(index)
    assert {i: b for i, b in after.items() if i not in ("new", "Q35")} == {
        i: b for i, b in rows.items() if i != "Q35"
    }
    found = dict(index.segments[-1].items())
    for name, expected in tiny.folded(fresh).items():
        if name == "tglu_query" and dtype == "int8":
            values, scale = quantise_rows(expected)
            np.testing.assert_array_equal(found["tglu_query_scale"], scale)
            expected = values
        np.testing.assert_array_equal(found[name], expected.astype(found[name].dtype))
    assert verify_index(index.path).ok and content(Index.open(index.path)) == content(index)
    # who opened the old snapshot keeps it
    assert content(old) == before and stored_bytes(old) == rows and old.alive is None


def test_delete_leaves_the_rows_dead(tiny, built):
    old = built(11)
    index = delete(old, ["Q7", "Q0", "Q70", "Q7"])
    assert content(index) == {i: n for i, n in content(old).items() if i not in ("Q0", "Q7", "Q70")}
    assert (len(index), index.row_count) == (8, 11) and np.flatnonzero(~index.alive).tolist() == [0, 1, 10]
    with pytest.raises(UnknownEntityError, match=r"'Q70' is not in the index .*\(8 entities\)"):
        index.rows(["Q14", "Q70"])
    assert index.find(["Q70", "Q14", "Q1"]).tolist() == [-1, 2, -1]
    assert upsert(index, [Entity("Q70", "back")], tiny.HashFold()).names([11]) == ["back"]


def test_a_segment_without_live_rows_goes(built):
    index = delete(built(11, segment_rows=4), [f"Q{7 * row}" for row in range(4)])
    assert [s.name for s in index.manifest.segments] == ["00001", "00002"]
    assert (index.alive, index.row_count, index.manifest.deleted) == (None, 7, None)


def test_reports_say_what_changed(tiny, built):
    with IndexWriter(built(11), tiny.HashFold(), batch_size=2) as writer:
        five = [Entity(f"Q{i}", "x") for i in (0, 1, 7, 2, 3)]
        assert writer.upsert(five) == Change(2, added=3, replaced=2, deleted=0, entities=14)
        assert writer.delete(iter(["Q1", "Q2"])) == Change(3, 0, 0, 2, 12)
        assert writer.compact() == Change(4, 0, 0, 0, 12)
        assert writer.upsert([]) == writer.delete([]) == writer.compact() == Change(4, 0, 0, 0, 12)
        assert writer.index.manifest == Index.open(writer.index.path).manifest


def test_compaction_leaves_what_is_in_order(tiny, built):
    with IndexWriter(built(30, segment_rows=10), tiny.HashFold()) as writer:
        first = {s.name: s for s in writer.index.manifest.segments}
        writer.upsert([Entity("a", "x")])
        writer.upsert([Entity("b", "x"), Entity("c", "x")])
        writer.delete(["Q70"])  # row 10, of the second
        writer.compact(segment_rows=20)
        names = [(s.name, s.rows) for s in writer.index.manifest.segments]
        assert names == [("00000", 10), ("00005", 9), ("00002", 10), ("00004", 3)]
        assert writer.index.manifest.segments[0] == first["00000"]
        generation = writer.index.manifest.generation
        assert writer.compact(segment_rows=20).generation == generation
        assert writer.compact(segment_rows=1000).generation == generation + 1
        assert [s.rows for s in writer.index.manifest.segments] == [32]
        assert writer.compact(segment_rows=7).generation == generation + 1  # large ones need not be cut
        writer.delete(["a"])
        writer.compact(segment_rows=7)
        assert [s.rows for s in writer.index.manifest.segments] == [7, 6, 6, 6, 6]
        assert files(writer.index.path) == named(writer.index.path)


def test_entities_that_come_one_by_one_make_few_segments(tiny, built, monkeypatch):
    monkeypatch.setattr(plan, "MERGE_ROWS", 32)
    rewritten = 0
    with IndexWriter(built(70, segment_rows=70), tiny.HashFold()) as changes:
        for number in range(100):
            changes.upsert([Entity(f"n{number}", "x")])
            rewritten += changes.index.manifest.segments[-1].rows
        rows = [s.rows for s in changes.index.manifest.segments]
        assert rows == [70, 32, 32, 32, 4] and rewritten <= 100 * 6
        for number in range(100):
            changes.upsert([Entity(f"n{number}", "y")])
        assert len(changes.index) == 170 and len(changes.index.manifest.segments) < 14
        changes.upsert([Entity(f"m{number}", "z") for number in range(500)])
        assert changes.index.manifest.segments[0].rows == 70
        assert content(changes.index)["n3"] == "y"


@pytest.mark.parametrize(
    ("entities", "error", "message"),
    [
        (
            [Entity("a", "x"), Entity("b", "y"), Entity("a", "z")],
            DataError,
            "'a' occurs twice, in records 1 and 3",
        ),
        ([Entity("", "y")], DataError, "record 1: id is empty"),
        ([Entity("a", None)], DataError, r"record 1 \(id 'a'\): name is NoneType"),
        ([Entity("a", "\ud800")], DataError, "not valid Unicode"),
        ([Entity("a", "x", images=(3,))], DataError, "image is int"),
        ([Entity("a", "x"), Entity("nan", "x")], DataError, r"'nan'.*tglu_cls"),
        ([Entity("a", "x"), Entity("wide", "x")], ModelError, "cannot be stored"),
        ([Entity("a", "x"), Entity("boom", "x")], RuntimeError, "boom"),
    ],
)
def test_a_refused_upsert_changes_nothing(tiny, built, entities, error, message):
    class Spoiling(tiny.HashFold):
        def entities(self, batch):
            arrays = dict(super().entities(batch).items())
            if batch[0].id == "nan":
                arrays["tglu_cls"][0, 0] = np.nan
            elif batch[0].id == "wide":
                arrays["cmfu"] = np.concatenate([arrays["cmfu"]] * 2, axis=1)
            elif batch[0].id == "boom":
                raise RuntimeError("boom")
            return EntityArrays(**arrays)

    index = built(11)
    there = files(index.path)
    with IndexWriter(index, Spoiling(), batch_size=1) as writer:
        with pytest.raises(error, match=message):
            writer.upsert(entities)
        assert files(index.path) == there and writer.index.manifest == index.manifest
        assert writer.upsert([Entity("a", "x")]).generation == 2


def test_what_is_refused(tiny, built):
    index = built(3)
    for options in ({"keep_snapshots": 0}, {"batch_size": 0}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            IndexWriter(index, **options)
    other = tiny.HashFold()
    other.model_hash = "cd" * 32
    with pytest.raises(IndexMismatchError, match=r"abab.*cdcd"):
        IndexWriter(index, other)
    with IndexWriter(index) as writer:  # and the lock of the refused ones is free
        with pytest.raises(InvalidInputError, match="featurizer"):
            writer.upsert([Entity("a", "x")])
        with pytest.raises(UnknownEntityError, match="'Q1'"):
            writer.delete(["Q0", "Q1"])
        with pytest.raises(InvalidInputError, match=r"all 3 entities .* at least 1"):
            writer.delete(["Q0", "Q7", "Q14"])
        with pytest.raises(InvalidInputError, match="segment_rows: 0"):
            writer.compact(segment_rows=0)
        assert writer.index.manifest.generation == 1 and len(content(writer.index)) == 3


def test_iterating_twice_is_not_needed(tiny, built):
    index = upsert(built(5), (Entity(i, "x") for i in "abc"), tiny.HashFold())
    assert set(itertools.islice(content(index), 5, None)) == set("abc")
