"""After a warm-up nothing new happens for any batch, length or image; and sessions are opened anew after a fault."""

import numpy as np
import onnxruntime
import pytest

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.encoding.buckets import ROWS, bucket, length_buckets
from mimic_engine.encoding.featurizer import warm_up
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph, OnnxSession
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import DeviceError, DeviceLostError, ModelError
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic
from mimic_engine.types import TokenBatch
from tests.gpu.bound import bound_session
from tests.gpu.fakes import FakeDevice
from tests.gpu.test_tensorrt import engine_session

LENGTH = 29


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


@pytest.fixture
def engines(masked_model):
    return engine_session(masked_model, FakeDevice())


def contexts(session):
    return {name: len(graph._engine.contexts) for name, graph in session.graphs.items()}


def test_contexts_and_memory_are_made_in_the_warm_up_alone(engines):
    device = engines.device
    warm_up(engines)
    free, made = device.free, contexts(engines)
    assert made == {
        "text_encoder": len(ROWS) * len(length_buckets(LENGTH)), "image_encoder": len(ROWS),
        "mention_fold": len(ROWS), "entity_fold": 0,
    }  # fmt: skip
    answer(engines, LENGTH)
    assert device.free == free and contexts(engines) == made


def test_without_a_warm_up_the_counts_would_grow(engines):
    answer(engines, LENGTH)
    assert sum(contexts(engines).values()) > 10


def test_engines_of_fewer_profiles_are_warmed_up_to_their_largest(masked_model):
    session = engine_session(masked_model, FakeDevice(), (1, 4))
    assert session.shapes.rows == (1, 4) and session.shapes.runs == 1
    warm_up(session)
    before = contexts(session)
    answer(session, LENGTH)  # more rows than the largest profile run in several goes
    assert contexts(session) == before


def test_bound_graphs_make_no_binding_after_the_warm_up(masked_model):
    session = bound_session(masked_model)
    warm_up(session)
    bound = {name: graph._launchers for name, graph in session.graphs.items()}
    assert bound["text_encoder"] == len(ROWS) * len(length_buckets(LENGTH))
    answer(session, LENGTH)
    assert {name: graph._launchers for name, graph in session.graphs.items()} == bound


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
    return folded_at(session, 9)


def folded_at(session, length):
    tokens, _ = next(iter(requests(length)))
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


def test_a_session_on_the_device_is_open_anew_after_a_rebuild_and_says_while_it_is_not(engines):
    before, graphs = folded_at(engines, LENGTH), dict(engines.graphs)
    engines._open, opened = lambda: 1 / 0, engines._open
    with pytest.raises(ZeroDivisionError):
        engines.rebuild()
    with pytest.raises(DeviceError, match="not there since the device failed"):
        engines.graphs  # noqa: B018
    engines._open = opened
    engines.rebuild()
    assert all(engines.graphs[name] is not graph for name, graph in graphs.items())
    for (_, a), (_, b) in zip(before.items(), folded_at(engines, LENGTH).items(), strict=True):
        np.testing.assert_array_equal(a, b)


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
