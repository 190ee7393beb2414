"""The server as a process: what a signal, a busy port and a big body do to real sockets."""

import http.client
import json
import signal
import socket
import threading
import time

import pytest

BODY = json.dumps({"mention": "Jordan", "sentence": "the river in the east"})
HEADERS = {"content-type": "application/json"}


def call(port, method="POST", path="/v1/link", body=BODY):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body if method == "POST" else None, HEADERS)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def in_flight(port):
    """Send a link request; its (status, body) comes from the function returned, once the device has it."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(port)), daemon=True)
    thread.start()
    while b"mimic_device_busy_seconds 0.0" in call(port, "GET", "/metrics")[1]:
        time.sleep(0.01)

    def result():
        thread.join(20)
        return answers[0]

    return result


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_outlives_the_signal_and_the_process_ends_with_0(start, how):
    with start(1.5) as (process, port):
        answer = in_flight(port)
        process.send_signal(how)
        statuses = set()
        while call(port, "GET", "/health/ready")[0] != 503:  # fails first, while the sockets are open
            time.sleep(0.01)
        statuses.add(call(port)[0])
        assert statuses == {503}  # refused with Retry-After, not with a broken connection
        status, body = answer()
        assert status == 200
        assert json.loads(body)["candidates"][0]["name"] == "Jordan River"
        assert process.wait(10) == 0
        assert process.stdout.read() == "stopped\n"
        with pytest.raises(ConnectionRefusedError):
            call(port)


def test_grace_goes_on_accepting_after_readiness_has_failed(start):
    with start(0.0, drain_grace_s=1.0) as (process, port):
        process.terminate()
        while call(port, "GET", "/health/ready")[0] != 503:
            time.sleep(0.01)
        assert call(port)[0] == 200
        assert process.wait(10) == 0


def test_second_interrupt_does_not_wait(start):
    with start(30.0) as (process, port):
        in_flight(port)
        process.send_signal(signal.SIGINT)
        while call(port, "GET", "/health/ready")[0] != 503:
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert time.monotonic() - began < 5


def test_drain_timeout_bounds_the_wait(start):
    with start(30.0, drain_timeout_s=0.3) as (process, port):
        in_flight(port)
        began = time.monotonic()
        process.terminate()
        process.wait(20)
        assert time.monotonic() - began < 10


def test_413_reaches_a_client_that_sends_everything_first(start):
    with start(0.0, max_body_bytes=2_000_000, max_image_bytes=1_000_000) as (_, port):
        for _ in range(3):
            status, body = call(port, body="x" * 6_000_000)
            assert status == 413
            assert json.loads(body)["error"]["code"] == "too_large"


def test_413_answers_an_endless_body_after_a_while(start):
    with start(0.0, max_body_bytes=1_000_000, max_image_bytes=1_000) as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /v1/link HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            chunk = b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n"
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(1_000):
                    connection.sendall(chunk)
        assert call(port)[0] == 200


def test_client_that_leaves_in_mid_body_harms_nobody(start):
    with start(0.0) as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /v1/link HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{")
        assert call(port)[0] == 200
        assert b'mimic_requests_total{route="/v1/link",status="500"}' not in call(port, "GET", "/metrics")[1]
