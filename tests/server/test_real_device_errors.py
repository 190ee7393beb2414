"""The service around a real model whose session is broken under it: 503, recovery, and the same answers after."""

import time
from contextlib import closing

import onnxruntime
import pytest
from starlette.testclient import TestClient

from mimic_engine import Linker
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from tests.batching.device import wait_ready

BODY = {"mention": "a b", "sentence": "c a b d", "top_k": 3}
SICK = "CUDA failure 2: out of memory ; expr=cudaMalloc(&p, size)"
BROKEN = "CUDA failure 700: an illegal memory access was encountered ; expr=cudaStreamSynchronize"


class Broken:
    """A session of ONNX Runtime that fails every run."""

    def __init__(self, text):
        self.text = text

    def run(self, *_):
        raise RuntimeError(self.text)


@pytest.fixture
def service(tiny_model, tiny_index):
    """Client and linker of a service that is ready."""
    settings = Settings(device_retry_delay_s=0.01, device_attempts=3, mention_cache_bytes=0)
    with closing(Linker.open(tiny_model, tiny_index, threads=1)) as linker:
        app = create_app(linker, settings)
        with TestClient(app) as client:
            assert wait_ready(app.state.service.batcher, 60)
            yield client, linker
        assert not app.state.service.batcher._thread.is_alive()


def break_session(linker, text):
    linker.featurizer._session._graphs["text_encoder"]._session = Broken(text)


def until(client, path, status):
    end = time.monotonic() + 60
    while client.get(path).status_code != status:
        assert time.monotonic() < end, f"{path} never answered {status}"
        time.sleep(0.005)


def test_a_session_that_failed_is_made_anew_and_answers_as_before(service):
    client, linker = service
    before = client.post("/v1/link", json=BODY).json()["candidates"]
    break_session(linker, SICK)
    answer = client.post("/v1/link", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "device_error")
    assert answer.json()["error"]["message"].endswith("out of memory") and "cudaMalloc" not in answer.text
    until(client, "/health/ready", 200)
    assert client.post("/v1/link", json=BODY).json()["candidates"] == before
    assert client.get("/v1/info").json()["linker"]["warm_up"]["ratio"] > 0


def test_a_model_that_does_not_open_again_ends_liveness_and_nothing_hangs(service, monkeypatch):
    client, linker = service
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: 1 / 0)
    break_session(linker, SICK)
    assert client.post("/v1/link", json=BODY).status_code == 503
    until(client, "/health/live", 503)
    for path in ("/health/ready", "/health/live"):
        assert "only a restart helps" in client.get(path).json()["error"]["message"]
    assert client.post("/v1/link", json=BODY).json()["error"]["code"] == "not_ready"


def test_a_broken_context_is_not_rebuilt(service, monkeypatch):
    client, linker = service
    opened = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: opened.append(a))
    break_session(linker, BROKEN)
    assert client.post("/v1/link", json=BODY).json()["error"]["message"].endswith("its context is broken")
    until(client, "/health/live", 503)
    assert not opened
