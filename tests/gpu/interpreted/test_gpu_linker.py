"""A linker over the whole GPU pipeline, kernels and all, on the CPU: the answers of every other linker."""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mimic_engine.calibration.stored import Calibration
from mimic_engine.calibration.weights import Probability, ScoreWeights
from mimic_engine.engine import gpu_linker
from mimic_engine.engine.gpu_linker import GpuLinker
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DeviceError, InvalidInputError
from mimic_engine.gpu import passes as gpu_passes
from mimic_engine.gpu.request import Bucket, RequestPlan
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.index.store import Index
from mimic_engine.scan.terms import ScoreTerms
from mimic_engine.server.requests import LinkRequest
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkOptions, Mention
from tests.batching.device import wait_ready
from tests.gpu.bound import featurizer_on
from tests.gpu.fakes import PromptDevice

pytestmark = pytest.mark.usefixtures("sorted_topk", "little_room")


@pytest.fixture
def linkers(tiny_model, tiny_index):
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    featurizer, index = featurizer_on(PromptDevice(), tiny_model), Index.open(tiny_index)
    scan = CudaScan(index.segments, featurizer.constants, device="cpu", tie_key=index.ids)
    yield GpuLinker(featurizer, index, scan), reference
    reference.close()


WEIGHTS = ScoreWeights(exact=4.0, words=2.0, chars=1.0, context=0.5, prior=0.5)


@pytest.fixture
def named(linkers):
    """The same two, calibrated to count names and priors."""
    calibration = Calibration(linkers[0].model_hash, WEIGHTS, Probability(2.0, 1.0))
    priors = np.linspace(-1, 1, len(linkers[0].index)).astype(np.float32)
    terms = ScoreTerms(priors, sum(WEIGHTS.names))
    scans = [one._scan.over(one.index.segments, one.index.ids, terms=terms) for one in linkers]
    yield tuple(
        type(one)(one.featurizer, one.index, scan, calibration)
        for one, scan in zip(linkers, scans, strict=True)
    )
    scans[1].close()


def requests(linker, mentions, options):
    return [linker.prepare(m, o) for m, o in zip(mentions, options, strict=True)]


def link(linker, mentions, options):
    return linker.link_prepared(requests(linker, mentions, options))


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert [c.id for c in a.candidates] == [c.id for c in b.candidates]
        assert (a.mode, a.has_image, a.text_truncated) == (b.mode, b.has_image, b.text_truncated)
        assert a.nil_probability == pytest.approx(b.nil_probability, abs=1e-4)
        for x, y in zip(a.candidates, b.candidates, strict=True):
            assert x.name == y.name
            assert x.score == pytest.approx(y.score, abs=1e-4)
            assert x.units == pytest.approx(y.units, abs=1e-4)


def test_answers_as_every_linker(linkers, tiny_picture):
    ours, reference = linkers
    mentions = [Mention("a b", "c a b d", tiny_picture), Mention("c", "c d e"), Mention("j", "i j")]
    options = [LinkOptions(13, mode="exact"), LinkOptions(1, mode="exact"), LinkOptions(5, mode="exact")]
    batch = mentions
    same(link(ours, batch, options), link(reference, batch, options))
    [(bucket, captured)] = ours.pipeline.captured.items()
    assert (bucket.rows, bucket.images, bucket.k) == (4, 1, 24)
    assert captured.graphs == 2
    certified = link(ours, batch[:1], [LinkOptions(3)])
    assert [c.id for c in certified[0].candidates] == [
        c.id for c in link(reference, batch[:1], [LinkOptions(3)])[0].candidates
    ]


def test_two_batches_are_under_way_at_once(linkers, tiny_picture):
    ours, reference = linkers
    first = [Mention("a b", "c a b d", tiny_picture)]
    second = [Mention("c", "c d e")]
    options = [LinkOptions(4, mode="exact")]
    finishes = [ours.start_prepared(requests(ours, batch, options)) for batch in (first, second)]
    assert ours.pipeline.free == 0
    for finish, batch in zip(finishes, (first, second), strict=True):
        same(finish(), link(reference, batch, options))
    assert ours.pipeline.free == 2


def test_the_service_keeps_two_batches_under_way(linkers, monkeypatch):
    """Ten mentions at once, in batches of three: the next is on the device before the last is read."""
    ours, reference = linkers
    order = []
    start, finish = GpuLinker._start, GpuLinker._finish
    monkeypatch.setattr(ours, "warm_up", lambda: None)
    monkeypatch.setattr(GpuLinker, "_start", lambda *a: (order.append("start"), start(*a))[1])
    monkeypatch.setattr(GpuLinker, "_finish", lambda *a: (order.append("finish"), finish(*a))[1])
    mentions = [Mention("abcdefghij"[i], f"{'abcdefghij'[i]} b c") for i in range(10)]
    settings = Settings(max_batch_size=3, mention_cache_bytes=0, queue_timeout_ms=120_000)
    service = LinkService(ours, settings)
    try:
        assert wait_ready(service.batcher, 10)
        queries = [LinkRequest(mention, LinkOptions(2, mode="exact")) for mention in mentions]
        answers = asyncio.run(service.link(queries, time.monotonic() + 120, {}))
    finally:
        service.close()
    same(answers, reference.link(mentions, 2, mode="exact"))
    assert order == ["start", "start", "finish", "start", "finish", "finish", "start", "finish"]


def test_what_has_no_bucket_goes_the_other_way(linkers):
    ours, reference = linkers
    batch = [Mention("a", "a b c"), Mention("c", "c d e")]
    options = [LinkOptions(1, candidates=("E03", "E99"), mode="exact"), LinkOptions(2, mode="exact")]
    same(link(ours, batch, options), link(reference, batch, options))
    assert len(ours.pipeline.captured) == 1


def test_a_mention_that_falls_short_is_searched_again_and_says_so(linkers, monkeypatch):
    ours, reference = linkers
    monkeypatch.setattr(gpu_passes, "FIRST", 16)
    ours._scan.passes._room_for_survivors = 1
    batch = [Mention("a", "a b c")]
    link(ours, batch, [LinkOptions(2)])
    ranked = ours._scan._ranked

    def short(fetched, terms, k, mode):
        result, overflowed, cut = ranked(fetched, terms, k, mode)
        return result, list(range(len(result.rows))) if mode == "certified" else overflowed, cut

    monkeypatch.setattr(ours._scan, "_ranked", short)
    [found] = link(ours, batch, [LinkOptions(2)])
    assert found.mode == "exact"
    same([found], link(reference, batch, [LinkOptions(2, mode="exact")]))


@pytest.mark.parametrize("mode", ["exact", "certified"])
def test_names_count_as_in_every_linker(named, tiny_picture, mode):
    """More entities than asked for are ranked, as many as share a probability."""
    ours, _ = named
    known = [ours.index.names([row])[0] for row in (0, 7)]
    mentions = [Mention(known[0], "c a b d", tiny_picture), Mention(known[1], "c d e"), Mention("zzz", "i j")]
    options = [LinkOptions(k, mode=mode) for k in (13, 1, 5)]
    for batch in (mentions, mentions[1:2], mentions[1:2]):  # as launches, then as graphs
        found, expected = (link(one, batch, options[-len(batch) :]) for one in named)
        found, expected = ([replace(r, mode=mode) for r in one] for one in (found, expected))
        same(found, expected)
    assert found[0].candidates[0].units["name"] > 0 and "prior" in found[0].candidates[0].units
    assert {b.k for b in ours.pipeline.captured} == {10, 24} and ours.pipeline.plan.names


def test_names_that_have_no_room_and_scores_without_them_go_the_other_way(named, monkeypatch):
    ours, reference = named
    batch = [Mention(ours.index.names([0])[0], "a b c"), Mention("c", "c d e")]
    options = [LinkOptions(2, mode="exact", names=names) for names in (True, False)]
    both = requests(ours, batch, options)
    assert [ours._fits(request) for request in both] == [True, False]
    same(ours.link_prepared(both), link(reference, batch, options))
    rows = len(both[0].names.rows)
    assert rows
    monkeypatch.setattr(gpu_linker, "MAX_NAMES", rows - 1)
    assert not ours._fits(both[0])
    same(ours.link_prepared(both), link(reference, batch, options))


def test_a_mention_that_falls_short_has_its_names_again(named, monkeypatch):
    ours, reference = named
    batch, options = [Mention(ours.index.names([r])[0], "a b c") for r in (3, 8)], [LinkOptions(2)] * 2
    ranked = ours._scan._ranked

    def short(fetched, terms, k, mode):
        result, overflowed, cut = ranked(fetched, terms, k, mode)
        return result, [0] if mode == "certified" else overflowed, [1] if mode == "certified" else cut

    monkeypatch.setattr(ours._scan, "_ranked", short)
    found = link(ours, batch, options)
    assert [r.mode for r in found] == ["exact", "exact"]
    same(found, link(reference, batch, [LinkOptions(2, mode="exact")] * 2))


def test_wrong_options_start_nothing(linkers):
    ours, _ = linkers
    with pytest.raises(InvalidInputError, match="top_k: 14"):
        ours.link([Mention("a", "a b c")], 14)
    assert ours.pipeline.free == 2 and not ours.pipeline.captured


def test_after_a_device_error_the_pipeline_is_made_anew(linkers, monkeypatch):
    ours, _ = linkers
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    expected = link(ours, batch, options)
    broken, graphs = ours.pipeline, ours._session.graphs

    def fail(event):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(ours._stream, "finish", fail)
    with pytest.raises(DeviceError, match="out of memory"):
        link(ours, batch, options)
    monkeypatch.setattr(ours._stream, "finish", lambda event: None)
    warmed = []
    monkeypatch.setattr(ours, "warm_up", lambda: warmed.append(ours.pipeline))
    ours.recover()
    assert warmed == [ours.pipeline] and ours.pipeline is not broken and ours._session.graphs is not graphs
    same(link(ours, batch, options), expected)


@pytest.mark.parametrize(
    "call", ["memory", "pinned", "place", "upload", "wait", "copy", "download", "mark", "replay", "finish"]
)
def test_whatever_fails_on_the_device_is_a_device_error_and_leaves_no_slot_taken(linkers, monkeypatch, call):
    ours, _ = linkers
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    pipeline = None
    if call not in ("memory", "pinned"):
        expected = link(ours, batch, options)
        pipeline = ours.pipeline

    def fail(*_):
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(ours._stream, call, fail)
        if call == "place":  # stages are made once
            options = [LinkOptions(2)]
        with pytest.raises(DeviceError, match="out of memory") as caught:
            link(ours, batch, options)
    assert caught.value.reason == "out of memory"
    assert ours.pipeline.free == 2
    found = link(ours, batch, [LinkOptions(2, mode="exact")])
    assert pipeline is None or (ours.pipeline is pipeline and found == expected)


def test_no_room_for_the_buffers_is_a_device_error_that_says_how_much(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 MiB.")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(
        DeviceError, match=r"3 MiB of buffers \(--chain off needs none\): out of memory"
    ) as caught:
        TorchDevice(torch.device("cpu"), 0).memory(3 << 20)
    assert caught.value.reason == "out of memory"


def test_the_warm_up_captures_the_buckets_that_requests_take(linkers, monkeypatch):
    ours, _ = linkers
    monkeypatch.setattr(CudaScan, "warm_up", lambda self, mention, allowed: 0)
    monkeypatch.setattr(type(ours.featurizer), "warm_up", lambda self: 0)
    monkeypatch.setattr(RequestPlan, "modes", ("certified",))
    ours.pipeline.plan.rows = (1,)
    ours.warm_up()
    captured = ours.pipeline.captured
    assert {(b.rows, b.images) for b in captured} == {(1, 0), (1, 1)}
    assert ours.warmed.steady_ms > 0
    link(ours, [Mention("a", "a b c")], [LinkOptions(3)])
    assert len(captured) == 2 and captured is ours.pipeline.captured


def test_every_bucket_of_rows_images_and_text_lengths_is_run_twice(linkers, monkeypatch):
    ours, _ = linkers
    plan, asked = ours.pipeline.plan, Counter()
    plan.rows, plan.lengths = (1, 4), (2, 5, ours.featurizer.max_text_tokens)

    def count(batch):
        options = batch[0].options
        asked[plan.bucket([request.mention for request in batch], options.top_k, options.mode)] += 1

    monkeypatch.setattr(ours, "link_prepared", count)
    assert len(list(ours.warm_in_steps())) == 5 * 3
    sizes = [(1, 0), (1, 1), (4, 0), (4, 1), (4, 4)]
    expected = {
        Bucket(*size, length, 10, mode)
        for size in sizes
        for length in plan.lengths
        for mode in ("exact", "certified")
    }
    assert asked == dict.fromkeys(expected, 2)


def test_another_state_of_the_index_is_another_pipeline_over_the_same_encoders(linkers):
    ours, reference = linkers
    other = ours._over(ours.index, ours._scan.over(ours.index.segments, ours.index.ids))
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    same(link(other, batch, options), link(reference, batch, options))
    assert other.pipeline.plan.graphs is ours.pipeline.plan.graphs and other.pipeline is not ours.pipeline


def test_info_names_backend_and_graphs(linkers):
    ours, _ = linkers
    link(ours, [Mention("a", "a b c")], [LinkOptions(2)])
    info = ours.info()
    assert info["chain"] == {
        "backend": "cuda", "programs": 1, "graphs": 2, "launched": ["mention_fold", "text_encoder"], "top_k": [10]
    }  # fmt: skip


def test_a_list_that_the_device_has_no_room_for_takes_no_bucket(linkers, monkeypatch):
    """As where the calibration of an index asks for more than the kernels keep."""
    ours, reference = linkers
    ours._rerank = 2000
    monkeypatch.setattr(CudaScan, "modes", ("exact", "certified", "coded"))
    assert ours.pipeline.plan.modes == ("exact", "certified")
    assert ours.pipeline.plan.largest.mode == "exact"
    mentions = [Mention("a", "a b c")]
    coded, certified = (requests(ours, mentions, [LinkOptions(2, mode=m)])[0] for m in ("coded", "certified"))
    assert not ours._fits(coded) and ours._fits(certified)
    same(ours.link(mentions, 2, mode="exact"), reference.link(mentions, 2, mode="exact"))
