"""The page and its files over HTTP: what is served, under which headers, and what is not."""

import re
from importlib import resources

import pytest

from mimic_engine.server.page import MEDIA_TYPES

STATIC = resources.files("mimic_engine.server").joinpath("static")


def links(page):
    return re.findall(r'(?:src|href)="([^"]+)"', page.text)


def test_the_page_names_only_what_this_service_has(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = links(page)
    assert len([link for link in found if link.startswith("static/")]) == 4
    for link in found:
        assert client.get(f"/{link}").status_code == 200, link
    assert "://" not in page.text
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page.text), (
        "inline: the policy blocks it"
    )


def test_scripts_come_from_here_alone(client):
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (
        rules["default-src"]
        == rules["base-uri"]
        == rules["form-action"]
        == rules["frame-ancestors"]
        == "'none'"
    )
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in policy
    for name in ("page.js", "answer.js", "page.css"):
        text = STATIC.joinpath(name).read_text("utf-8")
        assert not re.search(r"https?:|//\w+\.\w|@import|innerHTML|insertAdjacentHTML|eval\(", text), name


def test_files_are_kept_for_ever_under_their_digest_and_the_page_is_asked_again(client):
    page = client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    [script] = [link for link in links(page) if link.endswith(".js")]
    assert "immutable" in client.get(f"/{script}").headers["cache-control"]
    other = client.get("/static/0123456789abcdef/page.js")
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache")
    assert other.content == STATIC.joinpath("page.js").read_bytes()


@pytest.mark.parametrize("name", sorted(MEDIA_TYPES))
def test_every_file_has_its_type_and_is_not_guessed_at(client, name):
    answer = client.get(f"/static/x/{name}")
    assert answer.headers["content-type"] == MEDIA_TYPES[name]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["x/app.py", "x/../page.py", "x/%2e%2e%2fpage.py", "x/..%2F..%2Fapp.py", "page.js", "x/"]
)
def test_nothing_else_is_served(client, error_of, path):
    error_of(client.get(f"/static/{path}"), 404, "not_found")


def test_the_folder_holds_what_is_served():
    assert {f.name for f in STATIC.iterdir()} == set(MEDIA_TYPES)
