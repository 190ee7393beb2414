"""The routes about the index: entities read and changed, what is loaded, taking up a newer state of it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from mimic_engine import wire
from mimic_engine._version import __version__
from mimic_engine.errors import UnknownEntityError
from mimic_engine.server.docs import PUBLIC_LIMITS
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.requests import put_request, read_json
from mimic_engine.server.service import LinkService
from mimic_engine.wire import EntityAnswer, ReloadAnswer


class IndexRoutes:
    """Handlers of the routes about the index."""

    def __init__(self, service: LinkService) -> None:
        self._service = service

    async def entity(self, request: Request) -> Response:
        """Give what the index holds about one entity."""
        index = self._service.linker.index
        try:
            entity = index.entity(int(index.rows([request.path_params["entity_id"]])[0]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return json_response(
            EntityAnswer(
                entity.id,
                entity.name,
                entity.description,
                entity.type,
                len(entity.images),
                entity.aliases,
                entity.popularity,
            )
        )

    async def put_entity(self, request: Request) -> Response:
        """Add or replace an entity; when this answers, it is stored and linked against."""
        body = wire.decode_entity(await read_json(request))
        entity = put_request(request.path_params["entity_id"], body, self._service.settings)
        await self._service.change(lambda writer: writer.upsert([entity]))
        return self._reloaded(True)

    async def delete_entity(self, request: Request) -> Response:
        """Delete an entity; when this answers, it is gone."""
        entity_id = request.path_params["entity_id"]
        try:
            await self._service.change(lambda writer: writer.delete([entity_id]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return self._reloaded(True)

    async def info(self, _: Request) -> Response:
        """Describe the model, the index and the limits of this service."""
        linker = self._service.linker
        return json_response(
            {
                "version": __version__,
                "model_hash": linker.model_hash,
                "entities": len(linker.index),
                "changes": self._service.takes_changes,
                "limits": self._service.settings.model_dump(include=set(PUBLIC_LIMITS)),
                "linker": dict(linker.info()),
            }
        )

    async def reload(self, _: Request) -> Response:
        """Link from now on against the newest state of the index; requests under way keep theirs."""
        return self._reloaded(await self._service.reload())

    def _reloaded(self, reloaded: bool) -> Response:
        return json_response(ReloadAnswer(reloaded, len(self._service.linker.index)))
