"""The chain that the service opens, kernels and all, on the CPU: when it is chosen, and its way through a reload."""

import asyncio
import threading
import time

import pytest

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.engine import gpu_choice as choose
from mimic_engine.engine import gpu_open as opening
from mimic_engine.engine.gpu_linker import DeviceLinker
from mimic_engine.engine.linker import Linker
from mimic_engine.engine.warmup import WarmUp
from mimic_engine.errors import BackendError
from mimic_engine.gpu.request import ScanSearch
from mimic_engine.gpu.scan import CudaRanker
from mimic_engine.index.store import Index
from mimic_engine.server.requests import LinkRequest
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkOptions, Mention
from tests.batching.device import wait_ready
from tests.gpu.bound import cpu_graphs

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
    linker = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    with pytest.raises(BackendError, match="the scan runs on 'onnx', not on the GPU"):
        choose.choose_chain(linker, tiny_model, "on")
    assert choose.choose_chain(linker, tiny_model, "auto") is linker
    linker.close()


def test_what_is_chosen_answers_as_every_linker(chained, tiny_model, tiny_index, tiny_picture):
    assert isinstance(chained, DeviceLinker)
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    mentions = [Mention("a b", "c a b d", tiny_picture), Mention("j", "i j")]
    for found, expected in zip(chained.link(mentions, 5), reference.link(mentions, 5), strict=True):
        assert [c.id for c in found.candidates] == [c.id for c in expected.candidates]
        scores = [c.score for c in expected.candidates]
        assert [c.score for c in found.candidates] == pytest.approx(scores, abs=1e-4)
    assert chained.chain.programs
    reference.close()


def test_after_a_reload_the_first_request_finds_its_program_made(chained, monkeypatch):
    monkeypatch.setattr(chained, "warm_up", lambda: None)
    monkeypatch.setattr(ScanSearch, "modes", ("certified",))
    newest = chained._over(chained.index, chained._ranker.over(chained.index.segments, chained.index.ids))
    newest.chain.requests.rows = (1,)
    threads, link = set(), newest.link_prepared

    def seen(requests):
        threads.add(threading.current_thread().name)
        return link(requests)

    monkeypatch.setattr(newest, "link_prepared", seen)
    monkeypatch.setattr(chained, "reopened", lambda: newest)
    service = LinkService(chained, Settings(mention_cache_bytes=0))
    try:
        assert wait_ready(service.batcher, 60)
        assert asyncio.run(service.reload())
        assert service.linker is newest and threads == {"mimic-device"}
        made = {bucket: (program, program.graphs) for bucket, program in newest.chain.programs.items()}
        assert {(b.rows, b.pictures) for b in made} == {(1, 0), (1, 1)}
        assert all(graphs for _, graphs in made.values())
        query = LinkRequest(Mention("a", "a b c"), LinkOptions())
        [found] = asyncio.run(service.link([query], time.monotonic() + 600, {}))
        assert len(found.candidates) == 10
        assert made == {b: (program, program.graphs) for b, program in newest.chain.programs.items()}
    finally:
        service.close()


def test_a_chain_over_another_state_says_how_warm_the_first_was(chained):
    chained.warmed = WarmUp(1.0, 2, 3, 4.0, 5.0)
    newest = chained._over(chained.index, chained._ranker.over(chained.index.segments, chained.index.ids))
    assert newest.info()["warm_up"] == chained.warmed.to_json()
