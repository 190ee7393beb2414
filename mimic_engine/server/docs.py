"""``/docs`` and ``/openapi.json``: the OpenAPI document, and Swagger UI from files on this machine."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from mimic_engine.types import MODES
from mimic_engine.wire import components, ref

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


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


def _route(answer: dict[str, Any], *codes: int, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a route decorator: what comes in, what goes out, which errors."""
    responses: dict[int, Any] = {200: {"description": "Answer", "content": answer}}
    codes = (401, *codes)
    responses |= {code: {"description": _MEANING[code], "content": _json("ErrorBody")} for code in codes}
    extra = {"requestBody": {"required": True, "content": body}} if body else {}
    return {"responses": responses, "openapi_extra": extra}


def _flag(name: str, *codes: int) -> dict[str, Any]:
    """A yes or no of the Open Inference Protocol, said by the status too."""
    body = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
    answer = {"application/json": {"schema": body}}
    route = _route(answer, *codes)
    route["responses"][503] = {"description": "Not now", "content": answer}
    return route


_FORM = {
    "type": "object",
    "required": ["mention", "sentence"],
    "properties": {
        "mention": {"type": "string"},
        "sentence": {"type": "string"},
        "image": {"type": "string", "format": "binary"},
        "top_k": {"type": "integer"},
        "image_url": {"type": "string"},
        "filter.ids": {"type": "array", "items": {"type": "string"}},
        "filter.types": {"type": "array", "items": {"type": "string"}},
        "mode": {"enum": list(MODES)},
        "return_parts": {"type": "boolean"},
        "explain": {"type": "boolean"},
        "nil": {"type": "boolean"},
        "nil_threshold": {"type": "number"},
        "timeout_ms": {"type": "number"},
    },
}

_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_LINKING = (413, 415, 422, 429, 500, 503, 504)

LINK = _route(
    _json("LinkAnswer"),
    *_LINKING,
    body={**_json("LinkBody"), "multipart/form-data": {"schema": _FORM}},
)
BATCH = _route(_json("BatchAnswer"), *_LINKING, body=_json("BatchBody"))
SCORE = _route(_json("LinkAnswer"), *_LINKING, body=_json("ScoreBody"))
STREAM = _route(
    {
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "LinkAnswer or ErrorBody, a line each"}
        }
    },
    *(415, 422, 503),
    body={"application/x-ndjson": {"schema": ref("MentionBody")}},
)
STREAM["openapi_extra"]["parameters"] = [
    {"name": "timeout_ms", "in": "query", "schema": {"type": "number"}, "description": "Deadline of a line"}
]
PUT_ENTITY = _route(_json("ReloadAnswer"), 403, 409, 413, 415, 422, 500, 507, body=_json("EntityBody"))
DELETE_ENTITY = _route(_json("ReloadAnswer"), 403, 404, 409, 422, 500, 507)
ENTITY = _route(_json("EntityAnswer"), 404, 422)
IMAGE = _route(
    {
        kind: {"schema": {"type": "string", "format": "binary"}}
        for kind in ("image/jpeg", "image/png", "image/webp")
    },
    404,
)
EXAMPLES = _route(_json("ExamplesBody"))
INFO = _route(_OBJECT)
RELOAD = _route(_json("ReloadAnswer"), 403, 500)
DRAIN = _route(_json("StatusAnswer"), 403)
HEALTH = _route(_json("StatusAnswer"), 503)
V2_LIVE = _flag("live")
V2_READY = _flag("ready")
MODEL = _route(_OBJECT, 404, 422)
MODEL_READY = _flag("ready", 404)


def install(app: FastAPI) -> None:
    """Add the document and the page."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components())
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.mount("/docs/static", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title} {app.version}",
            swagger_js_url="docs/static/swagger-ui-bundle.js",
            swagger_css_url="docs/static/swagger-ui.css",
            swagger_favicon_url="docs/static/favicon.png",
        )
