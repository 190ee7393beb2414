"""Every status of the error table, and what each answer must say."""

import json
import logging
import re

import pytest

from tests.batching.device import wait_ready

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"mention": None}, "mention", "Expected `str`"),
        ({"mention": 3}, "mention", "Expected `str`, got `int`"),
        ({"mention": "  "}, "mention", "must not be empty"),
        ({"mention": "x" * 101}, "mention", "at most 100 characters, got 101"),
        ({"sentence": "y" * 101}, "sentence", "at most 100 characters, got 101"),
        ({"sentence": ["a"]}, "sentence", "got `array`"),
        ({"top_k": 0}, "top_k", "got 0"),
        ({"top_k": 5}, "top_k", "4 entities in the index.*got 5"),
        ({"top_k": 10**30}, "top_k", "got 10000"),
        ({"top_k": 1.5}, "top_k", "got `float`"),
        ({"top_k": "2"}, "top_k", "got `str`"),
        ({"filter": {"ids": []}}, "filter.ids", "must be 1 to 3 .*got 0"),
        ({"filter": {"ids": ["Q810"] * 2}}, "filter", "'Q810' is given twice"),
        ({"filter": {"ids": ["Q810", "Q312", "a/b c", "Q41421"]}}, "filter.ids", "1 to 3 .*got 4"),
        ({"filter": {"ids": "Q810"}}, "filter.ids", "got `str`"),
        ({"filter": {"types": []}}, "filter.types", "must be 1 to 3 .*got 0"),
        ({"filter": {"types": ["planet"]}}, "filter", "no entity has one"),
        ({"filter": {"kinds": []}}, "filter", "unknown field `kinds`"),
        ({"candidates": ["Q810"]}, None, "unknown field `candidates`"),
        ({"nil": True}, "nil", "no threshold of its own"),
        ({"nil": 1}, "nil", "got `int`"),
        ({"nil_threshold": "high"}, "nil_threshold", "got `str`"),
        ({"timeout_ms": 0}, "timeout_ms", "above 0"),
        ({"timeout_ms": 1e9}, "timeout_ms", "at most 120000"),
        ({"image": "@@"}, "image", "base64"),
        ({"image": 7}, "image", "got `int`"),
        ({"unknown": 1}, None, "unknown field `unknown`"),
    ],
)
def test_422_names_field_limit_and_value(serve, change, field, words, error_of):
    client = serve(max_text_chars=100, max_candidates=3)
    error = error_of(client.post("/v1/link", json={**JORDAN, **change}), 422, "invalid_input")
    assert error.get("field") == field
    assert re.search(words, error["message"])


def test_422_unknown_candidate(client, error_of):
    body = {**JORDAN, "filter": {"ids": ["Q9"]}}
    error = error_of(client.post("/v1/link", json=body), 422, "unknown_entity")
    assert error["field"] == "filter"
    assert "'Q9'" in error["message"]


@pytest.mark.parametrize("image", ["", "aGVsbG8="])
def test_422_image_that_is_none(client, image, error_of):
    assert (
        error_of(client.post("/v1/link", json={**JORDAN, "image": image}), 422, "invalid_image")["field"]
        == "image"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"mention": "\xff", "sentence": ""}',
        b'{"mention": "\\ud800", "sentence": ""}',
        b'{"mention": "a", "sentence": "b", "top_k": NaN}',
        b'{"mention": "a", "sentence": "b"} trailing',
        b"[" * 100_000,
        b'{"mention":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"mentions": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"mentions": []}',
        b'{"mentions": 3}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/link", "/v1/link:batch", "/v1/score"])
def test_422_for_any_broken_body(client, path, body, error_of, post_raw):
    error_of(post_raw(client, body, path=path), 422, "invalid_input")


def test_413_body_declared_and_streamed(serve, linker, error_of, post_raw):
    client = serve(max_body_bytes=1000, max_image_bytes=1000)
    big = json.dumps({**JORDAN, "sentence": "x" * 2000}).encode()
    error = error_of(post_raw(client, big), 413, "too_large")
    assert re.search(r"at most 1000 bytes .*got 20\d\d", error["message"])
    streamed = client.post("/v1/link", content=iter([big[:600], big[600:]]))
    assert "at most 1000 bytes" in error_of(streamed, 413, "too_large")["message"]
    form = client.post("/v1/link", data=JORDAN, files={"image": ("a.png", b"x" * 3000)})
    error_of(form, 413, "too_large")
    assert linker.batches == []


def test_413_image_and_batch(serve, png, error_of):
    client = serve(max_image_bytes=10, max_mentions=2)
    error = error_of(client.post("/v1/link", data=JORDAN, files={"image": ("a.png", png)}), 413, "too_large")
    assert (error["field"], f"got {len(png)}" in error["message"]) == ("image", True)
    error = error_of(client.post("/v1/link:batch", json={"mentions": [JORDAN] * 3}), 413, "too_large")
    assert "at most 2 (max_mentions), got 3" in error["message"]


def test_415_image_format_and_content_type(client, gif, error_of, post_raw):
    error_of(client.post("/v1/link", data=JORDAN, files={"image": ("a.gif", gif)}), 415, "image_type")
    for path in ("/v1/link", "/v1/link:batch"):
        error = error_of(
            post_raw(client, b"a=b", "application/x-www-form-urlencoded", path), 415, "content_type"
        )
        assert "x-www-form-urlencoded" in error["message"]


def test_404_and_405(client, error_of):
    error_of(client.get("/v2/link"), 404, "not_found")
    response = client.get("/v1/link")
    error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/entities", "/v1/entities/", "/v1/images"])
def test_without_an_id_there_is_no_such_route_and_no_redirect(client, error_of, path):
    error_of(client.get(path, follow_redirects=False), 404, "not_found")


def test_an_entity_without_an_id_is_not_put(serve, tmp_path, error_of):
    (tmp_path / "admin").write_text("the-admins-own-key-1")
    client = serve(admin_key_file=str(tmp_path / "admin"))
    error_of(client.put("/v1/entities", json={"name": "a"}, follow_redirects=False), 404, "not_found")
    error_of(client.put("/v1/entities/", json={"name": "a"}), 401, "unauthorised")
    named = {"x-api-key": "the-admins-own-key-1"}
    error_of(client.put("/v1/entities/", json={"name": "a"}, headers=named), 404, "not_found")


def test_429_when_the_queue_is_full_for_one_and_for_a_batch(serve, linker, error_of, in_background):
    client = serve(max_batch_size=1, max_queue_size=2, max_mentions=2)
    linker.gate.clear()
    running = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    queued = in_background(lambda: client.post("/v1/link:batch", json={"mentions": [JORDAN] * 2}))
    while client.app.state.service.batcher.queue.waiting < 2:
        pass
    for path, body in (("/v1/link", JORDAN), ("/v1/link:batch", {"mentions": [JORDAN]})):
        response = client.post(path, json=body)
        assert "2 of 2 places taken" in error_of(response, 429, "queue_full")["message"]
        assert int(response.headers["retry-after"]) >= 1
    linker.gate.set()
    assert running().status_code == 200
    assert queued().status_code == 200


def test_504_on_the_device_and_in_the_queue(serve, linker, error_of):
    client = serve(max_batch_size=1, max_queue_size=4, max_mentions=4, queue_timeout_ms=50)
    linker.gate.clear()
    late = client.post("/v1/link", json={**JORDAN, "timeout_ms": 100})
    assert "deadline" in error_of(late, 504, "deadline_exceeded")["message"]
    queued = client.post("/v1/link", json=JORDAN)
    assert "queue_timeout_ms" in error_of(queued, 504, "deadline_exceeded")["message"]
    linker.gate.set()
    assert client.post("/v1/link", json=JORDAN).status_code == 200
    assert len(linker.batches) == 2  # the one that waited too long never reached the device


def test_503_until_warm_up_ran(serve, linker, error_of):
    linker.warm_gate.clear()
    client = serve(wait=False)
    assert client.get("/health/live").status_code == 200
    for response in (client.get("/health/ready"), client.post("/v1/link", json=JORDAN)):
        assert "warming up" in error_of(response, 503, "not_ready")["message"]
        assert int(response.headers["retry-after"]) >= 1
    linker.warm_gate.set()
    assert wait_ready(client.app.state.service.batcher, 10)
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_503_while_draining(client, error_of):
    service = client.app.state.service
    service.announce_leaving()
    assert "draining" in error_of(client.get("/health/ready"), 503, "not_ready")["message"]
    assert client.post("/v1/link", json=JORDAN).status_code == 200  # announced, but still accepting
    assert service.batcher.queue.drain(10)
    error_of(client.post("/v1/link", json=JORDAN), 503, "not_ready")
    assert client.get("/health/live").status_code == 200


def test_503_when_the_device_thread_died_and_500_for_its_callers(client, linker, error_of):
    linker.fail_device = SystemExit("gone")
    error = error_of(client.post("/v1/link", json=JORDAN), 500, "internal")
    assert "gone" not in error["message"]
    for response in (
        client.get("/health/ready"),
        client.get("/health/live"),
        client.post("/v1/link", json=JORDAN),
    ):
        assert "died" in error_of(response, 503, "not_ready")["message"]
    assert "mimic_ready 0.0" in client.get("/metrics").text


def test_ready_fails_while_the_device_is_stuck(serve, linker, error_of, in_background):
    client = serve(stall_timeout_s=0.05)
    linker.gate.clear()
    answer = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    while client.app.state.service.batcher.busy_s < 0.1:
        pass
    assert "stuck" in error_of(client.get("/health/ready"), 503, "not_ready")["message"]
    linker.gate.set()
    assert answer().status_code == 200
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("where", ["fail_device", "fail_prepare"])
def test_500_says_only_an_id_and_the_log_has_it(client, linker, caplog, where, error_of):
    setattr(linker, where, KeyError("secret detail"))
    with caplog.at_level(logging.ERROR):
        response = client.post("/v1/link", json=JORDAN)
    error = error_of(response, 500, "internal")
    assert "secret" not in response.text
    assert error["id"] in caplog.text
    assert "secret detail" in caplog.text
    setattr(linker, where, None)
    assert client.post("/v1/link", json=JORDAN).status_code == 200


def test_500_of_a_handler_keeps_headers_and_body(client, linker, caplog, error_of):
    linker.info = lambda: 1 / 0
    error = error_of(client.get("/v1/info"), 500, "internal")
    assert error["id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text
