"""The client against the service, and against services that refuse, break off and drain."""

import asyncio
import json
import sys

import httpx2
import pytest

from mimic_engine import Mention
from mimic_engine.client import AsyncClient, Client, Retries, ServiceError, UnreachableError
from mimic_engine.errors import InvalidInputError, MissingDependencyError

JORDAN = Mention("Jordan", "the river in the east")
ANSWER = {
    "candidates": [],
    "text_truncated": False,
    "has_image": False,
    "mode": "exact",
    "entities_scored": 4,
}
FULL = {"error": {"code": "queue_full", "message": "queue is full"}}
DRAINING = {"error": {"code": "not_ready", "message": "draining"}}


class Script:
    """A service that answers as it is told, and a clock that notes the pauses instead of waiting."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.requests, self.pauses = list(answers), [], []

        async def sleep(seconds):
            self.pauses.append(seconds)

        monkeypatch.setattr("mimic_engine.client.client.time.sleep", self.pauses.append)
        monkeypatch.setattr("mimic_engine.client.client.asyncio.sleep", sleep)

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body, *headers = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.Response(status, content=content, headers=dict(*headers))


@pytest.fixture(params=["threads", "asyncio"])
def ask(request):
    """Run ``work(client)`` with either client; the asynchronous one is awaited."""

    def run(transport, work, **options):
        if request.param == "threads":
            with Client("http://test", transport=transport, **options) as client:
                return work(client)

        async def awaited():
            async with AsyncClient("http://test", transport=transport, **options) as client:
                return await work(client)

        return asyncio.run(awaited())

    return run


def link(client, **options):
    return client.link(JORDAN, **options)


def test_a_refusal_is_repeated_after_the_time_that_was_named(ask, monkeypatch):
    script = Script(
        monkeypatch, (429, FULL, {"retry-after": "2"}), (503, DRAINING, {"retry-after": "1"}), (200, ANSWER)
    )
    assert ask(httpx2.MockTransport(script), link).entities_scored == 4
    assert script.pauses == [2.0, 1.0]
    assert len({r.content for r in script.requests}) == 1


def test_without_a_time_the_pauses_double(ask, monkeypatch):
    script = Script(monkeypatch, *[(503, DRAINING)] * 4, (200, ANSWER))
    ask(httpx2.MockTransport(script), link, retries=Retries(first_pause_s=1, longest_pause_s=4))
    for pause, longest in zip(script.pauses, (1, 2, 4, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_broken_connection_is_repeated(ask, monkeypatch):
    script = Script(monkeypatch, httpx2.ConnectError("refused"), httpx2.ReadError("reset"), (200, ANSWER))
    assert ask(httpx2.MockTransport(script), link).mode == "exact"


def test_the_attempts_have_an_end(ask, monkeypatch):
    script = Script(monkeypatch, *[(429, FULL)] * 3)
    with pytest.raises(ServiceError, match="queue is full") as refused:
        ask(httpx2.MockTransport(script), link, retries=Retries(attempts=3))
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert len(script.requests) == 3
    assert len(script.pauses) == 2
    script = Script(monkeypatch, *[httpx2.ConnectError("refused")] * 2)
    with pytest.raises(UnreachableError, match="/v1/link: ConnectError: refused"):
        ask(httpx2.MockTransport(script), link, retries=Retries(attempts=2))


def test_the_time_has_an_end_too(ask, monkeypatch):
    script = Script(monkeypatch, (429, FULL, {"retry-after": "61"}))
    with pytest.raises(ServiceError):
        ask(httpx2.MockTransport(script), link)
    assert script.pauses == []


@pytest.mark.parametrize("status", [401, 404, 413, 415, 422, 500, 504])
def test_other_errors_are_not_repeated(ask, monkeypatch, status):
    body = {"error": {"code": "some_code", "message": "words", "field": "image", "id": "abc"}}
    script = Script(monkeypatch, (status, body, {"x-request-id": "r-1"}))
    with pytest.raises(ServiceError, match="words") as refused:
        ask(httpx2.MockTransport(script), link)
    error = refused.value
    assert (error.status, error.code, error.field, error.error_id) == (status, "some_code", "image", "abc")
    assert error.request_id == "r-1"


def test_the_answer_of_a_stranger_is_quoted(ask, monkeypatch):
    script = Script(monkeypatch, (502, b"<html>bad gateway</html>"))
    with pytest.raises(ServiceError, match="HTTP 502: <html>bad gateway"):
        ask(httpx2.MockTransport(script), link)


def test_options_and_key_are_sent(ask, monkeypatch, tmp_path):
    script = Script(monkeypatch, (200, ANSWER))
    file = tmp_path / "a.png"
    file.write_bytes(b"hi")

    def work(client):
        mention = Mention("a", "b", file)
        return client.link(
            mention, top_k=3, types=["river"], ids=("Q1",), mode="exact", nil_threshold=0.5, timeout_ms=9
        )

    ask(httpx2.MockTransport(script), work, key="a-key-0123456789ab")
    [request] = script.requests
    assert request.headers["authorization"] == "Bearer a-key-0123456789ab"
    assert json.loads(request.content) == {
        "mention": "a", "sentence": "b", "image": "aGk=", "top_k": 3, "mode": "exact",
        "filter": {"types": ["river"], "ids": ["Q1"]}, "nil_threshold": 0.5, "timeout_ms": 9,
    }  # fmt: skip


def test_a_picture_that_is_not_there_is_named(ask, monkeypatch):
    script = Script(monkeypatch)
    with pytest.raises(InvalidInputError, match=r"image: nowhere\.png cannot be read"):
        ask(httpx2.MockTransport(script), lambda c: c.link(Mention("a", "b", "nowhere.png")))


def test_what_draining_left_of_a_stream_is_sent_again(ask, monkeypatch):
    def lines(*bodies):
        return b"".join(json.dumps(b).encode() + b"\n" for b in bodies)

    script = Script(
        monkeypatch,
        (200, lines(ANSWER, ANSWER, DRAINING)),
        (503, DRAINING),
        (200, lines(DRAINING)),
        (200, lines(ANSWER)),
    )
    mentions = [Mention(letter, "x") for letter in "abc"]
    answers = ask(httpx2.MockTransport(script), lambda c: all_of(c, mentions))
    assert [a.entities_scored for a in answers] == [4, 4, 4]
    sent = [[json.loads(line)["mention"] for line in r.content.splitlines()] for r in script.requests]
    assert sent == [["a", "b", "c"], ["c"], ["c"], ["c"]]
    script = Script(monkeypatch, (200, lines(ANSWER)))
    with pytest.raises(UnreachableError, match="1 answers for 3 lines"):
        ask(httpx2.MockTransport(script), lambda c: all_of(c, mentions))


def all_of(client, mentions, **options):
    """The answers of a stream, with either client."""
    if isinstance(client, Client):
        return list(client.link_stream(mentions, **options))

    async def collect():
        async def given():
            for mention in mentions:
                yield mention

        return [answer async for answer in client.link_stream(given(), **options)]

    return collect()


def test_without_httpx2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for kind in (Client, AsyncClient):
        with pytest.raises(MissingDependencyError, match=r"mimic-engine\[client\]"):
            kind("http://test")
