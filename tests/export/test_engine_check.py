"""Engines checked against PyTorch, on the device that runs late: what is right passes, what is wrong is refused."""

import hashlib

import numpy as np
import pytest

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.errors import ModelError
from mimic_engine.export import engine_check, verify
from mimic_engine.export.comparison import Comparison, Row
from mimic_engine.export.engine_check import InBlocks, mark, verify_engines
from mimic_engine.export.profiles import profiles
from mimic_engine.export.samples import own_records, prepare
from mimic_engine.gpu.engine_files import EngineRecord, graph_sha256
from mimic_engine.gpu.tensorrt import EngineGraph
from tests.gpu import fakes


def engine_graph(folder, manifest, name, device):
    entry = manifest.entry(name, "fp32")
    graph = OnnxGraph.open(folder, manifest, name, "fp32", threads=1, verify=True)
    spans = tuple(profiles(entry, manifest.widths["length"]))
    return EngineGraph(
        name, entry, fakes.fake_library(), fakes.FakeEngine(graph, spans, device), device, spans
    )


@pytest.fixture
def engines(bert_vit_folder, tmp_path):
    """A folder of engine files (their bytes are never read by the fake) with manifests."""
    manifest = ModelManifest.read(bert_vit_folder)
    for name in GRAPHS:
        entry = manifest.entry(name, "fp32")
        record = EngineRecord(
            *(manifest.model_hash, name, "fp32", graph_sha256(entry), "tensorrt", "10.16.1.11", "sm_99"),
            *(tuple(profiles(entry, 9)), 0.1, 1, hashlib.sha256(b"x").hexdigest(), False, False, None),
        )
        (tmp_path / record.file).write_bytes(b"x")
        record.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (9, 64), (33, 65), (17, 3)])
def test_tiles_of_the_scorer_are_the_whole(bert_vit_folder, shape):
    manifest = ModelManifest.read(bert_vit_folder)
    feeds = {}
    for name, rows in zip(("mention_fold", "entity_fold"), shape, strict=True):
        fold = OnnxGraph.open(bert_vit_folder, manifest, name, "fp32", threads=1, verify=True)
        rng = np.random.default_rng(rows)
        features = {
            k: rng.standard_normal((rows, *rest)).astype(np.float32) for k, (_, *rest) in fold.inputs.items()
        }
        feeds |= fold.run(features)
    plain = OnnxGraph.open(bert_vit_folder, manifest, "scorer", "fp32", threads=1, verify=True).run(feeds)
    tiled = InBlocks(engine_graph(bert_vit_folder, manifest, "scorer", fakes.FakeDevice())).run(feeds)
    for name, expected in plain.items():
        assert tiled[name].shape == shape
        np.testing.assert_allclose(tiled[name], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["text_encoder", "mention_fold", "entity_fold"])
def test_blocks_of_rows_are_the_whole(bert_vit_folder, name):
    manifest = ModelManifest.read(bert_vit_folder)
    entry = manifest.entry(name, "fp32")
    rng = np.random.default_rng(0)
    ids = name == "text_encoder"
    feeds = {
        k: np.ones((71, *rest), np.int64) if ids else rng.standard_normal((71, *rest)).astype(np.float32)
        for k, (_, *rest) in entry.inputs.items()
    }
    plain = OnnxGraph.open(bert_vit_folder, manifest, name, "fp32", threads=1, verify=True).run(feeds)
    blocks = InBlocks(engine_graph(bert_vit_folder, manifest, name, fakes.FakeDevice())).run(feeds)
    for key, expected in plain.items():
        np.testing.assert_allclose(blocks[key], expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("wrong", [None, "mention_fold"])
def test_a_wrong_engine_is_marked_and_then_refused(bert_vit, bert_vit_folder, engines, monkeypatch, wrong):
    def opened(folder, engines, manifest, name, precision, device):
        graph = engine_graph(folder, manifest, name, device)
        if name == wrong:
            execute = graph.execute
            graph.execute = lambda feeds: {k: v * np.float32(1.01) for k, v in execute(feeds).items()}
        return graph

    monkeypatch.setattr(engine_check, "open_engine", opened)
    manifest = ModelManifest.read(bert_vit_folder)
    sample = prepare(bert_vit_folder, manifest, *own_records())
    comparison = Comparison(bert_vit, bert_vit_folder, manifest, sample, k=10)
    rows = verify_engines(comparison, bert_vit_folder, engines, manifest, "fp32", fakes.FakeDevice())
    assert {r.graph for r in rows} == {*GRAPHS, "all graphs"}
    for name in GRAPHS:
        path = engines / f"{name}.fp32.sm_99.engine"
        record = EngineRecord.read(path)
        assert record.verified["ok"] == (name != wrong)
        check = (path, bert_vit_folder, manifest.model_hash, manifest.entry(name, "fp32"))
        if name == wrong:
            with pytest.raises(ModelError, match="failed its verification: mention_fold: error"):
                record.check_graph(*check)
        else:
            record.check_graph(*check)


def test_where_only_all_together_fail_every_engine_is_refused(engines):
    good = [Row(name, "fp32", 0.0, 0.0, 1.0, 1.0, 1, 1.0) for name in GRAPHS]
    mark(engines, "sm_99", [*good, Row("all graphs", "fp32", float("inf"), 0.1, None, 0.5, 1, 1.0)])
    for name in GRAPHS:
        verified = EngineRecord.read(engines / f"{name}.fp32.sm_99.engine").verified
        assert verified["ok"] is False and verified["reason"].startswith("all graphs: error inf")


def test_the_command_needs_a_device(bert_vit_folder, tiny_checkpoint, engines, capsys):
    options = ["--model", str(tiny_checkpoint), "--precisions", "fp32", "--engines", str(engines)]
    status = verify.main([str(bert_vit_folder), *options])
    assert status == 2  # no device, or none of sm_99
    assert "error: " in capsys.readouterr().err
