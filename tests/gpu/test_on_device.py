"""The chain on a GPU: graphs capture, answers are a plain search's, two batches under way change nothing."""

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
    from mimic_engine.gpu.stream import TorchDevice

    encoders, scan, given = made

    def bench(precision):
        device = TorchDevice(torch.device("cuda"))
        graphs = encoders.open("torch", precision, device)
        return Bench.make(encoders, graphs, scan, given, device)

    return bench


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_mode_is_one_graph_and_right(make, precision):
    bench = make(precision)
    for mode in MODES:
        for batch in (1, BATCH):
            bench.check(batch, mode, precision)
    assert all(p.graphs == 1 and not p.launched for p in bench.chain.programs.values())


def test_two_batches_under_way_give_what_each_gives_alone(make):
    from mimic_engine.gpu.pipeline import overlapped

    bench = make("fp32")
    parts = [bench.prepared[i % BATCH : i % BATCH + 1] for i in range(40)]
    parts += [bench.prepared[i % 2 : i % 2 + 3] for i in range(40)]

    def folded(flight):
        return bench.chain.finish(flight, lambda results, fetch: fetch()["mention_cmfu"].copy())

    # Nothing is replaced here: what was folded tells one batch from another.
    bench = type(bench)(*(getattr(bench, n) for n in ("encoders", "scan", "honest", "honest", "given")),
                        bench.prepared)  # fmt: skip
    alone = [folded(bench.start(part, "exact")) for part in parts]
    together = list(overlapped(parts, lambda part: bench.start(part, "exact"), folded))
    near = 1e-4 * np.abs(alone[0]).max()  # a captured product may add up in another order
    assert np.abs(alone[0] - alone[1]).max() > 10 * near
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=near)


def test_a_linker_answers_as_every_linker(tiny_model, tiny_index, tiny_checkpoint, tiny_picture):
    from mimic_engine.backends.encoders import open_featurizer
    from mimic_engine.engine.gpu_linker import DeviceLinker
    from mimic_engine.engine.linker import Linker
    from mimic_engine.gpu.graphs import SharedGraphs, torch_graphs
    from mimic_engine.gpu.scan import CudaRanker
    from mimic_engine.gpu.stream import TorchDevice
    from mimic_engine.index.store import Index
    from mimic_engine.model.checkpoint import load_checkpoint
    from mimic_engine.types import Mention

    index, featurizer = Index.open(tiny_index), open_featurizer(tiny_model, threads=1, backend="onnx")
    device = TorchDevice(torch.device("cuda"))
    graphs = SharedGraphs(lambda: torch_graphs(load_checkpoint(tiny_checkpoint).model.to("cuda")))
    ranker = CudaRanker(index.segments, featurizer.constants, tie_key=index.ids)
    ours = DeviceLinker(featurizer, index, ranker, graphs=graphs, device=device)
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="numpy")
    ours.warm_up()
    assert ours.info()["chain"]["launched"] == []  # every program is a graph
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
