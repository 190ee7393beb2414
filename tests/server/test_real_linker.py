"""The service around the real Linker gives what the Linker gives."""

import base64
import shutil
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from mimic_engine import Linker, Mention
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.index_changes import IndexChanges
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from tests.batching.device import wait_ready


@pytest.fixture(scope="module")
def real(tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1, cache_bytes=1_000_000)
    with TestClient(create_app(linker, Settings(max_batch_size=4))) as client:
        assert wait_ready(client.app.state.service.batcher, 60)
        yield linker, client
    linker.close()


def test_answers_equal_the_linker(real, tiny_picture):
    linker, client = real
    data = tiny_picture.read_bytes()
    for image in (None, data):
        [expected] = linker.link([Mention("a b", "c d a b e", image)], top_k=5)
        body = {"mention": "a b", "sentence": "c d a b e", "top_k": 5}
        if image:
            body["image"] = base64.b64encode(image).decode()
        answer = client.post("/v1/link", json=body).json()
        assert [c["id"] for c in answer["candidates"]] == [c.id for c in expected.candidates]
        for got, want in zip(answer["candidates"], expected.candidates, strict=True):
            assert got["score"] == pytest.approx(want.score, abs=1e-6)
            assert set(got["units"]) == {"tglu", "vdlu", "cmfu"}
        assert answer["has_image"] == (image is not None)


def test_many_callers_at_once_each_get_their_own_answer(real):
    linker, client = real
    mentions = [Mention(a, f"{a} {b}") for a in "abcdef" for b in "ghij"]
    expected = [linker.link([m], 1)[0].candidates[0].id for m in mentions]

    def ask(mention):
        body = {"mention": mention.mention, "sentence": mention.sentence, "top_k": 1}
        return client.post("/v1/link", json=body).json()["candidates"][0]["id"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, mentions)) == expected


def test_broken_pictures_and_unknown_candidates_are_the_callers_fault(real, tiny_picture):
    _, client = real
    body = {"mention": "a", "sentence": "a b"}
    cut = base64.b64encode(tiny_picture.read_bytes()[:60]).decode()
    assert client.post("/v1/link", json={**body, "image": cut}).status_code == 422
    assert client.post("/v1/link", json={**body, "filter": {"ids": ["nobody"]}}).status_code == 422
    assert client.post("/v1/link", json={**body, "top_k": 10_000}).status_code == 422


def test_filter_explanation_and_scores_reach_the_linker(real):
    linker, client = real
    body = {"mention": "a b", "sentence": "c d a b e"}
    [expected] = linker.link([Mention("a b", "c d a b e")], 13, explain=True)
    answer = client.post("/v1/link", json={**body, "explain": True, "top_k": 13}).json()
    assert [t["text"] for t in answer["tokens"]] == [t.text for t in expected.tokens]
    for got, want in zip(answer["candidates"], expected.candidates, strict=True):
        assert got["explanation"]["attention"] == pytest.approx(list(want.explanation.attention), abs=1e-5)
    ids = ["E07", "E01", "E10"]
    scored = client.post("/v1/score", json={**body, "candidates": ids}).json()["candidates"]
    assert [c["id"] for c in scored] == ids
    scores = {c.id: c.score for c in expected.candidates}
    assert [c["score"] for c in scored] == pytest.approx([scores[i] for i in ids], abs=1e-5)
    filtered = client.post("/v1/link", json={**body, "filter": {"ids": ids}}).json()["candidates"]
    assert [c["id"] for c in filtered] == [c.id for c in expected.candidates if c.id in ids]


def test_info_and_entities(real):
    linker, client = real
    info = client.get("/v1/info").json()
    assert info["entities"] == len(linker.index)
    assert info["model_hash"] == linker.model_hash
    assert client.get("/v1/entities/E99").json()["name"] == linker.index.entity(2).name


def test_metrics_tell_how_often_a_mention_came_again(real):
    linker, client = real
    before = linker.cache.asked
    for _ in range(3):
        assert client.post("/v1/link", json={"mention": "h i", "sentence": "j"}).status_code == 200
    hits = before.get(("mention", "hit"), 0) + 2
    text = client.get("/metrics").text
    assert f'mimic_cache_requests_total{{kind="mention",outcome="hit"}} {hits}.0' in text
    assert f"mimic_cache_bytes {float(linker.cache.bytes)}" in text


@pytest.fixture
def changing(tiny_model, tiny_index, tmp_path):
    """A service of its own index, and of the admin's key, with the folder's path."""
    folder = tmp_path / "index"
    shutil.copytree(tiny_index, folder)
    (tmp_path / "admin").write_text("the-admins-own-key-1")
    linker = Linker.open(tiny_model, folder, threads=1)
    settings = Settings(admin_key_file=str(tmp_path / "admin"))
    app = create_app(linker, settings, writer=IndexChanges(tiny_model, folder, threads=1))
    with TestClient(app, headers={"x-api-key": "the-admins-own-key-1"}) as client:
        assert wait_ready(client.app.state.service.batcher, 60)
        yield client, folder
    linker.close()


def test_an_entity_is_linked_as_soon_as_it_is_put_and_no_more_when_it_is_deleted(changing, tiny_picture):
    client, folder = changing
    question = {"mention": "j j", "sentence": "i i i", "top_k": 13}
    image = base64.b64encode(tiny_picture.read_bytes()).decode()
    body = {"name": "j j", "description": "i i i", "type": "letters", "images": [image]}
    put = client.put("/v1/entities/N1", json={**body, "aliases": ["jay jay"], "popularity": 0})
    assert put.json() == {"reloaded": True, "entities": 14}
    stored = client.get("/v1/entities/N1").json()
    assert (stored["type"], stored["aliases"], stored["popularity"]) == ("letters", ["jay jay"], 0)
    assert [m.id for m in Index.open(folder).find_names("jay", 3)] == ["N1"]
    scored = client.post(
        "/v1/score", json={"mention": "j j", "sentence": "i i i", "candidates": ["N1", "E01"]}
    )
    assert [c["id"] for c in scored.json()["candidates"]] == ["N1", "E01"]
    typed = client.post(
        "/v1/link", json={**question, "filter": {"types": ["letters"]}, "explain": True}
    ).json()
    assert [c["id"] for c in typed["candidates"]] == ["N1"]
    assert "N1" in Index.open(folder).ids(Index.open(folder).rows(["N1"]))
    assert client.put("/v1/entities/N1", json={"name": "a"}).json()["entities"] == 14
    error = client.post("/v1/link", json={**question, "filter": {"types": ["letters"]}}).json()["error"]
    assert "no entity of the index has type 'letters'" in error["message"]
    assert client.delete("/v1/entities/N1").json()["entities"] == 13
    assert client.delete("/v1/entities/N1").status_code == 404
    ids = [c["id"] for c in client.post("/v1/link", json=question).json()["candidates"]]
    assert len(ids) == 13
    assert "N1" not in ids


def test_a_broken_picture_or_a_locked_index_changes_nothing(changing):
    client, folder = changing
    broken = client.put("/v1/entities/N1", json={"name": "a", "images": ["aGk="]})
    assert broken.status_code in (415, 422)
    with IndexWriter(Index.open(folder)):
        locked = client.put("/v1/entities/N1", json={"name": "a"})
    assert (locked.status_code, locked.json()["error"]["code"]) == (409, "index_locked")
    assert client.get("/v1/info").json()["entities"] == 13


@pytest.mark.parametrize("id_", ["a/b", " ", "x/../y", "é 北", "50%"])
def test_an_id_may_be_any_printable_text(changing, id_):
    client, _ = changing
    address = f"/v1/entities/{quote(id_, safe='')}"
    assert client.put(address, json={"name": "a"}).status_code == 200
    assert client.get(address).json()["id"] == id_
    assert client.delete(address).status_code == 200
    assert client.get(address).status_code == 404


def test_an_id_with_a_line_break_is_refused_and_not_lost_on_the_way(changing):
    client, _ = changing
    answer = client.put("/v1/entities/line%0Abreak", json={"name": "a"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("id: ")
    assert "'line\\nbreak'" in client.get("/v1/entities/line%0Abreak").json()["error"]["message"]


def test_a_full_disk_is_said_and_changes_nothing(changing, monkeypatch):
    client, _ = changing

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(IndexWriter, "_publish", full)
        answer = client.put("/v1/entities/N1", json={"name": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "index_not_written")
    assert "the index is as it was" in answer.text
    assert client.get("/v1/info").json()["entities"] == 13
    assert client.put("/v1/entities/N1", json={"name": "a"}).json()["entities"] == 14


def test_a_picture_that_came_with_an_entity_can_be_looked_at(changing, tiny_picture):
    client, _ = changing
    assert client.get("/v1/info").json()["changes"] is True
    picture = tiny_picture.read_bytes()
    answer = client.put("/v1/entities/N1", json={"name": "a", "images": [base64.b64encode(picture).decode()]})
    assert answer.status_code == 200
    shown = client.get("/v1/images/N1")
    assert (shown.status_code, shown.headers["content-type"], shown.content) == (200, "image/png", picture)


def test_an_unknown_entity_is_named_and_no_place_on_this_machine(real, tiny_index):
    _, client = real
    answer = client.get("/v1/entities/E77")
    assert answer.status_code == 404
    assert "'E77' is not in the index (13 entities)" in answer.text
    assert str(tiny_index) not in answer.text
