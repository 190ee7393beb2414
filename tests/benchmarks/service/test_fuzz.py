"""The short form of fuzzing: a few examples of everything, the same ones every time."""

import pytest
from schemathesis.core.failures import FailureGroup
from starlette.testclient import TestClient

from benchmarks.service.fuzz import KEY, Held, Tally, fuzz_openapi, fuzz_pictures, pictures, warm_up
from mimic_engine import Linker
from mimic_engine.errors import EngineError
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from tests.batching.device import wait_ready


@pytest.fixture(scope="module")
def linker(tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    yield linker
    linker.close()


@pytest.fixture(scope="module")
def client(linker, tmp_path_factory):
    key = tmp_path_factory.mktemp("keys") / "key"
    key.write_text(KEY)
    settings = Settings(admin_key_file=str(key), api_keys_file=str(key))
    with TestClient(create_app(linker, settings)) as client:
        assert wait_ready(client.app.state.service.batcher, 60)
        yield client


def test_every_answer_is_one_of_the_document_and_nothing_is_left(client):
    tally = Tally()
    warm_up(client.app, client)
    before = Held.now(client.app)
    fuzz_openapi(client.app, 3, tally)
    fuzz_pictures(client, 40, tally)
    assert tally.statuses[500] == 0
    assert tally.operations >= 17
    assert {200, 422} <= set(tally.statuses)
    assert Held.now(client.app) == before


def test_a_fault_does_not_go_unnoticed(client, linker, monkeypatch):
    def broken(*args, **kwargs):
        raise EngineError("broken")

    monkeypatch.setattr(linker, "link_prepared", broken)
    with pytest.raises(AssertionError, match="500"):
        fuzz_pictures(client, 20, Tally())


def test_an_answer_outside_the_document_does_not_go_unnoticed(client, monkeypatch):
    monkeypatch.setattr("mimic_engine.server.probe_routes.StatusAnswer", lambda status: {"state": status})
    with pytest.raises(FailureGroup, match="1 distinct failure"):
        fuzz_openapi(client.app, 3, Tally())


def test_pictures_are_of_many_kinds():
    assert len(set(pictures())) >= 13
    assert max(map(len, pictures())) < 200_000
