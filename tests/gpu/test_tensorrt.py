"""The TensorRT session on a device that runs late: numbers, buckets, and what it refuses."""

import numpy as np
import pytest

from mimic_engine.encoding.buckets import ROWS
from mimic_engine.encoding.graph_names import ENCODERS, FOLDS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph, OnnxSession
from mimic_engine.errors import EngineError, InvalidInputError, ModelError
from mimic_engine.export.profiles import profiles
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.session import DeviceSession
from mimic_engine.gpu.tensorrt import EngineGraph, TensorRtSession
from tests.gpu import fakes


def open_graph(folder, manifest, name, device, rows=ROWS):
    entry = manifest.entry(name, "fp32")
    graph = OnnxGraph.open(folder, manifest, name, "fp32", threads=1, verify=True)
    spans = tuple(profiles(entry, manifest.widths["length"], rows))
    engine = fakes.FakeEngine(graph, spans, device)
    return EngineGraph(name, entry, fakes.fake_library(), engine, device, spans)


def engine_session(folder, device, rows=ROWS):
    manifest = ModelManifest.read(folder)

    def graphs():
        return {name: open_graph(folder, manifest, name, device, rows) for name in (*ENCODERS, *FOLDS)}

    return DeviceSession(manifest, graphs, folder / "tokenizer.json", "tensorrt", device)


@pytest.fixture
def device():
    return fakes.FakeDevice()


@pytest.fixture
def both(tiny_model, device):
    return engine_session(tiny_model, device), OnnxSession.open(tiny_model, threads=1)


def pixels(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 32, 33, 70])
def test_gives_what_the_cpu_gives_again_and_again(both, rows):
    from mimic_engine.backends.encoders import outputs
    from mimic_engine.types import TokenBatch

    session, reference = both
    for seed in (0, 1, 2):
        ids = np.random.default_rng(seed).integers(2, 15, (rows, 9))
        tokens = TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids), np.zeros(rows, bool))
        found, expected = (outputs(s, tokens, pixels(rows, seed)) for s in (session, reference))
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and a.flags.owndata
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_each_bucket_has_one_context_and_a_batch_is_waited_for_once(tiny_model, device):
    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device)
    for number, rows in enumerate((3, 4, 2, 3)):
        graph.run({"pixels": pixels(rows)})
        assert device.calls == ["synchronize"] * (number + 1)
    assert len(graph._engine.contexts) == 1
    graph.run({"pixels": pixels(5)})
    assert len(graph._engine.contexts) == 2


def test_arrays_of_another_shape_or_type_are_refused(tiny_model, device):
    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device)
    shapes = {"pixels": (4, 3, 32, 32), "cls": (4, 8), "tokens": (4, 5, 8)}
    arrays = {name: Placed(256, shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    graph.launcher(arrays)
    for wrong in (Placed(256, (4, 9), np.dtype(np.float32)), Placed(256, (4, 8), np.dtype(np.float16))):
        with pytest.raises(ModelError, match=r"image_encoder: cls is float32 \(4, 8\), not float"):
            graph.launcher(arrays | {"cls": wrong})


def test_nothing_is_allocated_after_the_session_is_open(tiny_model, device):
    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device)
    before = device.free
    for rows in (1, 3, 7, 32):
        graph.run({"pixels": pixels(rows)})
    assert device.free == before


def test_a_session_runs_in_another_thread_than_the_one_that_opened_it(tiny_model, device):
    from concurrent.futures import ThreadPoolExecutor

    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(graph.run, {"pixels": pixels(2)}).result()["cls"].shape == (2, 8)
    assert len(device.threads) == 2


def test_a_request_beyond_the_profiles_names_the_option(tiny_model, device):
    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device, rows=(1, 4))
    with pytest.raises(InvalidInputError, match=r"'batch': 5.*--profiles"):
        graph.run({"pixels": pixels(5)})


def test_an_engine_that_does_not_start_is_an_error(tiny_model, device):
    graph = open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", device)
    graph._engine.broken = True
    with pytest.raises(EngineError, match="image_encoder"):
        graph.run({"pixels": pixels(1)})


def test_an_engine_with_other_tensors_is_refused(tiny_model, device):
    manifest = ModelManifest.read(tiny_model)
    text = OnnxGraph.open(tiny_model, manifest, "text_encoder", "fp32", threads=1, verify=True)
    entry = manifest.entry("image_encoder", "fp32")
    spans = tuple(profiles(entry, 9))
    engine = fakes.FakeEngine(text, spans, device)
    with pytest.raises(ModelError, match="pixels"):
        EngineGraph("image_encoder", entry, fakes.fake_library(), engine, device, spans)


def test_too_little_device_memory_is_an_error(tiny_model):
    from mimic_engine.errors import BackendError

    with pytest.raises(BackendError, match="device memory"):
        open_graph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", fakes.FakeDevice(1000))


def test_texts_run_at_their_length_bucket(masked_long, device):
    folder, session = masked_long
    manifest = ModelManifest.read(folder)
    graph = open_graph(folder, manifest, "text_encoder", device)
    ids = np.full((3, 8), 5, np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found = graph.run(feeds)
    assert found["tokens"].shape == (3, 8, 16)
    expected = session._graphs["text_encoder"]._graph.run(feeds)
    np.testing.assert_allclose(found["tokens"], expected["tokens"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def masked_long(tiny_checkpoint, tmp_path_factory):
    from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
    from mimic_engine.export.to_onnx import ExportOptions, export_model
    from mimic_engine.model.checkpoint import load_checkpoint
    from mimic_engine.model.units import Mimic

    base = load_checkpoint(tiny_checkpoint)
    matcher = MatcherConfig(hidden=8, mask_padding=True)
    config = ModelConfig(TextConfig(max_length=29), ImageConfig(size=32), EncoderConfig(), matcher)
    out = tmp_path_factory.mktemp("long") / "model"
    export_model(Mimic(config, base.model.encoder).eval(), base.tokenizer_json, out, ExportOptions(("fp32",)))
    return out, OnnxSession.open(out, threads=1)


def test_a_missing_engine_is_named_with_the_command(tiny_model, device):
    with pytest.raises(ModelError, match=r"text_encoder\.fp32\.sm_99\.engine: missing.*build_trt\.py"):
        TensorRtSession.open(tiny_model, device=device)
