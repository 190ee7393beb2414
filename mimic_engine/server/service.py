"""Linking as a service, without HTTP: preparation in threads, the batcher, the index of the day, readiness.

A single mention is a list of one: both take the same way and obey the same admission rule. Every mention is
linked on the index that it was checked against, also when a newer one has come in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self, runtime_checkable

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import Reservation, State
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeadlineError, EngineError, ForbiddenError, InvalidInputError, MimicError
from mimic_engine.server.checks import IndexLike, Query, check_query
from mimic_engine.server.fetch import Fetcher
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity, LinkOptions, LinkResult, Mention, Mode

INLINE_CHARS = 2_000  # shorter texts tokenise faster than a hand-off to a thread takes

__all__ = ["IndexLike", "LinkItem", "LinkService", "LinkerLike", "Query"]


class CacheLike(Protocol):
    """What the metrics tell of a cache."""

    @property
    def bytes(self) -> int:
        """Size of what is held."""

    @property
    def asked(self) -> Mapping[tuple[str, ...], int]:
        """How often each kind was asked for, as (kind, "hit" or "miss")."""


class EntityWriter(Protocol):
    """What the service needs of a writer of the index; asked by one thread at a time."""

    def upsert(self, entities: Sequence[Entity]) -> object:
        """Add or replace entities; when it returns, the change is on the disk."""

    def delete(self, ids: Sequence[str]) -> object:
        """Delete entities; UnknownEntityError if one is not there."""


class LinkerLike(Protocol):
    """What the service needs of :class:`mimic_engine.Linker`."""

    @property
    def index(self) -> IndexLike:
        """The index that is linked against."""

    @property
    def model_hash(self) -> str:
        """Hash of the model."""

    @property
    def modes(self) -> Sequence[Mode]:
        """The modes that the index can be searched in."""

    @property
    def nil_threshold(self) -> float | None:
        """The model's own nil threshold, where it was calibrated."""

    def prepare(self, mention: Mention, *, explain: bool = False) -> Any:
        """Tokenise and decode; any thread. InvalidInputError and its kin for bad input."""

    def link_prepared(self, prepared: list[Any], options: list[LinkOptions]) -> list[LinkResult]:
        """Do the device work, on the device thread only."""

    def warm_up(self) -> None:
        """Make the first request as fast as the others, on the device thread."""

    def recover(self) -> None:
        """Take the device up anew after it has failed, and warm up; on the device thread."""

    def reopened(self) -> Self:
        """A linker over the newest state of the index, or itself; any thread."""

    @property
    def cache(self) -> CacheLike | None:
        """The memory of mentions that were encoded before, if there is one."""

    def info(self) -> Mapping[str, Any]:
        """Describe model and index, as JSON."""


@runtime_checkable
class Overlapping(Protocol):
    """A linker whose device works on while the next batch is made ready."""

    def start_prepared(
        self, prepared: list[Any], options: list[LinkOptions]
    ) -> Callable[[], list[LinkResult]]:
        """Put a batch on the device; the call waits for its results. Two at a time, on the device thread."""


@runtime_checkable
class WarmedInSteps(Protocol):
    """A linker that is slow at first over another state of the index, unless it is warmed up."""

    def warm_in_steps(self) -> Iterator[None]:
        """Warm up a bit every time it is advanced, on the device thread."""


@dataclass(frozen=True, slots=True)
class LinkItem:
    """One mention as the device gets it, with the linker that it was checked against."""

    linker: LinkerLike
    prepared: Any
    options: LinkOptions
    cost: int


class LinkService:
    """Owns the batcher and the preparing threads around the linker of the day."""

    def __init__(
        self,
        linker: LinkerLike,
        settings: Settings,
        on_batch: Callable[[Any], None] = lambda _: None,
        *,
        fetch: Fetcher | None = None,
        writer: EntityWriter | None = None,
    ) -> None:
        self.linker, self.settings = linker, settings
        self._fetch = fetch or Fetcher(
            settings.image_url_hosts, settings.image_url_timeout_s, settings.max_image_bytes
        )
        self.leaving = False
        self._writer = writer
        self._reloading = asyncio.Lock()
        self._pool = ThreadPoolExecutor(settings.prepare_threads, "mimic-prepare")
        self.batcher: Batcher[LinkItem, LinkResult] = Batcher(
            _run,
            settings.batch_limits(),
            cost=lambda item: item.cost,
            warm_up=linker.warm_up,
            on_batch=on_batch,
            recovery=Recovery(
                lambda: self.linker.recover(), settings.device_attempts, settings.device_retry_delay_s
            ),
        )

    # -- linking ------------------------------------------------------------------------------------

    async def link(
        self, queries: Sequence[Query | MimicError], deadline: float, timing: dict[str, float]
    ) -> list[LinkResult | MimicError]:
        """Answer every query with a result or its error; errors among the queries stay where they are.

        ``deadline`` is a time of :func:`time.monotonic`; ``timing`` receives ``prepare``, ``queue`` and
        ``device`` in milliseconds.

        Raises
        ------
        QueueFullError, NotReadyError, DeadlineError
            Where they concern the call as a whole.
        """
        count = sum(isinstance(q, Query) for q in queries)
        with self.batcher.queue.reserve(count) as reservation:
            return await self.link_in(reservation, queries, deadline, timing)

    async def link_in(
        self,
        reservation: Reservation[LinkItem, LinkResult],
        queries: Sequence[Query | MimicError],
        deadline: float,
        timing: dict[str, float],
    ) -> list[LinkResult | MimicError]:
        """Do what :meth:`link` does in room of the queue that was reserved before."""
        answers: list[LinkResult | MimicError] = [
            q if isinstance(q, MimicError) else EngineError("not answered") for q in queries
        ]
        open_slots = [(i, q) for i, q in enumerate(queries) if isinstance(q, Query)]
        began = time.monotonic()
        prepared = await self._prepare([q for _, q in open_slots], deadline)
        timing["prepare"] = (time.monotonic() - began) * 1e3
        items: list[tuple[int, LinkItem]] = []
        for (i, _), item in zip(open_slots, prepared, strict=True):
            if isinstance(item, MimicError):
                answers[i] = item
            else:
                items.append((i, item))
        outcomes = await reservation.submit([item for _, item in items], deadline)
        for (i, _), outcome in zip(items, outcomes, strict=True):
            answers[i] = outcome.error or outcome.unwrap()
        timing["queue"] = max((o.queue_s for o in outcomes), default=0.0) * 1e3
        timing["device"] = max((o.service_s for o in outcomes), default=0.0) * 1e3
        return answers

    async def _prepare(self, queries: Sequence[Query], deadline: float) -> list[LinkItem | MimicError]:
        if len(queries) == 1 and _is_cheap(queries[0]):
            return [self._prepare_one(queries[0])]
        if not queries:
            return []
        jobs = [asyncio.ensure_future(self._prepare_aside(query)) for query in queries]
        try:
            _, late = await asyncio.wait(jobs, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for job in jobs:
                job.cancel()
        if late:
            raise DeadlineError("the request's deadline passed while it was prepared")
        return [job.result() for job in jobs]

    async def _prepare_aside(self, query: Query) -> LinkItem | MimicError:
        """Fetch what is to be fetched, then prepare in one of the threads."""
        if query.image_url is not None:
            try:
                query = await self._fetched(query, query.image_url)
            except MimicError as error:
                return error
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._prepare_one, query)

    async def _fetched(self, query: Query, url: str) -> Query:
        if query.mention.image is not None:
            raise InvalidInputError("image_url: give either image or image_url", field="image_url")
        return replace(query, mention=replace(query.mention, image=await self._fetch(url)))

    def _prepare_one(self, query: Query) -> LinkItem | MimicError:
        """Check and prepare one query; its error belongs to it alone."""
        linker = self.linker
        try:
            options = check_query(query, self.settings, linker.index, linker.modes)
            prepared = linker.prepare(query.mention, explain=query.explain)
        except MimicError as error:
            return error
        except Exception as error:
            fault = EngineError(f"preparing a mention failed: {type(error).__name__}")
            fault.__cause__ = error
            return fault
        cost = 1 if query.mention.image is None else self.settings.image_cost
        return LinkItem(linker, prepared, options, cost)

    # -- the index of the day -------------------------------------------------------------------------

    async def reload(self) -> bool:
        """Link from now on against the newest state of the index; False if there is no newer one.

        What was admitted before, or comes while the newest is warmed up, is answered from the index it
        was admitted with. Errors of opening and warming up leave everything as it was.
        """
        async with self._reloading:
            return await self._take_up_newest()

    @property
    def takes_changes(self) -> bool:
        """Whether entities can be changed at all, by whoever has the admin key."""
        return self._writer is not None

    async def change(self, work: Callable[[EntityWriter], object]) -> None:
        """Change the index, one change at a time, and link from then on against the new state.

        Raises
        ------
        ForbiddenError
            If the service was started without a writer.
        """
        if self._writer is None:
            raise ForbiddenError("this service does not change entities: it was started without a writer")
        async with self._reloading:
            await asyncio.to_thread(work, self._writer)
            await self._take_up_newest()

    async def _take_up_newest(self) -> bool:
        newest = await asyncio.to_thread(self.linker.reopened)
        changed = newest is not self.linker
        if changed and isinstance(newest, WarmedInSteps):
            steps = newest.warm_in_steps()
            while await asyncio.wrap_future(self.batcher.on_device(partial(_advance, steps))):
                pass  # batches go between two steps
        self.linker = newest
        return changed

    # -- readiness and the end ------------------------------------------------------------------------

    @property
    def unready_reason(self) -> str | None:
        """None when requests should come here, else why not."""
        if self.leaving:
            return State.DRAINING.value
        if not self.batcher.alive and self.batcher.queue.state is not State.LOST:
            return State.FAILED.value
        if self.batcher.queue.state is not State.READY:
            return self.batcher.queue.state.value
        busy_s, limit_s = self.batcher.busy_s, self.settings.stall_timeout_s
        return f"the device has been stuck for {busy_s:.0f} s" if busy_s > limit_s else None

    def announce_leaving(self) -> None:
        """Fail readiness, and go on accepting."""
        self.leaving = True

    async def drain(self) -> bool:
        """Accept no more and wait for the answers under way; False if ``drain_timeout_s`` was too short."""
        self.announce_leaving()
        self.batcher.queue.stop_admitting()  # before anybody can have seen that readiness failed
        return await asyncio.to_thread(self.batcher.queue.drain, self.settings.drain_timeout_s)

    def close(self) -> None:
        """End the threads; what still waits is refused."""
        self.leaving = True
        self.batcher.close(self.settings.drain_timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _run(items: list[LinkItem]) -> list[LinkResult] | Callable[[], list[LinkResult]]:
    """Device work of a batch: items that were checked against the same linker go through it together."""
    linker = items[0].linker
    if isinstance(linker, Overlapping) and all(item.linker is linker for item in items):
        return linker.start_prepared([i.prepared for i in items], [i.options for i in items])
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(id(item.linker), []).append(i)
    results: dict[int, LinkResult] = {}
    for members in groups.values():
        linker = items[members[0]].linker
        found = linker.link_prepared(
            [items[i].prepared for i in members], [items[i].options for i in members]
        )
        results.update(zip(members, found, strict=True))
    return [results[i] for i in range(len(items))]


def _advance(steps: Iterator[None]) -> bool:
    """One step; False if there is none any more."""
    return next(steps, steps) is None


def _is_cheap(query: Query) -> bool:
    mention = query.mention
    return (
        mention.image is None
        and query.image_url is None
        and not query.restricted
        and len(mention.mention) + len(mention.sentence) <= INLINE_CHARS
    )
