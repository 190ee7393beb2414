"""Changes to a running service's knowledge base: upserts, deletes and reloads, where it offers them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from mimic_engine.errors import EngineError
from mimic_engine.server.settings import Settings

BESIDE = "soak-"  # begins the ids of the entities that are added
KEY = "soak-admin-key-of-one-run"
IDS = 50  # different entities that come and go
EVERY_S = 1.0
RELOAD_EVERY = 10  # changes


@contextmanager
def admin_options() -> Iterator[list[str]]:
    """Flags that give a service its admin key; none where it knows no such thing."""
    if "admin_key_file" not in Settings.model_fields:
        yield []
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "admin.key"
        file.write_text(f"{KEY}\n", "utf-8")
        yield ["--admin-key-file", str(file)]


@dataclass(slots=True)
class Counts:
    """What was changed."""

    upserts: int = 0
    deletes: int = 0
    reloads: int = 0

    def to_json(self) -> dict[str, int]:
        """A JSON object."""
        return asdict(self)


class Changer:
    """Puts, replaces and deletes entities once a second, and has the index reloaded."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session, self._address = session, address
        self._headers = {"x-api-key": KEY}
        self.counts = Counts()
        self.offers: dict[str, bool] = {}

    async def look(self) -> None:
        """Read from the OpenAPI document what the service offers."""
        paths = (await self._json("GET", "/openapi.json"))["paths"]
        entity = paths.get("/v1/entities/{entity_id}", {})
        self.offers = {
            "upserts": "put" in entity,
            "deletes": "delete" in entity,
            "reloads": "post" in paths.get("/admin/index:reload", {}),
        }

    async def run(self, until: asyncio.Event) -> None:
        """Change until told to end; EngineError where a change is refused or cannot be seen afterwards."""
        for turn in itertools.count():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), EVERY_S)
                return
            if self.offers["upserts"]:
                await self._change(turn)
            if self.offers["reloads"] and turn % RELOAD_EVERY == 0:
                await self._json("POST", "/admin/index:reload")
                self.counts.reloads += 1

    async def _change(self, turn: int) -> None:
        id_ = f"{BESIDE}{turn % IDS}"
        path = f"/v1/entities/{id_}"
        if (
            self.offers["deletes"] and turn // IDS % 2
        ):  # every second round takes away what the first put there
            await self._json("DELETE", path)
            await self._json("GET", path, status=404)
            self.counts.deletes += 1
            return
        body = {"name": f"Zyx {turn}", "description": f"entity {turn} of a soak run", "type": "soak"}
        await self._json("PUT", path, body)
        found = await self._json("GET", path)
        if found["name"] != body["name"]:
            raise EngineError(f"{id_}: its name is {found['name']!r} after it was set to {body['name']!r}")
        self.counts.upserts += 1

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, status: int | None = None
    ) -> Any:
        url = self._address + path
        async with self._session.request(method, url, json=body, headers=self._headers) as response:
            content = await response.text()
            right = response.status < 300 if status is None else response.status == status
            if not right:
                raise EngineError(f"{method} {path}: {response.status} {content[:300]}")
            return await response.json() if response.content_type == "application/json" else content
