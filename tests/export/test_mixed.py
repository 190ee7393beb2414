"""The mixed-precision search: finds the layer that overflows, keeps no more than is needed, and reports."""

import json

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import ModelError
from mimic_engine.export import mixed
from mimic_engine.export.mixed import group_of, search
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.model.checkpoint import load_checkpoint


def test_a_whole_precision_that_holds_is_left_alone():
    found = search(lambda kept: 0.01, ["a", "b"], 0.02)
    assert (found.kept, found.error, found.groups) == ((), 0.01, 2)


def test_nothing_helps_is_an_error():
    with pytest.raises(ModelError, match="every group in float32"):
        search(lambda kept: 1.0, ["a", "b"], 0.02)


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(1e-4, 1, allow_nan=False), min_size=1), st.data()
)
def test_what_is_kept_is_enough_and_nothing_of_it_is_spare(harm, data):
    """Errors that add up: the graph holds with what is kept, and with any of it narrowed it does not."""
    groups = sorted(harm)
    allowed = data.draw(st.floats(1e-5, 2))

    def error_of(kept):
        return sum(harm[g] for g in groups if g not in kept)

    found = search(error_of, groups, allowed)
    kept = {k.group for k in found.kept}
    assert error_of(kept) == found.error <= allowed
    assert all(error_of(kept - {g}) > allowed for g in kept)
    assert all(k.error_alone == pytest.approx(harm[k.group]) for k in found.kept)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (
            "encoder.text.model.encoder.layer.0.attention.self.query/MatMul_3",
            "encoder.text.model.encoder.layer.0",
        ),
        ("encoder.clip.text_model.encoder.layers.11/add_4", "encoder.clip.text_model.encoder.layers.11"),
        ("encoder.text.model.embeddings/add_8", "encoder.text.model"),
        ("x_cast", "outside"),
    ],
)
def test_groups_are_numbered_layers(name, group):
    assert group_of(onnx.NodeProto(name=name)) == group


@pytest.fixture(scope="module")
def overflowing(tiny_checkpoint, tmp_path_factory):
    """A text encoder whose second layer passes values of a million to itself: too many for fp16, not for bf16."""
    loaded = load_checkpoint(tiny_checkpoint)
    layer = loaded.model.encoder.text.model.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.weight *= 1e6
        layer.output.dense.weight *= 1e-6
    out = tmp_path_factory.mktemp("overflowing") / "model"
    export_model(loaded.model, loaded.tokenizer_json, out, ExportOptions(("fp32", "fp16", "bf16")))
    return out


def test_the_layer_that_overflows_stays_float32(overflowing, tmp_path, capsys):
    out = tmp_path / "mixed.json"
    options = ["--precision", "fp16", "--graph", "text_encoder", "--json", str(out)]
    assert mixed.main([str(overflowing), *options]) == 0
    [found] = json.loads(out.read_text())["searches"]
    assert found["error_all_narrow"] is None  # infinite
    assert [k["group"] for k in found["kept_in_float32"]] == ["encoder.text.model.encoder.layer.1"]
    assert found["error"] <= found["allowed_error"] and found["groups"] > 2
    assert "float32: encoder.text.model.encoder.layer.1" in capsys.readouterr().out
    manifest = ModelManifest.read(overflowing)
    manifest.entry("text_encoder", "fp16").onnx.check(overflowing, verify=True)
    model = onnx.load(overflowing / "graphs" / "text_encoder.fp16.onnx")
    weights = {t.name: t.data_type for t in model.graph.initializer}
    kinds = {
        group_of(n): weights[n.input[1]]
        for n in model.graph.node
        if n.op_type == "MatMul" and n.input[1] in weights
    }
    assert kinds["encoder.text.model.encoder.layer.1"] == onnx.TensorProto.FLOAT
    assert kinds["encoder.text.model.encoder.layer.0"] == onnx.TensorProto.FLOAT16
    assert mixed.main([str(overflowing), *options, "--dry-run"]) == 0


def test_bf16_has_the_range(overflowing, capsys):
    before = (overflowing / "manifest.json").read_bytes()
    assert mixed.main([str(overflowing), "--precision", "bf16", "--graph", "text_encoder"]) == 0
    assert "float32:" not in capsys.readouterr().out
    assert (overflowing / "manifest.json").read_bytes() == before


def test_both_files_of_records_or_neither(overflowing, capsys):
    assert mixed.main([str(overflowing), "--precision", "fp16", "--mentions", "m.jsonl"]) == 2
    assert "both or neither" in capsys.readouterr().err
