"""The one table from errors to HTTP, and the body every error has.

``{"error": {"code": ..., "message": ..., "field"?: ..., "id"?: ...}}``; a 500 says no more than its id,
under which the log has the rest.
"""

from __future__ import annotations

import logging
import math
import uuid

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mimic_engine.errors import (
    DataError,
    DeadlineError,
    DeviceError,
    ForbiddenError,
    ImageError,
    ImageTypeError,
    IndexLockedError,
    IndexWriteError,
    InvalidInputError,
    MimicError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
    UnauthorisedError,
    UnknownEntityError,
)
from mimic_engine.wire import ErrorBody, ErrorDetail

logger = logging.getLogger(__name__)

NOT_READY_RETRY_S = 1

# The most specific class stands first; whatever is not here is a fault of ours: 500.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownEntityError, 422, "unknown_entity"),
    (TooLargeError, 413, "too_large"),
    (ImageTypeError, 415, "image_type"),
    (ImageError, 422, "invalid_image"),
    (InvalidInputError, 422, "invalid_input"),
    (DataError, 422, "invalid_input"),  # of an entity, before anything is written
    (UnauthorisedError, 401, "unauthorised"),
    (ForbiddenError, 403, "forbidden"),
    (IndexLockedError, 409, "index_locked"),
    (IndexWriteError, 507, "index_not_written"),  # a full disk, say; only the admin sees it
    (QueueFullError, 429, "queue_full"),
    (DeadlineError, 504, "deadline_exceeded"),
    (NotReadyError, 503, "not_ready"),
    (DeviceError, 503, "device_error"),
)

HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 415: "content_type", 499: "client_gone"}


def classify(error: BaseException) -> tuple[int, str]:
    """Give HTTP status and code of an error."""
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return status, code
    return 500, "internal"


def describe(error: BaseException, prefix: str = "") -> tuple[int, ErrorBody]:
    """Give HTTP status and body of an error; unexpected ones are logged under a fresh id.

    ``prefix`` says which part of the request the field belongs to (``mentions[3]``).
    """
    status, code = classify(error)
    if status != 500:
        field = ".".join(part for part in (prefix, getattr(error, "field", None)) if part)
        return status, ErrorBody(ErrorDetail(code=code, message=str(error), field=field or None))
    error_id = uuid.uuid4().hex
    logger.error("internal error %s", error_id, exc_info=error)
    message = "internal error; the log has it under this id"
    return status, ErrorBody(ErrorDetail(code=code, message=message, id=error_id))


def error_response(error: BaseException) -> Response:
    """Make the HTTP answer for an error."""
    status, body = describe(error)
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, NotReadyError | DeviceError):
        headers["Retry-After"] = str(NOT_READY_RETRY_S)
    elif isinstance(error, UnauthorisedError):
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="mimic_engine"'
    return json_response(body, status, headers)


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Encode with msgspec."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _on_mimic_error(_: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = ErrorBody(ErrorDetail(code=code, message=message))
    return json_response(body, error.status_code, dict(error.headers or {}))


# Of the application. Faults are answered by the outermost middleware.
HANDLERS = {MimicError: _on_mimic_error, HTTPException: _on_http_error}
