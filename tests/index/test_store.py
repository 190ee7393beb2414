"""An index gives back what was put in: arrays, metadata, rows by id."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import mimic_engine
from mimic_engine.errors import (
    IndexFormatError,
    IndexMismatchError,
    InvalidInputError,
    UnknownEntityError,
)
from mimic_engine.index import entities as entities_module
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import write_manifest
from mimic_engine.index.schema import ALWAYS_FLOAT32
from mimic_engine.index.segment import quantise_rows
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.names.valid import name_fault
from mimic_engine.types import Entity


def built(tiny, tmp_path, count, **options):
    build_index(tiny.HashFold(), tiny.knowledge_base(count), tmp_path / "kb", progress=False, **options)
    return Index.open(tmp_path / "kb")


def as_stored(entity):
    images = tuple(
        "sha256:" + hashlib.sha256(i).hexdigest() if isinstance(i, bytes) else str(i) for i in entity.images
    )
    return replace(entity, images=images)


def as_stored_arrays(folded, dtype):
    vectors = np.float32 if dtype == "float32" else np.float16
    out = {n: a.astype(np.float32 if n in ALWAYS_FLOAT32 else vectors) for n, a in folded.items()}
    if dtype == "int8":
        out["tglu_query"], out["tglu_query_scale"] = quantise_rows(folded["tglu_query"])
    return out


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(
    ("count", "batch_size", "segment_rows"),
    [(1, 32, 65_536), (1, 1, 1), (2, 1, 1), (13, 5, 7), (31, 4, 31), (1500, 64, 1400), (64, 100, 64)],
)
def test_round_trip(tiny, tmp_path, dtype, count, batch_size, segment_rows):
    index = built(tiny, tmp_path, count, dtype=dtype, batch_size=batch_size, segment_rows=segment_rows)
    everything = [tiny.entity(row) for row in range(count)]
    assert len(index) == count == index.manifest.count and index.manifest.dtype == dtype
    assert len(index.segments) == -(-count // segment_rows) == len(index.manifest.segments)
    assert index.manifest.constants == tiny.CONSTANTS and index.manifest.generation == 1
    expected = as_stored_arrays(tiny.folded(everything), dtype)
    assert all(set(expected) == {name for name, _ in s.items()} for s in index.segments)
    for name, values in expected.items():
        parts = [dict(s.items())[name] for s in index.segments]
        assert all(p.dtype == values.dtype and not p.flags.writeable and p.flags.aligned for p in parts)
        np.testing.assert_array_equal(np.concatenate(parts), values)
    assert [index.entity(row) for row in range(count)] == [as_stored(e) for e in everything]
    assert index.rows([e.id for e in reversed(everything)]).tolist() == list(range(count))[::-1]


def test_arrays_are_maps_of_the_file(tiny, tmp_path):
    query = built(tiny, tmp_path, 9).segments[0].tglu_query
    base = query
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base.obj if isinstance(base, memoryview) else base).__name__ == "mmap"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_official_library_reads_the_files(tiny, tmp_path, dtype):
    index = built(tiny, tmp_path, 23, dtype=dtype, segment_rows=11)
    for record, arrays in zip(index.manifest.segments, index.segments, strict=True):
        folder = tmp_path / "kb" / "segments" / record.name
        loaded = load_file(folder / "arrays.safetensors")
        assert set(loaded) == {name for name, _ in arrays.items()}
        for name, value in arrays.items():
            np.testing.assert_array_equal(loaded[name], value)
        assert set(load_file(folder / "ids.safetensors")) == {"hash", "row"}


def test_rows_by_id(tiny, tmp_path):
    index = built(tiny, tmp_path, 23, segment_rows=11)
    ids = [tiny.entity(row).id for row in (22, 0, 11, 0)]
    rows = index.rows(ids)
    assert rows.dtype == np.int64 and rows.tolist() == [22, 0, 11, 0]
    assert index.ids(rows) == ids and index.names(rows) == [tiny.entity(r).name for r in rows.tolist()]
    assert index.rows([]).shape == (0,) and index.ids([]) == []
    for unknown in ("Q1", "", "\ud800"):
        with pytest.raises(UnknownEntityError, match=r"is not in the index .*\(23 entities\)"):
            index.rows([ids[0], unknown])


def test_select_by_ids_and_types(tiny, tmp_path):
    index = built(tiny, tmp_path, 23, segment_rows=11)
    odd = [row for row in range(23) if tiny.entity(row).type == "type"]
    assert index.select() is None
    assert index.select(types=["type"]).tolist() == odd
    assert index.select(types=["", "type", "type"]).tolist() == list(range(23))
    ids = [tiny.entity(row).id for row in (5, 4, 1)]
    assert index.select(ids).tolist() == [5, 4, 1]
    assert index.select(ids, ["type"]).tolist() == [5, 1]
    assert index.select([]).tolist() == []
    with pytest.raises(InvalidInputError, match="no entity of the index has type 'planet'"):
        index.select(types=["type", "planet"])
    with pytest.raises(InvalidInputError, match="types: none of the candidates"):
        index.select([tiny.entity(4).id], ["type"])
    with pytest.raises(InvalidInputError, match="is given twice"):
        index.select([ids[0], ids[0]])
    with pytest.raises(UnknownEntityError, match="'Q1'"):
        index.select(["Q1"], ["type"])


@pytest.mark.parametrize("row", [-1, 23, 2**40])
def test_row_outside_the_index(tiny, tmp_path, row):
    index = built(tiny, tmp_path, 23, segment_rows=11)
    for read in (index.entity, lambda r: index.ids([r]), lambda r: index.names([r])):
        with pytest.raises(IndexError, match=str(row)):
            read(row)


def test_colliding_id_hashes_are_told_apart(tiny, tmp_path, monkeypatch):
    real = entities_module.hash_ids
    few = lambda ids: real(ids) % np.uint64(3)  # noqa: E731
    monkeypatch.setattr("mimic_engine.index.segment.hash_ids", few)
    monkeypatch.setattr("mimic_engine.index.store.hash_ids", few)
    index = built(tiny, tmp_path, 40, segment_rows=17)
    assert index.rows([tiny.entity(row).id for row in range(40)]).tolist() == list(range(40))
    with pytest.raises(UnknownEntityError, match="'Q1'"):
        index.rows(["Q1"])


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
name = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12).filter(
    lambda t: name_fault(t, (), None) is None
)
popularity = st.none() | st.floats(0, allow_infinity=False)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Entity,
            text.filter(bool),
            name,
            text,
            st.lists(text, max_size=3).map(tuple),
            text,
            st.lists(name, max_size=3).map(tuple),
            popularity,
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda e: e.id,
    )
)
def test_any_text_survives(tiny, tmp_path, entities):
    build_index(
        tiny.HashFold(), lambda: entities, tmp_path / "kb", segment_rows=5, progress=False,
        overwrite=(tmp_path / "kb").exists(),
    )  # fmt: skip
    index = Index.open(tmp_path / "kb")
    assert [index.entity(row) for row in range(len(index))] == entities
    assert index.rows([e.id for e in entities]).tolist() == list(range(len(entities)))
    known = [math.nan if e.popularity is None else e.popularity for e in entities]
    np.testing.assert_array_equal(index.popularity, known)
    for row, entity in enumerate(entities):
        for form in (entity.name, *entity.aliases):
            features = index.name_lookup.features(form)
            assert features.exact[features.rows.tolist().index(row)] == 1


def test_model_mismatch_names_both_and_the_command(tiny, tmp_path):
    index = built(tiny, tmp_path, 3)
    index.check_model(tiny.HashFold.model_hash)
    with pytest.raises(IndexMismatchError, match=r"abab.*cdcd.*mimic-engine index build"):
        index.check_model("cd" * 32)


def test_verify_report(tiny, tmp_path):
    index = built(tiny, tmp_path, 23, segment_rows=11)
    report = index.verify()
    assert report.ok and len(report.files) == 12
    assert all(f.bytes == (tmp_path / "kb" / f.name).stat().st_size for f in report.files)
    damaged, gone, cut = (tmp_path / "kb" / report.files[i].name for i in (1, 4, 7))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    gone.unlink()
    cut.write_bytes(b"")
    report = verify_index(tmp_path / "kb")
    assert not report.ok
    assert [tmp_path / "kb" / f.name for f in report.problems] == [damaged, gone, cut]
    assert [f.problem.split()[0] for f in report.problems] == ["sha256", "file", "0"]


def test_reading_ten_names_takes_microseconds(tiny, tmp_path):
    index = built(tiny, tmp_path, 5000, batch_size=500, segment_rows=2100)
    rows = np.array([4999, 0, 2100, 2099, 17, 1024, 1023, 3000, 4444, 5])
    best = 1.0
    for _ in range(200):
        began = time.perf_counter()
        names = index.names(rows)
        best = min(best, time.perf_counter() - began)
    assert names[1] == tiny.entity(0).name
    assert best < 100e-6


def test_public_name():
    assert mimic_engine.Index is Index and mimic_engine.IndexWriter is IndexWriter


def test_empty_index_is_refused(tiny, tmp_path):
    index = built(tiny, tmp_path, 3)
    write_manifest(tmp_path / "kb", replace(index.manifest, count=0, segments=()))
    with pytest.raises(IndexFormatError, match="empty"):
        Index.open(tmp_path / "kb")
