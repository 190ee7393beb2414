"""What a caller of the batcher holds or is told: its state, limits, places in the queue, outcomes of items.

The device side is :mod:`mimic_engine.batching.batcher`. No thread lives here, and no knowledge of HTTP.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Self, TypeVar

from mimic_engine.errors import (
    DeadlineError,
    DeviceError,
    EngineError,
    InvalidInputError,
    MimicError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)

I = TypeVar("I")  # noqa: E741 - an item, as its caller prepared it
R = TypeVar("R")  # its result

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """Life of a batcher; the value is what a caller is told."""

    STARTING = "warming up"
    READY = "ready"
    RECOVERING = "recovering from a device error"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "the device thread has died"
    LOST = "the device is lost: only a restart helps"


DEAD = (State.FAILED, State.LOST)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Knobs of the batcher; relations between them are checked.

    ``max_queue_size`` counts items that are being prepared or wait, not those on the device.
    """

    max_batch_size: int = 32
    max_batch_cost: int = 64
    max_queue_delay_us: int = 0
    max_queue_size: int = 256
    queue_timeout_ms: float = 5_000.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_batch_cost", "max_queue_size", "queue_timeout_ms"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.max_queue_delay_us < 0:
            raise InvalidInputError(f"max_queue_delay_us: must be at least 0, got {self.max_queue_delay_us}")
        if self.max_queue_size < self.max_batch_size:
            raise InvalidInputError(
                f"max_queue_size: {self.max_queue_size} is smaller than max_batch_size {self.max_batch_size}"
            )


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What became of one item: ``value`` when ``error`` is None. Times in seconds."""

    value: R | None
    error: MimicError | None
    queue_s: float = 0.0
    service_s: float = 0.0

    def unwrap(self) -> R:
        """Give the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch that went to the device, for metrics."""

    size: int
    cost: int
    queue_s: tuple[float, ...]
    service_s: float
    failed: bool


@dataclass(eq=False, slots=True)
class Ticket(Generic[I, R]):
    """One queued item. It is settled once: the first outcome stands."""

    item: I
    cost: int
    enqueued: float
    start_by: float
    group: Group[I, R]
    outcome: Outcome[R] | None = None


@dataclass(eq=False, slots=True)
class Group(Generic[I, R]):
    """The items of one call; ``notify`` runs once, when the last of them is settled."""

    notify: Callable[[], None]
    deadline: float | None
    patient: bool = False  # queue_timeout_ms does not hold: the caller has all day
    tickets: list[Ticket[I, R]] = field(default_factory=list)
    start_by: float = 0.0
    unsettled: int = 0

    def fill(self, items: Sequence[I], costs: Sequence[int], queue_timeout_ms: float) -> None:
        """Make the tickets, just before they are queued."""
        now = time.monotonic()
        start_by = math.inf if self.patient else now + queue_timeout_ms / 1e3
        self.start_by = start_by if self.deadline is None else min(start_by, self.deadline)
        self.tickets = [Ticket(i, c, now, self.start_by, self) for i, c in zip(items, costs, strict=True)]
        self.unsettled = len(self.tickets)

    def moments(self) -> list[tuple[float, bool]]:
        """When the clock decides: (moment, whether items on the device are given up too)."""
        moments = [(self.start_by, False)] + ([] if self.deadline is None else [(self.deadline, True)])
        return [(moment, running) for moment, running in moments if moment < math.inf]

    def late(self) -> DeadlineError:
        """Say why an item was not answered."""
        if self.start_by == self.deadline:
            return DeadlineError("the request's deadline passed before its answer was ready")
        return DeadlineError("the queue_timeout_ms of the service passed before the device was free")

    def outcomes(self) -> list[Outcome[R]]:
        """Give the outcomes of the settled items, in the order of the items."""
        return [t.outcome for t in self.tickets if t.outcome is not None]


class Places(Generic[I, R]):
    """Places in a batcher's queue. Submit into them once; leaving the ``with`` gives the rest back.

    Items in ``patient`` places may wait longer than ``queue_timeout_ms``.
    """

    def __init__(self, batcher: Reception[I, R], count: int, *, patient: bool = False) -> None:
        self._batcher, self._left, self._patient = batcher, count, patient

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Give back the places that nothing was submitted into; harmless when done twice."""
        self._batcher.release(self._left)
        self._left = 0

    async def submit(self, items: Sequence[I], deadline: float | None = None) -> list[Outcome[R]]:
        """Queue the items and wait for their outcomes, in order.

        ``deadline`` is a time of :func:`time.monotonic`. Items that have not started when
        ``queue_timeout_ms`` is over, or are not answered at the deadline, get :class:`DeadlineError`
        at that moment. Cancelling the caller takes its items out of the queue.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not answered.done():
                answered.set_result(None)

        group: Group[I, R] = Group(lambda: call_soon(loop, wake), deadline, self._patient)
        if not self._enqueue(group, items):
            return []
        timers = [
            loop.call_later(max(0.0, moment - time.monotonic()), self._expire, group, also_running)
            for moment, also_running in group.moments()
        ]
        try:
            await answered
        except asyncio.CancelledError:
            self._batcher.give_up(group, EngineError("cancelled by its caller"), also_running=True)
            raise
        finally:
            for timer in timers:
                timer.cancel()
        return group.outcomes()

    def submit_blocking(self, items: Sequence[I], deadline: float | None = None) -> list[Outcome[R]]:
        """Do what :meth:`submit` does, for a caller without an event loop."""
        answered = threading.Event()
        group: Group[I, R] = Group(answered.set, deadline, self._patient)
        if not self._enqueue(group, items):
            return []
        for moment, also_running in group.moments():
            if answered.wait(max(0.0, moment - time.monotonic())):
                break
            self._expire(group, also_running)
        answered.wait()
        return group.outcomes()

    def _enqueue(self, group: Group[I, R], items: Sequence[I]) -> bool:
        """Queue the items; False where there are none."""
        if len(items) > self._left:
            raise InvalidInputError(f"items: {len(items)} for {self._left} reserved places")
        if items:
            self._batcher.enqueue(group, items)
            self._left -= len(items)
        return bool(items)

    def _expire(self, group: Group[I, R], also_running: bool) -> None:
        error = DeadlineError("the request's deadline passed") if also_running else group.late()
        self._batcher.give_up(group, error, also_running=also_running)


def call_soon(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
    """Wake somebody who waits in an event loop, from any thread; nobody, if the loop was closed."""
    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:  # the caller's event loop has been closed: nobody is left to tell
        logger.debug("an event loop was closed before its answer came")


def notify_all(groups: Sequence[Group[I, R]]) -> None:
    """Tell the callers of groups that are complete; not under the mutex."""
    for group in groups:
        group.notify()


def engine_error(cause: BaseException) -> EngineError:
    """The error that a caller gets for what befell the batch of its items; it tells nothing of the inside."""
    if isinstance(cause, DeviceError):
        error: EngineError = type(cause)(f"the device failed on a batch: {cause.reason}", reason=cause.reason)
    else:
        error = EngineError(f"the engine failed on a batch: {type(cause).__name__}")
    error.__cause__ = cause
    return error


# Where items come in and are answered: places in a bounded queue, and one outcome for every item. What
# the batcher's callers do happens here, under one mutex; what its device thread does is in
# :mod:`mimic_engine.batching.batcher`. No thread lives here.


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
