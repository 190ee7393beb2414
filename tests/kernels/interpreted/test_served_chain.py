"""The service over the whole chain, kernels and all, on the CPU: two batches under way, every other linker's answers."""

import asyncio
import time

import pytest

from mimic_engine.chain import choose
from mimic_engine.chain import open as opening
from mimic_engine.chain.linker import DeviceLinker
from mimic_engine.encoding.open import open_featurizer
from mimic_engine.engine import Linker
from mimic_engine.errors import BackendError
from mimic_engine.index.store import Index
from mimic_engine.scoring.cuda_ranker import CudaRanker
from mimic_engine.server.checks import Query
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.types import Mention
from tests.chain.bound import cpu_graphs

pytestmark = pytest.mark.usefixtures("sorted_topk", "little_room")


@pytest.fixture
def on_the_cpu(monkeypatch, tiny_model):
    """Chains over encoders of ONNX Runtime, all of it on the CPU."""
    monkeypatch.setattr(choose, "GPU_BACKENDS", ("onnx",))
    monkeypatch.setattr(opening, "DEVICE", "cpu")
    monkeypatch.setattr(opening, "_open_graphs", lambda *_: cpu_graphs(tiny_model))


@pytest.fixture
def chained(on_the_cpu, tiny_model, tiny_index):
    index, featurizer = Index.open(tiny_index), open_featurizer(tiny_model, threads=1, backend="onnx")
    scan = CudaRanker(index.segments, featurizer.constants, device="cpu", tie_key=index.ids)
    return choose.choose_chain(Linker(featurizer, index, scan), tiny_model, "on")


def test_a_scan_on_the_cpu_is_in_the_way(on_the_cpu, tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="numpy")
    with pytest.raises(BackendError, match="the scan runs on 'numpy', not on the GPU"):
        choose.choose_chain(linker, tiny_model, "on")
    assert choose.choose_chain(linker, tiny_model, "auto") is linker
    linker.close()


def test_the_service_has_two_batches_under_way_and_answers_as_every_linker(
    chained, tiny_model, tiny_index, tiny_picture, monkeypatch
):
    assert isinstance(chained, DeviceLinker)
    monkeypatch.setattr(chained, "warm_up", lambda: None)
    start, under_way = chained.start_prepared, []

    def started(prepared, options):
        finish = start(prepared, options)
        under_way.append(2 - chained.chain.free)
        return finish

    monkeypatch.setattr(chained, "start_prepared", started)
    mentions = [
        Mention("a b", "c a b d", tiny_picture.read_bytes()),
        Mention("c", "c d e"),
        Mention("j", "i"),
    ]
    service = LinkService(chained, Settings(max_batch_size=1, mention_cache_bytes=0))
    try:
        assert service.batcher.wait_ready(60)
        queries = [Query(m, top_k=k) for m, k in zip(mentions, (3, 1, 13), strict=True)]
        found = asyncio.run(service.link(queries, time.monotonic() + 600, {}))
    finally:
        service.close()
    assert under_way == [1, 2, 2]
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="numpy")
    for mention, k, result in zip(mentions, (3, 1, 13), found, strict=True):
        [expected] = reference.link([mention], k)
        assert [c.id for c in result.candidates] == [c.id for c in expected.candidates]
        for ours, theirs in zip(result.candidates, expected.candidates, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    reference.close()
