"""Taking up a newer index, and draining on request."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from mimic_engine.errors import DeviceError, IndexFormatError
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity
from tests.batching.device import wait_ready
from tests.server.word_linker import WordLinker

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
ADMIN = {"x-api-key": "the-admins-own-key-1"}
NEWER = (Entity("Q1", "Jordan in the river east"), Entity("Q2", "Apple"))


@pytest.fixture
def admin(serve, tmp_path):
    """The service with an admin key: ``client = admin(setting=value, ...)``."""
    file = tmp_path / "admin"
    file.write_text(ADMIN["x-api-key"])
    return lambda **options: serve(admin_key_file=str(file), **options)


def reload(client):
    return client.post("/admin/index:reload", headers=ADMIN)


def test_reload_takes_up_what_is_new(admin, linker):
    client = admin()
    assert reload(client).json() == {"reloaded": False, "entities": 4}
    linker.stored[0] = NEWER
    assert reload(client).json() == {"reloaded": True, "entities": 2}
    assert client.post("/v1/link", json=JORDAN).json()["candidates"][0]["id"] == "Q1"
    assert client.get("/v1/info").json()["entities"] == 2
    assert "mimic_index_entities 2.0" in client.get("/metrics").text
    assert client.get("/v1/entities/Q810").status_code == 404
    assert reload(client).json() == {"reloaded": False, "entities": 2}


def test_what_was_admitted_before_a_reload_keeps_its_index(admin, linker, in_background):
    """Its candidates may be gone from the newer one, and nobody else in its batch may suffer."""
    client = admin(max_batch_size=4)
    linker.gate.clear()
    running = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    old = in_background(lambda: client.post("/v1/link", json={**JORDAN, "filter": {"ids": ["Q312"]}}))
    batcher = client.app.state.service.batcher
    while batcher.queue.waiting < 1:
        pass
    linker.stored[0] = NEWER
    assert reload(client).json()["reloaded"]
    new = in_background(lambda: client.post("/v1/link", json={**JORDAN, "filter": {"ids": ["Q2"]}}))
    while batcher.queue.waiting < 2:
        pass
    linker.gate.set()
    found = [[c["id"] for c in answer().json()["candidates"]] for answer in (running, old, new)]
    assert found == [["a/b c", "Q810", "Q41421", "Q312"], ["Q312"], ["Q2"]]


class SlowAtFirst(WordLinker):
    """Another state of the index is warmed up in three steps; ``between`` is called in each."""

    def __init__(self):
        super().__init__()
        self.threads, self.between = [], lambda: None

    def warm_in_steps(self):
        for _ in range(3):
            self.threads.append(threading.current_thread().name)
            self.between()
            yield


@pytest.fixture
def slow():
    return SlowAtFirst()


@pytest.fixture
def serving(slow, tmp_path):
    file = tmp_path / "admin"
    file.write_text(ADMIN["x-api-key"])
    with TestClient(create_app(slow, Settings(admin_key_file=str(file)))) as client:
        assert wait_ready(client.app.state.service.batcher, 30)
        yield client


def test_the_newest_is_warm_before_it_answers_and_requests_go_on_meanwhile(serving, slow, in_background):
    entered, gate = threading.Semaphore(0), threading.Semaphore(0)

    def between():
        entered.release()
        assert gate.acquire(timeout=30)

    slow.between = between
    slow.stored[0] = NEWER
    reloading = in_background(lambda: reload(serving))
    for _ in range(3):
        assert entered.acquire(timeout=30)
        asked = in_background(lambda: serving.post("/v1/link", json=JORDAN))
        while serving.app.state.service.batcher.queue.waiting < 1:
            pass
        gate.release()
        assert asked().json()["entities_scored"] == 4
    assert reloading().json() == {"reloaded": True, "entities": 2}
    assert slow.threads == ["mimic-device"] * 3
    assert serving.post("/v1/link", json=JORDAN).json()["entities_scored"] == 2


def test_a_warm_up_of_the_newest_that_fails_changes_nothing(serving, slow, error_of):
    def between():
        raise DeviceError("out of memory")

    slow.between = between
    slow.stored[0] = NEWER
    assert error_of(reload(serving), 503, "device_error")
    assert serving.post("/v1/link", json=JORDAN).json()["entities_scored"] == 4
    assert serving.get("/health/ready").status_code == 200


def test_a_reload_that_fails_changes_nothing(admin, linker, error_of, monkeypatch):
    client = admin()

    def damaged():
        raise IndexFormatError("index/manifest.json: damaged")

    monkeypatch.setattr(linker, "reopened", damaged)
    error = error_of(reload(client), 500, "internal")
    assert error["id"]
    assert client.post("/v1/link", json=JORDAN).json()["entities_scored"] == 4
    assert client.get("/health/ready").status_code == 200


def test_drain_answers_when_all_work_is_done(admin, linker, in_background, error_of):
    client = admin()
    linker.gate.clear()
    running = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    drained = in_background(lambda: client.post("/admin/drain", headers=ADMIN))
    while client.get("/health/ready").status_code == 200:
        pass
    response = client.post("/v1/link", json=JORDAN)
    error_of(response, 503, "not_ready")
    assert response.headers["connection"] == "close"  # kept-open connections go elsewhere
    linker.gate.set()
    assert drained().json() == {"status": "drained"}
    assert running().status_code == 200
    assert client.get("/health/live").status_code == 200


def test_drain_says_when_it_was_not_enough(admin, linker, in_background):
    client = admin(drain_timeout_s=0.05)
    linker.gate.clear()
    running = in_background(lambda: client.post("/v1/link", json=JORDAN))
    assert linker.started.acquire(timeout=10)
    response = client.post("/admin/drain", headers=ADMIN)
    assert (response.status_code, response.json()) == (503, {"status": "draining"})
    linker.gate.set()
    assert running().status_code == 200


def test_open_inference_aliases_say_what_the_probes_say(serve, linker, error_of):
    linker.warm_gate.clear()
    client = serve(wait=False)
    assert client.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/mimic/ready"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (503, {"ready": False})
    linker.warm_gate.set()
    assert wait_ready(client.app.state.service.batcher, 10)
    for path in ("/v2/health/ready", "/v2/models/mimic/ready"):
        assert client.get(path).json() == {"ready": True}
    linker.fail_device = SystemExit("gone")
    client.post("/v1/link", json=JORDAN)
    assert client.get("/v2/health/live").json() == {"live": False}
    for path in ("/v2/models/other", "/v2/models/other/ready"):
        error_of(client.get(path), 404, "not_found")


def test_open_inference_metadata(client):
    assert client.get("/v2").json()["name"] == "mimic_engine"
    model = client.get("/v2/models/mimic").json()
    assert (model["name"], model["versions"], model["platform"]) == ("mimic", ["words-1"], "mimic_engine")
    assert [t["name"] for t in model["inputs"]] == ["mention", "sentence", "image"]
    assert {t["datatype"] for t in model["inputs"] + model["outputs"]} == {"BYTES", "FP32"}


@pytest.mark.parametrize(
    ("entity_id", "body", "field", "words"),
    [
        ("Q1", {}, None, "missing required field `name`"),
        ("Q1", {"name": " "}, "name", "name: is empty"),
        ("Q1", {"name": "a\0"}, "name", "name: holds the control character U+0000"),
        ("Q1", {"name": "a", "aliases": ["b", ""]}, "aliases[1]", "aliases[1]: is empty"),
        ("Q1", {"name": "a", "aliases": ["b", 7]}, "aliases[1]", "got `int`"),
        ("Q1", {"name": "a", "aliases": "b"}, "aliases", "got `str`"),
        ("Q1", {"name": "a", "aliases": None}, "aliases", "got `null`"),
        ("Q1", {"name": "a", "aliases": ["b"] * 1001}, "aliases", "at most 1,000, got 1,001"),
        ("Q1", {"name": "a", "aliases": ["x" * 101]}, "aliases[0]", "at most 100 characters, got 101"),
        ("Q1", {"name": "a", "popularity": -1}, "popularity", "from 0 on, got -1"),
        ("Q1", {"name": "a", "popularity": "9"}, "popularity", "got `str`"),
        ("Q1", {"name": "a", "popularity": True}, "popularity", "got `bool`"),
        ("Q1", {"name": "x" * 101}, "name", "at most 100 characters, got 101"),
        ("Q1", {"name": "a", "description": "x" * 101}, "description", "got 101"),
        ("Q1", {"name": "a", "images": ["aGk="] * 9}, "images", "at most 8, got 9"),
        ("Q1", {"name": "a", "images": [""]}, "image", "must not be empty"),
        ("Q1", {"name": "a", "images": ["aGk="]}, "image", "cannot be decoded"),
        ("Q1", {"name": "a", "images": "aGk="}, "images", "got `str`"),
        ("Q1", {"name": "a", "colour": "red"}, None, "unknown field `colour`"),
        ("x" * 513, {"name": "a"}, "id", "1 to 512 printable characters, got 513"),
        ("a%00b", {"name": "a"}, "id", "printable"),
    ],
)
def test_a_bad_entity_is_refused_and_nothing_changes(admin, linker, writer, entity_id, body, field, words):
    client = admin(writer=writer, max_text_chars=100)
    before = linker.stored[0]
    response = client.put(f"/v1/entities/{entity_id}", json=body, headers=ADMIN)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error.get("field") == field
    assert words in error["message"]
    assert linker.stored[0] is before


def test_without_a_writer_entities_are_not_changed(admin, error_of):
    client = admin()
    put = client.put("/v1/entities/Q1", json={"name": "a"}, headers=ADMIN)
    for response in (put, client.delete("/v1/entities/Q810", headers=ADMIN)):
        assert "without a writer" in error_of(response, 403, "forbidden")["message"]


def test_changes_come_one_at_a_time_and_none_is_lost(admin, writer):
    client = admin(writer=writer)
    with ThreadPoolExecutor(8) as pool:
        puts = [
            pool.submit(client.put, f"/v1/entities/N{n}", json={"name": f"name {n}"}, headers=ADMIN)
            for n in range(24)
        ]
        assert {put.result().status_code for put in puts} == {200}
    assert client.get("/v1/info").json()["entities"] == 28
