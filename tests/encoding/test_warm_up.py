"""After a warm-up nothing new happens for any batch, length or image; and sessions are opened anew after a fault."""

import numpy as np
import onnxruntime
import pytest

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.encoding.buckets import ROWS, bucket, length_buckets
from mimic_engine.encoding.featurizer import warm_up
from mimic_engine.encoding.graph_names import ENCODERS, FOLDS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph, OnnxSession
from mimic_engine.encoding.session import GraphSession
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import DeviceError, DeviceLostError, ModelError
from mimic_engine.export.profiles import profiles
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.gpu.onnx_cuda import BoundGraph
from mimic_engine.gpu.tensorrt import EngineGraph
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic
from mimic_engine.types import TokenBatch
from tests.gpu import fakes

LENGTH = 29
GRAPHS = (*ENCODERS, *FOLDS)


@pytest.fixture(scope="module")
def masked_model(tiny_checkpoint, tmp_path_factory):
    """A model that masks padding, so that its texts run at three lengths."""
    base = load_checkpoint(tiny_checkpoint)
    matcher = MatcherConfig(hidden=8, mask_padding=True)
    config = ModelConfig(TextConfig(max_length=LENGTH), ImageConfig(size=32), EncoderConfig(), matcher)
    out = tmp_path_factory.mktemp("masked") / "model"
    export_model(Mimic(config, base.model.encoder).eval(), base.tokenizer_json, out, ExportOptions(("fp32",)))
    return out


def requests(length):
    """Every number of mentions up to over a bucket, every number of tokens, with and without images."""
    for rows in (1, 2, 3, 5, 8, 9, 17, 31, 32, 33, 70):
        for used in {2, length // 4, length // 2 + 1, length}:
            mask = np.repeat((np.arange(length) < used)[None], rows, axis=0).astype(np.int64)
            yield TokenBatch(2 * mask, mask, np.zeros_like(mask), np.zeros(rows, bool)), rows


def answer(session, length):
    """Fold the mentions of every request."""
    for tokens, rows in requests(length):
        images = session.encode_image(np.ones((rows, 3, 32, 32), np.float32))
        session.fold_mentions(session.encode_text(tokens), images)


def bound_session(folder, make):
    manifest = ModelManifest.read(folder)
    graphs = {name: make(manifest, name) for name in GRAPHS}
    return GraphSession(manifest, graphs, folder / "tokenizer.json", "fake"), graphs


@pytest.fixture
def engines(masked_model):
    device = fakes.FakeDevice()

    def make(manifest, name):
        entry = manifest.entry(name, "fp32")
        graph = OnnxGraph.open(masked_model, manifest, name, "fp32", threads=1, verify=False)
        spans = tuple(profiles(entry, LENGTH))
        return EngineGraph(
            name, entry, fakes.fake_library(), fakes.FakeEngine(graph, spans, device), device, spans
        )

    return (device, *bound_session(masked_model, make))


def test_engines_are_captured_and_bound_in_the_warm_up_alone(engines):
    device, session, graphs = engines
    warm_up(session)
    free, captured = device.free, device.calls.count("capture")
    contexts = {name: len(graph._engine.contexts) for name, graph in graphs.items()}
    assert contexts == {
        "text_encoder": len(ROWS) * len(length_buckets(LENGTH)), "image_encoder": len(ROWS),
        "mention_fold": len(ROWS), "entity_fold": 0,
    }  # fmt: skip
    assert captured == sum(contexts.values())
    device.calls.clear()
    answer(session, LENGTH)
    assert device.free == free and "capture" not in device.calls
    assert {name: len(graph._engine.contexts) for name, graph in graphs.items()} == contexts
    assert device.calls.count("replay") == device.calls.count("synchronize") > 100


def test_without_a_warm_up_the_counts_would_grow(engines):
    device, session, _ = engines
    answer(session, LENGTH)
    assert "capture" in device.calls


def test_engines_of_fewer_profiles_are_warmed_up_to_their_largest(masked_model):
    device = fakes.FakeDevice()

    def make(manifest, name):
        entry = manifest.entry(name, "fp32")
        graph = OnnxGraph.open(masked_model, manifest, name, "fp32", threads=1, verify=False)
        spans = tuple(profiles(entry, LENGTH, (1, 4)))
        return EngineGraph(
            name, entry, fakes.fake_library(), fakes.FakeEngine(graph, spans, device), device, spans
        )

    session, _ = bound_session(masked_model, make)
    assert session.shapes.rows == (1, 4) and session.shapes.runs == 2
    warm_up(session)
    before = device.calls.count("capture")
    answer(session, LENGTH)  # more rows than the largest profile run in several goes
    assert device.calls.count("capture") == before


def test_bound_graphs_make_no_binding_after_the_warm_up(masked_model):
    def make(manifest, name):
        entry = manifest.entry(name, "fp32")
        return BoundGraph(masked_model / entry.onnx.file, entry, device="cpu")

    session, graphs = bound_session(masked_model, make)
    warm_up(session)
    bound = {name: len(graph._bound) for name, graph in graphs.items()}
    assert bound["text_encoder"] == len(ROWS) * len(length_buckets(LENGTH))
    answer(session, LENGTH)
    assert {name: len(graph._bound) for name, graph in graphs.items()} == bound


@pytest.mark.parametrize("model", ["masked_model", "tiny_model"])
def test_the_cpu_session_opens_nothing_and_sees_no_new_bucket_after_the_warm_up(request, model, monkeypatch):
    folder = request.getfixturevalue(model)
    length = ModelManifest.read(folder).widths["length"]
    session, seen, opened = OnnxSession.open(folder, threads=1), set(), []
    real = OnnxGraph.execute

    def spy(self, feeds):
        array = next(iter(feeds.values()))
        seen.add((self.title, bucket(len(array), ROWS), array.shape[1:]))
        return real(self, feeds)

    monkeypatch.setattr(OnnxGraph, "execute", spy)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: opened.append(a))
    warm_up(session)
    warm = set(seen)
    lengths = len(length_buckets(length)) if model == "masked_model" else 1
    assert len(warm) == len(ROWS) * (2 + lengths)
    answer(session, length)
    assert seen == warm and not opened


def test_the_torch_session_is_warmed_up_too(tiny_checkpoint):
    session = TorchSession(load_checkpoint(tiny_checkpoint).model)
    assert warm_up(session) == len(ROWS) * 3
    session.rebuild()


def folded(session):
    tokens, _ = next(iter(requests(9)))
    images = session.encode_image(np.ones((1, 3, 32, 32), np.float32))
    return session.fold_mentions(session.encode_text(tokens), images)


def test_a_rebuilt_session_is_open_anew_and_gives_the_same(tiny_model):
    session = OnnxSession.open(tiny_model, threads=1)
    before, graphs = folded(session), dict(session._graphs)
    session.rebuild()
    assert all(session._graphs[name] is not graph for name, graph in graphs.items())
    for (_, a), (_, b) in zip(before.items(), folded(session).items(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_session_that_does_not_open_again_fails_every_run_until_it_does(tiny_model, monkeypatch):
    session = OnnxSession.open(tiny_model, threads=1)
    with monkeypatch.context() as broken:
        broken.setattr(onnxruntime, "InferenceSession", lambda *a, **k: 1 / 0)
        with pytest.raises(ModelError, match="cannot load it"):
            session.rebuild()
    with pytest.raises(DeviceError, match="not there since the device failed"):
        folded(session)
    session.rebuild()
    assert folded(session).rows == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Failed to allocate memory for requested buffer", DeviceError),
        ("CUDA failure 700: illegal memory access", DeviceLostError),
    ],
)
def test_a_run_that_fails_inside_the_library_is_a_device_error(tiny_model, text, kind):
    session = OnnxSession.open(tiny_model, threads=1)

    class Broken:
        def run(self, *_):
            raise RuntimeError(text)

    session._graphs["image_encoder"]._session = Broken()
    with pytest.raises(DeviceError, match=r"image_encoder\.fp32\.onnx: ") as caught:
        folded(session)
    assert type(caught.value) is kind


def test_an_input_that_the_graph_refuses_is_a_failed_run(tiny_model):
    """A real failure of ONNX Runtime: a token that the embedding does not hold."""
    session = OnnxSession.open(tiny_model, threads=1)
    ids = np.full((1, 9), 10**6)
    with pytest.raises(DeviceError, match="a run failed"):
        session.encode_text(TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids), np.zeros(1, bool)))
