"""Pictures of entities and examples: only what is named, only what is a picture, never a path of the caller's."""

import io

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity, Mention


def encoded(kind, size=(9, 7)):
    out = io.BytesIO()
    Image.new("RGB", size, (10, 120, 60)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "c.webp").write_bytes(encoded("WEBP"))
    (tmp_path / "jpeg.png").write_bytes(encoded("JPEG"))
    (tmp_path / "secret.txt").write_text("root:x:0:0")
    (tmp_path / "page.png").write_text("<html><script>alert(1)</script>")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    (tmp_path / "large.png").write_bytes(encoded("PNG") + b"x" * 60_000)
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:20])
    return tmp_path


@pytest.fixture
def ask(linker, folder):
    """``ask(image, ...)`` gives the answer for an entity ``it/em 1`` with these images."""
    clients = []

    def start(*images):
        linker.index = type(linker.index)([Entity("it/em 1", "Item", "", images)])
        settings = Settings(max_image_bytes=50_000)
        client = TestClient(
            create_app(linker, settings, examples=[Mention("a", "a b", folder / "a.png"), Mention("a", "a")])
        )
        clients.append(client)
        return client

    def get(*images, **headers):
        return start(*images).get("/v1/images/it%2Fem%201", headers=headers)

    get.client = start
    yield get
    for client in clients:
        client.app.state.service.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "image/png"), ("b.jpg", "image/jpeg"), ("c.webp", "image/webp"), ("jpeg.png", "image/jpeg")],
)
def test_the_first_picture_comes_as_it_is_with_the_type_of_its_content(ask, folder, name, kind):
    answer = ask(str(folder / name), str(folder / "a.png"))
    assert (answer.status_code, answer.content) == (200, (folder / name).read_bytes())
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_a_picture_that_has_not_changed_is_not_sent_again(ask, folder):
    first = ask(str(folder / "a.png"))
    again = ask(str(folder / "a.png"), **{"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    (folder / "a.png").write_bytes(encoded("PNG", (8, 8)))
    assert ask(str(folder / "a.png"), **{"if-none-match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("image", ["https://example.org/a.png", "file:///etc/passwd", "sha256:" + "0" * 64])
def test_what_lies_elsewhere_is_not_fetched(ask, error_of, image):
    assert "no picture" in error_of(ask(image), 404, "no_picture")["message"]
    error_of(ask(), 404, "no_picture")


@pytest.mark.parametrize(
    "name", ["secret.txt", "page.png", "drawing.svg", "large.png", "cut.png", "absent.png", ".", "a.png\0"]
)
def test_a_file_that_is_no_good_picture_is_not_given_and_its_path_not_told(ask, folder, error_of, name):
    answer = ask(str(folder / name))
    message = error_of(answer, 404, "no_picture")["message"]
    assert str(folder) not in answer.text
    assert "missing or damaged" in message


def test_no_device_or_pipe_is_waited_for(ask, error_of):
    error_of(ask("/dev/zero"), 404, "no_picture")


@pytest.mark.parametrize("path", ["Q1", "..%2Fa.png", "%2Fetc%2Fpasswd", "%00", "it%2Fem%201%2Fimage"])
def test_only_ids_of_the_index_are_known(ask, folder, error_of, path):
    client = ask.client(str(folder / "a.png"))
    error_of(client.get(f"/v1/images/{path}"), 404, "unknown_entity")


def test_examples_name_their_pictures_by_address(ask, folder, error_of):
    client = ask.client()
    [first, second] = client.get("/v1/examples").json()["examples"]
    assert first == {"mention": "a", "sentence": "a b", "image": "v1/examples/0/image"}
    assert second["image"] is None
    assert client.get(f"/{first['image']}").content == (folder / "a.png").read_bytes()
    for number in ("1", "2", "-1", "0x0", "²", "9" * 30, "%2e%2e"):
        error_of(client.get(f"/v1/examples/{number}/image"), 404, "no_picture")


def test_a_service_without_examples_says_so(client):
    assert client.get("/v1/examples").json() == {"examples": []}
