"""A linker over the whole chain, kernels and all, on the CPU: the answers of every other linker."""

import asyncio
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.engine.gpu_linker import DeviceLinker
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DeviceError, InvalidInputError
from mimic_engine.gpu import passes as cuda_passes
from mimic_engine.gpu import request as cuda_stage
from mimic_engine.gpu.graphs import SharedGraphs
from mimic_engine.gpu.request import Bucket, ScanSearch
from mimic_engine.gpu.scan import CudaRanker, CudaScan, list_length
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.index.store import Index
from mimic_engine.kernels.stream_topk import MAX_K
from mimic_engine.server.requests import LinkRequest
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkOptions, Mention
from tests.batching.device import wait_ready
from tests.gpu.bound import cpu_graphs

pytestmark = pytest.mark.usefixtures("sorted_topk", "little_room")
CPU = torch.device("cpu")


@pytest.fixture
def linkers(tiny_model, tiny_index):
    reference = Linker.open(tiny_model, tiny_index, threads=1, backend="onnx", scorer="onnx")
    index = Index.open(tiny_index)
    featurizer = open_featurizer(tiny_model, threads=1, backend="onnx")
    ranker = CudaRanker(index.segments, featurizer.constants, device="cpu", tie_key=index.ids)
    ours = DeviceLinker(
        featurizer,
        index,
        ranker,
        graphs=SharedGraphs(lambda: cpu_graphs(tiny_model)),
        device=TorchDevice(CPU),
    )
    yield ours, reference
    reference.close()


def requests(linker, mentions, options):
    return [linker.prepare(m, o) for m, o in zip(mentions, options, strict=True)]


def link(linker, mentions, options):
    return linker.link_prepared(requests(linker, mentions, options))


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert [c.id for c in a.candidates] == [c.id for c in b.candidates]
        assert (a.mode, a.has_image, a.text_truncated) == (b.mode, b.has_image, b.text_truncated)
        for x, y in zip(a.candidates, b.candidates, strict=True):
            assert x.name == y.name
            assert x.score == pytest.approx(y.score, abs=1e-4)
            assert x.units == pytest.approx(y.units, abs=1e-4)


def test_answers_as_every_linker(linkers, tiny_picture):
    ours, reference = linkers
    mentions = [Mention("a b", "c a b d", tiny_picture), Mention("c", "c d e"), Mention("j", "i j")]
    options = [LinkOptions(13, mode="exact"), LinkOptions(1, mode="exact"), LinkOptions(5, mode="exact")]
    same(link(ours, mentions, options), link(reference, mentions, options))
    [(bucket, program)] = ours.chain.programs.items()
    assert (bucket.rows, bucket.pictures, bucket.k) == (4, 1, 24)
    assert program.graphs == 2
    certified = link(ours, mentions[:1], [LinkOptions(3)])
    assert [c.id for c in certified[0].candidates] == [
        c.id for c in link(reference, mentions[:1], [LinkOptions(3)])[0].candidates
    ]


def test_two_batches_are_under_way_at_once(linkers, tiny_picture):
    ours, reference = linkers
    first = [Mention("a b", "c a b d", tiny_picture)]
    second = [Mention("c", "c d e")]
    options = [LinkOptions(4, mode="exact")]
    finishes = [ours.start_prepared(requests(ours, batch, options)) for batch in (first, second)]
    assert ours.chain.free == 0
    for finish, batch in zip(finishes, (first, second), strict=True):
        same(finish(), link(reference, batch, options))
    assert ours.chain.free == 2


def test_the_service_keeps_two_batches_under_way(linkers, monkeypatch):
    """Ten mentions at once, in batches of three: the next is on the device before the last is read."""
    ours, reference = linkers
    order = []
    start, finish = DeviceLinker._start, DeviceLinker._finish
    monkeypatch.setattr(ours, "warm_up", lambda: None)
    monkeypatch.setattr(DeviceLinker, "_start", lambda *a: (order.append("start"), start(*a))[1])
    monkeypatch.setattr(DeviceLinker, "_finish", lambda *a: (order.append("finish"), finish(*a))[1])
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


def test_pictures_resized_on_the_device_give_the_same_bits(linkers, tmp_path, monkeypatch):
    monkeypatch.setattr("mimic_engine.gpu.pictures.MAX_SIDE", 40)
    monkeypatch.setattr("mimic_engine.gpu.pictures.MAX_BYTES", 40 * 40 * 3)
    ours, _ = linkers
    other = DeviceLinker(
        ours.featurizer,
        ours.index,
        ours._ranker,
        graphs=ours._shared,
        device=ours._device,
        resize="device",
    )
    rng = np.random.default_rng(0)
    mentions = [Mention("a", "a b c")]
    for number, (height, width) in enumerate([(37, 23), (9, 40), (50, 60)]):  # the last is too large
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        mentions.append(Mention("b", "b c d", path))
    options = [LinkOptions(3, mode="exact")] * len(mentions)
    raw = requests(other, mentions, options)
    assert [None if r.mention.pixels is None else r.mention.pixels.shape for r in raw] == [
        None, (37, 23, 3), (9, 40, 3), (32, 32, 3)
    ]  # fmt: skip
    assert other.link_prepared(raw) == link(ours, mentions, options)
    few = [LinkOptions(2, candidates=("E03", "E99"), mode="exact")] * len(mentions)
    assert link(other, mentions, few) == link(ours, mentions, few)
    [program] = other.chain.programs.values()
    assert program.graphs == 3  # the resize, and what is around the sessions


def test_what_has_no_program_goes_the_other_way(linkers):
    ours, reference = linkers
    batch = [Mention("a", "a b c"), Mention("c", "c d e")]
    options = [LinkOptions(1, candidates=("E03", "E99"), mode="exact"), LinkOptions(2, mode="exact")]
    same(link(ours, batch, options), link(reference, batch, options))
    assert len(ours.chain.programs) == 1


def test_a_mention_that_falls_short_is_searched_again_and_says_so(linkers, monkeypatch):
    ours, reference = linkers
    monkeypatch.setattr(cuda_passes, "FIRST", 16)
    ours._ranker.opened.passes._room_for_survivors = 1
    batch = [Mention("a", "a b c")]
    link(ours, batch, [LinkOptions(2)])
    ranked = ours._ranker.opened._ranked

    def short(fetched, k, mode):
        result, overflowed, cut = ranked(fetched, k, mode)
        return result, list(range(len(result.rows))) if mode == "certified" else overflowed, cut

    monkeypatch.setattr(ours._ranker.opened, "_ranked", short)
    [found] = link(ours, batch, [LinkOptions(2)])
    assert found.mode == "exact"
    same([found], link(reference, batch, [LinkOptions(2, mode="exact")]))


def test_wrong_options_start_nothing(linkers):
    ours, _ = linkers
    with pytest.raises(InvalidInputError, match="top_k: 14"):
        ours.link([Mention("a", "a b c")], 14)
    assert ours.chain.free == 2 and not ours.chain.programs


def test_after_a_device_error_the_chain_is_made_anew(linkers, monkeypatch):
    ours, _ = linkers
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    expected = link(ours, batch, options)
    broken, graphs = ours.chain, ours._shared.graphs

    def fail(event):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(ours._device, "finish", fail)
    with pytest.raises(DeviceError, match="out of memory"):
        link(ours, batch, options)
    monkeypatch.setattr(ours._device, "finish", lambda event: None)
    warmed = []
    monkeypatch.setattr(ours, "warm_up", lambda: warmed.append(ours.chain))
    ours.recover()
    assert warmed == [ours.chain] and ours.chain is not broken and ours._shared.graphs is not graphs
    same(link(ours, batch, options), expected)


@pytest.mark.parametrize(
    "call", ["memory", "pinned", "place", "upload", "wait", "copy", "download", "mark", "replay", "finish"]
)
def test_whatever_fails_on_the_device_is_a_device_error_and_leaves_no_slot_taken(linkers, monkeypatch, call):
    ours, _ = linkers
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    chain = None
    if call not in ("memory", "pinned"):
        expected = link(ours, batch, options)
        chain = ours.chain

    def fail(*_):
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(ours._device, call, fail)
        if call == "place":  # programs are made once
            options = [LinkOptions(2)]
        with pytest.raises(DeviceError, match="out of memory") as caught:
            link(ours, batch, options)
    assert caught.value.reason == "out of memory"
    assert ours.chain.free == 2
    found = link(ours, batch, [LinkOptions(2, mode="exact")])
    assert chain is None or (ours.chain is chain and found == expected)


def test_no_room_for_the_buffers_is_a_device_error_that_says_how_much(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 MiB.")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(
        DeviceError, match=r"3 MiB of buffers \(--chain off needs none\): out of memory"
    ) as caught:
        TorchDevice(CPU).memory(3 << 20)
    assert caught.value.reason == "out of memory"


def test_the_warm_up_makes_the_programs_that_requests_take(linkers, monkeypatch):
    ours, _ = linkers
    monkeypatch.setattr(CudaRanker, "warm_up", lambda self, mention, allowed: 0)
    monkeypatch.setattr(type(ours.featurizer), "warm_up", lambda self: 0)
    monkeypatch.setattr(ScanSearch, "modes", ("certified",))
    ours.chain.requests.rows = (1,)
    ours.warm_up()
    programs = ours.chain.programs
    assert {(b.rows, b.pictures) for b in programs} == {(1, 0), (1, 1)}
    assert ours.warmed.steady_ms > 0
    link(ours, [Mention("a", "a b c")], [LinkOptions(3)])
    assert len(programs) == 2 and programs is ours.chain.programs


def test_every_bucket_of_rows_pictures_and_text_lengths_is_run_twice(linkers, monkeypatch):
    ours, _ = linkers
    plan, asked = ours.chain.requests, Counter()
    plan.rows, plan.lengths = (1, 4), (2, 5, ours.featurizer.max_text_tokens)

    def count(batch):
        mask = np.concatenate([request.mention.tokens.attention_mask for request in batch])
        pictures = sum(request.mention.has_image for request in batch)
        options = batch[0].options
        asked[plan.bucket(len(batch), pictures, mask, options.top_k, options.mode)] += 1

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


def test_another_state_of_the_index_is_another_chain_over_the_same_graphs(linkers):
    ours, reference = linkers
    other = ours._over(ours.index, ours._ranker.over(ours.index.segments, ours.index.ids))
    batch, options = [Mention("a", "a b c")], [LinkOptions(2, mode="exact")]
    same(link(other, batch, options), link(reference, batch, options))
    assert other._shared is ours._shared and other.chain is not ours.chain


def test_a_cache_is_refused(linkers, tiny_model, tiny_index):
    ours, _ = linkers
    caching = open_featurizer(tiny_model, threads=1, backend="onnx", cache_bytes=1 << 20)
    with pytest.raises(InvalidInputError, match="cache_bytes"):
        DeviceLinker(caching, ours.index, ours._ranker, graphs=ours._shared, device=TorchDevice(CPU))


def test_info_names_backend_and_graphs(linkers):
    ours, _ = linkers
    link(ours, [Mention("a", "a b c")], [LinkOptions(2)])
    info = ours.info()
    assert info["chain"] == {
        "backend": "cuda", "programs": 1, "graphs": 2, "launched": ["mention_fold", "text_encoder"], "top_k": [10]
    }  # fmt: skip


def test_a_list_that_the_device_has_no_room_for_takes_no_program(linkers, monkeypatch):
    """As where the calibration of an index asks for more than the kernels keep."""
    ours, reference = linkers
    ours._rerank = 2000
    monkeypatch.setattr(CudaScan, "modes", ("exact", "certified", "coded"))
    assert ours.chain.requests.modes == ("exact", "certified")
    assert ours.chain.requests.largest.mode == "exact"
    assert not ours._fits(LinkOptions(2, mode="coded")) and ours._fits(LinkOptions(2))
    mentions = [Mention("a", "a b c")]
    same(ours.link(mentions, 2, mode="exact"), reference.link(mentions, 2, mode="exact"))


def test_places_leave_room_for_neighbours():
    for place in cuda_stage.PLACES:
        assert list_length(place, "certified") == place + cuda_stage.SPARE <= MAX_K
    assert np.all(np.diff(cuda_stage.PLACES) > 0)
