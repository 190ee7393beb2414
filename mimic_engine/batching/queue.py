"""Bounded request queue with reservations and deadlines: every item in it gets exactly one outcome.

What callers do stands first: they reserve room, prepare their items, submit them and wait. What the device
thread does (:mod:`mimic_engine.batching.batcher`) comes after it: it takes batches and settles them. One
mutex guards all of it. No thread lives here, and no knowledge of HTTP or of arrays.
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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Self, TypeVar

from mimic_engine.errors import (
    DeadlineError,
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
    """Life of a queue and its device; the value is what a caller is told."""

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
    """Knobs of queue and batches; relations between them are checked.

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
    """Result of one item: ``value`` when ``error`` is None. Times in seconds."""

    value: R | None
    error: MimicError | None
    queue_s: float = 0.0
    service_s: float = 0.0

    def unwrap(self) -> R:
        """Give the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


@dataclass(eq=False, slots=True)
class QueueEntry(Generic[I, R]):
    """One queued item. It is settled once: the first outcome stands."""

    item: I
    cost: int
    enqueued: float
    submission: Submission[I, R]
    outcome: Outcome[R] | None = None


@dataclass(eq=False, slots=True)
class Submission(Generic[I, R]):
    """Entries of one call. ``notify`` runs once, when the last of them is settled.

    An entry must be on the device by ``start_by``, and its caller waits no longer than to ``deadline``.
    """

    notify: Callable[[], None]
    start_by: float
    deadline: float | None
    entries: list[QueueEntry[I, R]] = field(default_factory=list)
    unsettled: int = 0

    def late(self) -> DeadlineError:
        """Error of an entry that was not on the device in time."""
        if self.start_by == self.deadline:
            return DeadlineError("the request's deadline passed before its answer was ready")
        return DeadlineError("the queue_timeout_ms of the service passed before the device was free")


class RequestQueue(Generic[I, R]):
    """Bounded queue between many callers and one device thread.

    Parameters
    ----------
    limits
        See :class:`BatchLimits`.
    cost
        Cost of an item, at least 1.

    Attributes
    ----------
    mutex
        Guards all of it; the batcher's other work is guarded by it too.
    work
        Condition that the device thread waits on.
    running
        Entries on the device, in the order in which they were taken.
    """

    def __init__(self, limits: BatchLimits, cost: Callable[[I], int] = lambda _: 1) -> None:
        self.limits = limits
        self._cost = cost
        self.mutex = threading.Lock()
        self.work = threading.Condition(self.mutex)
        self._idle = threading.Condition(self.mutex)  # drain() waits here
        self._state = State.STARTING
        self._entries: OrderedDict[QueueEntry[I, R], None] = OrderedDict()  # O(1) removal of who gave up
        self.running: list[QueueEntry[I, R]] = []
        self._reserved = 0  # room of callers that still prepare their items
        self._waiting_for_space: list[Callable[[], None]] = []  # called once when some becomes free
        self._item_s: float | None = None  # recent service time of one item, smoothed

    @property
    def state(self) -> State:
        """State of queue and device."""
        return self._state

    @property
    def waiting(self) -> int:
        """Items that are being prepared or wait."""
        return self._reserved + len(self._entries)

    # -- callers: reserve, submit, give up -----------------------------------------------------------

    def reserve(self, count: int, *, or_call: Callable[[], None] | None = None) -> Reservation[I, R]:
        """Reserve room for ``count`` items before they are prepared, for all or none.

        With the queue full, ``or_call`` is called once when some becomes free.

        Raises
        ------
        NotReadyError
            While warming up, recovering or draining, after closing, or when the device thread is dead.
        TooLargeError
            If ``count`` is over ``max_queue_size``: it could never be admitted.
        QueueFullError
            If there is no room now.
        """
        limit = self.limits.max_queue_size
        if count > limit:
            raise TooLargeError(f"items: at most {limit} (max_queue_size) in one call, got {count}")
        with self.mutex:
            if self._state is not State.READY:
                raise NotReadyError(f"not accepting work: {self._state.value}")
            if self.waiting + count > limit:
                if or_call is not None:
                    self._waiting_for_space.append(or_call)
                retry_s = self.waiting * self._item_s if self._item_s is not None else 1.0
                message = f"queue is full: {self.waiting} of {limit} places taken, {count} asked for"
                raise QueueFullError(message, retry_after_s=retry_s)
            self._reserved += count
        return Reservation(self, count)

    async def reserve_when_free(self, count: int) -> Reservation[I, R]:
        """Reserve as :meth:`reserve` does, but wait for room while the queue is full.

        The items may then wait in the queue as long as their deadline allows.
        """
        loop = asyncio.get_running_loop()
        while True:
            free = asyncio.Event()
            try:
                reservation = self.reserve(count, or_call=partial(call_soon, loop, free.set))
                return replace(reservation, ignore_queue_timeout=True)
            except QueueFullError:
                await free.wait()

    def release(self, count: int) -> None:
        """Give reserved room back (:class:`Reservation` does)."""
        with self.mutex:
            self._reserved -= count
            self._tell()

    def enqueue(
        self,
        items: Sequence[I],
        notify: Callable[[], None],
        deadline: float | None,
        ignore_queue_timeout: bool,
    ) -> Submission[I, R]:
        """Queue items in room that was reserved for them (:class:`Reservation` does)."""
        costs = [self._cost(item) for item in items]
        if max(costs) > self.limits.max_batch_cost:
            limit = self.limits.max_batch_cost
            raise TooLargeError(f"item: cost {max(costs)} is over max_batch_cost {limit}")
        now = time.monotonic()
        start_by = math.inf if ignore_queue_timeout else now + self.limits.queue_timeout_ms / 1e3
        start_by = start_by if deadline is None else min(start_by, deadline)
        submission: Submission[I, R] = Submission(notify, start_by, deadline, unsettled=len(items))
        submission.entries = [QueueEntry(i, c, now, submission) for i, c in zip(items, costs, strict=True)]
        with self.mutex:
            if self._state in (State.CLOSED, State.RECOVERING, *DEAD):
                raise NotReadyError(f"not accepting work: {self._state.value}")
            self._reserved -= len(items)
            self._entries.update(dict.fromkeys(submission.entries))
            self.work.notify()
        return submission

    def give_up(self, submission: Submission[I, R], error: MimicError, *, also_running: bool) -> None:
        """Settle what a caller no longer waits for: its queued entries leave the queue at once."""
        done: list[Submission[I, R]] = []
        now = time.monotonic()
        with self.mutex:
            for entry in submission.entries:
                if entry in self._entries or also_running:
                    self._entries.pop(entry, None)
                    _settle(entry, Outcome(None, error, now - entry.enqueued), done)
            self._tell()
        notify_all(done)

    # -- the device thread: take batches, settle them ------------------------------------------------

    def next_batch(self, other_work: Sequence[object]) -> list[QueueEntry[I, R]]:
        """Wait for entries and take a batch; it may be empty once there is other work, or when closed."""
        done: list[Submission[I, R]] = []
        with self.mutex:
            while not (self._entries or other_work) and self._state is not State.CLOSED:
                self.work.wait()
            if self.limits.max_queue_delay_us:
                self._collect()
            batch = [] if self._state is State.CLOSED else self._take(done)
        notify_all(done)
        return batch

    def full_batch(self, other_work: Sequence[object]) -> list[QueueEntry[I, R]]:
        """Take a batch that cannot grow any more; empty where there is none, or other work goes first."""
        done: list[Submission[I, R]] = []
        with self.mutex:
            wanted = self._state is not State.CLOSED and not other_work
            batch = self._take(done) if wanted and self._is_full() else []
        notify_all(done)
        return batch

    def settle(
        self,
        batch: Sequence[QueueEntry[I, R]],
        outcomes: Sequence[Outcome[R]],
        service_s: float,
        broken: State | None = None,
    ) -> None:
        """Settle a batch that has ended, of those under way the one that was taken first.

        ``broken`` is what the device is now if it has failed: nobody is admitted any more then, and who
        would wait for it is refused.
        """
        done: list[Submission[I, R]] = []
        recent = service_s / len(batch)
        with self.mutex:
            for entry, outcome in zip(batch, outcomes, strict=True):
                _settle(entry, outcome, done)
            self._item_s = recent if self._item_s is None else 0.8 * self._item_s + 0.2 * recent
            del self.running[: len(batch)]
            if broken is not None:
                if self._state is State.READY:
                    self._state = State.RECOVERING
                self._refuse_entries(f"not answered: {broken.value}", done)
            self._tell()
        notify_all(done)

    def _collect(self) -> None:
        """Wait, at most ``max_queue_delay_us`` after the oldest entry came, for a full batch."""
        delay_s = self.limits.max_queue_delay_us / 1e6
        size = self.limits.max_batch_size
        while self._state is State.READY and 0 < len(self._entries) < size:
            left_s = next(iter(self._entries)).enqueued + delay_s - time.monotonic()
            if left_s <= 0:
                return
            self.work.wait(left_s)

    def _take(self, done: list[Submission[I, R]]) -> list[QueueEntry[I, R]]:
        """Move the oldest entries that fit into a batch; the expired never reach the device."""
        batch: list[QueueEntry[I, R]] = []
        now, cost = time.monotonic(), 0
        while self._entries and len(batch) < self.limits.max_batch_size:
            entry = next(iter(self._entries))
            if entry.submission.start_by <= now:
                del self._entries[entry]
                _settle(entry, Outcome(None, entry.submission.late(), now - entry.enqueued), done)
                continue
            cost += entry.cost
            if cost > self.limits.max_batch_cost:
                break
            del self._entries[entry]
            batch.append(entry)
        self.running += batch
        self._tell()
        return batch

    def _is_full(self) -> bool:
        cost = 0
        for size, entry in enumerate(self._entries, 1):
            cost += entry.cost
            if size >= self.limits.max_batch_size or cost >= self.limits.max_batch_cost:
                return True
        return False

    # -- its life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Admit callers, after a warm-up or a recovery, unless the end has come meanwhile."""
        with self.mutex:
            if self._state in (State.STARTING, State.RECOVERING):
                self._state = State.READY

    def wait_unless_recovering(self, seconds: float) -> bool:
        """Wait; True as soon as something else than a recovery is wanted, False after ``seconds``."""
        with self.mutex:
            return self.work.wait_for(lambda: self._state is not State.RECOVERING, seconds)

    def stop_admitting(self) -> None:
        """Admit nothing more; what was admitted is answered."""
        with self.mutex:
            if self._state in (State.STARTING, State.READY, State.RECOVERING):
                self._state = State.DRAINING
            self.work.notify()
            self._tell()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Admit nothing more and wait until all that was admitted is answered; False on a timeout."""
        self.stop_admitting()
        with self.mutex:
            return self._idle.wait_for(
                lambda: self._state in (State.CLOSED, *DEAD) or not (self.waiting or self.running), timeout_s
            )

    def close(self) -> None:
        """Refuse what waits and admit nothing more; the batches under way go on."""
        done: list[Submission[I, R]] = []
        with self.mutex:
            if self._state not in DEAD:
                self._state = State.CLOSED
            self._refuse_entries("not answered: the service was closed", done)
            self.work.notify()
            self._tell()
        notify_all(done)

    def fail(self, state: State, error: Callable[[], MimicError]) -> None:
        """End in one of the states of death: everything that waits or is under way gets an error."""
        done: list[Submission[I, R]] = []
        with self.mutex:
            self._state = state
            for entry in (*self.running, *self._entries):
                _settle(entry, Outcome(None, error()), done)
            self.running.clear()
            self._entries.clear()
            self._tell()
        notify_all(done)

    def give_up_running(self, error: MimicError) -> None:
        """Settle what a device that hangs does not answer."""
        done: list[Submission[I, R]] = []
        with self.mutex:
            for entry in self.running:
                _settle(entry, Outcome(None, error), done)
        notify_all(done)

    def _refuse_entries(self, reason: str, done: list[Submission[I, R]]) -> None:
        for entry in self._entries:
            _settle(entry, Outcome(None, NotReadyError(reason)), done)
        self._entries.clear()

    def _tell(self) -> None:
        """Under the mutex, after every change: tell who waits for space, and who for the end."""
        if self._waiting_for_space and (
            self._state is not State.READY or self.waiting < self.limits.max_queue_size
        ):
            told, self._waiting_for_space = self._waiting_for_space, []
            for tell in told:
                tell()  # leaves a note in an event loop, so harmless under the mutex
        if self._state in (State.CLOSED, *DEAD) or not (self.waiting or self.running):
            self._idle.notify_all()


@dataclass(slots=True)
class Reservation(Generic[I, R]):
    """Room for ``count`` items in a queue. Submit into it once; leaving the ``with`` gives the rest back.

    With ``ignore_queue_timeout`` the items may wait longer than ``queue_timeout_ms``.
    """

    queue: RequestQueue[I, R]
    count: int
    ignore_queue_timeout: bool = False

    def __enter__(self) -> Self:
        return self

    def give_back(self, *_: object) -> None:
        """Give back the room that nothing was submitted into; harmless when done twice."""
        if self.count:
            self.queue.release(self.count)
            self.count = 0

    __exit__ = give_back

    async def submit(self, items: Sequence[I], deadline: float | None = None) -> list[Outcome[R]]:
        """Queue the items and wait for their outcomes, in order.

        ``deadline`` is a time of :func:`time.monotonic`. Items that have not started when
        ``queue_timeout_ms`` is over, or are not answered at the deadline, get :class:`DeadlineError`
        at that moment. Cancelling the caller takes its items out of the queue.
        """
        if len(items) > self.count:
            raise InvalidInputError(f"items: {len(items)} for {self.count} reserved places")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        notify = partial(call_soon, loop, answered.set)
        submission = self.queue.enqueue(items, notify, deadline, self.ignore_queue_timeout)
        self.count -= len(items)
        now, moments = time.monotonic(), ((submission.start_by, False), (submission.deadline, True))
        timers = [
            loop.call_later(max(0.0, moment - now), self._expire, submission, also_running)
            for moment, also_running in moments
            if moment is not None and moment < math.inf
        ]
        try:
            await answered.wait()
        except asyncio.CancelledError:
            self.queue.give_up(submission, EngineError("cancelled by its caller"), also_running=True)
            raise
        finally:
            for timer in timers:
                timer.cancel()
        return [entry.outcome for entry in submission.entries if entry.outcome is not None]

    def _expire(self, submission: Submission[I, R], also_running: bool) -> None:
        error = DeadlineError("the request's deadline passed") if also_running else submission.late()
        self.queue.give_up(submission, error, also_running=also_running)


def _settle(entry: QueueEntry[I, R], outcome: Outcome[R], done: list[Submission[I, R]]) -> None:
    """Under the mutex; submissions that are complete go to ``done``, to be notified after it."""
    if entry.outcome is None:
        entry.outcome = outcome
        entry.submission.unsettled -= 1
        if not entry.submission.unsettled:
            done.append(entry.submission)


def notify_all(submissions: Sequence[Submission[I, R]]) -> None:
    """Tell the callers of submissions that are complete; not under the mutex."""
    for submission in submissions:
        submission.notify()


def call_soon(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
    """Wake somebody who waits in an event loop, from any thread; nobody, if the loop was closed."""
    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:  # the caller's event loop has been closed: nobody is left to tell
        logger.debug("an event loop was closed before its answer came")
