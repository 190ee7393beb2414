"""The dynamic batcher: one device thread, a bounded queue, deadlines. It knows no HTTP and no arrays.

The rule is that of text-embeddings-inference: an idle device takes what is there at once; while it is
busy, items collect and leave together in the next batch, as many as size and cost allow. Nothing waits
for a batch to fill unless ``max_queue_delay_us`` says so, and nothing on the path of a request polls.
Where the device gives its results later, a second batch is put on it while the first is under way, but
only a full one: others may still grow until the device is free.

How an item travels: :meth:`Batcher.reserve` takes places in the queue (or refuses), the caller prepares
its items, :meth:`Places.submit` queues them, the device thread runs them, and each item gets exactly
one :class:`Outcome`: a value, or the error that befell it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from mimic_engine.batching.in_flight import Flight, Run, work_off
from mimic_engine.batching.queue import (
    DEAD,
    BatchLimits,
    BatchReport,
    Group,
    Outcome,
    Places,
    Reception,
    State,
    Ticket,
    engine_error,
    notify_all,
)
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeviceError, DeviceLostError, EngineError, MimicError, NotReadyError

I = TypeVar("I")  # noqa: E741 - an item, as its caller prepared it
R = TypeVar("R")  # its result
T = TypeVar("T")  # what other work on the device thread gives

__all__ = ["BatchLimits", "BatchReport", "Batcher", "Outcome", "Places", "State"]

logger = logging.getLogger(__name__)


class Batcher(Reception[I, R]):
    """Owns the device thread, and with it every call of ``run``.

    Parameters
    ----------
    run
        Device work: a list of items in, one result for each in the same order; or a call that waits
        for the device and gives them: the next full batch is then begun meanwhile. An exception of
        either fails the items of that batch with :class:`EngineError`; anything that is not an
        ``Exception`` (``SystemExit``, ...) ends the device thread and fails everybody. After a
        :class:`DeviceError` who waits is refused too, and nobody is admitted until ``recovery`` has
        succeeded; a device that is lost ends the thread.
    limits
        See :class:`BatchLimits`.
    cost
        Cost of an item, at least 1 (default: 1 each); a batch holds ``max_batch_cost`` at most.
    warm_up
        Runs first, on the device thread; nothing is admitted before it has returned.
    on_batch
        Told of every batch, on the device thread, after its callers have been answered.
    recovery
        Gets the device back, on the device thread; without one its next batch is tried as it is.
    """

    def __init__(
        self,
        run: Run[I, R],
        limits: BatchLimits | None = None,
        *,
        cost: Callable[[I], int] = lambda _: 1,
        warm_up: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        recovery: Recovery | None = None,
        name: str = "mimic-device",
    ) -> None:
        super().__init__(limits or BatchLimits(), cost)
        self._run, self._warm_up, self._on_batch = run, warm_up, on_batch
        self._recovery = recovery
        self.recoveries = 0  # device errors after which the device came back
        self._busy_since: float | None = None
        self._free_since = -math.inf  # when the last batch was answered
        self._errands: deque[Errand[Any]] = deque()  # at most one is run before a batch
        self._errand: Errand[Any] | None = None  # that is being run
        self._fault: DeviceError | None = None  # to recover from when no batch is under way
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    # -- what the outside may ask -------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """False once the device thread has ended, for whatever reason."""
        return self._state not in DEAD and self._thread.is_alive()

    @property
    def failure(self) -> BaseException | None:
        """What killed the device thread."""
        return self._failure

    @property
    def busy_s(self) -> float:
        """Heartbeat: seconds the device has spent on the present batch (or warm-up); 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def on_device(self, work: Callable[[], T]) -> Future[T]:
        """Have the device thread do something else while no batch is under way.

        Its errors are the caller's alone, but for a :class:`DeviceLostError`, which ends the thread.

        Raises
        ------
        NotReadyError
            After closing, or when the device thread is dead; so does the future if that comes first.
        """
        errand = Errand(work)
        with self._mutex:
            if self._state in (State.CLOSED, *DEAD):
                raise NotReadyError(f"not accepting work: {self._state.value}")
            self._errands.append(errand)
            self._work.notify()
        return errand.future

    # -- the device thread --------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._busy_since = time.monotonic()
            self._warm_up()
            with self._mutex:
                self._busy_since = None
                if self._state is State.STARTING:
                    self._state = State.READY
                self._quiet.notify_all()
            work_off(self._next_batch, self._full_batch, self._run, self._answer)
        except BaseException as error:
            self._fail(error)
            logger.critical("%s", self._state.value, exc_info=error)

    def _recover(self) -> None:
        """Get the device back after a fault, unless the end has come meanwhile."""
        fault, self._fault = self._fault, None
        if fault is None or self._recovery is None or self._state is State.CLOSED:
            return
        if not self._recovery.run(self._still_recovering):
            return
        with self._mutex:
            self.recoveries += 1
            if self._state is State.RECOVERING:
                self._state = State.READY
            self._quiet.notify_all()

    def _still_recovering(self, seconds: float) -> bool:
        """Wait; False as soon as the batcher is drained or closed instead."""
        with self._work:
            return not self._work.wait_for(lambda: self._state is not State.RECOVERING, seconds)

    def _next_batch(self) -> list[Ticket[I, R]]:
        """Wait for work and take it; empty when the batcher is closed. No batch is under way here."""
        self._recover()
        while True:
            self._run_errand()
            done: list[Group[I, R]] = []
            with self._work:
                while not (self._queue or self._errands) and self._state is not State.CLOSED:
                    self._work.wait()
                if self._state is State.CLOSED:
                    return []
                self._collect()
                batch = self._take(done)
            notify_all(done)
            if batch:
                return batch

    def _run_errand(self) -> None:
        """Do one thing that is no batch, if there is one."""
        with self._mutex:
            if not self._errands or self._state is State.CLOSED:
                return
            self._errand = errand = self._errands.popleft()
            self._busy_since = time.monotonic()
        failure = errand.run()
        self._errand = self._busy_since = None
        if isinstance(failure, DeviceLostError) or not isinstance(failure, Exception | None):
            raise failure

    def _refuse_errands(self) -> None:
        """Once the state says that no more are run."""
        with self._mutex:
            errands, self._errands = self._errands, deque()
        for errand in errands:
            errand.refuse(NotReadyError(f"not done: {self._state.value}"))

    def _full_batch(self) -> list[Ticket[I, R]]:
        """Take a batch that cannot grow any more; empty where there is none, or an errand goes first."""
        done: list[Group[I, R]] = []
        with self._mutex:
            wanted = self._state is not State.CLOSED and not self._errands
            batch = self._take(done) if wanted and self._is_full() else []
        notify_all(done)
        return batch

    def _is_full(self) -> bool:
        cost = size = 0
        for ticket in self._queue:
            size, cost = size + 1, cost + ticket.cost
            if size >= self.limits.max_batch_size or cost >= self.limits.max_batch_cost:
                return True
        return False

    def _collect(self) -> None:
        """Wait, at most ``max_queue_delay_us`` after the oldest item came, for a full batch."""
        delay_s = self.limits.max_queue_delay_us / 1e6
        while delay_s and self._state is State.READY and 0 < len(self._queue) < self.limits.max_batch_size:
            left_s = next(iter(self._queue)).enqueued + delay_s - time.monotonic()
            if left_s <= 0:
                return
            self._work.wait(left_s)

    def _take(self, done: list[Group[I, R]]) -> list[Ticket[I, R]]:
        """Move the oldest items that fit into a batch; the expired never reach the device."""
        batch: list[Ticket[I, R]] = []
        now, cost = time.monotonic(), 0
        while self._queue and len(batch) < self.limits.max_batch_size:
            ticket = next(iter(self._queue))
            if ticket.start_by <= now:
                del self._queue[ticket]
                self._settle(ticket, Outcome(None, ticket.group.late(), now - ticket.enqueued), done)
                continue
            cost += ticket.cost
            if cost > self.limits.max_batch_cost:
                break
            del self._queue[ticket]
            batch.append(ticket)
        if batch and not self._running:
            self._busy_since = now
        self._running += batch
        self._tell_room()
        self._tell_quiet()
        return batch

    def _answer(self, flight: Flight[I, R]) -> None:
        """Settle the items of a batch that has ended; DeviceLostError if the device is gone with it."""
        batch, now, failure = flight.batch, time.monotonic(), flight.failure
        if failure is not None:
            logger.error("a batch of %d items failed", len(batch), exc_info=failure)
        service_s = now - max(flight.started, self._free_since)  # not what it waited behind another
        done: list[Group[I, R]] = []
        with self._mutex:
            for ticket, outcome in zip(batch, flight.outcomes(service_s), strict=True):
                self._settle(ticket, outcome, done)
            recent = service_s / len(batch)
            self._item_s = recent if self._item_s is None else 0.8 * self._item_s + 0.2 * recent
            del self._running[: len(batch)]  # batches end in the order in which they were taken
            self._busy_since = now if self._running else None
            self._free_since = now
            if isinstance(failure, DeviceError):
                self._refuse_who_waits(failure, done)
            self._tell_quiet()
        notify_all(done)
        self._on_batch(flight.report(service_s))
        if isinstance(failure, DeviceLostError):
            raise failure
        if isinstance(failure, DeviceError):
            self._fault = failure

    def _refuse_who_waits(self, fault: DeviceError, done: list[Group[I, R]]) -> None:
        """Under the mutex: admit nobody, and answer at once who would wait for a device that has failed."""
        lost = isinstance(fault, DeviceLostError)
        if self._recovery is None and not lost:
            return
        if self._state is State.READY:
            self._state = State.RECOVERING
        refused = State.LOST if lost else State.RECOVERING
        done += self._settle_all(list(self._queue), lambda: NotReadyError(f"not answered: {refused.value}"))

    def _fail(self, error: BaseException) -> None:
        lost = isinstance(error, DeviceLostError)
        with self._mutex:
            self._failure, self._state = error, State.LOST if lost else State.FAILED
            done = self._settle_all([*self._running, *self._queue], lambda: engine_error(error))
            self._running, self._busy_since = [], None
        notify_all(done)
        self._refuse_errands()

    # -- the end --------------------------------------------------------------------------------------

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until the warm-up or a recovery has ended; True if the batcher is ready then."""
        with self._quiet:
            self._quiet.wait_for(lambda: self._state not in (State.STARTING, State.RECOVERING), timeout_s)
            return self._state is State.READY

    def stop_admitting(self) -> None:
        """Admit nothing more; what was admitted is answered."""
        with self._mutex:
            if self._state in (State.STARTING, State.READY, State.RECOVERING):
                self._state = State.DRAINING
            self._work.notify()
            self._tell_room()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Admit nothing more and wait until all that was admitted is answered; False on a timeout."""
        self.stop_admitting()
        with self._quiet:
            return self._quiet.wait_for(
                lambda: self._state in (State.CLOSED, *DEAD) or not self._pending(), timeout_s
            )

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse what still waits, let the present batch finish, end the thread; False if it hangs on."""
        closed = NotReadyError("not answered: the service was closed")
        with self._mutex:
            if self._state not in DEAD:
                self._state = State.CLOSED
            done = self._settle_all(list(self._queue), lambda: closed)
            self._work.notify()
        notify_all(done)
        self._refuse_errands()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        hung = EngineError("not answered: the device hung while the service was closed")
        with self._mutex:
            done = self._settle_all(list(self._running), lambda: hung)
        notify_all(done)
        if (errand := self._errand) is not None:
            errand.give_up(hung)
        return False


# What the device thread is asked to do between batches: one piece of work each, and what becomes of it.
# The thread, the queue and the mutex are :mod:`mimic_engine.batching.batcher`'s.


class Errand(Generic[T]):
    """Work for the device thread; ``future`` has what it gives or raises.

    Parameters
    ----------
    work : is called once, unless the future is cancelled before.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.future: Future[T] = Future()

    def run(self) -> BaseException | None:
        """Do the work; what it raised goes to the future and is given here."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            result = self._work()
        except BaseException as error:
            with suppress(InvalidStateError):  # nobody waits for it any more
                self.future.set_exception(error)
            return error
        with suppress(InvalidStateError):
            self.future.set_result(result)
        return None

    def refuse(self, error: MimicError) -> None:
        """Say that the work will not be done."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def give_up(self, error: MimicError) -> None:
        """Let nobody wait any longer for work that hangs."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
