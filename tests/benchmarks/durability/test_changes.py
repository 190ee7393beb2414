"""What the soak changes in a service, against one that keeps entities, forgets them, or refuses."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from benchmarks.durability import changes
from benchmarks.durability.changes import BESIDE, KEY, Changer
from mimic_engine.errors import EngineError

ALL = {"/v1/entities/{entity_id}": ("get", "put", "delete"), "/admin/index:reload": ("post",)}


class Store:
    """Entities behind the routes that a service has for its admin."""

    def __init__(self, offered=ALL, *, forgets=False):
        self.entities, self.reloads, self.offered, self.forgets = {}, 0, offered, forgets

    async def openapi(self, _):
        return web.json_response(
            {"paths": {path: {key: {} for key in methods} for path, methods in self.offered.items()}}
        )

    async def entity(self, request):
        id_ = request.match_info["id"]
        if request.method == "GET":
            found = self.entities.get(id_)
            return web.json_response(found or {}, status=200 if found else 404)
        if request.headers.get("x-api-key") != KEY:
            return web.json_response({}, status=403)
        if request.method == "DELETE":
            del self.entities[id_]
        elif not self.forgets or id_ not in self.entities:
            self.entities[id_] = await request.json()
        return web.json_response({})

    async def reload(self, _):
        self.reloads += 1
        return web.json_response({})


def run(store, turns, monkeypatch):
    """Let a changer make so many turns against the store; gives its counts."""
    monkeypatch.setattr(changes, "EVERY_S", 0.001)
    monkeypatch.setattr(changes, "IDS", 3)

    async def main():
        app = web.Application()
        app.router.add_get("/openapi.json", store.openapi)
        app.router.add_route("*", "/v1/entities/{id}", store.entity)
        app.router.add_post("/admin/index:reload", store.reload)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession() as session:
                changer = Changer(session, f"http://127.0.0.1:{runner.addresses[0][1]}")
                await changer.look()
                over = asyncio.Event()
                task = asyncio.create_task(changer.run(over))
                while (
                    not task.done()
                    and sum(changer.counts.to_json().values()) < turns
                    and any(changer.offers.values())
                ):
                    await asyncio.sleep(0.001)
                over.set()
                await task
                return changer
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def test_entities_are_put_looked_up_and_taken_away_again(monkeypatch):
    store = Store()
    counts = run(store, 30, monkeypatch).counts
    assert counts.upserts >= 9 and counts.deletes >= 6
    assert counts.reloads == store.reloads >= 1
    assert all(id_.startswith(BESIDE) for id_ in store.entities)


def test_what_is_not_offered_is_not_asked(monkeypatch):
    store = Store({"/v1/entities/{entity_id}": ("get",)})
    changer = run(store, 1, monkeypatch)
    assert changer.offers == {"upserts": False, "deletes": False, "reloads": False}
    assert (store.entities, store.reloads) == ({}, 0)


def test_a_change_that_cannot_be_seen_is_an_error(monkeypatch):
    store = Store({**ALL, "/v1/entities/{entity_id}": ("get", "put")}, forgets=True)
    with pytest.raises(EngineError, match="its name is 'Zyx 0' after it was set to 'Zyx 3'"):
        run(store, 30, monkeypatch)


def test_a_refused_change_names_request_and_status(monkeypatch):
    monkeypatch.setattr(changes, "KEY", "another")
    store = Store()
    with pytest.raises(EngineError, match="PUT /v1/entities/soak-0: 403"):
        run(store, 30, monkeypatch)
