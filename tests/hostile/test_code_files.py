"""Damaged and hostile code files: each is refused with an error that names it, none indexes outside a table."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine.calibration.recall import promised
from mimic_engine.errors import IndexFormatError
from mimic_engine.files import sha256_of
from mimic_engine.index.arrays import write_array_file
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import FileRecord, read_manifest, write_manifest
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.types import Entity, EntityArrays, FoldConstants

CODES = "codes/00000"
CENTROIDS, FIRST, SECOND = (f"{name}.safetensors" for name in ("centroids", "00000", "00001"))
FILES = [f"{CODES}/{name}" for name in (CENTROIDS, FIRST, SECOND)]


class Fold:
    constants = FoldConstants(4, ("tglu", "cmfu"))
    model_hash = "ab" * 32

    def entities(self, batch):
        shapes = {"text_cls": (3,), "tglu_query": (2, 4), "tglu_cls": (4,), "tglu_bias": (), "cmfu": (4,)}
        rng = np.random.default_rng(len(batch))
        return EntityArrays(
            **{n: rng.normal(size=(len(batch), *s)).astype(np.float32) for n, s in shapes.items()}
        )


def build(out: Path, centroids: int) -> Path:
    entities = [Entity(f"Q{row}", f"name {row}") for row in range(37)]
    build_index(
        Fold(), lambda: entities, out, segment_rows=20, progress=False, centroids=centroids, threads=1
    )
    return out


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("index") / "kb", 6)


@pytest.fixture
def index(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "kb"))


def refused(index: Path, name: str, *, verify: bool = True) -> str:
    with pytest.raises(IndexFormatError) as caught:
        Index.open(index, verify=verify)
    assert name in str(caught.value)
    return str(caught.value)


def put(index: Path, name: str, **arrays: np.ndarray) -> None:
    """Write a code file anew and make the manifest agree: only the parsers are left to object."""
    file = index / CODES / name
    write_array_file(file, arrays)
    record_again(index, name)


def record_again(index: Path, name: str) -> None:
    manifest, file = read_manifest(index), index / CODES / name
    files = {**manifest.codes.files, name: FileRecord(sha256_of(file), file.stat().st_size)}
    write_manifest(index, replace(manifest, codes=replace(manifest.codes, files=files)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_missing_or_cut_short_anywhere(index, name, verify):
    data = (index / name).read_bytes()
    rng = random.Random(name)
    for length in {0, 1, 8, len(data) - 1, *(rng.randrange(len(data)) for _ in range(12))}:
        (index / name).write_bytes(data[:length])
        refused(index, name, verify=verify)
    (index / name).write_bytes(data + b"\0")
    refused(index, name, verify=verify)
    (index / name).unlink()
    assert "missing" in refused(index, name, verify=verify)
    assert [f.name for f in verify_index(index).problems] == [name]


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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_flipped_file_with_matching_checksum_never_leads_outside_the_table(index, name, verify):
    data = bytearray((index / name).read_bytes())
    rng = random.Random(name)
    refusals = 0
    for at in [0, *(rng.randrange(len(data)) for _ in range(120))]:
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        (index / name).write_bytes(data)
        record_again(index, Path(name).name)
        try:
            opened = Index.open(index, verify=verify)
        except IndexFormatError as error:
            assert name in str(error)
            refusals += 1
        else:
            assert np.isfinite(opened.codes.centroids).all()
            assert all(c.max() < 6 for c in opened.codes.segments)
            assert [c.shape for c in opened.codes.segments] == [(20, 2), (17, 2)]
        data[at] ^= bit
    assert refusals


@pytest.mark.parametrize(
    ("name", "arrays", "fault"),
    [
        (FIRST, {"codes": np.full((20, 2), 6, np.uint8)}, "holds code 6, but there are 6 centroids"),
        (FIRST, {"codes": np.zeros((20, 2), np.uint16)}, "expected codes (20, 2) uint8"),
        (FIRST, {"codes": np.zeros((20, 2), np.float32)}, "expected codes (20, 2) uint8"),
        (FIRST, {"codes": np.zeros((17, 2), np.uint8)}, "expected codes (20, 2) uint8"),
        (FIRST, {"codes": np.zeros((20, 3), np.uint8)}, "expected codes (20, 2) uint8"),
        (FIRST, {"codes": np.zeros(40, np.uint8)}, "expected codes (20, 2) uint8"),
        (FIRST, {"code": np.zeros((20, 2), np.uint8)}, "expected codes (20, 2) uint8"),
        (FIRST, {"codes": np.zeros((20, 2), np.uint8), "more": np.zeros(1, np.uint8)}, "expected codes"),
        (FIRST, {}, "expected codes"),
        (CENTROIDS, {"centroids": np.zeros((6, 5), np.float32)}, "expected 6 centroids of width 4"),
        (CENTROIDS, {"centroids": np.zeros((5, 4), np.float32)}, "expected 6 centroids of width 4"),
        (CENTROIDS, {"centroids": np.zeros((6, 4), np.float16)}, "expected 6 centroids of width 4"),
        (CENTROIDS, {"centroids": np.full((6, 4), np.nan, np.float32)}, "not finite"),
        (CENTROIDS, {"centroids": np.full((6, 4), np.inf, np.float32)}, "not finite"),
        (CENTROIDS, {"codes": np.zeros((6, 4), np.float32)}, "expected 6 centroids of width 4"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_well_formed_files_that_do_not_fit(index, name, arrays, fault, verify):
    put(index, name, **arrays)
    assert fault in refused(index, f"{CODES}/{name}", verify=verify)


def test_codes_of_another_clustering_or_segment(index, tmp_path):
    other = build(tmp_path / "other", 9)
    for name in FILES:
        data = (index / name).read_bytes()
        shutil.copy(other / name, index / name)
        refused(index, name)
        (index / name).write_bytes(data)
    shutil.copy(index / CODES / FIRST, index / CODES / SECOND)
    refused(index, f"{CODES}/{SECOND}", verify=False)


def change_codes(index: Path, change: dict[str, object]) -> None:
    """Change fields of the manifest's section and sign the manifest again."""
    data = json.loads((index / "manifest.json").read_text())
    data["codes"] |= change
    sign(index, data)


def sign(index: Path, data: dict[str, object]) -> None:
    data.pop("sha256", None)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (index / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"folder": "../segments"}, "codes folder '../segments'"),
        ({"folder": "00001"}, "file is missing"),
        ({"folder": 0}, "folder 0: Expected `str`"),
        ({"centroids": 0}, "centroids 0 is not between 1 and 65536"),
        ({"centroids": 65_537}, "centroids 65537 is not between"),
        ({"centroids": 6.0}, "centroids 6.0"),
        ({"centroids": 300}, "300 centroids need uint16"),
        ({"centroids": 7}, "expected 7 centroids"),
        ({"dtype": "uint16"}, "6 centroids need uint8"),
        ({"dtype": ["uint8"]}, r"codes\.dtype: Expected `str`"),
        ({"sample": -1}, "sample -1"),
        ({"error": -0.5}, r"error -0\.5: Expected `float` >= 0"),
        ({"error": "small"}, "error 'small'"),
        ({"norm": True}, "norm True"),
        ({"drift": None}, "drift None"),
        ({"files": []}, r"codes\.files: Expected `object`"),
        ({"files": {}}, "codes files \\[\\], expected"),
        ({"files": {CENTROIDS: {}}}, r"codes\.files\[...\]: .*missing required field `sha256`"),
        ({"surprise": 1}, r"codes: unknown fields \['surprise'\]"),
    ],
)
def test_the_manifests_section(index, change, fault):
    change_codes(index, change)
    with pytest.raises(IndexFormatError, match=fault):
        Index.open(index)


def test_files_listed_are_those_of_the_segments(index):
    files = json.loads((index / "manifest.json").read_text())["codes"]["files"]
    for wrong in (
        {n: f for n, f in files.items() if n != SECOND},
        files | {"../../passwd": files[FIRST]},
        files | {"00002.safetensors": files[FIRST]},
    ):
        change_codes(index, {"files": wrong})
        assert "codes files" in refused(index, "manifest.json")


@pytest.mark.parametrize("codes", [[], 7, "none", True, {}])
def test_a_section_that_is_no_object(index, codes):
    data = json.loads((index / "manifest.json").read_text())
    sign(index, data | {"codes": codes})
    refused(index, "manifest.json")


def test_codes_of_an_index_without_token_queries(index):
    manifest = read_manifest(index)
    for segment in manifest.segments:
        file = index / "segments" / segment.name / "arrays.safetensors"
        write_array_file(file, {"cmfu": np.zeros((segment.rows, 4), np.float16)})
    segments = tuple(
        replace(s, files={**s.files, "arrays.safetensors": FileRecord(sha256_of(f), f.stat().st_size)})
        for s in manifest.segments
        for f in [index / "segments" / s.name / "arrays.safetensors"]
    )
    constants = FoldConstants(4, ("cmfu",))
    write_manifest(index, replace(manifest, segments=segments, constants=constants))
    assert "no token queries" in refused(index, f"{CODES}/{FIRST}")


ROW = {"r": 10, "top1_identical": 1.0, "top10_contained": 1.0, "mentions_contained": 1.0}
PROMISE = {
    "centroids": 6,
    "entities": 37,
    "mentions": 5,
    "source": "entities",
    "k": 10,
    "rows": [ROW],
    "r_999": 10,
}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mentions": 0}, "mentions 0"),
        ({"mentions": "5"}, "mentions '5': Expected `int`"),
        ({"k": True}, "k True: Expected `int`"),
        ({"source": None}, "source None: Expected `str`"),
        ({"r_999": 11}, "no row of r_999 11"),
        ({"rows": []}, "no row of r_999 10"),
        ({"rows": {}}, "rows: Expected `array`"),
        ({"rows": [7]}, r"rows\[0\] 7: Expected `object`"),
        ({"rows": [ROW | {"r": 1.5}]}, r"rows\[0\]\.r 1\.5: Expected `int`"),
        ({"rows": [ROW | {"top1_identical": 1.5}]}, r"rows\[0\]\.top1_identical 1\.5: Expected `float` <= 1"),
        ({"surprise": 1}, "unknown fields"),
    ],
)
def test_a_promise_that_is_none(index, change, fault):
    manifest = read_manifest(index)
    promise = promised(replace(manifest, agreement={"coded": PROMISE}))
    assert promise.to_json() == PROMISE
    with pytest.raises(IndexFormatError, match=f"agreement.coded of the manifest: .*{fault}"):
        promised(replace(manifest, agreement={"coded": PROMISE | change}))
    with pytest.raises(IndexFormatError, match=r"agreement\.coded"):
        promised(replace(manifest, agreement={"coded": []}))
    data = json.loads((index / "manifest.json").read_text())
    sign(index, data | {"agreement": []})
    assert "agreement: Expected `object`" in refused(index, "manifest.json")
