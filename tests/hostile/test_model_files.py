"""Damaged and hostile model files: each is refused with an error that names it, none is believed."""

import json
import shutil

import numpy as np
import pytest

from mimic_engine.encoding.manifest import ModelManifest, StoredFile
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.errors import MimicError, ModelError
from mimic_engine.scan.blocks import OnnxScorer

TEXT = "graphs/text_encoder.fp32.onnx"
FILES = [TEXT, "graphs/entity_fold.fp32.onnx", "tokenizer.json"]


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(model, change):
    path = model / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(model, match, **options):
    with pytest.raises(ModelError, match=match):
        OnnxSession.open(model, threads=1, **options)


def test_the_undamaged_copy_opens(model):
    OnnxSession.open(model, threads=1)


@pytest.mark.parametrize("file", FILES)
def test_missing_file(model, file):
    (model / file).unlink()
    refused(model, f"{file}: missing", verify=False)


@pytest.mark.parametrize("file", FILES)
def test_cut_short(model, file):
    path = model / file
    path.write_bytes(path.read_bytes()[:-1])
    refused(model, f"{file}.*cut short", verify=False)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_bit(model, file, where):
    path = model / file
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    refused(model, f"{file}: SHA-256")


def test_scorer_is_checked_too(model):
    path = model / "graphs/scorer.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="scorer"):
        OnnxScorer.open(model)


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", r"manifest\.json: no exported model here")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": "mimic-index", "version": 1}', "\xff"]
)
def test_manifest_is_something_else(model, text):
    (model / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(model, r"manifest\.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(model, version):
    edit(model, lambda data: data.update(version=version))
    refused(model, "reads version 1")


@pytest.mark.parametrize("key", ["model_hash", "text", "image", "constants", "widths", "tokenizer", "graphs"])
@pytest.mark.parametrize("value", [None, 3, [], "x"])
def test_a_field_of_the_wrong_type(model, key, value):
    if key == "model_hash":
        edit(model, lambda data: data.pop(key))
    else:
        edit(model, lambda data: data.update({key: value}))
    refused(model, r"manifest\.json")


def test_unknown_preprocessing(model):
    edit(model, lambda data: data["image"].update(crop="centre"))
    refused(model, "crop")


def test_a_graph_is_not_listed(model):
    edit(model, lambda data: data["graphs"].pop("scorer"))
    refused(model, "scorer")


@pytest.mark.parametrize("file", ["../outside.onnx", "/etc/passwd", "graphs/../../x"])
def test_a_path_out_of_the_folder(model, file):
    edit(model, lambda data: data["graphs"]["text_encoder"]["fp32"].update(file=file))
    refused(model, "outside the model folder", verify=False)


def relist(model, file, graph):
    """Make the manifest say that ``file`` is what it lists for a graph."""
    stored = StoredFile.of(model, file)
    edit(
        model,
        lambda data: data["graphs"][graph]["fp32"].update(
            file=file, sha256=stored.sha256, bytes=stored.bytes
        ),
    )


def test_rubbish_with_the_right_hash(model):
    (model / TEXT).write_bytes(np.random.default_rng(0).bytes(4096))
    relist(model, TEXT, "text_encoder")
    refused(model, "cannot load it")


def test_an_empty_graph_with_the_right_hash(model):
    (model / TEXT).write_bytes(b"")
    relist(model, TEXT, "text_encoder")
    refused(model, "text_encoder")


def test_another_graph_in_its_place(model):
    relist(model, "graphs/image_encoder.fp32.onnx", "text_encoder")
    refused(model, "pixels")


def test_cut_everywhere_never_opens(model):
    """Cut at any length and listed as if it were whole: refused, or an error of ours at the latest."""
    whole = (model / "graphs/scorer.fp32.onnx").read_bytes()
    for length in np.random.default_rng(1).integers(1, len(whole), 12):
        (model / "graphs/scorer.fp32.onnx").write_bytes(whole[:length])
        relist(model, "graphs/scorer.fp32.onnx", "scorer")
        with pytest.raises(MimicError):
            OnnxScorer.open(model)


def test_reading_does_not_change_the_manifest(model):
    before = (model / "manifest.json").read_bytes()
    ModelManifest.read(model).write(model)
    assert (model / "manifest.json").read_bytes() == before
