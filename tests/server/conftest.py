import importlib.util
import io
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from tests.batching.device import wait_ready

WORD_LINKER = Path(__file__).with_name("word_linker.py")


def _load():
    spec = importlib.util.spec_from_file_location("word_linker", WORD_LINKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def word_linker_path():
    return WORD_LINKER


@pytest.fixture
def linker():
    return _load().WordLinker()


@pytest.fixture
def writer(linker):
    return _load().WordWriter(linker)


@pytest.fixture
def serve(linker):
    """Start the application around the linker: ``client = serve(max_queue_size=2, ...)``."""
    clients = []

    def start(*, wait=True, fetch=None, tracer=None, writer=None, **options):
        client = TestClient(
            create_app(linker, Settings(**options), fetch=fetch, tracer=tracer, writer=writer)
        )
        client.__enter__()
        clients.append(client)
        if wait:
            assert wait_ready(client.app.state.service.batcher, 10)
        return client

    yield start
    linker.gate.set()
    linker.warm_gate.set()
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()


@pytest.fixture
def start(word_linker_path):
    """``with start(device_s, setting=value, ...) as (process, port)``: a server process that is ready."""

    @contextmanager
    def run(device_s, **options):
        command = [sys.executable, str(word_linker_path), "0", str(device_s)]
        command += [f"{name}={value}" for name, value in options.items()]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                word, port = process.stdout.readline().split()
                assert word == "ready"
                yield process, int(port)
            finally:
                process.kill()

    return run


@pytest.fixture(scope="session")
def png():
    out = io.BytesIO()
    Image.new("RGB", (7, 5), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def gif():
    out = io.BytesIO()
    Image.new("RGB", (7, 5)).save(out, "GIF")
    return out.getvalue()


def _error_of(response, status, code):
    """The error of an answer, after checking what every error answer must have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.headers["server-timing"]
    [(key, error)] = response.json().items()
    assert key == "error"
    assert error["code"] == code
    assert error["message"]
    return error


@pytest.fixture(scope="session")
def error_of():
    return _error_of


def _post_raw(client, body, content_type="application/json", path="/v1/link"):
    return client.post(path, content=body, headers={"content-type": content_type})


@pytest.fixture(scope="session")
def post_raw():
    return _post_raw


def _in_background(call):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()

    def result():
        thread.join(10)
        return answers[0]

    return result


@pytest.fixture(scope="session")
def in_background():
    return _in_background
