"""Damaged and hostile index files: each is refused with an error that names it, none is believed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import sha256_of
from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import SEGMENT_FILES, VERSION, FileRecord, read_manifest, write_manifest
from mimic_engine.index.store import Index
from mimic_engine.types import Entity, EntityArrays, FoldConstants

SEGMENT = "segments/00000"
FILES = [f"{SEGMENT}/{name}" for name in SEGMENT_FILES]


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
    out = tmp_path_factory.mktemp("index") / "kb"
    entities = [
        Entity(f"Q{row}", f"name {row}", "text", (f"{row}.png",), "", (f"alias {row % 7}",) * (row % 3), row)
        for row in range(37)
    ]
    build_index(Fold(), lambda: entities, out, segment_rows=20, progress=False)
    return out


@pytest.fixture
def index(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "kb"))


def refused(index: Path, name: str, *, verify: bool = True) -> str:
    with pytest.raises(IndexFormatError) as caught:
        Index.open(index, verify=verify)
    assert name in str(caught.value)
    return str(caught.value)


def record_again(index: Path, name: str) -> None:
    """Make the manifest agree with a changed file: only the parsers are left to object."""
    manifest = read_manifest(index)
    file = index / SEGMENT / name
    first = manifest.segments[0]
    files = dict(first.files) | {name: FileRecord(sha256_of(file), file.stat().st_size)}
    write_manifest(index, replace(manifest, segments=(replace(first, files=files), *manifest.segments[1:])))


def test_missing_things(index, tmp_path):
    with pytest.raises(IndexFormatError, match="no such index folder"):
        Index.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexFormatError, match=r"manifest.json is missing"):
        Index.open(tmp_path / "empty")
    for name in FILES:
        data = (index / name).read_bytes()
        (index / name).unlink()
        assert "missing" in refused(index, name, verify=False)
        (index / name).write_bytes(data)
    Index.open(index)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_cut_short_anywhere(index, name, verify):
    data = (index / name).read_bytes()
    rng = random.Random(name)
    for length in {0, 1, 7, 8, 9, len(data) - 1, *(rng.randrange(len(data)) for _ in range(12))}:
        (index / name).write_bytes(data[:length])
        refused(index, name, verify=verify)
    (index / name).write_bytes(data + b"\0")
    refused(index, name, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_one_bit_flipped_anywhere(index, name):
    data = bytearray((index / name).read_bytes())
    rng = random.Random(name)
    for at in [0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        (index / name).write_bytes(data)
        assert "sha256" in refused(index, name)
        data[at] ^= bit


def test_one_bit_flipped_in_the_manifest(index):
    path, before = index / "manifest.json", read_manifest(index)
    data = bytearray(path.read_bytes())
    rng = random.Random(5)
    caught = 0
    for at in [0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(300))]:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        try:
            assert read_manifest(index) == before  # only white space between the tokens changed
        except IndexFormatError as error:
            assert "manifest.json" in str(error)
            caught += 1
        data[at] ^= bit
    assert caught > 200


@pytest.mark.parametrize("name", SEGMENT_FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_flipped_file_with_matching_checksum_never_crashes(index, name, verify):
    """The parsers alone: each flip is refused by ``IndexFormatError``, or harmless to the structure."""
    path = index / SEGMENT / name
    data = bytearray(path.read_bytes())
    rng = random.Random(name)
    structure = len(data) if name == "entities.arrow" else 600
    refusals = 0
    for at in [0, *(rng.randrange(min(len(data), structure)) for _ in range(60))]:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        record_again(index, name)
        try:
            opened = Index.open(index, verify=verify)
        except IndexFormatError as error:
            assert name in str(error)
            refusals += 1
        else:
            assert len(opened) == 37 and opened.segments[0].rows == 20
        data[at] ^= bit
    assert refusals


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("popularity", pa.array([-1.0] * 20), "popularity: a value is no number from 0 on"),
        ("popularity", pa.array([0.0] * 19 + [float("nan")]), "popularity: a value is no number"),
        ("popularity", pa.array([None] * 19 + [float("inf")]), "popularity: a value is no number"),
        ("popularity", pa.array([1] * 20), "columns"),
        ("aliases", pa.array([[None]] * 20, pa.list_(pa.string())), "column aliases: a value is null"),
        ("images", pa.array([["a", None]] * 20, pa.list_(pa.string())), "column images: a value is null"),
        ("aliases", pa.array([None] * 20, pa.list_(pa.string())), "column aliases: a value is null"),
        ("name", pa.array([None] * 20, pa.string()), "column name: a value is null"),
        ("aliases", pa.array(["x"] * 20), "columns"),
    ],
)
def test_values_of_the_entity_table(index, column, value, fault):
    path = index / SEGMENT / "entities.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    columns = {n: value if n == column else table.column(n) for n in table.schema.names}
    fields = [pa.field(f.name, value.type if f.name == column else f.type, f.nullable) for f in table.schema]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema(fields)) as writer:
        writer.write_table(pa.table(columns, schema=pa.schema(fields)))
    record_again(index, path.name)
    assert fault in refused(index, path.name)


def header(entries: Any, data_bytes: int) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def f32(begin: int, end: int, *shape: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "0 bytes"),
        (b"\0" * 7, "7 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "header length 9223372036854775808"),
        ((2**21).to_bytes(8, "little") + bytes(2**21), "header length 2097152 is over 1048576"),
        (header(b"\xff\xfe{}", 0), "utf-8"),
        (header(b"not JSON", 0), "Expecting value"),
        (header(b"[" * 100_000, 0), "nested too deep"),
        (header([], 0), "not a JSON object"),
        (header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}', 0), "NaN"),
        (header(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % (b"9" * 5000), 0), "limit"),
        (header(b'{"a":1,"a":2}', 0), "a key occurs twice"),
        (header({"a": 7}, 0), "keys are not"),
        (header({"a": {"dtype": "F32", "shape": [1]}}, 4), "keys are not"),
        (header({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, 8), "dtype 'F64'"),
        (header({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 4), "dtype"),
        (header({"a": f32(0, 4, -1)}, 4), "not lists of numbers"),
        (header({"a": f32(0, 4, 1.0)}, 4), "not lists of numbers"),
        (header({"a": f32(0, 4, True)}, 4), "not lists of numbers"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, 8), "not lists of numbers"),
        (header({"a": f32(0, 4, 2)}, 4), "do not span the 8 bytes"),
        (header({"a": f32(8, 4, 1)}, 8), "do not span"),
        (header({"a": f32(0, 2**64, 2**62)}, 4), "the arrays end at byte"),
        (header({"a": f32(0, 8, 2), "b": f32(4, 12, 2)}, 12), "array b begins at byte"),
        (header({"a": f32(0, 8, 2), "b": f32(0, 8, 2)}, 8), "begins at byte"),
        (header({"a": f32(0, 4, 1), "b": f32(8, 12, 1)}, 12), "array b begins at byte"),
        (header({"a": f32(0, 4, 1)}, 8), "the arrays end at byte"),
        (header({"a": f32(4, 8, 1)}, 8), "array a begins at byte"),
        ((2).to_bytes(8, "little") + b"{}" + bytes(4), "the arrays end at byte"),
    ],
)
def test_array_file_headers(tmp_path, content, fault):
    path = tmp_path / "arrays.safetensors"
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=r"arrays\.safetensors: not a valid array file: .*" + fault):
        read_array_file(path)


def test_misaligned_data(tmp_path):
    text = json.dumps({"a": f32(0, 4, 1)}).encode()
    text += b" " * (3 - len(text) % 4)
    path = tmp_path / "arrays.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(IndexFormatError, match="not aligned"):
        read_array_file(path)


def rewrite_manifest(index: Path, change: dict[str, Any]) -> None:
    """Change fields of the manifest and sign it again."""
    data = json.loads((index / "manifest.json").read_text()) | change
    data.pop("sha256")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (index / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": "other"}, "format 'other', expected 'mimic-index'"),
        (
            {"version": 3},
            f"mimic-index version 3; this program reads version {VERSION}; rebuild the index: "
            "mimic-engine index build --model MODEL --kb FILE --out INDEX",
        ),
        ({"count": -1}, "count -1"),
        ({"count": 36}, "not the sum"),
        ({"count": True}, "count True"),
        ({"dtype": "int4"}, "dtype 'int4'"),
        ({"dtype": ["float16"]}, "dtype"),
        ({"dtype": "float32"}, "dtype float16, expected float32"),
        ({"model_hash": 7}, "model_hash 7: Expected `str`"),
        ({"model_hash": ""}, "model_hash '': Expected `str` of length >= 1"),
        ({"segments": {}}, "segments: Expected `array`"),
        ({"segments": [7]}, r"segments\[0\] 7: Expected `object`"),
        ({"extra": []}, "extra: Expected `object`"),
        ({"constants": {}}, "constants: .*missing required field `width`"),
        ({"surprise": 1}, "surprise"),
        ({"constants": {"width": 4, "units": ["cmfu"], "surprise": 1}}, r"constants: unknown fields"),
    ],
)
def test_manifest_fields(index, change, fault):
    rewrite_manifest(index, change)
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"width": 0}, "width 0"),
        ({"width": 5}, "expected"),
        ({"units": []}, "units"),
        ({"units": ["tglu", "psychic"]}, "units"),
        ({"units": ["cmfu"]}, "belong to no unit"),
        ({"units": ["tglu", "vdlu", "cmfu"]}, "are missing"),
        ({"gate_bias": [1.0]}, "gate_bias"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
    ],
)
def test_manifest_constants(index, change, fault):
    constants = json.loads((index / "manifest.json").read_text())["constants"]
    rewrite_manifest(index, {"constants": constants | change})
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "../../secret"}, "segment name"),
        ({"name": "00001"}, "listed twice"),
        ({"rows": 17}, "expected 17 rows"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "00000 files: .*, expected"),
        (
            {"files": {Path(name).name: {} for name in FILES}},
            r"files\[...\]: .*missing required field `sha256`",
        ),
    ],
)
def test_manifest_segments(index, change, fault):
    data = json.loads((index / "manifest.json").read_text())
    data["segments"][0] |= change
    rewrite_manifest(index, {"segments": data["segments"], "count": sum(s["rows"] for s in data["segments"])})
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index, verify=False)


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"{", b"\xff", b"{}", b"[" * 200_000, b'{"format": NaN}', b'{"format": 1e999}'],
)
def test_manifest_garbage(index, raw):
    (index / "manifest.json").write_bytes(raw)
    refused(index, "manifest.json")


def test_files_swapped_between_segments(index):
    for name in SEGMENT_FILES:
        first, second = index / "segments/00000" / name, index / "segments/00001" / name
        keep = first.read_bytes()
        first.write_bytes(second.read_bytes())
        refused(index, f"{SEGMENT}/{name}")
        first.write_bytes(keep)
