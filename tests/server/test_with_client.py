"""The project's own client against the application: every call, with threads and with asyncio."""

import asyncio

import httpx2
import pytest

from mimic_engine import Mention
from mimic_engine.client import AsyncClient, Client, ServiceError
from mimic_engine.types import Entity

JORDAN = Mention("Jordan", "the river in the east")
KEY = "the-admins-own-key-1"


@pytest.fixture
def served(serve, tmp_path, writer):
    (tmp_path / "admin").write_text(KEY)
    (tmp_path / "keys").write_text("an-ordinary-key-0")
    files = {"admin_key_file": str(tmp_path / "admin"), "api_keys_file": str(tmp_path / "keys")}
    return serve(writer=writer, **files)


@pytest.fixture(params=["threads", "asyncio"])
def call(request, served):
    """``call("link", mention, ...)``: one call of either client."""

    def run(name, *arguments, key=KEY, **options):
        if request.param == "threads":
            with Client("http://test", key=key, transport=served._transport) as client:
                answer = getattr(client, name)(*arguments, **options)
                return list(answer) if name == "link_stream" else answer

        async def awaited():
            transport = httpx2.ASGITransport(app=served.app)
            async with AsyncClient("http://test", key=key, transport=transport) as client:
                if name != "link_stream":
                    return await getattr(client, name)(*arguments, **options)
                return [answer async for answer in client.link_stream(_each(arguments[0]), **options)]

        return asyncio.run(awaited())

    return run


async def _each(items):
    for item in items:
        yield item


def ids(answer):
    return [c.id for c in answer.candidates]


def test_link(call, png):
    answer = call("link", Mention("Jordan", "the river", png), top_k=2, explain=True, nil_threshold=-1)
    assert ids(answer) == ["a/b c", "Q810"]
    assert (answer.has_image, answer.nil) == (True, False)
    assert answer.candidates[0].explanation.contributions == answer.candidates[0].units
    assert ids(call("link", JORDAN, types=["person"])) == ["Q41421"]


def test_batch_and_stream_give_errors_their_places(call):
    mentions = [JORDAN, Mention(" ", "x"), JORDAN] * 20
    for name in ("link_batch", "link_stream"):
        answers = call(name, mentions, top_k=1)
        assert len(answers) == 60
        for n, answer in enumerate(answers):
            if n % 3 == 1:
                assert isinstance(answer, ServiceError)
                assert (answer.code, answer.status) == ("invalid_input", 0)
            else:
                assert ids(answer) == ["a/b c"]


def test_score(call):
    assert ids(call("score", JORDAN, ["Q312", "Q810"])) == ["Q312", "Q810"]


def test_entity_info_and_ready(call):
    assert call("entity", "a/b c").name == "Jordan River"
    assert call("info")["entities"] == 4
    assert call("ready") is True
    with pytest.raises(ServiceError, match="not in the index") as refused:
        call("entity", "../Q1")
    assert refused.value.status == 404


def test_reload(call, linker):
    assert not call("reload").reloaded
    linker.stored[0] = (Entity("Q1", "x"),)
    assert call("reload").entities == 1


def test_an_entity_is_added_replaced_and_deleted(call, png):
    mention = Mention("Zanzibar", "an island in the Indian Ocean")
    assert call("upsert", Entity("Q 9/x", "Zanzibar", "", (png,), "text")).entities == 5
    assert ids(call("link", mention, top_k=1)) == ["Q 9/x"]
    assert (call("entity", "Q 9/x").image_count, call("entity", "Q 9/x").type) == (1, "text")
    named = Entity("Q 9/x", "Zanzibar", aliases=("Unguja", "Sansibar"), popularity=3)
    assert call("upsert", named).entities == 5
    assert (call("entity", "Q 9/x").aliases, call("entity", "Q 9/x").popularity) == (
        ["Unguja", "Sansibar"],
        3,
    )
    assert call("upsert", Entity("Q 9/x", "nothing of the kind")).entities == 5
    assert (call("entity", "Q 9/x").aliases, call("entity", "Q 9/x").popularity) == ([], None)
    assert ids(call("link", mention, top_k=1)) != ["Q 9/x"]
    assert call("delete", "Q 9/x").entities == 4
    for name in ("delete", "entity"):
        with pytest.raises(ServiceError) as refused:
            call(name, "Q 9/x")
        assert refused.value.status == 404


def test_keys(call):
    for key, status in ((None, 401), ("a-key-that-is-wrong", 401)):
        with pytest.raises(ServiceError) as refused:
            call("link", JORDAN, key=key)
        assert refused.value.status == status
    with pytest.raises(ServiceError) as refused:
        call("reload", key="an-ordinary-key-0")
    assert refused.value.status == 403
