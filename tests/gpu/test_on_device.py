"""The pipeline on a GPU: graphs capture, answers are a plain search's, two batches under way change nothing."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
ENTITIES, BATCH = 5003, 5
PRECISIONS = ("fp32", "fp16")
MODES = ("exact", "certified", "coded")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from benchmarks.gpu.data import World
    from benchmarks.gpu.link_cases import Encoders, open_scan
    from benchmarks.scan.published_model import Towers

    world = World.make(torch.device("cuda"), 5)
    encoders = Encoders(tmp_path_factory.mktemp("model"), world, Towers(2, 128), BATCH)
    return encoders, *open_scan(world, ENTITIES, 64, BATCH, 0)


@pytest.fixture(scope="module")
def make(made):
    from benchmarks.gpu.link_cases import Bench

    encoders, scan, given = made
    return lambda precision: Bench.make(encoders, encoders.open("torch", precision), scan, given)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_mode_is_one_graph_and_right(make, precision):
    bench = make(precision)
    for mode in MODES:
        for batch in (1, BATCH):
            bench.check(batch, mode, precision)
    assert all(c.graphs == 1 and not c.launched for c in bench.pipeline.captured.values())


def test_two_batches_under_way_give_what_each_gives_alone(make):
    from mimic_engine.gpu.pipeline import overlapped

    bench = make("fp32")
    parts = [bench.prepared[i % BATCH : i % BATCH + 1] for i in range(40)]
    parts += [bench.prepared[i % 2 : i % 2 + 3] for i in range(40)]
    honest = bench.honest  # nothing is replaced there: what was folded tells one batch from another

    def begin(part):
        return honest.start(part, 10, "exact")

    def folded(batch):
        found = honest.folded(batch).cmfu.copy()
        honest.finish(batch)
        return found

    alone = [folded(begin(part)) for part in parts]
    together = list(overlapped(parts, begin, folded))
    near = 1e-4 * np.abs(alone[0]).max()  # a captured product may add up in another order
    assert np.abs(alone[0] - alone[1]).max() > 10 * near
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=near)


@pytest.fixture(params=["pycuda", "cuda-core"])
def device(request):
    from mimic_engine.errors import MissingDependencyError
    from mimic_engine.gpu.device import open_device

    try:
        return open_device(request.param)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_torch_works_on_the_stream_and_the_memory_of_a_device_layer(device):
    from types import SimpleNamespace

    from mimic_engine.gpu.stream import TorchDevice

    stream, memory = TorchDevice(torch.device("cuda"), device.stream), device.allocate(64)
    interface = {"shape": (64,), "typestr": "|u1", "data": (memory.address, False), "version": 3}
    view = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
    host, back = device.pinned(64), device.pinned(64)
    host[:] = np.arange(64)
    with stream.current():
        view.zero_().add_(0)  # kernels are loaded on first use
    graph = stream.capture(lambda: view.add_(1))
    device.upload(host, memory)
    for _ in range(2):
        stream.replay(graph)
    device.download(memory, back)
    device.synchronize()
    np.testing.assert_array_equal(back, host + 2)


def on_torch(checkpoint, device):
    """A session on the device without an engine or a provider: torch's modules, on the device's stream."""
    from benchmarks.gpu.torch_graphs import torch_graphs
    from mimic_engine.encoding.torch import TorchSession
    from mimic_engine.gpu.session import DeviceSession

    class OnTorch(TorchSession, DeviceSession):
        graphs = None

        def rebuild(self):
            self.graphs = torch_graphs(self._model)

    session = OnTorch(checkpoint.model.to("cuda"))
    session.tokenizer_json, session.device = checkpoint.tokenizer_json, device
    session.rebuild()
    return session


def test_a_linker_answers_as_every_linker(tiny_model, tiny_index, tiny_checkpoint, tiny_picture, device):
    from mimic_engine.calibration.stored import Calibration
    from mimic_engine.calibration.weights import ScoreWeights
    from mimic_engine.engine.gpu_linker import GpuLinker
    from mimic_engine.engine.linker import Linker
    from mimic_engine.gpu.scan import CudaScan
    from mimic_engine.index.store import Index
    from mimic_engine.model.checkpoint import load_checkpoint
    from mimic_engine.scan.terms import ScoreTerms
    from mimic_engine.types import Mention
    from tests.gpu.bound import featurizer

    index, encoders = Index.open(tiny_index), featurizer(on_torch(load_checkpoint(tiny_checkpoint), device))
    weights = ScoreWeights(exact=4.0, words=2.0, chars=1.0, context=0.5, prior=0.5)
    terms = ScoreTerms(np.linspace(-1, 1, len(index), dtype=np.float32), sum(weights.names))
    scan = CudaScan(index.segments, encoders.constants, tie_key=index.ids, terms=terms)
    calibration = Calibration(encoders.model_hash, weights)
    ours = GpuLinker(encoders, index, scan, calibration)
    opened = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    theirs = opened._scan.over(index.segments, index.ids, terms=terms)
    reference = Linker(opened.featurizer, index, theirs, calibration)
    opened.close()
    ours.warm_up()
    assert ours.info()["chain"]["launched"] == []  # every bucket is a graph
    mentions = [Mention("a b", "c a b d", tiny_picture), Mention("c", "c d e"), Mention("j", "i j")]
    for turn in range(2):
        if turn:
            ours.recover()
        found, expected = ours.link(mentions, 5, mode="exact"), reference.link(mentions, 5, mode="exact")
        for a, b in zip(found, expected, strict=True):
            assert [c.id for c in a.candidates] == [c.id for c in b.candidates]
            np.testing.assert_allclose(
                [c.score for c in a.candidates], [c.score for c in b.candidates], rtol=0, atol=1e-3
            )
    reference.close()
