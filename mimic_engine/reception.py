"""Where items come in and are answered: places in a bounded queue, and one outcome for every item.

What the batcher's callers do happens here, under one mutex; what its device thread does is in
:mod:`mimic_engine.batching`. No thread lives here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from mimic_engine.admission import (
    DEAD,
    BatchLimits,
    Group,
    Outcome,
    Places,
    State,
    Ticket,
    call_soon,
    notify_all,
)
from mimic_engine.errors import MimicError, NotReadyError, QueueFullError, TooLargeError

I = TypeVar("I")  # noqa: E741 - an item, as its caller prepared it
R = TypeVar("R")  # its result


class Reception(Generic[I, R]):
    """The queue of a batcher and all that its callers may do.

    Parameters
    ----------
    limits
        See :class:`BatchLimits`.
    cost
        Cost of an item, at least 1.
    """

    def __init__(self, limits: BatchLimits, cost: Callable[[I], int]) -> None:
        self.limits = limits
        self._cost = cost
        self._mutex = threading.Lock()
        self._work = threading.Condition(self._mutex)  # the device thread waits here
        self._quiet = threading.Condition(self._mutex)  # drain() and wait_ready() wait here
        self._state = State.STARTING
        self._queue: OrderedDict[Ticket[I, R], None] = OrderedDict()  # O(1) removal of who gave up
        self._running: list[Ticket[I, R]] = []
        self._held = 0  # places reserved by callers that still prepare their items
        self._hopeful: list[Callable[[], None]] = []  # told once when places become free
        self._item_s: float | None = None  # recent service time of one item, smoothed

    @property
    def state(self) -> State:
        """Where the batcher is in its life."""
        return self._state

    @property
    def waiting(self) -> int:
        """Items that are being prepared or wait in the queue."""
        return self._held + len(self._queue)

    # -- admission ----------------------------------------------------------------------------------

    def reserve(self, count: int) -> Places[I, R]:
        """Take ``count`` places in the queue before the items are prepared, all or none.

        Raises
        ------
        NotReadyError
            While warming up or draining, after closing, or when the device thread is dead.
        TooLargeError
            If ``count`` is over ``max_queue_size``: it could never be admitted.
        QueueFullError
            If the places are not free now.
        """
        self._take_places(count)
        return Places(self, count)

    def _take_places(self, count: int, or_tell: Callable[[], None] | None = None) -> None:
        """Take places or raise; with the queue full, ``or_tell`` is called once when some become free."""
        limit = self.limits.max_queue_size
        if count > limit:
            raise TooLargeError(f"items: at most {limit} (max_queue_size) in one call, got {count}")
        with self._mutex:
            if self._state is not State.READY:
                raise NotReadyError(f"not accepting work: {self._state.value}")
            if self.waiting + count > limit:
                if or_tell is not None:
                    self._hopeful.append(or_tell)
                retry_s = self.waiting * self._item_s if self._item_s is not None else 1.0
                message = f"queue is full: {self.waiting} of {limit} places taken, {count} asked for"
                raise QueueFullError(message, retry_after_s=retry_s)
            self._held += count

    async def reserve_when_free(self, count: int) -> Places[I, R]:
        """Take ``count`` places as :meth:`reserve` does, but wait for them while the queue is full.

        The items may then wait in the queue as long as their deadline allows.
        """
        loop = asyncio.get_running_loop()
        while True:
            free = asyncio.Event()
            try:
                self._take_places(count, or_tell=partial(call_soon, loop, free.set))
                return Places(self, count, patient=True)
            except QueueFullError:
                await free.wait()

    async def submit(self, items: Sequence[I], deadline: float | None = None) -> list[Outcome[R]]:
        """Reserve and submit in one step, for items that are ready. See :meth:`Places.submit`."""
        with self.reserve(len(items)) as places:
            return await places.submit(items, deadline)

    def submit_blocking(self, items: Sequence[I], deadline: float | None = None) -> list[Outcome[R]]:
        """Do what :meth:`submit` does, for a caller without an event loop."""
        with self.reserve(len(items)) as places:
            return places.submit_blocking(items, deadline)

    def release(self, count: int) -> None:
        """Give reserved places back (:class:`Places` does)."""
        with self._mutex:
            self._held -= count
            self._tell_room()
            self._tell_quiet()

    def enqueue(self, group: Group[I, R], items: Sequence[I]) -> None:
        """Queue items into places that were reserved for them (:class:`Places` does)."""
        costs = [self._cost(item) for item in items]
        if max(costs) > self.limits.max_batch_cost:
            limit = self.limits.max_batch_cost
            raise TooLargeError(f"item: cost {max(costs)} is over max_batch_cost {limit}")
        group.fill(items, costs, self.limits.queue_timeout_ms)
        with self._mutex:
            if self._state in (State.CLOSED, State.RECOVERING, *DEAD):
                raise NotReadyError(f"not accepting work: {self._state.value}")
            self._held -= len(items)
            self._queue.update(dict.fromkeys(group.tickets))
            self._work.notify()

    # -- settling: every item gets exactly one outcome ------------------------------------------------

    def _settle(self, ticket: Ticket[I, R], outcome: Outcome[R], done: list[Group[I, R]]) -> None:
        """Under the mutex; groups that are complete go to ``done``, to be notified after it."""
        if ticket.outcome is None:
            ticket.outcome = outcome
            ticket.group.unsettled -= 1
            if not ticket.group.unsettled:
                done.append(ticket.group)

    def give_up(self, group: Group[I, R], error: MimicError, *, also_running: bool) -> None:
        """Settle what a caller no longer waits for: its queued items leave the queue at once."""
        done: list[Group[I, R]] = []
        now = time.monotonic()
        with self._mutex:
            for ticket in group.tickets:
                if ticket in self._queue or also_running:
                    self._queue.pop(ticket, None)
                    self._settle(ticket, Outcome(None, error, now - ticket.enqueued), done)
            self._tell_room()
            self._tell_quiet()
        notify_all(done)

    def _settle_all(self, tickets: list[Ticket[I, R]], error: Callable[[], MimicError]) -> list[Group[I, R]]:
        """Under the mutex: settle the tickets, which are those of the whole queue or more."""
        done: list[Group[I, R]] = []
        for ticket in tickets:
            self._settle(ticket, Outcome(None, error()), done)
        self._queue.clear()
        self._tell_room()
        self._quiet.notify_all()
        return done

    def _pending(self) -> bool:
        return bool(self._held or self._queue or self._running)

    def _tell_quiet(self) -> None:
        if not self._pending():
            self._quiet.notify_all()

    def _tell_room(self) -> None:
        """Under the mutex, which is harmless: to tell is to leave a note in an event loop."""
        hopeful, self._hopeful = self._hopeful, []
        for tell in hopeful:
            tell()
