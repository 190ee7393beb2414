"""Linking end to end, as a call and over HTTP: pictures and sentences in, ranked entities out."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
import uvicorn
from torch import Tensor

from benchmarks.scan.published_inputs import Features
from benchmarks.scan.published_loop import published_scores
from benchmarks.scan.published_model import random_mentions, raw_features
from benchmarks.service.engine_side import TOLERANCES, compare_top_k
from benchmarks.service.process import wait_ready
from benchmarks.timing import repeat
from mimic_engine import Linker, Mention
from mimic_engine.encoding.featurizer import PreparedMention
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.server.app import create_app
from mimic_engine.server.lifecycle import bind
from mimic_engine.server.settings import Settings
from mimic_engine.types import Array, LinkResult

if TYPE_CHECKING:
    from benchmarks.conftest import BenchModel, LinkScene, Note

Link = Callable[[Sequence[Mention]], tuple[Array, float]]

TOP_K = 10
READY_S = 60


@pytest.fixture(scope="module")
def unfolded(link_scene: LinkScene, model: BenchModel, weights: dict[str, Tensor], threads: int) -> Link:
    """Link as the published code would: PyTorch encoders, then its loop; scores and seconds."""

    def link(mentions: Sequence[Mention]) -> tuple[Array, float]:
        torch.set_num_threads(threads)
        prepared = [link_scene.linker.prepare(m).mention for m in mentions]  # the same for both

        def score() -> list[Tensor]:
            raw = [_encode(model.torch, p) for p in prepared]
            return [published_scores(weights, one, link_scene.entities)["total"][0] for one in raw]

        timed, scores = repeat(score, budget_s=0)
        return torch.stack(scores).numpy(), min(timed.seconds)  # (B, N)

    return link


def _encode(session: TorchSession, prepared: PreparedMention) -> Features:
    assert prepared.pixels is not None
    return raw_features(session.encode_text(prepared.tokens), session.encode_image(prepared.pixels[None]))


def _check(results: Sequence[LinkResult], reference: Array, linker: Linker) -> float:
    rows = linker.index.rows([c.id for r in results for c in r.candidates]).reshape(len(results), TOP_K)
    agreement = compare_top_k(rows, reference)
    agreement.check(TOLERANCES["float16"])
    return agreement.identical


def test_link(benchmark: Any, compare: Note, link_scene: LinkScene, unfolded: Link) -> None:
    [mention] = mentions = random_mentions(1, seed=5)
    reference, baseline_s = unfolded(mentions)
    results = benchmark(link_scene.linker.link, [mention], TOP_K)
    benchmark.extra_info["identical_top10"] = _check(results, reference, link_scene.linker)
    compare(baseline_s=baseline_s, mentions=1)


def test_link_without_a_picture(benchmark: Any, compare: Note, link_scene: LinkScene) -> None:
    [mention] = random_mentions(1, seed=6)
    alone = Mention(mention.mention, mention.sentence)
    [result] = benchmark(link_scene.linker.link, [alone], TOP_K)
    assert not result.has_image
    [among_others] = link_scene.linker.link([mention, alone], TOP_K)[1:]
    assert [c.id for c in among_others.candidates] == [c.id for c in result.candidates]
    compare(mentions=1)


def _json(mention: Mention) -> str:
    assert isinstance(mention.image, bytes)
    picture = base64.b64encode(mention.image).decode()
    body = {"mention": mention.mention, "sentence": mention.sentence, "image": picture, "top_k": TOP_K}
    return json.dumps(body)


@pytest.fixture(scope="module")
def address(link_scene: LinkScene) -> Iterator[tuple[str, int]]:
    """A real server on the loopback interface, with a linker of its own."""
    linker = link_scene.open()
    app = create_app(linker, Settings())
    taken = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    wait_ready(app.state.service, READY_S)
    yield taken.getsockname()
    server.should_exit = True
    thread.join(READY_S)
    assert not thread.is_alive()
    linker.close()
    taken.close()


def test_http_round_trip(
    benchmark: Any,
    compare: Note,
    link_scene: LinkScene,
    unfolded: Link,
    address: tuple[str, int],
) -> None:
    mentions = random_mentions(1, seed=5)
    reference, baseline_s = unfolded(mentions)
    payload = _json(mentions[0])
    connection = http.client.HTTPConnection(address[0], address[1], timeout=READY_S)

    def ask() -> tuple[int, bytes]:
        connection.request("POST", "/v1/link", payload, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    status, answer = benchmark(ask)
    connection.close()
    assert status == 200, answer
    candidates = json.loads(answer)["candidates"]
    [direct] = link_scene.linker.link(mentions, TOP_K)
    assert [c["id"] for c in candidates] == [c.id for c in direct.candidates]
    _check([direct], reference, link_scene.linker)
    compare(baseline_s=baseline_s, requests=1)
