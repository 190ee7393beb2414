"""Changes of an index: what the next snapshot holds, what the old one keeps, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine.errors import (
    DataError,
    IndexFormatError,
    IndexLockedError,
    IndexMismatchError,
    IndexWriteError,
    InvalidInputError,
    ModelError,
    UnknownEntityError,
)
from mimic_engine.index import parts, snapshots
from mimic_engine.index.arrays import write_array_file
from mimic_engine.index.build import build_index
from mimic_engine.index.codes import token_queries
from mimic_engine.index.format import read_manifest, write_manifest
from mimic_engine.index.pictures import picture_path
from mimic_engine.index.quantise import quantise_rows
from mimic_engine.index.recode import recode_index
from mimic_engine.index.records import FileRecord
from mimic_engine.index.snapshots import list_snapshots
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import Change, IndexWriter
from mimic_engine.scoring.blocks import BlockKernels
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.scoring.scan import Scan
from mimic_engine.types import Entity, EntityArrays, MentionArrays


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing is flushed; what is flushed, and when, is tested in ``test_durability.py``."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def built(tiny, tmp_path):
    def build(count: int = 11, fold=None, **options) -> Index:
        fold, options = fold or tiny.HashFold(), {"segment_rows": 4} | options
        build_index(fold, tiny.knowledge_base(count), tmp_path / "kb", progress=False, **options)
        return Index.open(tmp_path / "kb")

    return build


def live(index: Index) -> np.ndarray:
    return np.arange(index.row_count) if index.alive is None else np.flatnonzero(index.alive)


def content(index: Index) -> dict[str, str]:
    """Name by id of every live entity, through both lookups."""
    ids = index.ids(live(index))
    assert len(set(ids)) == len(ids) == len(index)
    assert index.rows(ids).tolist() == live(index).tolist()
    return dict(zip(ids, index.names(live(index)), strict=True))


def stored_bytes(index: Index) -> dict[str, bytes]:
    """All folded bytes of every live entity, by id."""
    out = {}
    for number, arrays in enumerate(index.segments):
        start = index.segment_rows(number).start
        for row in range(arrays.rows):
            if index.alive is None or index.alive[start + row]:
                out[index.ids([start + row])[0]] = b"".join(a[row].tobytes() for _, a in arrays.items())
    return out


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def named(path: Path) -> set[str]:
    """Every file that the index should hold."""
    kept = list_snapshots(path)
    archived = {f"snapshots/{m.generation:08d}.json" for m in kept[:-1]}
    return {"manifest.json", *archived, *(name for m in kept for name, _ in m.files())}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_upsert_adds_and_replaces_in_the_next_snapshot(tiny, built, dtype):
    old = built(11, dtype=dtype)
    before, rows = content(old), stored_bytes(old)
    fresh = [Entity("new", "a name", "text", (b"bytes", "path.png"), "type"), Entity("Q35", "other", "words")]
    index = old.upsert(fresh, tiny.HashFold())
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
    index = old.delete(["Q7", "Q0", "Q70", "Q7"])
    assert content(index) == {i: n for i, n in content(old).items() if i not in ("Q0", "Q7", "Q70")}
    assert (len(index), index.row_count) == (8, 11) and np.flatnonzero(~index.alive).tolist() == [0, 1, 10]
    with pytest.raises(UnknownEntityError, match=r"'Q70' is not in the index .*\(8 entities\)"):
        index.rows(["Q14", "Q70"])
    assert index.find(["Q70", "Q14", "Q1"]).tolist() == [-1, 2, -1]
    assert index.upsert([Entity("Q70", "back")], tiny.HashFold()).names([11]) == ["back"]


def test_a_segment_without_live_rows_goes(built):
    index = built(11, segment_rows=4).delete([f"Q{7 * row}" for row in range(4)])
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


def answers(index: Index, constants, mentions: MentionArrays, k: int, mode="certified"):
    """Ids, scores and unit scores of the k best live entities."""
    kernels = BlockKernels(NumpyScorer(constants), constants)
    scan = Scan(index.segments, kernels, threads=1, tie_key=index.ids, codes=index.codes)
    found = scan.search(mentions, k, mode=mode, allowed=index.alive)
    scan.close()
    ids = [index.ids(rows) for rows in found.rows]
    return ids, found.scores.tobytes(), {n: u.tobytes() for n, u in found.units.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_compaction_gives_the_same_answers_to_the_bit(tiny, built, dtype):
    fold, mentions = tiny.WordFold(), tiny.random_mentions(5)
    with IndexWriter(built(301, fold, segment_rows=64, dtype=dtype, centroids=9, threads=1), fold) as writer:
        for step in range(9):
            writer.upsert(replace(tiny.entity(row), name=f"{step}") for row in range(step, 300, 17))
            writer.upsert([replace(tiny.entity(1), id=f"twin {step}")])
            writer.delete([f"Q{7 * row}" for row in range(step, 300, 31)])
        before = writer.index
        writer.compact(segment_rows=100)
        after = writer.index
    assert before.alive is not None and before.row_count > len(before)
    assert after.alive is None and after.row_count == len(after) == len(before)
    assert after.ids(live(after)) == before.ids(live(before))
    assert stored_bytes(after) == stored_bytes(before)
    for k, mode in itertools.product((1, 10, len(before)), ("exact", "certified", "coded")):
        was, now = (answers(index, fold.constants, mentions, k, mode) for index in (before, after))
        assert was == now, mode
    rows = [s.rows for s in after.manifest.segments]
    assert max(rows) <= 100 and len(rows) <= 5


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
    monkeypatch.setattr(parts, "MERGE_ROWS", 32)
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


def test_new_entities_can_be_linked_and_dead_ones_cannot(tiny, built):
    fold, mentions = tiny.WordFold(), tiny.random_mentions(3)
    index = built(40, fold)
    ids, *_ = answers(index, fold.constants, mentions, 5)
    best = ids[0][0]
    index = index.delete([best]).upsert([Entity("new", "x")], fold)
    again, *_ = answers(index, fold.constants, mentions, 40)
    assert all(best not in found and "new" in found for found in again)
    [row] = index.rows([ids[0][1]])
    index = index.upsert([replace(index.entity(row), name="b")], fold)
    third, *_ = answers(index, fold.constants, mentions, 40)
    assert sorted(third[0]) == sorted(again[0]) and third[0] != again[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_new_rows_are_coded_and_copied_rows_keep_their_codes(tiny, built, dtype):
    fold = tiny.MaskedFold()
    old = built(40, fold, segment_rows=40, centroids=6, threads=1, dtype=dtype)
    fresh = [replace(tiny.entity(row), id=f"n{row}", name="fresh") for row in range(50, 57)]
    with IndexWriter(old, fold) as writer:
        writer.upsert(fresh[:5])
        index = writer.index
        coded = index.codes.assign(queries(index, 1))
        np.testing.assert_array_equal(index.codes.segments[1], coded)
        assert index.codes.segments[1].dtype == np.uint8 and index.codes.segments[1].shape == (5, 5)
        np.testing.assert_array_equal(index.codes.segments[0], old.codes.segments[0])
        drift = old.codes.drift(queries(index, 1), index.segments[1].tglu_token_weight)
        record = index.manifest.codes
        assert record.coded_later == 5 and record.drift == pytest.approx(drift, rel=1e-5)
        # what is copied is not worked out again: wrong codes stay as they are
        spoil(index.path, "00001", coded)
        writer.upsert(fresh[5:])
        writer.upsert([replace(tiny.entity(row), name="again") for row in range(20, 26)])
        index = writer.index
        codes = by_id(index)
        for entity, own in zip(fresh[:5], coded, strict=True):
            np.testing.assert_array_equal(codes[entity.id], (own + 1) % 6)
        assert index.manifest.codes.coded_later == 13 and len(index.manifest.codes.files) == 1 + len(
            index.segments
        )
        writer.compact()
        after = by_id(writer.index)
    assert codes.keys() == after.keys() and all((codes[i] == after[i]).all() for i in codes)
    assert verify_index(index.path).ok and len(list((index.path / "codes" / "00000").iterdir())) == 2


def queries(index: Index, segment: int) -> np.ndarray:
    return token_queries(index.segments[segment], slice(None))


def spoil(path: Path, segment: str, codes: np.ndarray) -> None:
    """Put other codes in the place of a segment's, and sign them."""
    file = path / "codes" / "00000" / f"{segment}.safetensors"
    write_array_file(file, {"codes": (codes + 1) % 6})
    manifest = read_manifest(path)
    record = FileRecord(_sha256(file), file.stat().st_size)
    files = dict(manifest.codes.files) | {file.name: record}
    write_manifest(path, replace(manifest, codes=replace(manifest.codes, files=files)))


def by_id(index: Index) -> dict[str, np.ndarray]:
    codes = np.concatenate(index.codes.segments)
    return {i: codes[row] for i, row in zip(index.ids(live(index)), live(index).tolist(), strict=True)}


def test_a_changed_index_is_coded_anew(tiny, built):
    fold = tiny.MaskedFold()
    index = built(40, fold, segment_rows=9, centroids=6, threads=1).upsert([Entity("new", "x")], fold)
    index = index.delete(["Q0", "Q7"])
    recode_index(index.path, 9, threads=1)
    newest = index.snapshot()
    assert newest.manifest.codes.coded_later == 0 and newest.manifest.codes.drift == 1
    assert len(newest.codes.segments) == len(newest.segments) and content(newest) == content(index)
    assert Index.open(index.path, generation=3).codes.centroids.shape == (6, 8)
    assert newest.upsert([Entity("newer", "x")], fold).codes.segments[-1].max() < 9


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
    index.upsert([Entity("Q0", "x")], tiny.HashFold())
    read = []
    real = snapshots.read_snapshot
    monkeypatch.setattr(
        "mimic_engine.index.verify.sha256_file",
        lambda path: read.append(path.parent.name) or _sha256(path),
    )
    newest = index.snapshot()
    assert real(index.path).generation == 2 == newest.manifest.generation
    assert sorted(set(read)) == ["00003", "deleted"]
    assert (
        all(a is b for a, b in zip(index.segments, newest.segments[:3], strict=True))
        and newest.segments[3].rows == 1
    )


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_writers(tiny, built):
    index = built(11)
    with IndexWriter(index, tiny.HashFold()) as first:
        with pytest.raises(IndexLockedError, match=r"kb: another writer is changing this index"):
            IndexWriter(index)
        with pytest.raises(IndexLockedError, match="another writer"):
            index.delete(["Q0"])
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
    for stray in ("segments/00009/arrays.safetensors", "deleted/00000003.safetensors", "snapshots/x.tmp"):
        (path / stray).parent.mkdir(exist_ok=True)
        (path / stray).write_bytes(b"cut off")
    (path / "manifest.json.tmp").write_bytes(b"{")
    (path / "notes.txt").write_text("mine")
    assert content(Index.open(path)) == content(index)
    IndexWriter(index).close()
    assert files(path) == named(path) | {"notes.txt"} and not (path / "segments" / "00009").exists()


def test_a_damaged_old_snapshot_is_no_obstacle(tiny, built, caplog):
    index = built(5)
    index.upsert([Entity("a", "x")], tiny.HashFold())
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
    index.upsert([Entity("a", "x")], tiny.HashFold())
    assert (index.path / "snapshots" / "00000001.json").read_bytes() == raw
    (index.path / "snapshots" / "00000001.json").rename(index.path / "snapshots" / "00000000.json")
    with pytest.raises(IndexFormatError, match=r"00000000\.json: holds generation 1"):
        Index.open(index.path, generation=0)
    assert json.loads((index.path / "manifest.json").read_bytes())["generation"] == 2


def test_iterating_twice_is_not_needed(tiny, built):
    index = built(5).upsert((Entity(i, "x") for i in "abc"), tiny.HashFold())
    assert set(itertools.islice(content(index), 5, None)) == set("abc")


def test_pictures_given_as_bytes_are_kept_until_nobody_has_them(built, tiny):
    index = built()
    with IndexWriter(index, tiny.HashFold(), keep_pictures=True) as writer:
        writer.upsert(
            [Entity("new", "New", images=(b"one", b"two")), Entity("other", "Other", images=(b"one",))]
        )
        index = writer.index
        for name in ("new", "other"):
            path = index.picture(int(index.rows([name])[0]))
            assert path is not None and path.read_bytes() == b"one"
        writer.upsert([Entity("new", "New", images=(b"three",))])
        assert len(list((index.path / "pictures").iterdir())) == 2  # an older snapshot may still show "one"
        writer.compact()
        index = writer.index
        kept = {path.read_bytes() for path in (index.path / "pictures").iterdir()}
        assert kept == {b"one", b"three"}
        path = index.picture(int(index.rows(["new"])[0]))
        assert path is not None and path.read_bytes() == b"three"
    assert verify_index(index.path)


def test_pictures_are_kept_only_where_asked_and_named_files_stay_where_they_are(built, tiny):
    index = built()
    with IndexWriter(index, tiny.HashFold()) as writer:
        writer.upsert(
            [
                Entity("bytes", "B", images=(b"one",)),
                Entity("path", "P", images=("some/file.png",)),
                Entity("url", "U", images=("https://example.org/a.png",)),
                Entity("none", "N"),
            ]
        )
        index = writer.index
        paths = [index.picture(int(row)) for row in index.rows(["bytes", "path", "url", "none"])]
        assert paths == [None, Path("some/file.png"), None, None]
        assert not (index.path / "pictures").exists()


def test_no_name_of_a_picture_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "kb" / "pictures").mkdir(parents=True)
    assert picture_path(tmp_path / "kb", "sha256:../../secret") is None
    assert picture_path(tmp_path / "kb", "sha256:" + "0" * 64) is None
