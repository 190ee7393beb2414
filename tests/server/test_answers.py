"""What the service answers when all is well."""

import base64
import json
import re

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}


def test_link_ranks_and_says_how(client):
    response = client.post("/v1/link", json={**JORDAN, "top_k": 2})
    assert response.status_code == 200
    body = response.json()
    assert [c["id"] for c in body["candidates"]] == ["a/b c", "Q810"]
    assert set(body["candidates"][0]) == {"id", "name", "score", "units"}
    assert (body["mode"], body["entities_scored"], body["has_image"]) == ("certified", 4, False)
    timing = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    assert [name for name, _ in timing] == ["prepare", "queue", "device", "total"]
    assert float(timing[-1][1]) >= sum(float(ms) for _, ms in timing[:-1]) - 0.01


def test_link_with_base64_image_equals_multipart(client, png):
    as_json = client.post("/v1/link", json={**JORDAN, "image": base64.b64encode(png).decode(), "top_k": 3})
    as_form = client.post("/v1/link", data={**JORDAN, "top_k": "3"}, files={"image": ("a.png", png)})
    assert as_json.status_code == as_form.status_code == 200
    assert as_json.json() == as_form.json()
    assert as_json.json()["has_image"]


def test_form_without_image_and_with_a_filter(client):
    fields = [(key, (None, value)) for key, value in JORDAN.items()]
    fields += [
        ("filter.ids", (None, "Q312")),
        ("filter.ids", (None, "Q810")),
        ("return_parts", (None, "false")),
        ("timeout_ms", (None, "900.5")),
    ]
    response = client.post("/v1/link", files=fields)
    assert response.status_code == 200, response.text
    assert [c["id"] for c in response.json()["candidates"]] == ["Q810", "Q312"]


def test_ids_restrict_the_answer(client):
    response = client.post("/v1/link", json={**JORDAN, "filter": {"ids": ["Q312"]}, "top_k": 3})
    assert [c["id"] for c in response.json()["candidates"]] == ["Q312"]
    assert response.json()["entities_scored"] == 1


def test_batch_gives_each_mention_a_result_or_its_error(client):
    mentions = [
        JORDAN,
        {"mention": 5, "sentence": ""},
        {**JORDAN, "image": "aGk="},
        {**JORDAN, "top_k": 1},
        7,
    ]
    response = client.post("/v1/link:batch", json={"mentions": mentions, "top_k": 2})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [len(r["candidates"]) for r in (results[0], results[3])] == [2, 1]
    errors = [r["error"] for r in (results[1], results[2], results[4])]
    assert [e["code"] for e in errors] == ["invalid_input", "invalid_image", "invalid_input"]
    assert [e["field"] for e in errors] == ["mentions[1].mention", "mentions[2].image", "mentions[4]"]


def test_batch_with_nothing_valid_never_reaches_the_device(client, linker):
    response = client.post("/v1/link:batch", json={"mentions": [1, 2]})
    assert [r["error"]["code"] for r in response.json()["results"]] == ["invalid_input"] * 2
    assert linker.batches == []


def test_device_work_is_on_one_thread(client, linker):
    for _ in range(3):
        client.post("/v1/link", json=JORDAN)
        client.post("/v1/link:batch", json={"mentions": [JORDAN] * 5})
    assert linker.device_threads == {"mimic-device"}


def test_entities_by_id_even_with_slashes(client, error_of):
    assert client.get("/v1/entities/Q810").json() == {
        "id": "Q810",
        "name": "Jordan",
        "description": "country east of Israel",
        "type": "country",
        "image_count": 2,
        "aliases": ["Urdunn", "HKJ"],
        "popularity": 7.5,
    }
    unknown = client.get("/v1/entities/Q312").json()
    assert (unknown["aliases"], unknown["popularity"]) == ([], None)
    assert client.get("/v1/entities/a%2Fb%20c").json()["name"] == "Jordan River"
    for bad in ("Q1", "..%2F..%2Fetc%2Fpasswd", "%00", "Q810%20"):
        assert (
            "is not in the index"
            in error_of(client.get(f"/v1/entities/{bad}"), 404, "unknown_entity")["message"]
        )


def test_info_and_metrics(client):
    client.post("/v1/link", json=JORDAN)
    info = client.get("/v1/info").json()
    assert (info["model_hash"], info["entities"], info["linker"]["mode"]) == ("words-1", 4, "exact")
    assert info["limits"]["max_queue_size"] == 256
    assert "host" not in info["limits"]
    text = client.get("/metrics").text
    assert 'mimic_requests_total{route="/v1/link",status="200"} 1.0' in text
    assert 'mimic_request_seconds_bucket{le="5e-05",route="/v1/link"}' in text
    assert 'mimic_mentions_total{outcome="ok"} 1.0' in text
    assert "mimic_ready 1.0" in text
    assert "mimic_queue_length 0.0" in text


def test_docs_and_schema_come_from_this_machine_alone(client):
    page = client.get("/docs")
    links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(links) == 4
    for link in links:
        assert client.get(f"/{link}").status_code == 200, link
    assert "http" not in page.text.replace("http-equiv", "")
    schema = client.get("/openapi.json").json()
    paths = {
        "/v1/link",
        "/v1/link:batch",
        "/v1/entities/{entity_id}",
        "/v1/info",
        "/health/live",
        "/health/ready",
    }
    assert paths <= set(schema["paths"])
    assert set(schema["paths"]["/v1/entities/{entity_id}"]) == {"get", "put", "delete"}
    operations = [operation for item in schema["paths"].values() for operation in item.values()]
    assert all(
        o["description"] and o["summary"] and {"200", "401"} <= set(o["responses"]) for o in operations
    )
    assert len({o["operationId"] for o in operations}) == len(operations)
    for ref in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)):
        assert ref in schema["components"]["schemas"]


def test_request_ids_are_kept_or_made(client):
    kept = client.get("/health/live", headers={"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    made = client.get("/health/live", headers={"x-request-id": "bad id\t" + "x" * 200})
    assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])


def test_every_route_is_described_or_is_a_page(client):
    described = set(client.get("/openapi.json").json()["paths"])
    pages = {"/", "/static/{asked}/{name}", "/openapi.json", "/docs", "/docs/static"}
    assert {re.sub(":rest", "", route.path) for route in client.app.routes} == described | pages


def test_a_form_has_the_fields_of_the_json_body(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    form, body = schemas["LinkForm"]["properties"], schemas["LinkBody"]["properties"]
    assert set(form) == {*body, "filter.ids", "filter.types"} - {"filter"}
    assert form["image"] == {"type": "string", "format": "binary"}
    assert form["top_k"] == {"type": "integer"}
