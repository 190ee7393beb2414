"""Broken forms, arbitrary bodies, clients that leave."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}


@pytest.mark.parametrize(
    ("fields", "files", "words"),
    [
        ({"mention": "a"}, {}, "missing required field `sentence`"),
        ({**JORDAN, "top_k": "two"}, {}, "top_k"),
        ({**JORDAN, "colour": "red"}, {}, "unknown field `colour`"),
        ({**JORDAN, "image": "text"}, {}, "must be a file part"),
        ({**JORDAN, "mention": ["a", "b"]}, {}, "mention: given twice"),
        (JORDAN, {"picture": ("a.png", b"x")}, "the only file a form may hold is image"),
    ],
)
def test_422_for_bad_forms(client, fields, files, words, error_of):
    pairs = [(k, v) for k, vs in fields.items() for v in (vs if isinstance(vs, list) else [vs])]
    parts = [(k, (None, v)) for k, v in pairs] + list(files.items())
    error = error_of(client.post("/v1/link", files=parts), 422, "invalid_input")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="mention"\r\n\r\na',
        ),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=x; charset=nope", b"--x--\r\n"),
        (
            "multipart/form-data; boundary=x; charset=nope",
            b'--x\r\nContent-Disposition: form-data; name="mention"\r\n\r\n\xff\r\n--x--\r\n',
        ),
    ],
)
def test_422_for_broken_forms(client, content_type, body, error_of, post_raw):
    error_of(post_raw(client, body, content_type), 422, "invalid_input")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["mention", "sentence", "image", "top_k", "filter", "nil_threshold", "candidates", "mentions", "x"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/link", "/v1/link:batch", "/v1/score"]),
    body=st.one_of(
        st.binary(max_size=50),
        st.dictionaries(FIELDS, JSON, max_size=7).map(lambda d: json.dumps(d).encode()),
    ),
)
def test_any_body_is_answered_below_500(client, path, body, post_raw):
    assert post_raw(client, body, path=path).status_code in (200, 413, 415, 422, 504)


async def _leave_while_queued(app, linker):
    body = json.dumps(JORDAN).encode()
    gone = asyncio.Event()
    first = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if first:
            return first.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/link",
        "raw_path": b"/v1/link",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "server": ("test", 80),
    }
    call = asyncio.ensure_future(app(scope, receive, send))
    batcher = app.state.service.batcher
    while batcher.queue.waiting < 1:
        await asyncio.sleep(0.001)
    gone.set()
    await asyncio.wait_for(call, 10)
    assert batcher.queue.waiting == 0
    return sent


def test_work_of_a_departed_client_is_dropped(serve, linker, in_background):
    client = serve(max_batch_size=1)
    linker.gate.clear()
    running = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    sent = asyncio.run(_leave_while_queued(client.app, linker))
    assert sent[0]["status"] == 499
    linker.gate.set()
    assert running().status_code == 200
    assert len(linker.batches) == 1
