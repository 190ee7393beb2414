"""Keys: who is let in, who is not, and that no key ever comes out again."""

import base64
import logging

import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.server.auth import Keys
from mimic_engine.server.settings import Settings

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
KEYS = ("first-key-0123456789", "second-key-987654321")
ADMIN = "the-admins-own-key-1"


@pytest.fixture
def key_files(tmp_path):
    ordinary, admin = tmp_path / "keys", tmp_path / "admin"
    ordinary.write_text(f"# two callers\n{KEYS[0]}\n\n  {KEYS[1]}\n")
    admin.write_text(f"{ADMIN}\n")
    return {"api_keys_file": str(ordinary), "admin_key_file": str(admin)}


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def basic(key):
    return {"authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def test_every_route_but_the_probes_asks_for_a_key(serve, key_files, error_of):
    client = serve(**key_files)
    routes = [
        (method.upper(), path)
        for path, item in client.get("/openapi.json", headers=bearer(KEYS[0])).json()["paths"].items()
        for method in item
    ]
    assert len(routes) >= 7
    for method, path in [
        *routes,
        ("GET", "/docs"),
        ("GET", "/docs/static/swagger-ui.css"),
        ("GET", "/"),
        ("GET", "/nowhere"),
    ]:
        response = client.request(method, path.replace("{", "").replace("}", ""))
        if "/health/" in path:
            assert response.status_code == 200, path
        else:
            error_of(response, 401, "unauthorised")
            assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", [*KEYS, ADMIN])
@pytest.mark.parametrize("how", [bearer, basic, lambda key: {"x-api-key": key}])
def test_a_known_key_opens_the_ordinary_routes(serve, key_files, key, how):
    client = serve(**key_files)
    assert client.post("/v1/link", json=JORDAN, headers=how(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(KEYS[0][:-1]),
        bearer(KEYS[0] + "x"),
        bearer("# two callers"),
        {"authorization": KEYS[0]},
        {"authorization": f"Digest {KEYS[0]}"},
        {"authorization": "Basic !!!"},
        {"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"x-api-key": b"\xc3\xa9\xff"},
    ],
)
def test_anything_else_does_not(serve, key_files, headers, error_of, caplog):
    client = serve(**key_files)
    with caplog.at_level(logging.DEBUG):
        error_of(client.post("/v1/link", json=JORDAN, headers=headers), 401, "unauthorised")
    for key in (*KEYS, ADMIN):
        assert key not in caplog.text


def test_the_body_of_a_stranger_is_not_read(serve, key_files, linker, error_of):
    client = serve(**key_files)
    error_of(client.post("/v1/link", content=b"{" * 100_000), 401, "unauthorised")
    assert linker.batches == []


def test_without_keys_everybody_may_but_nobody_is_admin(client, error_of):
    assert client.post("/v1/link", json=JORDAN).status_code == 200
    error = error_of(client.post("/admin/anything", headers=bearer(ADMIN)), 403, "forbidden")
    assert "without admin_key_file" in error["message"]


def test_only_the_admin_may_change_things_and_not_by_basic(serve, key_files, error_of):
    client = serve(**key_files)
    for method, path in (
        ("POST", "/admin/anything"),
        ("PUT", "/v1/entities/Q1"),
        ("DELETE", "/v1/entities/Q1"),
    ):
        error_of(client.request(method, path), 401, "unauthorised")
        error_of(client.request(method, path, headers=basic(ADMIN)), 401, "unauthorised")
        error_of(client.request(method, path, headers=bearer("x" * 20)), 401, "unauthorised")
        error_of(client.request(method, path, headers=bearer(KEYS[0])), 403, "forbidden")
    error_of(client.post("/admin/anything", headers=bearer(ADMIN)), 404, "not_found")


def test_the_admin_key_alone_leaves_the_rest_open(serve, key_files, error_of):
    client = serve(admin_key_file=key_files["admin_key_file"])
    assert client.post("/v1/link", json=JORDAN).status_code == 200
    error_of(client.post("/admin/anything"), 401, "unauthorised")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"good-key-0123456789\nshort\n", "line 2 .* at least 16 ASCII characters .* has 5"),
        ("schlüssel-0123456789".encode(), "line 1"),
        (b"key with blanks 123", "line 1"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_key_file_is_refused_without_showing_the_key(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=f"api_keys_file: .*{message}") as refused:
        Keys.read(Settings(api_keys_file=str(file)))
    for word in (b"short", b"good-key", b"schl", b"blanks 123"):
        assert word.decode() not in str(refused.value).replace("ASCII characters without blanks", "")


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"admin_key_file: .*nowhere cannot be read: No such file"):
        Keys.read(Settings(admin_key_file=str(tmp_path / "nowhere")))


def test_keys_are_kept_as_digests_and_not_shown(key_files):
    keys = Keys.read(Settings(**key_files))
    assert len(keys.ordinary) == 2
    text = repr(keys) + str(keys.ordinary)
    assert not any(key in text for key in (*KEYS, ADMIN))
