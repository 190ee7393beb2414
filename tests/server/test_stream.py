"""NDJSON in and out: order, errors of a line, back-pressure, and clients that leave."""

import asyncio
import json

import pytest

JORDAN = {"mention": "Jordan", "sentence": "the river in the east", "top_k": 1}
PATH = "/v1/link:stream"


def lines(*records):
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def post(client, content, **options):
    headers = {"content-type": "application/x-ndjson"}
    response = client.post(PATH, content=content, headers=headers, **options)
    return response, [json.loads(line) for line in response.text.splitlines()]


def test_each_line_is_answered_in_order(client):
    mentions = [{**JORDAN, "sentence": f"{word} company"} for word in ["american", "the river", "east"] * 20]
    response, answers = post(client, lines(*mentions))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-request-id"]
    singles = [client.post("/v1/link", json=m).json() for m in mentions[:3]] * 20
    assert answers == singles


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_nothing_in_nothing_out(client, content):
    response, answers = post(client, content)
    assert (response.status_code, answers) == (200, [])


def test_lines_may_be_cut_anywhere_and_the_last_needs_no_end(client):
    whole = lines(JORDAN, {**JORDAN, "top_k": 2}, JORDAN).rstrip()
    for size in (1, 7, 64):
        pieces = iter([whole[i : i + size] for i in range(0, len(whole), size)])
        _, answers = post(client, pieces)
        assert [len(a["candidates"]) for a in answers] == [1, 2, 1]


def test_a_bad_line_fails_alone(client):
    bad = [
        b"{\n",
        b"7\n",
        lines({"mention": "x"}),
        lines({**JORDAN, "top_k": 99}),
        lines({**JORDAN, "image": "aGk="}),
    ]
    _, answers = post(client, lines(JORDAN).join([b"", *bad, b""]))
    errors = [a.get("error", {}).get("code") for a in answers]
    wrong = ["invalid_input"] * 4 + ["invalid_image"]
    assert errors == [None, *[code for pair in zip(wrong, [None] * 5, strict=True) for code in pair]]
    assert answers[9]["error"]["field"] == "lines[9].image"


def test_a_line_over_the_limit_ends_the_stream_after_what_came_before(serve):
    client = serve(max_body_bytes=1_000, max_image_bytes=1_000)
    response, answers = post(client, lines(JORDAN, JORDAN) + b'{"mention": "' + b"x" * 2_000)
    assert response.status_code == 200
    assert ["error" in a for a in answers] == [False, False, True]
    assert answers[2]["error"]["code"] == "too_large"
    assert "at most 1000 bytes" in answers[2]["error"]["message"]


def test_a_stream_may_be_longer_than_any_body(serve):
    client = serve(max_body_bytes=1_000, max_image_bytes=1_000)
    _, answers = post(client, lines(*[JORDAN] * 50))
    assert len(answers) == 50
    assert not any("error" in a for a in answers)


def test_content_type_and_deadline_are_checked_before_anything_is_read(client, error_of):
    error_of(client.post(PATH, json=JORDAN), 415, "content_type")
    for wrong in ("0", "x", "nan", "1e9"):
        response, _ = post(client, lines(JORDAN), params={"timeout_ms": wrong})
        assert error_of(response, 422, "invalid_input")["field"] == "timeout_ms"


def test_a_late_line_gets_its_error(serve, linker):
    client = serve(max_batch_size=1)
    linker.device_s = 0.2
    _, answers = post(client, lines(JORDAN, JORDAN), params={"timeout_ms": 50})
    assert [a["error"]["code"] for a in answers] == ["deadline_exceeded"] * 2


class Connection:
    """An ASGI client that sends and receives at its own pace."""

    def __init__(self, app):
        self.app, self.inbox, self.sent = app, asyncio.Queue(), []
        self.taken, self.may_send = 0, asyncio.Event()
        self.may_send.set()

    async def receive(self):
        message = await self.inbox.get()
        self.taken += 1
        return message

    async def send(self, message):
        await self.may_send.wait()
        self.sent.append(message)

    def put(self, body, more=True):
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self):
        self.inbox.put_nowait({"type": "http.disconnect"})

    def open(self):
        scope = {
            "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("test", 80),
        }  # fmt: skip
        return asyncio.ensure_future(self.app(scope, self.receive, self.send))

    @property
    def answers(self):
        body = b"".join(m.get("body", b"") for m in self.sent)
        return [json.loads(line) for line in body.splitlines()]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def settle():
    """Let everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0.001)


def test_no_more_is_read_than_fits_the_window(serve, linker):
    client = serve(stream_window=3, max_batch_size=1)
    linker.gate.clear()

    async def run():
        connection = Connection(client.app)
        for _ in range(30):
            connection.put(lines(JORDAN))
        connection.put(b"", more=False)
        call = connection.open()
        await until(lambda: connection.taken >= 3)
        await settle()
        assert connection.taken <= 5  # three in the window, one at its door, one being answered
        linker.gate.set()
        await asyncio.wait_for(call, 10)
        assert len(connection.answers) == 30

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_read_from(serve):
    client = serve(stream_window=2)

    async def run():
        connection = Connection(client.app)
        connection.may_send.clear()
        for _ in range(30):
            connection.put(lines(JORDAN))
        connection.put(b"", more=False)
        call = connection.open()
        await settle()
        assert connection.taken <= 4
        connection.may_send.set()
        await asyncio.wait_for(call, 10)
        assert len(connection.answers) == 30

    asyncio.run(run())


def test_a_stream_waits_where_a_single_request_is_refused(serve, linker, in_background, error_of):
    client = serve(max_batch_size=1, max_queue_size=2, max_mentions=2, stream_window=8, queue_timeout_ms=1)
    linker.gate.clear()
    stream = in_background(lambda: post(client, lines(*[JORDAN] * 20)))
    batcher = client.app.state.service.batcher
    assert linker.started.acquire(timeout=10)
    while batcher.queue.waiting < 2:
        pass
    error_of(client.post("/v1/link", json=JORDAN), 429, "queue_full")
    linker.gate.set()
    _, answers = stream()
    assert len(answers) == 20
    assert not any("error" in a for a in answers)


def test_what_a_departed_client_wanted_is_dropped(serve, linker):
    client = serve(stream_window=4, max_batch_size=1)
    linker.gate.clear()
    batcher = client.app.state.service.batcher

    async def run():
        connection = Connection(client.app)
        connection.put(lines(*[JORDAN] * 3))
        call = connection.open()
        await until(lambda: batcher.queue.waiting == 2)
        call.cancel()
        await asyncio.wait([call])
        await settle()
        assert batcher.queue.waiting == 0

    asyncio.run(run())
    linker.gate.set()


def test_a_client_that_stops_in_mid_line_ends_its_stream_and_leaves_nothing(client):
    async def run():
        connection = Connection(client.app)
        connection.put(lines(JORDAN) + b'{"mention"')
        connection.leave()
        await asyncio.wait_for(connection.open(), 10)
        assert len(connection.answers) == 1
        assert client.app.state.service.batcher.queue.waiting == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_draining_ends_a_stream_with_an_error_line(client, linker):
    service = client.app.state.service

    async def run():
        connection = Connection(client.app)
        connection.put(lines(JORDAN))
        call = connection.open()
        await until(lambda: len(connection.answers) == 1)
        assert await service.drain()
        connection.put(lines(JORDAN))
        await asyncio.wait_for(call, 10)
        assert connection.answers[1]["error"]["code"] == "not_ready"

    asyncio.run(run())
