"""Images of entities, and mentions to try, for people to look at.

Only what the index or the examples name is read, up to the size limit, and only where its header says that
it is a JPEG, PNG or WebP. Nothing of the request becomes part of a path.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from mimic_engine.errors import InvalidInputError, UnknownEntityError
from mimic_engine.images import ImageLimits, read_encoded
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.service import LinkService
from mimic_engine.types import ImageSource, Mention
from mimic_engine.wire import ErrorBody, ErrorDetail, ExampleBody, ExamplesBody

logger = logging.getLogger(__name__)

_HEADERS = {
    "Cache-Control": "private, no-cache",  # an entity may get another image: ask again, by its ETag
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


class ImageRoutes:
    """Handlers of ``/v1/images/{id}`` and ``/v1/examples``."""

    def __init__(self, service: LinkService, examples: Sequence[Mention]) -> None:
        self._service, self._examples = service, examples
        self._limits = ImageLimits(max_bytes=service.settings.max_image_bytes)

    async def entity_image(self, request: Request) -> Response:
        """Give the first image of an entity, where this machine has it."""
        entity_id = request.path_params["entity_id"]
        index = self._service.linker.index
        try:
            source = index.image(int(index.rows([entity_id])[0]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return await self._image(request, f"entity {entity_id!r}", source)

    async def list_examples(self, _: Request) -> Response:
        """Give mentions that are worth a try with this index; none unless it is the demo's."""
        return json_response(ExamplesBody([_example(i, m) for i, m in enumerate(self._examples)]))

    async def example_image(self, request: Request) -> Response:
        """Give the image of an example."""
        number = request.path_params["number"]
        known = number.isdecimal() and len(number) < 10 and int(number) < len(self._examples)
        source = self._examples[int(number)].image if known else None
        return await self._image(request, f"example {number!r}", source)

    async def _image(self, request: Request, owner: str, source: ImageSource | None) -> Response:
        """Answer with the image, with 304 where the caller has it, with 404 where there is none to show."""
        if source is None:
            return _no_image(f"{owner} has no picture that this service can show")
        try:
            content, media_type = await asyncio.to_thread(read_encoded, source, self._limits)
        except InvalidInputError as error:
            # It names the path: not for callers.
            logger.warning("the picture of %s cannot be shown: %s", owner, error)
            return _no_image(f"the picture of {owner} is missing or damaged; the log says more")
        etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
        headers = {**_HEADERS, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)


def _example(number: int, mention: Mention) -> ExampleBody:
    image = None if mention.image is None else f"v1/examples/{number}/image"
    return ExampleBody(mention.mention, mention.sentence, image)


def _no_image(message: str) -> Response:
    return json_response(ErrorBody(ErrorDetail(code="no_picture", message=message)), 404)
