"""Sidecar manifests: what is refused, and the command that is given with it."""

import dataclasses
import hashlib
import json
import shlex

import pytest

from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import ModelError
from mimic_engine.gpu.engine_files import EngineRecord, graph_sha256, sidecar

PLAN = b"a compiled engine"


@pytest.fixture
def built(tiny_model, tmp_path):
    manifest = ModelManifest.read(tiny_model)
    entry = manifest.entry("mention_fold", "fp32")
    record = EngineRecord(
        *(manifest.model_hash, "mention_fold", "fp32", graph_sha256(entry), "rtx", "1.7.1.116", "sm_89"),
        *(({"batch": (1, 4, 4)},), 0.5, len(PLAN), hashlib.sha256(PLAN).hexdigest(), False, False, None),
    )
    engine = tmp_path / record.file
    engine.write_bytes(PLAN)
    record.write(tmp_path)
    return engine, record, manifest, entry


def check(built, record=None):
    engine, written, manifest, entry = built
    (record or written).check_graph(engine, engine.parent, manifest.model_hash, entry)


def test_a_record_survives_writing_and_passes(built):
    engine, record, _, _ = built
    assert EngineRecord.read(engine) == record
    check(built)
    record.check_library(engine, engine.parent, "rtx", "1.7.1.116", "sm_89")


@pytest.mark.parametrize("data", [b"", PLAN[:-1], PLAN + b"x"])
def test_another_length_is_refused(built, data):
    built[0].write_bytes(data)
    with pytest.raises(ModelError, match="cut short or changed; rebuild it"):
        check(built)


def test_a_flipped_byte_is_refused(built):
    built[0].write_bytes(b"A" + PLAN[1:])
    with pytest.raises(ModelError, match="SHA-256"):
        check(built)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_hash": "ab" * 32}, "of model abababababab"),
        ({"graph_sha256": "cd" * 32}, r"another mention_fold\.fp32\.onnx"),
        ({"verified": {"ok": False, "reason": "max_abs 0.3"}}, "failed its verification: max_abs 0.3"),
    ],
)
def test_another_graph_is_refused(built, change, message):
    with pytest.raises(ModelError, match=message):
        check(built, dataclasses.replace(built[1], **change))


@pytest.mark.parametrize(
    ("flavour", "version", "target", "message"),
    [
        ("tensorrt", "1.7.1.116", "sm_89", "built by rtx, this is tensorrt"),
        ("rtx", "1.7.2.1", "sm_89", r"built by version 1\.7\.1\.116, this is 1\.7\.2\.1"),
        ("rtx", "1.7.1.116", "sm_120", "built for sm_89, the device is sm_120"),
    ],
)
def test_another_library_or_device_is_refused_with_the_command(built, flavour, version, target, message):
    engine, record, _, _ = built
    with pytest.raises(ModelError, match=message) as caught:
        record.check_library(engine, engine.parent / "a model", flavour, version, target)
    command = shlex.split(str(caught.value).partition("rebuild it: ")[2])
    from mimic_engine.export.build_trt import _arguments

    args = _arguments(command[2:])
    assert (args.flavor, args.precision, args.target, args.graphs) == (
        "rtx",
        "fp32",
        "sm_89",
        ("mention_fold",),
    )
    assert args.model == engine.parent / "a model" and args.out == engine.parent


@pytest.mark.parametrize(
    ("version", "fits"), [("1.7.1.116", True), ("1.8.0.1", True), ("1.7.0.9", False), ("2.0.0.1", False)]
)
def test_a_version_compatible_engine_runs_on_later_versions_of_its_major_one(built, version, fits):
    engine, record, _, _ = built
    record = dataclasses.replace(record, version_compatible=True)
    if fits:
        record.check_library(engine, engine.parent, "rtx", version, "sm_89")
    else:
        with pytest.raises(ModelError, match="--version-compatible"):
            record.check_library(engine, engine.parent, "rtx", version, "sm_89")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "mimic-engine", "version": 9}', "null", '{"format": "mimic-engine"']
)
def test_a_damaged_sidecar_is_refused(built, text):
    sidecar(built[0]).write_text(text)
    with pytest.raises(ModelError, match=r"\.engine\.json"):
        EngineRecord.read(built[0])


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(EngineRecord)])
def test_a_sidecar_without_a_field_is_refused(built, key):
    path = sidecar(built[0])
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=rf"engine\.json: .*missing required field `{key}`"):
        EngineRecord.read(built[0])


def test_an_engine_without_a_sidecar_is_refused(built):
    sidecar(built[0]).unlink()
    with pytest.raises(ModelError, match=r"engine\.json: missing"):
        EngineRecord.read(built[0])
