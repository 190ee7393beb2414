"""A client of the service, for threads and for asyncio: typed answers, and patience where it is asked for.

An answer 429 or 503, or a connection that fails, is tried again after the time that the service names
(``Retry-After``), else after a pause that doubles; all calls may safely be repeated. Built on httpx2, the
continuation of httpx, which has both kinds of client in one API and is kept up (httpx itself is not).

>>> with Client("http://127.0.0.1:8080") as client:  # doctest: +SKIP
...     client.link(Mention("Jordan", "Jordan lies east of Israel."), top_k=3).candidates[0].name
'Jordan'
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from mimic_engine.client.protocol import (
    STREAM_LINES,
    Call,
    Exchange,
    Options,
    Outcome,
    Retries,
    ServiceError,
    UnreachableError,
    batch_call,
    delete_call,
    entity_call,
    exchange,
    info_call,
    link_call,
    put_call,
    reload_call,
    score_call,
    stream_exchange,
    stream_line,
)
from mimic_engine.errors import MissingDependencyError
from mimic_engine.types import Entity, Mention
from mimic_engine.wire import EntityAnswer, LinkAnswer, ReloadAnswer

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

__all__ = ["AsyncClient", "Client", "LinkAnswer", "Options", "Retries", "ServiceError", "UnreachableError"]


class Client:
    """A client for threads; one may be shared between them.

    Parameters
    ----------
    url : of the service, such as ``http://127.0.0.1:8080``.
    key : where the service asks for one; the admin's for what only the admin may.
    retries : how patiently a call is repeated.
    timeout_s : of one attempt.
    transport : of httpx2, for tests and proxies.

    Raises
    ------
    MissingDependencyError
        If httpx2 is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        retries: Retries | None = None,
        timeout_s: float = 60.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        http = _httpx2()
        self._failures = http.TransportError
        self._retries = retries or Retries()
        self._http = http.Client(base_url=url, headers=_headers(key), timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def link(
        self,
        mention: Mention,
        *,
        image_url: str | None = None,
        timeout_ms: float | None = None,
        **options: Unpack[Options],
    ) -> LinkAnswer:
        """Rank the entities for one mention.

        Raises
        ------
        ServiceError, UnreachableError
            As the service says; if it cannot be reached.
        """
        return self._do(link_call(mention, image_url, timeout_ms, options))

    def link_batch(
        self, mentions: Sequence[Mention], *, timeout_ms: float | None = None, **options: Unpack[Options]
    ) -> list[LinkAnswer | ServiceError]:
        """Rank the entities for several mentions in one request; an error takes the place of an answer."""
        return self._do(batch_call(mentions, timeout_ms, options))

    def link_stream(
        self, mentions: Iterable[Mention], **options: Unpack[Options]
    ) -> Iterator[LinkAnswer | ServiceError]:
        """Rank the entities for any number of mentions, in order, a piece of the stream at a time."""
        lines = (stream_line(mention, options) for mention in mentions)
        while piece := list(islice(lines, STREAM_LINES)):
            yield from self._run(stream_exchange(piece, self._retries))

    def score(self, mention: Mention, candidates: Sequence[str], *, explain: bool = False) -> LinkAnswer:
        """Score the given entities for a mention, in the order given."""
        return self._do(score_call(mention, candidates, explain))

    def entity(self, entity_id: str) -> EntityAnswer:
        """Give what the index holds about an entity."""
        return self._do(entity_call(entity_id))

    def upsert(self, entity: Entity) -> ReloadAnswer:
        """Add or replace an entity, its images bytes or paths; needs the admin's key."""
        return self._do(put_call(entity))

    def delete(self, entity_id: str) -> ReloadAnswer:
        """Delete an entity; needs the admin's key."""
        return self._do(delete_call(entity_id))

    def info(self) -> dict[str, Any]:
        """Describe model, index and limits."""
        return self._do(info_call())

    def ready(self) -> bool:
        """Whether the service says that requests should come; asked once."""
        try:
            return bool(self._http.get("/health/ready").status_code == 200)
        except self._failures:
            return False

    def reload(self) -> ReloadAnswer:
        """Make the service take up the newest state of its index; needs the admin's key."""
        return self._do(reload_call())

    def _do(self, call: Call[T]) -> T:
        return self._run(exchange(call, self._retries))

    def _run(self, steps: Exchange[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                outcome = self._http.request(step.method, step.path, **step.arguments())
            except self._failures as error:
                outcome = error


class AsyncClient:
    """The same for asyncio; parameters and errors as of :class:`Client`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        retries: Retries | None = None,
        timeout_s: float = 60.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        http = _httpx2()
        self._failures = http.TransportError
        self._retries = retries or Retries()
        self._http = http.AsyncClient(
            base_url=url, headers=_headers(key), timeout=timeout_s, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def link(
        self,
        mention: Mention,
        *,
        image_url: str | None = None,
        timeout_ms: float | None = None,
        **options: Unpack[Options],
    ) -> LinkAnswer:
        """Rank the entities for one mention."""
        return await self._do(link_call(mention, image_url, timeout_ms, options))

    async def link_batch(
        self, mentions: Sequence[Mention], *, timeout_ms: float | None = None, **options: Unpack[Options]
    ) -> list[LinkAnswer | ServiceError]:
        """Rank the entities for several mentions in one request; an error takes the place of an answer."""
        return await self._do(batch_call(mentions, timeout_ms, options))

    async def link_stream(
        self, mentions: AsyncIterable[Mention], **options: Unpack[Options]
    ) -> AsyncIterator[LinkAnswer | ServiceError]:
        """Rank the entities for any number of mentions, in order, a piece of the stream at a time."""
        piece: list[bytes] = []
        async for mention in mentions:
            piece.append(stream_line(mention, options))
            if len(piece) == STREAM_LINES:
                for answer in await self._run(stream_exchange(piece, self._retries)):
                    yield answer
                piece = []
        if piece:
            for answer in await self._run(stream_exchange(piece, self._retries)):
                yield answer

    async def score(
        self, mention: Mention, candidates: Sequence[str], *, explain: bool = False
    ) -> LinkAnswer:
        """Score the given entities for a mention, in the order given."""
        return await self._do(score_call(mention, candidates, explain))

    async def entity(self, entity_id: str) -> EntityAnswer:
        """Give what the index holds about an entity."""
        return await self._do(entity_call(entity_id))

    async def upsert(self, entity: Entity) -> ReloadAnswer:
        """Add or replace an entity, its images bytes or paths; needs the admin's key."""
        return await self._do(put_call(entity))

    async def delete(self, entity_id: str) -> ReloadAnswer:
        """Delete an entity; needs the admin's key."""
        return await self._do(delete_call(entity_id))

    async def info(self) -> dict[str, Any]:
        """Describe model, index and limits."""
        return await self._do(info_call())

    async def ready(self) -> bool:
        """Whether the service says that requests should come; asked once."""
        try:
            return bool((await self._http.get("/health/ready")).status_code == 200)
        except self._failures:
            return False

    async def reload(self) -> ReloadAnswer:
        """Make the service take up the newest state of its index; needs the admin's key."""
        return await self._do(reload_call())

    async def _do(self, call: Call[T]) -> T:
        return await self._run(exchange(call, self._retries))

    async def _run(self, steps: Exchange[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                outcome = await self._http.request(step.method, step.path, **step.arguments())
            except self._failures as error:
                outcome = error


def _httpx2() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependencyError("the client needs httpx2: pip install 'mimic-engine[client]'") from error
    return httpx2


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}
