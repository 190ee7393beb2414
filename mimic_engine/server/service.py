"""Linking as a service, without HTTP: preparation in threads, the batcher, the index of the day, readiness.

A single mention is a list of one: both take the same way and obey the same admission rule. Every mention is
linked on the index that it was prepared for, also when a newer one has come in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import Reservation, State
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeadlineError, EngineError, ForbiddenError, InvalidInputError, MimicError
from mimic_engine.server.fetch import Fetcher
from mimic_engine.server.requests import LinkRequest, check_image
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkResult

if TYPE_CHECKING:
    from mimic_engine.batching.in_flight import BatchReport
    from mimic_engine.engine.linker import Linker, PreparedRequest
    from mimic_engine.index_changes import IndexChanges

INLINE_CHARS = 2_000  # shorter texts tokenise faster than a hand-off to a thread takes


@dataclass(frozen=True, slots=True)
class LinkItem:
    """One mention as the device gets it, with the linker that prepared it."""

    linker: Linker
    prepared: PreparedRequest
    cost: int


class LinkService:
    """Owner of the batcher and of the preparing threads around the linker of the day."""

    def __init__(
        self,
        linker: Linker,
        settings: Settings,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        *,
        fetch: Fetcher | None = None,
        writer: IndexChanges | None = None,
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
            cost=attrgetter("cost"),
            warm_up=linker.warm_up,
            on_batch=on_batch,
            recovery=Recovery(
                lambda: self.linker.recover(), settings.device_attempts, settings.device_retry_delay_s
            ),
        )

    # -- linking ------------------------------------------------------------------------------------

    async def link(
        self, requests: Sequence[LinkRequest | MimicError], deadline: float, timing: dict[str, float]
    ) -> list[LinkResult | MimicError]:
        """Answer every request with a result or its error; errors among them stay where they are.

        ``deadline`` is a time of :func:`time.monotonic`; ``timing`` receives ``prepare``, ``queue`` and
        ``device`` in milliseconds.

        Raises
        ------
        QueueFullError, NotReadyError, DeadlineError
            Where they concern the call as a whole.
        """
        count = sum(isinstance(request, LinkRequest) for request in requests)
        with self.batcher.queue.reserve(count) as reservation:
            return await self.link_in(reservation, requests, deadline, timing)

    async def link_in(
        self,
        reservation: Reservation[LinkItem, LinkResult],
        requests: Sequence[LinkRequest | MimicError],
        deadline: float,
        timing: dict[str, float],
    ) -> list[LinkResult | MimicError]:
        """Do what :meth:`link` does in room of the queue that was reserved before."""
        began = time.monotonic()
        prepared = await self._prepare(requests, deadline)
        timing["prepare"] = (time.monotonic() - began) * 1e3
        items = [item for item in prepared if isinstance(item, LinkItem)]
        outcomes = await reservation.submit(items, deadline)
        timing["queue"] = max((o.queue_s for o in outcomes), default=0.0) * 1e3
        timing["device"] = max((o.service_s for o in outcomes), default=0.0) * 1e3
        results = iter([outcome.error or outcome.unwrap() for outcome in outcomes])
        return [next(results) if isinstance(item, LinkItem) else item for item in prepared]

    async def _prepare(
        self, requests: Sequence[LinkRequest | MimicError], deadline: float
    ) -> list[LinkItem | MimicError]:
        if not requests:
            return []
        if len(requests) == 1 and isinstance(only := requests[0], LinkRequest) and _is_cheap(only):
            return [self._prepare_one(only)]
        jobs = [asyncio.ensure_future(self._prepare_aside(request)) for request in requests]
        try:
            _, late = await asyncio.wait(jobs, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for job in jobs:
                job.cancel()
        if late:
            raise DeadlineError("the request's deadline passed while it was prepared")
        return [job.result() for job in jobs]

    async def _prepare_aside(self, request: LinkRequest | MimicError) -> LinkItem | MimicError:
        """Fetch what is to be fetched, then prepare in one of the threads."""
        if isinstance(request, MimicError):
            return request
        if request.image_url is not None:
            try:
                image = await self._fetch(request.image_url)
                check_image(image, self.settings)
            except MimicError as error:
                return error
            request = replace(request, mention=replace(request.mention, image=image))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._prepare_one, request)

    def _prepare_one(self, request: LinkRequest) -> LinkItem | MimicError:
        """Prepare one request; its error belongs to it alone."""
        linker = self.linker
        try:
            prepared = linker.prepare(request.mention, request.options)
        except InvalidInputError as error:
            if error.field in ("candidates", "types"):
                error.field = request.candidates_field
            return error
        except MimicError as error:
            return error
        except Exception as error:
            fault = EngineError(f"preparing a mention failed: {type(error).__name__}")
            fault.__cause__ = error
            return fault
        return LinkItem(linker, prepared, 1 if request.mention.image is None else self.settings.image_cost)

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

    async def change(self, work: Callable[[IndexChanges], object]) -> None:
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
        if changed and (steps := newest.warm_in_steps()) is not None:
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
    """Device work of a batch: items of the same linker go through it together."""
    linker = items[0].linker
    if all(item.linker is linker for item in items):
        return linker.start_prepared([item.prepared for item in items])
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(id(item.linker), []).append(i)
    results: dict[int, LinkResult] = {}
    for members in groups.values():
        linked = items[members[0]].linker.link_prepared([items[i].prepared for i in members])
        results.update(zip(members, linked, strict=True))
    return [results[i] for i in range(len(items))]


def _advance(steps: Iterator[None]) -> bool:
    """One step; False if there is none any more."""
    return next(steps, steps) is None


def _is_cheap(request: LinkRequest) -> bool:
    mention = request.mention
    return (
        mention.image is None
        and request.image_url is None
        and request.options.candidates is None
        and request.options.types is None
        and len(mention.mention) + len(mention.sentence) <= INLINE_CHARS
    )
