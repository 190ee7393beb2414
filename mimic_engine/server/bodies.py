"""Reading request bodies: JSON or a form, lines of a stream; and noticing that a client has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from mimic_engine import wire
from mimic_engine.errors import InvalidInputError, TooLargeError
from mimic_engine.server.settings import Settings
from mimic_engine.wire import LinkBody

T = TypeVar("T")

NDJSON = ("application/x-ndjson", "application/jsonl")


async def read_link(request: Request, settings: Settings) -> LinkBody:
    """Read the body of ``/v1/link``, JSON or multipart."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return wire.decode_link(await read_json(request, "multipart/form-data"))
    fields: list[tuple[str, str]] = []
    image: bytes | None = None
    limits = {"max_fields": 16 + 2 * settings.max_candidates, "max_part_size": 4 * settings.max_text_chars}
    try:
        async with request.form(max_files=1, **limits) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    fields.append((name, value))
                elif name == "image":
                    image = await value.read()
                else:
                    raise InvalidInputError(f"{name}: the only file a form may hold is image", field=name)
    except (HTTPException, FormParserError) as error:
        raise InvalidInputError(f"body: not a valid form: {getattr(error, 'detail', error)}") from error
    return wire.form_to_body(fields, image)


async def read_json(request: Request, *also: str) -> bytes:
    """Read a whole body that must be JSON; ``also`` are other types that the route takes, for the message."""
    expect_type(request, ("application/json",), also)
    return await request.body()


def expect_type(request: Request, accepted: tuple[str, ...], also: tuple[str, ...] = ()) -> None:
    """Refuse a content type with 415; a body without one is taken for the first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", *accepted):
        raise HTTPException(415, f"content-type must be {' or '.join((*accepted, *also))}; got {kind!r}")


async def lines_of(request: Request, max_line_bytes: int) -> AsyncIterator[bytes]:
    """Lines of a body as they come, blank ones left out.

    Raises
    ------
    TooLargeError
        If a line is over the limit: there is no telling where the next begins.
    """
    rest = bytearray()
    async for chunk in request.stream():
        searched = len(rest)
        rest += chunk
        begin = 0
        while (end := rest.find(b"\n", max(begin, searched))) >= 0:
            if line := bytes(rest[begin:end]).strip():
                yield _bounded(line, max_line_bytes)
            begin = end + 1
        del rest[:begin]
        _bounded(rest, max_line_bytes)
    if line := bytes(rest).strip():
        yield line


def _bounded(line: T, limit: int) -> T:
    if len(line) > limit:  # type: ignore[arg-type]
        raise TooLargeError(f"line: at most {limit} bytes (max_body_bytes), got {len(line)} or more")  # type: ignore[arg-type]
    return line


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, or cancel it when the client goes away."""
    task = asyncio.current_task()
    assert task is not None
    finished = left = False

    def leave(_: object) -> None:
        nonlocal left
        if not finished and not watch.cancelled():
            left = True
            task.cancel()

    watch = asyncio.ensure_future(request.receive())  # the body has been read: next comes the disconnect
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise HTTPException(499, "the client has gone away") from None
        raise
    finally:
        finished = True
        watch.cancel()
