"""``/v1/images/{id}`` and ``/v1/examples``: pictures of entities, and mentions to try, for people to look at.

Only what the index or the examples name is read, up to the size limit, and only where its header says that
it is a JPEG, PNG or WebP. Nothing of the request becomes part of a path.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response

from mimic_engine.errors import InvalidInputError, UnknownEntityError
from mimic_engine.images import ImageLimits, read_encoded
from mimic_engine.server import docs
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.index_routes import REST
from mimic_engine.server.service import LinkService
from mimic_engine.types import ImageSource, Mention
from mimic_engine.wire import ErrorBody, ErrorDetail, ExampleBody, ExamplesBody

logger = logging.getLogger(__name__)

_HEADERS = {
    "Cache-Control": "private, no-cache",  # an entity may get another picture: ask again, by its ETag
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def install(app: FastAPI, service: LinkService, examples: Sequence[Mention]) -> None:
    """Add the routes."""
    limits = ImageLimits(max_bytes=service.settings.max_image_bytes)
    listed = json_response(ExamplesBody([_example(i, m) for i, m in enumerate(examples)]))

    @app.get(f"/v1/images/{{entity_id:{REST}}}", tags=["index"], **docs.IMAGE)
    async def entity_image(entity_id: str, request: Request) -> Response:
        """Give the first picture of an entity, where this machine has it."""
        index = service.linker.index
        try:
            source = index.image(int(index.rows([entity_id])[0]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return await _picture(request, f"entity {entity_id!r}", source, limits)

    @app.get("/v1/examples", tags=["service"], **docs.EXAMPLES)
    async def list_examples() -> Response:
        """Give mentions that are worth a try with this index; none unless it is the demo's."""
        return listed

    @app.get("/v1/examples/{number}/image", tags=["service"], **docs.IMAGE)
    async def example_image(number: str, request: Request) -> Response:
        """Give the picture of an example."""
        known = number.isdecimal() and len(number) < 10 and int(number) < len(examples)
        source = examples[int(number)].image if known else None
        return await _picture(request, f"example {number!r}", source, limits)


def _example(number: int, mention: Mention) -> ExampleBody:
    image = None if mention.image is None else f"v1/examples/{number}/image"
    return ExampleBody(mention.mention, mention.sentence, image)


async def _picture(request: Request, owner: str, source: ImageSource | None, limits: ImageLimits) -> Response:
    """Answer with the picture, with 304 where the caller has it, or with 404 where there is none to show."""
    if source is None:
        return _no_picture(f"{owner} has no picture that this service can show")
    try:
        content, media_type = await asyncio.to_thread(read_encoded, source, limits)
    except InvalidInputError as error:
        logger.warning(
            "the picture of %s cannot be shown: %s", owner, error
        )  # names the path: not for callers
        return _no_picture(f"the picture of {owner} is missing or damaged; the log says more")
    etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
    headers = {**_HEADERS, "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _no_picture(message: str) -> Response:
    return json_response(ErrorBody(ErrorDetail(code="no_picture", message=message)), 404)
