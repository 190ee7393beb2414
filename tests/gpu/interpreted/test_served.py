"""The GPU pipeline that the service opens, kernels and all, on the CPU: its choice, and its way through a reload."""

import asyncio
import threading
import time

import pytest

from mimic_engine.engine.gpu_choice import choose_pipeline
from mimic_engine.engine.gpu_linker import GpuLinker
from mimic_engine.engine.linker import Linker
from mimic_engine.engine.warmup import WarmUp
from mimic_engine.errors import BackendError
from mimic_engine.gpu.request import RequestPlan
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.index.store import Index
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.server.requests import LinkRequest
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkOptions, Mention
from tests.batching.device import wait_ready
from tests.gpu.bound import featurizer_on
from tests.gpu.fakes import PromptDevice

pytestmark = pytest.mark.usefixtures("sorted_topk", "little_room")


def linker_over(scan_of, tiny_model, tiny_index):
    """As the service opens one: encoders on a (fake) GPU, and the scan that is asked for."""
    featurizer, index = featurizer_on(PromptDevice(), tiny_model), Index.open(tiny_index)
    return Linker(featurizer, index, scan_of(featurizer, index))


def cuda_scan(featurizer, index):
    return CudaScan(index.segments, featurizer.constants, device="cpu", tie_key=index.ids)


def cpu_scan(featurizer, index):
    return Scan(index.segments, BlockKernels(NumpyScorer(featurizer.constants), featurizer.constants))


@pytest.fixture
def chosen(tiny_model, tiny_index):
    return choose_pipeline(linker_over(cuda_scan, tiny_model, tiny_index), "on")


def test_a_scan_on_the_cpu_is_in_the_way(tiny_model, tiny_index):
    linker = linker_over(cpu_scan, tiny_model, tiny_index)
    with pytest.raises(BackendError, match="the scan runs on 'numpy', not on the GPU"):
        choose_pipeline(linker, "on")
    assert choose_pipeline(linker, "auto") is linker
    linker.close()


def test_what_is_chosen_answers_as_every_linker(chosen, tiny_model, tiny_index, tiny_picture):
    assert isinstance(chosen, GpuLinker)
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    mentions = [Mention("a b", "c a b d", tiny_picture), Mention("j", "i j")]
    for found, expected in zip(chosen.link(mentions, 5), reference.link(mentions, 5), strict=True):
        assert [c.id for c in found.candidates] == [c.id for c in expected.candidates]
        scores = [c.score for c in expected.candidates]
        assert [c.score for c in found.candidates] == pytest.approx(scores, abs=1e-4)
    assert chosen.pipeline.captured
    reference.close()


def test_after_a_reload_the_first_request_finds_its_bucket_captured(chosen, monkeypatch):
    monkeypatch.setattr(chosen, "warm_up", lambda: None)
    monkeypatch.setattr(RequestPlan, "modes", ("certified",))
    newest = chosen._over(chosen.index, chosen._scan.over(chosen.index.segments, chosen.index.ids))
    newest.pipeline.plan.rows = (1,)
    threads, link = set(), newest.link_prepared

    def seen(requests):
        threads.add(threading.current_thread().name)
        return link(requests)

    monkeypatch.setattr(newest, "link_prepared", seen)
    monkeypatch.setattr(chosen, "reopened", lambda: newest)
    service = LinkService(chosen, Settings(mention_cache_bytes=0))
    try:
        assert wait_ready(service.batcher, 60)
        assert asyncio.run(service.reload())
        assert service.linker is newest and threads == {"mimic-device"}
        made = {bucket: (c, c.graphs) for bucket, c in newest.pipeline.captured.items()}
        assert {(b.rows, b.images) for b in made} == {(1, 0), (1, 1)}
        assert all(graphs for _, graphs in made.values())
        asked = LinkRequest(Mention("a", "a b c"), LinkOptions())
        [found] = asyncio.run(service.link([asked], time.monotonic() + 600, {}))
        assert len(found.candidates) == 10
        assert made == {b: (c, c.graphs) for b, c in newest.pipeline.captured.items()}
    finally:
        service.close()


def test_a_pipeline_over_another_state_says_how_warm_the_first_was(chosen):
    chosen.warmed = WarmUp(1.0, 2, 3, 4.0, 5.0)
    newest = chosen._over(chosen.index, chosen._scan.over(chosen.index.segments, chosen.index.ids))
    assert newest.info()["warm_up"] == chosen.warmed.to_json()
