"""What a request may ask for beyond the mention: filter, parts, explanation, nil, explicit candidates."""

import pytest

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
RANKED = ["a/b c", "Q810", "Q41421", "Q312"]  # by the words they share


def ids(body):
    return [c["id"] for c in body["candidates"]]


@pytest.fixture
def link(client):
    def post(path="/v1/link", **options):
        response = client.post(path, json={**JORDAN, **options})
        assert response.status_code == 200, response.text
        return response.json()

    return post


def test_types_and_ids_restrict_the_answer(link):
    assert ids(link(filter={"types": ["river", "person"]})) == ["a/b c", "Q41421"]
    assert ids(link(filter={"types": ["river", "person"], "ids": ["Q312", "Q41421"]})) == ["Q41421"]
    assert ids(link(filter={"types": [""]})) == ["Q312"]
    assert ids(link(filter={})) == ids(link()) == RANKED


def test_the_mode_is_passed_on_and_named_in_the_answer(link, client, error_of):
    assert link()["mode"] == "certified"
    assert link(mode="exact")["mode"] == "exact"
    for wrong, words in (("coded", "one of exact, certified"), ("best", "enum value 'best'")):
        error = error_of(client.post("/v1/link", json={**JORDAN, "mode": wrong}), 422, "invalid_input")
        assert error["field"] == "mode"
        assert words in error["message"]


def test_parts_are_there_unless_declined(link):
    assert all("units" in c for c in link()["candidates"])
    assert all("units" in c for c in link(return_parts=True)["candidates"])
    assert not any("units" in c for c in link(return_parts=False)["candidates"])


def test_explanations_are_there_when_asked_for(link):
    body = link(explain=True, top_k=2)
    assert [t["text"] for t in body["tokens"]] == ["jordan", "the", "river", "in", "the", "east"]
    for candidate in body["candidates"]:
        assert len(candidate["explanation"]["attention"]) == 6
        assert candidate["explanation"]["contributions"] == candidate["units"]
    assert "tokens" not in link()
    assert "explanation" not in link()["candidates"][0]


def test_nil_by_a_given_threshold(link):
    best = link()["candidates"][0]["score"]
    assert {k: link()[k] for k in link() if k.startswith("nil")} == {}
    for threshold, verdict in ((best, False), (best + 0.01, True), (-1e9, False)):
        body = link(nil_threshold=threshold)
        assert (body["nil"], body["nil_threshold"]) == (verdict, threshold)
        assert ids(body) == RANKED  # the best score below it is still there to see
    assert "nil" not in link(nil=False, nil_threshold=3)


def test_nil_by_the_models_own_threshold(link, linker):
    linker.threshold = 2.0
    body = link(nil=True)
    assert (body["nil"], body["nil_threshold"]) == (True, 2.0)
    assert link(nil=True, nil_threshold=-1)["nil"] is False
    assert "nil" not in link()


def test_a_batch_lends_its_options_to_mentions_that_name_none(client):
    shared = {"top_k": 1, "return_parts": False, "nil_threshold": 5, "filter": {"types": ["person", "river"]}}
    own = {
        "top_k": 2,
        "return_parts": True,
        "nil": False,
        "filter": {"ids": ["Q312", "Q810"]},
        "explain": True,
    }
    body = client.post("/v1/link:batch", json={**shared, "mentions": [JORDAN, {**JORDAN, **own}]}).json()
    first, second = body["results"]
    assert ids(first) == ["a/b c"]
    assert ids(second) == ["Q810", "Q312"]
    assert first["nil"] is True
    assert "nil" not in second
    assert ("units" in first["candidates"][0], "units" in second["candidates"][0]) == (False, True)
    assert ("tokens" in first, "tokens" in second) == (False, True)


def test_score_gives_every_candidate_in_the_order_asked_for(link):
    asked = ["Q312", "a/b c", "Q810"]
    body = link("/v1/score", candidates=asked, explain=True, return_parts=False)
    assert ids(body) == asked
    assert body["entities_scored"] == 3
    scores = {c["id"]: c["score"] for c in link()["candidates"]}
    assert [c["score"] for c in body["candidates"]] == [scores[i] for i in asked]
    assert "units" not in body["candidates"][0]
    assert "explanation" in body["candidates"][0]


def test_score_is_limited_by_candidates_and_not_by_top_k(serve, error_of):
    client = serve(max_top_k=1, max_candidates=3)
    body = {**JORDAN, "candidates": RANKED[:3]}
    assert len(client.post("/v1/score", json=body).json()["candidates"]) == 3
    for wrong in ([], RANKED, ["Q810", "Q810"], None):
        error = error_of(client.post("/v1/score", json={**body, "candidates": wrong}), 422, "invalid_input")
        assert error["field"] == "candidates"
    error = error_of(client.post("/v1/score", json={**body, "candidates": ["Q9"]}), 422, "unknown_entity")
    assert error["field"] == "candidates"
    error_of(client.post("/v1/score", json=JORDAN), 422, "invalid_input")
    error_of(client.post("/v1/score", json={**body, "top_k": 1}), 422, "invalid_input")


def test_without_a_top_k_no_more_are_given_than_the_service_allows(serve):
    assert len(serve(max_top_k=2).post("/v1/link", json=JORDAN).json()["candidates"]) == 2
