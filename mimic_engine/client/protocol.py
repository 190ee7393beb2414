"""Protocol between client and service, without a connection: calls, retries, what is made of the answers.

An exchange is a generator: it yields a :class:`Call` to send or seconds to wait, and is sent the outcome.
:mod:`mimic_engine.client.client` runs it, once with threads in mind and once with asyncio.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.types import Entity, ImageSource, Mention, Mode
from mimic_engine.wire import EntityAnswer, ErrorBody, ErrorDetail, LinkAnswer, ReloadAnswer

T = TypeVar("T")

STREAM_LINES = 32  # in one request: no more than the service takes in before its answers must be read
_RETRIED = (429, 503)
_STREAM = "/v1/link:stream"


class ServiceError(MimicError):
    """The service answered with an error.

    Attributes
    ----------
    status : HTTP status; 0 for an error within a batch or stream.
    code, field, error_id : as in the answer's body.
    request_id : under which the service's log has the request.
    """

    def __init__(self, status: int, body: ErrorBody, request_id: str | None = None) -> None:
        super().__init__(body.error.message)
        self.status, self.request_id = status, request_id
        self.code, self.field, self.error_id = body.error.code, body.error.field, body.error.id


class UnreachableError(MimicError):
    """The service could not be reached, or broke off, also when tried again."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Patience of a client: attempts of a call, and how long it may take in all, waiting included.

    ``first_pause_s`` doubles with every attempt, up to ``longest_pause_s``, where the service names no time.
    """

    attempts: int = 6
    total_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def pause_s(self, attempt: int, asked: str | None) -> float:
        """Seconds to wait after the given attempt, counted from 0."""
        if asked is not None and asked.isdecimal():
            return float(asked)
        return min(self.longest_pause_s, self.first_pause_s * 2**attempt) * random.uniform(0.5, 1)


class Options(TypedDict, total=False):
    """Options of a call beyond the mention; see the service's ``/docs``."""

    top_k: int
    ids: Sequence[str]
    types: Sequence[str]
    mode: Mode
    return_parts: bool
    explain: bool
    nil: bool
    nil_threshold: float
    names: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how the body of its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    content: bytes | None = None
    kind: str = "application/json"

    def arguments(self) -> dict[str, Any]:
        """Arguments of a request beside method and path."""
        if self.content is None:
            return {}
        return {"content": self.content, "headers": {"content-type": self.kind}}


Outcome = Any  # an httpx2.Response, or the exception that came instead
Exchange = Generator["Call[Any] | float", Outcome, T]


def exchange(call: Call[T], retries: Retries) -> Exchange[T]:
    """Send, wait and send again, until there is an answer or no more time.

    Raises
    ------
    ServiceError, UnreachableError
        As the service says; if it cannot be reached.
    """
    until = time.monotonic() + retries.total_s
    for attempt in range(retries.attempts):
        outcome = yield call
        failed = isinstance(outcome, Exception)
        if not failed and outcome.status_code == 200:
            return call.read(outcome.content)
        if not failed and outcome.status_code not in _RETRIED:
            break
        pause_s = retries.pause_s(attempt, None if failed else outcome.headers.get("retry-after"))
        if attempt + 1 == retries.attempts or time.monotonic() + pause_s > until:
            break
        yield pause_s
    if isinstance(outcome, Exception):
        raise UnreachableError(f"{call.path}: {type(outcome).__name__}: {outcome}") from outcome
    raise _service_error(outcome)


def stream_exchange(lines: Sequence[bytes], retries: Retries) -> Exchange[list[LinkAnswer | ServiceError]]:
    """Get the answers to a piece of a stream; what a draining service left undone is sent again."""
    answers: list[LinkAnswer | ServiceError] = []
    for attempt in range(retries.attempts):
        rest = b"\n".join(lines[len(answers) :])
        answers += yield from exchange(
            Call("POST", _STREAM, _read_lines, rest, "application/x-ndjson"), retries
        )
        last = answers[-1] if answers else None
        if not isinstance(last, ServiceError) or last.code != "not_ready":
            break
        answers.pop()
        yield retries.pause_s(attempt, None)
    if len(answers) != len(lines):
        raise UnreachableError(f"{_STREAM}: {len(answers)} answers for {len(lines)} lines")
    return answers


# -- the calls ----------------------------------------------------------------------------------------


def link_call(
    mention: Mention, image_url: str | None, timeout_ms: float | None, options: Options
) -> Call[LinkAnswer]:
    """Ask for the entities of one mention."""
    body = {**_mention(mention), **_options(options), "image_url": image_url, "timeout_ms": timeout_ms}
    return Call("POST", "/v1/link", _reader(LinkAnswer), _json(body))


def batch_call(
    mentions: Sequence[Mention], timeout_ms: float | None, options: Options
) -> Call[list[LinkAnswer | ServiceError]]:
    """Ask for the entities of several mentions."""
    body = {"mentions": [_mention(m) for m in mentions], **_options(options), "timeout_ms": timeout_ms}
    return Call("POST", "/v1/link:batch", _read_batch, _json(body))


def stream_line(mention: Mention, options: Options) -> bytes:
    """Write one line of a stream."""
    return _json({**_mention(mention), **_options(options)})


def score_call(mention: Mention, candidates: Sequence[str], explain: bool) -> Call[LinkAnswer]:
    """Ask for the scores of the given entities."""
    body = {**_mention(mention), "candidates": list(candidates), "explain": explain}
    return Call("POST", "/v1/score", _reader(LinkAnswer), _json(body))


def entity_call(entity_id: str) -> Call[EntityAnswer]:
    """Ask for an entity."""
    return Call("GET", _entity_path(entity_id), _reader(EntityAnswer))


def put_call(entity: Entity) -> Call[ReloadAnswer]:
    """Ask to add or replace an entity."""
    images = [_image(image) for image in entity.images]
    texts = {"name": entity.name, "description": entity.description, "type": entity.type}
    body = {**texts, "images": images, "aliases": entity.aliases, "popularity": entity.popularity}
    return Call("PUT", _entity_path(entity.id), _reader(ReloadAnswer), _json(body))


def delete_call(entity_id: str) -> Call[ReloadAnswer]:
    """Ask to delete an entity."""
    return Call("DELETE", _entity_path(entity_id), _reader(ReloadAnswer))


def _entity_path(entity_id: str) -> str:
    return f"/v1/entities/{quote(entity_id, safe='')}"


def info_call() -> Call[dict[str, Any]]:
    """Ask what is loaded."""
    return Call("GET", "/v1/info", _reader(dict[str, Any]))


def reload_call() -> Call[ReloadAnswer]:
    """Ask to take up the newest state of the index."""
    return Call("POST", "/admin/index:reload", _reader(ReloadAnswer))


# -- bodies -------------------------------------------------------------------------------------------


def _mention(mention: Mention) -> dict[str, Any]:
    image = None if mention.image is None else _image(mention.image)
    return {"mention": mention.mention, "sentence": mention.sentence, "image": image}


def _image(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"image: {path} cannot be read: {error.strerror}", field="image") from error


def _options(options: Options) -> dict[str, Any]:
    values: dict[str, Any] = dict(options)
    chosen = {name: list(values.pop(name)) for name in ("ids", "types") if values.get(name) is not None}
    return values | {"filter": chosen or None}


def _json(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    def read(content: bytes) -> T:
        return msgspec.json.decode(content, type=kind)

    return read


def _read_batch(content: bytes) -> list[LinkAnswer | ServiceError]:
    return [_answer(raw) for raw in msgspec.json.decode(content, type=_Results).results]


def _read_lines(content: bytes) -> list[LinkAnswer | ServiceError]:
    return [_answer(line) for line in content.splitlines()]


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


class _MaybeError(msgspec.Struct):
    error: ErrorDetail | None = None


def _answer(raw: bytes | msgspec.Raw) -> LinkAnswer | ServiceError:
    error = msgspec.json.decode(raw, type=_MaybeError).error
    if error is None:
        return msgspec.json.decode(raw, type=LinkAnswer)
    return ServiceError(0, ErrorBody(error))


def _service_error(response: Any) -> MimicError:
    """The error of an answer; one that is not the service's own (a proxy's, say) is quoted."""
    try:
        body = msgspec.json.decode(response.content, type=ErrorBody)
    except msgspec.MsgspecError:
        detail = ErrorDetail(code="http_error", message=f"HTTP {response.status_code}: {response.text[:200]}")
        body = ErrorBody(detail)
    return ServiceError(response.status_code, body, response.headers.get("x-request-id"))
