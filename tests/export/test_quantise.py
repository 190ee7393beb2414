"""Quantisation is measured before it is shipped: what is tried, what is refused, what is left alone."""

import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import CPU, OnnxSession, cpu_options, open_session
from mimic_engine.export import quantise
from mimic_engine.export.precision import to_fp8
from mimic_engine.export.quantise import WAYS, Outcome
from mimic_engine.types import TokenBatch

NAMES = ("a b", "c d", "e f", "g h", "i j", "b a")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six entities, and mentions by their names with pictures of one colour each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(len(NAMES)):
        colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((40, 30)).save(folder / f"{i}.png")
    entities = [
        {"id": str(i), "name": n, "description": n, "images": [f"{i}.png"]} for i, n in enumerate(NAMES)
    ]
    mentions = [
        {"mention": n, "sentence": f"{n} c", "answer": str(i), "image": f"{i}.png"}
        for i, n in enumerate(NAMES)
    ]
    mentions.append({"mention": "a", "sentence": "a b", "answer": "0"})
    for name, records in (("kb", entities), ("train", mentions), ("test", mentions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture
def model(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def run(model, data, *options):
    return quantise.main([str(model), "--data", str(data), "--threads", "1", "--calibration", "7", *options])


def test_what_holds_is_shipped_and_runs(model, data, tmp_path, capsys):
    out = tmp_path / "int8.json"
    assert run(model, data, "--points", "100", "--json", str(out)) == 0
    report = json.loads(out.read_text())
    assert report["shipped"] == {"text": "calibrated", "image": "calibrated"}
    assert [t["mentions"] for t in report["tried"]] == [7]
    manifest = ModelManifest.read(model)
    fp32, int8 = (manifest.entry("text_encoder", p).onnx for p in ("fp32", "int8"))
    assert int8.bytes != fp32.bytes
    session = OnnxSession.open(model, precision="int8", threads=1)
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    exact = OnnxSession.open(model, threads=1).encode_image(pixels)
    error = np.abs(session.encode_image(pixels).cls - exact.cls).max() / np.abs(exact.cls).max()
    assert 1e-6 < error < 0.3


def test_floats_of_eight_bits_are_shipped_and_run(model, data, tmp_path):
    out = tmp_path / "fp8.json"
    assert run(model, data, "--precision", "fp8", "--points", "100", "--json", str(out)) == 0
    report = json.loads(out.read_text())
    assert report["precision"] == "fp8" and report["shipped"] == {"text": "fp8", "image": "fp8"}
    manifest = ModelManifest.read(model)
    assert "fp8" in manifest.graphs["text_encoder"] and "int8" not in manifest.graphs["text_encoder"]
    graph = onnx.load(model / manifest.entry("image_encoder", "fp8").onnx.file)
    inits = {i.name: i for i in graph.graph.initializer}
    sources = [n.input for n in graph.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in inits]
    assert {inits[name].data_type for name, *_ in sources} == {onnx.TensorProto.FLOAT8E4M3FN}
    session, exact = (OnnxSession.open(model, precision=p, threads=1) for p in ("fp8", "fp32"))
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    found, expected = (s.encode_image(pixels).cls for s in (session, exact))
    assert 1e-6 < np.abs(found - expected).max() / np.abs(expected).max() < 0.5
    ids = np.random.default_rng(0).integers(2, 15, (2, 9))
    tokens = TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids), np.zeros(2, bool))
    assert session.fold_mentions(session.encode_text(tokens), session.encode_image(pixels[:2])).rows == 2


def test_the_largest_value_of_a_weight_is_the_largest_float_of_eight_bits(model, data, tmp_path):
    """What is far out, as weights and activations of transformers are, is kept and not cut off."""
    fp32 = model / ModelManifest.read(model).entry("image_encoder", "fp32").onnx.file
    graph = onnx.load(fp32)
    weight = next(i for i in graph.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = 50 * values.std()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / "far.onnx")
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    to_fp8(tmp_path / "far.onnx", tmp_path / "fp8.onnx", [{"pixels": pixels}])
    stored = {i.name: i for i in onnx.load(tmp_path / "fp8.onnx").graph.initializer}
    scale = float(onnx.numpy_helper.to_array(stored[f"{weight.name}_scale"]))
    assert scale == pytest.approx(np.abs(values).max() / 448, rel=1e-6)
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["far.onnx", "fp8.onnx"]


def test_inputs_to_calibrate_on_may_be_of_several_shapes(model, tmp_path):
    """Scales cover the largest value of all inputs, not of the first alone."""
    fp32 = model / ModelManifest.read(model).entry("text_encoder", "fp32").onnx.file
    rng = np.random.default_rng(0)
    feeds = []
    for rows in (1, 4, 3):
        ids = rng.integers(2, 15, (rows, 9))
        feeds.append(
            {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        )
    scales = {}
    for name, given in (("all", feeds), ("first", feeds[:1])):
        to_fp8(fp32, tmp_path / f"{name}.onnx", given)
        stored = onnx.load(tmp_path / f"{name}.onnx").graph.initializer
        scales[name] = {
            i.name: float(onnx.numpy_helper.to_array(i)) for i in stored if i.name.endswith("_scale")
        }
    assert scales["all"].keys() == scales["first"].keys()
    assert all(scales["all"][n] >= scales["first"][n] for n in scales["all"])
    assert any(scales["all"][n] > scales["first"][n] for n in scales["all"])


def test_what_is_clipped_is_quantised_to_floats_of_eight_bits(tmp_path):
    """As after each ReLU6 of EfficientNet-Lite0: what ONNX Runtime's own rewrite of the pair cannot load."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 4, 4)).astype(np.float32)
    weights = {"first": first[:, :, None, None], "second": second[:, :, None, None]}
    values = weights | {"low": np.float32(0), "high": np.float32(6)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["wide"]),
        onnx.helper.make_node("Clip", ["wide", "low", "high"], ["clipped"]),
        onnx.helper.make_node("Conv", ["clipped", "second"], ["y"]),
    ]
    shaped = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 4, 3, 3)) for n in "xy"]
    stored = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()]
    graph = onnx.helper.make_graph(nodes, "clipped", shaped[:1], shaped[1:], stored)
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "fp32.onnx")
    x = 4 * rng.standard_normal((1, 4, 3, 3)).astype(np.float32)
    to_fp8(tmp_path / "fp32.onnx", tmp_path / "fp8.onnx", [{"x": x}])
    session = open_session(tmp_path / "fp8.onnx", cpu_options(1), [(CPU, {})])
    [found] = session.run(None, {"x": x})
    clipped = np.einsum("oi,bihw->bohw", first, x).clip(0, 6)
    expected = np.einsum("oi,bihw->bohw", second, clipped)
    assert 1e-6 < np.abs(found - expected).max() / np.abs(expected).max() < 0.1


def test_floats_that_lose_too_much_are_not_shipped(model, data, monkeypatch, capsys):
    lost = iter((0.9, 0.5, 0.6, 0.7))
    monkeypatch.setattr(quantise.Judge, "hits_at_1", lambda self, ways, graphs: next(lost))
    assert run(model, data, "--precision", "fp8") == 1
    assert capsys.readouterr().out.count("Hits@1") == len(WAYS["fp8"])
    assert "fp8" not in ModelManifest.read(model).graphs["text_encoder"]


def test_a_dry_run_changes_nothing(model, data):
    before = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert run(model, data, "--points", "100", "--dry-run") == 0
    assert {p: p.read_bytes() for p in model.rglob("*") if p.is_file()} == before


def test_what_loses_too_much_is_not_shipped(model, data, monkeypatch, capsys):
    """Every way is tried, and the folder stays as it was."""
    lost = iter((0.9, 0.5, 0.6, 0.7, 0.8))  # float32 first
    monkeypatch.setattr(quantise.Judge, "hits_at_1", lambda self, ways, graphs: next(lost))
    before = (model / "manifest.json").read_bytes()
    assert run(model, data) == 1
    assert capsys.readouterr().out.count("Hits@1") == len(WAYS["int8"])
    assert (model / "manifest.json").read_bytes() == before


def test_the_first_way_that_holds_is_taken(model, data, monkeypatch):
    lost = iter((0.9, 0.5, 0.8981, 0.9, 0.9))
    monkeypatch.setattr(quantise.Judge, "hits_at_1", lambda self, ways, graphs: next(lost))
    assert run(model, data) == 0
    manifest = ModelManifest.read(model)
    assert {n: "int8" in e for n, e in manifest.graphs.items()} == {
        **dict.fromkeys(manifest.graphs, False), "text_encoder": True, "image_encoder": True,
    }  # fmt: skip


@pytest.mark.parametrize(("hits", "lost"), [(0.9, 0.0), (0.898, 0.2), (0.91, -1.0)])
def test_points_are_percentage_points(hits, lost):
    assert Outcome("dynamic", None, hits, 0.9, 1000, 1).lost_points == pytest.approx(lost)


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--points", "-1"), "--points: -1.0"), (("--calibration", "0"), "--calibration: 0")],
)
def test_wrong_options_are_named(model, data, capsys, options, message):
    assert run(model, data, *options) == 2
    assert message in capsys.readouterr().err


def test_a_judge_counts_what_the_linker_answers(model, data):
    """Hits@1 in float32 is the share of mentions that linking gets right."""
    from mimic_engine.backends.encoders import open_featurizer
    from mimic_engine.data.source import open_dataset
    from mimic_engine.evaluate.evaluate import BrokenImages, KnowledgeBaseFeaturizer, fold_in_memory
    from mimic_engine.kernels.reference import NumpyScorer

    dataset = open_dataset(data, splits=("train", "test"))
    judge = quantise.Judge(model, ModelManifest.read(model), dataset, 0, 1)
    featurizer = open_featurizer(model, threads=1)
    [entities] = fold_in_memory(
        KnowledgeBaseFeaturizer(featurizer, BrokenImages("error")), dataset.entities, progress=False
    )
    mentions = featurizer.mentions([m.mention for m in dataset.splits["test"]])
    best = NumpyScorer(featurizer.constants).score(mentions, entities).total.argmax(1)
    right = [dataset.entities[b].id == m.answer for b, m in zip(best, dataset.splits["test"], strict=True)]
    assert judge.hits_at_1((None, None), {}) == pytest.approx(np.mean(right))
