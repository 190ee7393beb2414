"""The routes about the index: entities read and changed, what is loaded, taking up a newer state of it."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from mimic_engine import wire
from mimic_engine._version import __version__
from mimic_engine.errors import UnknownEntityError
from mimic_engine.server import docs
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.requests import put_request, read_json
from mimic_engine.server.service import LinkService
from mimic_engine.wire import EntityAnswer, ReloadAnswer


def install(app: FastAPI, service: LinkService) -> None:
    """Add the routes."""

    @app.get(f"/v1/entities/{{entity_id:{REST}}}", tags=["index"], **docs.ENTITY)
    async def entity(entity_id: str) -> Response:
        """Give what the index holds about one entity."""
        index = service.linker.index
        try:
            found = index.entity(int(index.rows([entity_id])[0]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return json_response(
            EntityAnswer(found.id, found.name, found.description, found.type, len(found.images))
        )

    @app.put(f"/v1/entities/{{entity_id:{REST}}}", tags=["admin"], **docs.PUT_ENTITY)
    async def put_entity(entity_id: str, request: Request) -> Response:
        """Add or replace an entity; when this answers, it is stored and linked against."""
        body = wire.decode_entity(await read_json(request))
        entity = put_request(entity_id, body, service.settings)
        await service.change(lambda writer: writer.upsert([entity]))
        return json_response(ReloadAnswer(True, len(service.linker.index)))

    @app.delete(f"/v1/entities/{{entity_id:{REST}}}", tags=["admin"], **docs.DELETE_ENTITY)
    async def delete_entity(entity_id: str) -> Response:
        """Delete an entity; when this answers, it is gone."""
        try:
            await service.change(lambda writer: writer.delete([entity_id]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return json_response(ReloadAnswer(True, len(service.linker.index)))

    @app.get("/v1/info", tags=["service"], **docs.INFO)
    async def info() -> Response:
        """Describe the model, the index and the limits of this service."""
        linker = service.linker
        return json_response(
            {
                "version": __version__,
                "model_hash": linker.model_hash,
                "entities": len(linker.index),
                "changes": service.takes_changes,
                "limits": service.settings.model_dump(include=set(docs.PUBLIC_LIMITS)),
                "linker": dict(linker.info()),
            }
        )

    @app.post("/admin/index:reload", tags=["admin"], **docs.RELOAD)
    async def reload() -> Response:
        """Link from now on against the newest state of the index; requests under way keep theirs."""
        reloaded = await service.reload()
        return json_response(ReloadAnswer(reloaded, len(service.linker.index)))


# The rest of a path as one parameter, whatever it holds: ids may have slashes and line breaks in them.

REST = "rest"  # "/v1/entities/{entity_id:rest}"


class _Rest(PathConvertor):
    """Starlette's ``path`` stops at a line break."""

    regex = "(?s:.*)"


register_url_convertor(REST, _Rest())
