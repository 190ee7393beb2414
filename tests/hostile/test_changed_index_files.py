"""Damaged and hostile files of a changed index: dead rows, int8 arrays, old manifests. None is believed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import sha256_of
from mimic_engine.index.arrays import read_array_file, write_array_file
from mimic_engine.index.build import build_index
from mimic_engine.index.snapshots import list_snapshots
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity, EntityArrays, FoldConstants
from tests.index.changes import delete

DELETED = "deleted/00000002.safetensors"
ARCHIVED = "snapshots/00000001.json"
ARRAYS = "segments/00000/arrays.safetensors"


class Fold:
    constants = FoldConstants(4, ("tglu", "cmfu"))
    model_hash = "ab" * 32

    def entities(self, batch):
        shapes = {"text_cls": (3,), "tglu_query": (2, 4), "tglu_cls": (4,), "tglu_bias": (), "cmfu": (4,)}
        rng = np.random.default_rng(len(batch))
        return EntityArrays(
            **{n: rng.normal(size=(len(batch), *s)).astype(np.float32) for n, s in shapes.items()}
        )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """Three segments, three dead rows in two of them, one older snapshot; token queries in int8."""
    out = tmp_path_factory.mktemp("index") / "kb"
    entities = [Entity(f"Q{row}", f"name {row}") for row in range(10)]
    build_index(Fold(), lambda: entities, out, segment_rows=4, dtype="int8", progress=False)
    delete(Index.open(out), ["Q1", "Q3", "Q6"])
    return out


@pytest.fixture
def index(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "kb"))


def refused(index: Path, name: str, *, verify: bool = True, generation: int | None = None) -> str:
    with pytest.raises(IndexFormatError) as caught:
        Index.open(index, verify=verify, generation=generation)
    assert name in str(caught.value)
    return str(caught.value)


def rewrite_manifest(index: Path, change: dict[str, Any]) -> None:
    """Change fields of the manifest and sign it again."""
    data = json.loads((index / "manifest.json").read_text()) | change
    data.pop("sha256")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (index / "manifest.json").write_text(json.dumps(data))


def sign_deleted(index: Path, rows: int | None = None) -> None:
    """Make the manifest agree with a changed file of dead rows: only the reader is left to object."""
    data, file = json.loads((index / "manifest.json").read_text()), index / DELETED
    record = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    dead = data["deleted"]["rows"] if rows is None else rows
    count = data["count"] + data["deleted"]["rows"] - dead
    rewrite_manifest(index, {"deleted": data["deleted"] | {"file": record, "rows": dead}, "count": count})


def test_the_index_is_what_the_tests_take_it_for(index):
    dead = {name: rows.tolist() for name, rows in read_array_file(index / DELETED).items()}
    assert dead == {"00000": [1, 3], "00001": [2]}
    assert len(Index.open(index)) == 7 and len(Index.open(index, generation=1)) == 10
    assert DELETED in {f.name for f in verify_index(index).files}
    assert read_array_file(index / ARRAYS)["tglu_query"].dtype == np.int8


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", [DELETED, ARCHIVED, ARRAYS])
def test_cut_short_anywhere(index, name, verify):
    generation = 1 if name == ARCHIVED else None
    data = (index / name).read_bytes()
    rng = random.Random(name)
    for length in {0, 1, 7, 8, 9, len(data) - 1, *(rng.randrange(len(data)) for _ in range(12))}:
        (index / name).write_bytes(data[:length])
        refused(index, name, verify=verify, generation=generation)
    (index / name).write_bytes(data + b"\0")
    refused(index, name, verify=verify, generation=generation)


@pytest.mark.parametrize("name", [DELETED, ARRAYS])
def test_one_bit_flipped_anywhere(index, name):
    data = bytearray((index / name).read_bytes())
    rng = random.Random(name)
    for at in [0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        (index / name).write_bytes(data)
        assert "sha256" in refused(index, name)
        data[at] ^= bit


def test_flipped_dead_rows_with_matching_checksum_never_crash(index):
    """The reader alone: each flip is refused, or kills other rows, and never one that is not there."""
    data = bytearray((index / DELETED).read_bytes())
    refusals = 0
    for at in range(len(data)):
        data[at] ^= 1 << (at % 8)
        (index / DELETED).write_bytes(data)
        sign_deleted(index)
        try:
            opened = Index.open(index)
        except IndexFormatError as error:
            assert DELETED in str(error)
            refusals += 1
        else:
            assert opened.alive is not None and opened.alive.sum() == len(opened) == 7
        data[at] ^= 1 << (at % 8)
    assert refusals > len(data) // 2


def rows(*numbers: int, dtype: str = "<u4") -> np.ndarray:
    return np.array(numbers, dtype)


@pytest.mark.parametrize(
    ("dead", "count", "fault"),
    [
        ({"00000": rows(1, 3), "00001": rows(4)}, 3, "not rising row numbers under 4"),
        ({"00000": rows(3, 1), "00001": rows(2)}, 3, "not rising"),
        ({"00000": rows(1, 1), "00001": rows(2)}, 3, "not rising"),
        ({"00000": rows(1, 2**32 - 1), "00001": rows(2)}, 3, "not rising"),
        ({"00000": rows(1, 3), "00009": rows(2)}, 3, "'00009' is not one of"),
        ({"../00000": rows(1, 3)}, 2, "is not one of"),
        ({"00000": rows(1, 3)}, 3, "2 rows, the manifest says 3"),
        ({"00000": rows(1, 3), "00001": rows(2)}, 2, "3 rows, the manifest says 2"),
        ({"00000": rows(1, 3, dtype="<u8"), "00001": rows(2)}, 3, "uint64, expected rows"),
        ({"00000": rows(1, 3).reshape(1, 2), "00001": rows(2)}, 3, r"\(1, 2\).*expected rows"),
        ({"00000": rows(), "00001": rows(1, 2, 3)}, 3, "expected rows"),
        ({}, 3, "0 rows, the manifest says 3"),
    ],
)
def test_hostile_dead_rows(index, dead, count, fault):
    write_array_file(index / DELETED, dead)
    sign_deleted(index, count)
    with pytest.raises(IndexFormatError, match=r"00000002\.safetensors: .*" + fault):
        Index.open(index)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"deleted": None}, "count 7 is not the sum .* without 0 deleted"),
        ({"deleted": []}, "deleted: Expected `object"),
        ({"count": 8}, "count 8 is not the sum"),
        ({"next_segment": 2}, "next_segment 2 is not above"),
        ({"next_segment": -1}, "next_segment -1"),
        ({"next_segment": None}, "next_segment None"),
        ({"generation": "2"}, "generation '2'"),
        ({"dtype": "float16"}, "tglu_query: dtype int8, expected float16"),
        ({"dtype": "float32"}, "expected float32"),
    ],
)
def test_manifest_fields(index, change, fault):
    rewrite_manifest(index, change)
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "../../../etc/passwd"}, "not NUMBER.safetensors"),
        ({"name": "2.safetensors"}, "not NUMBER.safetensors"),
        ({"name": 2}, "name 2"),
        ({"name": "00000007.safetensors"}, "00000007.safetensors: damaged: file is missing"),
        ({"rows": 0}, "with 0 rows"),
        ({"rows": True}, "rows True"),
        ({"rows": 4}, "count 7 is not the sum"),
        ({"file": {}}, "deleted.file: .*missing required field `sha256`"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_manifest_record_of_the_dead_rows(index, change, fault):
    record = json.loads((index / "manifest.json").read_text())["deleted"]
    rewrite_manifest(index, {"deleted": record | change})
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index, verify=False)


@pytest.mark.parametrize("without", ["tglu_query_scale", "tglu_query", "cmfu"])
def test_int8_arrays_without_their_scales_or_others(index, without):
    arrays = {n: a.copy() for n, a in read_array_file(index / ARRAYS).items() if n != without}
    write_array_file(index / ARRAYS, arrays)
    assert "tglu_query" in sign_arrays(index) or without == "cmfu"


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("tglu_query_scale", lambda a: a[:, :1].copy(), "tglu_query_scale"),
        ("tglu_query_scale", lambda a: a.astype(np.float16), "dtype float16, expected float32"),
        ("tglu_query", lambda a: a.astype(np.float16), "dtype float16, expected int8"),
        ("cmfu", lambda a: a.astype(np.int8), "dtype int8, expected float16"),
    ],
)
def test_int8_arrays_of_other_shapes_and_types(index, name, change, fault):
    arrays = {n: a.copy() for n, a in read_array_file(index / ARRAYS).items()}
    write_array_file(index / ARRAYS, arrays | {name: change(arrays[name])})
    assert fault in sign_arrays(index)


def sign_arrays(index: Path) -> str:
    """Make the manifest agree with changed arrays; returns what the opening says."""
    segments = json.loads((index / "manifest.json").read_text())["segments"]
    file = index / ARRAYS
    segments[0]["files"]["arrays.safetensors"] = {
        "sha256": sha256_of(file),
        "bytes": file.stat().st_size,
    }
    rewrite_manifest(index, {"segments": segments})
    return refused(index, ARRAYS)


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{", b"\xff", b"{}", b"[" * 200_000])
def test_an_old_manifest_that_is_garbage_hides_nothing_newer(index, raw):
    (index / ARCHIVED).write_bytes(raw)
    refused(index, ARCHIVED, generation=1)
    assert len(Index.open(index)) == 7
    with IndexWriter(Index.open(index)) as writer:
        writer.delete(["Q0"])
        assert len(writer.index) == 6


def test_an_old_manifest_of_another_version_is_refused_with_what_to_do(index):
    data = json.loads((index / ARCHIVED).read_text()) | {"version": 3}
    (index / ARCHIVED).write_text(json.dumps(data))
    said = refused(index, ARCHIVED, generation=1)
    assert "version 3; this program reads version 4; rebuild the index: mimic-engine index build" in said
    with pytest.raises(IndexFormatError, match="version 3"):
        list_snapshots(index)
    assert len(Index.open(index)) == 7


def test_old_manifests_are_not_taken_for_others(index):
    newest = (index / "manifest.json").read_bytes()
    (index / ARCHIVED).write_bytes(newest)
    assert "holds generation 2" in refused(index, ARCHIVED, generation=1)
    for name in ("1.json", "0000000x.json", "00000001.json.bak"):
        (index / "snapshots" / name).write_bytes(b"{")
    assert "is not kept" in refused(index, "snapshot 7", generation=7)
    assert "there are [1, 2]" in refused(index, "snapshot -1", generation=-1)


def test_dead_rows_of_another_index(index, tmp_path):
    other = tmp_path / "other"
    entities = [Entity(f"Q{row}", f"name {row}") for row in range(10)]
    build_index(Fold(), lambda: entities, other, segment_rows=4, dtype="int8", progress=False)
    delete(Index.open(other), ["Q0", "Q2", "Q5"])
    shutil.copy(other / DELETED, index / DELETED)
    assert "sha256" in refused(index, DELETED)
