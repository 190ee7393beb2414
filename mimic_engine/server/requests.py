"""Requests as they come in: bodies read, decoded, and held against the limits of the service, by name.

What comes out is within the limits and needs no second look: a :class:`LinkRequest` for each mention. What
only the index can tell (whether it holds the candidates, which modes it has) the linker says when it
prepares the mention.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mimic_engine import wire
from mimic_engine.errors import ImageError, InvalidInputError, TooLargeError
from mimic_engine.names.valid import name_fault
from mimic_engine.server.settings import Settings
from mimic_engine.types import DEFAULT_OPTIONS, Entity, LinkOptions, Mention
from mimic_engine.wire import EntityBody, LinkBody, MentionBody, ScoreBody

if TYPE_CHECKING:
    from mimic_engine.engine.linker import Linker

T = TypeVar("T")

JSON = ("application/json",)
NDJSON = ("application/x-ndjson", "application/jsonl")
MAX_ID_CHARS = 512
MAX_IMAGES = 8


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """One mention and how it is to be linked, within the limits, and what its answer is to show.

    ``image_url`` names an image to fetch; ``candidates_field`` is what the caller calls its candidates.
    ``return_parts`` asks for the units' scores, a ``nil_threshold`` for the verdict by it.
    """

    mention: Mention
    options: LinkOptions
    image_url: str | None = None
    candidates_field: str = "filter"
    return_parts: bool = True
    nil_threshold: float | None = None


# -- one mention --------------------------------------------------------------------------------------


def link_request(body: MentionBody, settings: Settings, linker: Linker) -> LinkRequest:
    """Hold a mention and its options against the limits.

    Raises
    ------
    InvalidInputError, TooLargeError, ImageError
        Naming the field, the limit and the value.
    """
    threshold = None
    if body.nil is not None or body.nil_threshold is not None:
        threshold = _nil_threshold(body, linker)
    mention = _mention(body, settings)
    ids = types = None
    if body.filter is not None:
        ids = _names("filter.ids", body.filter.ids, settings)
        types = _names("filter.types", body.filter.types, settings)
    most = min(settings.max_top_k, len(linker.index))
    top_k = min(DEFAULT_OPTIONS.top_k, most) if body.top_k is None else body.top_k
    if not 1 <= top_k <= most:
        raise InvalidInputError(
            f"top_k: must be 1 to {most} (max_top_k={settings.max_top_k}, "
            f"{len(linker.index)} entities in the index), got {top_k}",
            field="top_k",
        )
    options = LinkOptions(
        top_k,
        ids,
        types,
        body.mode or DEFAULT_OPTIONS.mode,
        explain=bool(body.explain),
        names=body.names is not False,
    )
    parts = body.return_parts is not False
    return LinkRequest(mention, options, body.image_url, return_parts=parts, nil_threshold=threshold)


def score_request(body: ScoreBody, settings: Settings) -> LinkRequest:
    """Hold a mention whose candidates are all to be scored against the limits; errors as of others."""
    mention = _mention(body, settings)
    ids = _names("candidates", body.candidates, settings)
    names = body.names is not False
    options = LinkOptions(len(body.candidates), ids, explain=bool(body.explain), names=names)
    parts = body.return_parts is not False
    return LinkRequest(mention, options, body.image_url, "candidates", return_parts=parts)


def _mention(body: MentionBody | ScoreBody, settings: Settings) -> Mention:
    for field, text in (("mention", body.mention), ("sentence", body.sentence)):
        if len(text) > settings.max_text_chars:
            raise _too_long(field, text, settings)
    if not body.mention.strip():
        raise InvalidInputError("mention: must not be empty", field="mention")
    if body.image is not None:
        check_image(body.image, settings)
        if body.image_url is not None:
            raise InvalidInputError("image_url: give either image or image_url", field="image_url")
    return Mention(body.mention, body.sentence, body.image)


def _too_long(field: str, text: str, settings: Settings) -> InvalidInputError:
    message = f"{field}: at most {settings.max_text_chars} characters, got {len(text)}"
    return InvalidInputError(message, field=field)


def check_image(image: bytes, settings: Settings) -> None:
    """Hold an encoded image against the limits."""
    if not image:
        raise ImageError("image: must not be empty", field="image")
    if len(image) > settings.max_image_bytes:
        limit = settings.max_image_bytes
        raise TooLargeError(f"image: at most {limit} bytes, got {len(image)}", field="image")


def _names(field: str, names: Sequence[str] | None, settings: Settings) -> tuple[str, ...] | None:
    """Ids or types, within the limit."""
    if names is None:
        return None
    if not 1 <= len(names) <= settings.max_candidates:
        message = f"{field}: must be 1 to {settings.max_candidates} (max_candidates), got {len(names)}"
        raise InvalidInputError(message, field=field)
    return tuple(names)


def _nil_threshold(body: MentionBody, linker: Linker) -> float | None:
    """Threshold of the nil verdict, the caller's or the model's own; None where none is asked for."""
    given = body.nil_threshold
    if given is not None and not math.isfinite(given):
        raise InvalidInputError(f"nil_threshold: must be finite, got {given}", field="nil_threshold")
    if body.nil is False:
        return None
    if given is not None:
        return given
    own = linker.nil_threshold(body.names is not False)
    if own is None:
        alone = (
            " for scores without names" if body.names is False and linker.nil_threshold() is not None else ""
        )
        raise InvalidInputError(
            f"nil: this model has no threshold of its own{alone} (mimic-engine calibrate); "
            "give nil_threshold",
            field="nil",
        )
    return own


def timeout_s(asked_ms: float | None, settings: Settings) -> float:
    """Time that a mention may take: as asked for, else the service's default."""
    if asked_ms is None:
        return settings.timeout_ms / 1e3
    if not 0 < asked_ms <= settings.max_timeout_ms:
        limit = settings.max_timeout_ms
        raise InvalidInputError(
            f"timeout_ms: must be above 0, at most {limit:g}, got {asked_ms:g}", field="timeout_ms"
        )
    return asked_ms / 1e3


# -- one entity ---------------------------------------------------------------------------------------


def put_request(entity_id: str, body: EntityBody, settings: Settings) -> Entity:
    """Hold an entity against the limits; errors as of a mention."""
    if len(entity_id) > MAX_ID_CHARS or not entity_id.isprintable():  # the path has one at least
        message = f"id: must be 1 to {MAX_ID_CHARS} printable characters, got {len(entity_id)}"
        raise InvalidInputError(message, field="id")
    if fault := name_fault(body.name, body.aliases, body.popularity):
        raise InvalidInputError(fault, field=fault.partition(":")[0])
    texts = [("name", body.name), ("description", body.description), ("type", body.type)]
    for field, text in (*texts, *((f"aliases[{i}]", alias) for i, alias in enumerate(body.aliases))):
        if len(text) > settings.max_text_chars:
            raise _too_long(field, text, settings)
    if len(body.images) > MAX_IMAGES:
        message = f"images: at most {MAX_IMAGES}, got {len(body.images)}"
        raise InvalidInputError(message, field="images")
    for image in body.images:
        check_image(image, settings)
    return Entity(
        entity_id,
        body.name,
        body.description,
        tuple(body.images),
        body.type,
        tuple(body.aliases),
        body.popularity,
    )


# -- bodies -------------------------------------------------------------------------------------------


async def read_link(request: Request, settings: Settings) -> LinkBody:
    """Read the body of ``/v1/link``, JSON or multipart."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        expect_type(request, JSON, ("multipart/form-data",))
        return wire.decode_link(await request.body())
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


async def read_json(request: Request) -> bytes:
    """Read a whole body that must be JSON."""
    expect_type(request, JSON)
    return await request.body()


def expect_type(request: Request, accepted: tuple[str, ...], also: tuple[str, ...] = ()) -> None:
    """Refuse a content type with 415; ``also`` are other types that the route takes, for the message.

    A body without one is taken for the first.
    """
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
