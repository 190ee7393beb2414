"""Routes and their description: the OpenAPI document made from the route table, and a page that shows it.

``/docs`` is Swagger UI, from files on this machine.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from mimic_engine._version import __version__
from mimic_engine.server.errors import json_response
from mimic_engine.wire import components, ref

TITLE = "mimic_engine"

PUBLIC_LIMITS = (
    "max_batch_size",
    "max_queue_size",
    "queue_timeout_ms",
    "timeout_ms",
    "max_timeout_ms",
    "max_body_bytes",
    "max_image_bytes",
    "max_text_chars",
    "max_mentions",
    "max_top_k",
    "max_candidates",
    "stream_window",
)

_MEANING = {
    401: "Key missing or not known",
    403: "Needs the admin key",
    404: "Not in the index, or without what is asked for",
    409: "Somebody else is changing the index",
    413: "Body, image or batch over its limit",
    415: "Image format or content type not supported",
    422: "Invalid input; the message names field, limit and value",
    429: "Queue full; see Retry-After",
    500: "Fault of the service; the log has it under the id",
    503: "Warming up, draining, dead, or the device failed; see Retry-After",
    504: "Deadline passed",
    507: "The index could not be written: a full disk, say; what was there is as it was",
}

Content = dict[str, Any]  # media type -> {"schema": ...}


@dataclass(frozen=True, slots=True)
class Operation:
    """Description of a route: its answer, the errors beside 401, its body and its query parameters."""

    tag: str
    answer: Content
    codes: tuple[int, ...] = ()
    body: Content | None = None
    query: tuple[Mapping[str, Any], ...] = ()
    other_answers: Mapping[int, tuple[str, Content]] = field(default_factory=dict)

    def responses(self) -> dict[str, Any]:
        """Answers by status."""
        errors = {code: (_MEANING[code], _json("ErrorBody")) for code in (401, *self.codes)}
        answers = {200: ("Answer", self.answer), **errors, **self.other_answers}
        return {
            str(status): {"description": words, "content": content}
            for status, (words, content) in answers.items()
        }


class Endpoint(Route):
    """Route of exactly one method, with its description if it is part of the OpenAPI document."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        operation: Operation | None = None,
    ) -> None:
        super().__init__(path, handler, methods=[method])
        self.methods = {method}  # GET without HEAD
        self.method, self.operation = method, operation


def _json(name: str) -> Content:
    return {"application/json": {"schema": ref(name)}}


def _flag(name: str) -> Content:
    """A yes or no of the Open Inference Protocol."""
    body = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
    return {"application/json": {"schema": body}}


def _yes_or_no(name: str, *codes: int) -> Operation:
    """A flag that is said by the status too."""
    return Operation("open inference", _flag(name), codes, other_answers={503: ("Not now", _flag(name))})


_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_FORM = {"multipart/form-data": {"schema": ref("LinkForm")}}
_IMAGE = {
    kind: {"schema": {"type": "string", "format": "binary"}}
    for kind in ("image/jpeg", "image/png", "image/webp")
}
_LINES = {"type": "string", "description": "LinkAnswer or ErrorBody, a line each"}
_LINKING = (413, 415, 422, 429, 500, 503, 504)

LINK = Operation("linking", _json("LinkAnswer"), _LINKING, _json("LinkBody") | _FORM)
BATCH = Operation("linking", _json("BatchAnswer"), _LINKING, _json("BatchBody"))
SCORE = Operation("linking", _json("LinkAnswer"), _LINKING, _json("ScoreBody"))
STREAM = Operation(
    "linking",
    {"application/x-ndjson": {"schema": _LINES}},
    (415, 422, 503),
    {"application/x-ndjson": {"schema": ref("MentionBody")}},
    ({"name": "timeout_ms", "schema": {"type": "number"}, "description": "Deadline of a line"},),
)
PUT_ENTITY = Operation(
    "admin", _json("ReloadAnswer"), (403, 409, 413, 415, 422, 500, 507), _json("EntityBody")
)
DELETE_ENTITY = Operation("admin", _json("ReloadAnswer"), (403, 404, 409, 422, 500, 507))
ENTITY = Operation("index", _json("EntityAnswer"), (404,))
IMAGE = Operation("index", _IMAGE, (404,))
EXAMPLE_IMAGE = Operation("service", _IMAGE, (404,))
EXAMPLES = Operation("service", _json("ExamplesBody"))
INFO = Operation("service", _OBJECT)
METRICS = Operation("service", {"text/plain": {"schema": {"type": "string"}}})
RELOAD = Operation("admin", _json("ReloadAnswer"), (403, 500))
DRAIN = Operation(
    "admin",
    _json("StatusAnswer"),
    (403,),
    other_answers={503: ("Not all work is done", _json("StatusAnswer"))},
)
HEALTH = Operation("service", _json("StatusAnswer"), (503,))
SERVER = Operation("open inference", _OBJECT)
MODEL = Operation("open inference", _OBJECT, (404,))
V2_LIVE = _yes_or_no("live")
V2_READY = _yes_or_no("ready")
MODEL_READY = _yes_or_no("ready", 404)


def openapi(table: Sequence[Endpoint]) -> dict[str, Any]:
    """Make the document of all routes that have a description."""
    paths: dict[str, Any] = {}
    for route in table:
        if route.operation is not None:
            paths.setdefault(route.path_format, {})[route.method.lower()] = _described(route, route.operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__},
        "paths": paths,
        "components": {"schemas": components()},
    }


def _described(route: Endpoint, operation: Operation) -> dict[str, Any]:
    """Describe one route; the words are those of its handler."""
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.param_convertors
    ]
    parameters = in_path + [{**parameter, "in": "query"} for parameter in operation.query]
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": route.name.replace("_", " ").title(),
        "description": inspect.getdoc(route.endpoint),
        "operationId": re.sub(r"\W", "_", f"{route.name}{route.path_format}_{route.method.lower()}"),
        "responses": operation.responses(),
    }
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": operation.body}
    return described


_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>{TITLE} {__version__}</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<link rel="icon" href="docs/static/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{
  url: "openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true
}})
</script>
</body>
</html>
"""


def routes(table: Sequence[Endpoint]) -> list[BaseRoute]:
    """Routes of the document and of the page that shows it."""
    document = json_response(openapi(table))

    async def openapi_json(_: Request) -> Response:
        return document

    async def docs_page(_: Request) -> Response:
        return HTMLResponse(_PAGE)

    return [
        Route("/openapi.json", openapi_json),
        Endpoint("GET", "/docs", docs_page),
        Mount("/docs/static", StaticFiles(packages=[("swagger_ui", "static")])),
    ]
