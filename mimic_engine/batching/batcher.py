"""Dynamic batcher: one device thread behind a request queue. It knows no HTTP and no arrays.

The rule is that of text-embeddings-inference: an idle device takes what is there at once; while it is
busy, items collect and leave together in the next batch, as many as size and cost allow. Nothing waits
for a batch to fill unless ``max_queue_delay_us`` says so, and nothing on the path of a request polls.
Where the device gives its results later, a second batch is put on it while the first is under way, but
only a full one: others may still grow until the device is free.

How an item travels: :meth:`RequestQueue.reserve` takes room in the queue (or refuses), the caller prepares
its items, :meth:`Reservation.submit` queues them, the device thread runs them, and each item gets exactly
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
from functools import partial
from typing import Any, Generic, TypeVar

from mimic_engine.batching.in_flight import BatchReport, InFlightBatch, Run, engine_error, run_batches
from mimic_engine.batching.queue import DEAD, BatchLimits, QueueEntry, RequestQueue, State
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeviceError, DeviceLostError, EngineError, MimicError, NotReadyError

I = TypeVar("I")  # noqa: E741 - an item, as its caller prepared it
R = TypeVar("R")  # its result
T = TypeVar("T")  # what other work on the device thread gives

logger = logging.getLogger(__name__)


class DeviceTask(Generic[T]):
    """Work for the device thread between two batches; ``future`` has what it gives or raises.

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


class Batcher(Generic[I, R]):
    """Owner of the device thread, and with it of every call of ``run``.

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

    Attributes
    ----------
    queue
        Where callers reserve, submit and drain.
    recoveries
        Device errors after which the device came back.
    failure
        What killed the device thread; None while it lives.
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
    ) -> None:
        self.queue: RequestQueue[I, R] = RequestQueue(limits or BatchLimits(), cost)
        self.recoveries = 0
        self.failure: BaseException | None = None
        self._run, self._warm_up, self._on_batch = run, warm_up, on_batch
        self._recovery = recovery
        self._busy_since: float | None = None
        self._free_since = -math.inf  # when the last batch was answered
        self._tasks: deque[DeviceTask[Any]] = deque()  # at most one is run before a batch
        self._task: DeviceTask[Any] | None = None  # that is being run
        self._fault: DeviceError | None = None  # to recover from when no batch is under way
        self._thread = threading.Thread(target=self._main, name="mimic-device", daemon=True)
        self._thread.start()

    # -- what the outside may ask -------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """False once the device thread has ended, for whatever reason."""
        return self.queue.state not in DEAD and self._thread.is_alive()

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
        task = DeviceTask(work)
        with self.queue.mutex:
            if self.queue.state in (State.CLOSED, *DEAD):
                raise NotReadyError(f"not accepting work: {self.queue.state.value}")
            self._tasks.append(task)
            self.queue.work.notify()
        return task.future

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuse what still waits, let the present batch finish, end the thread; False if it hangs on."""
        self.queue.close()
        self._refuse_tasks()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        hung = EngineError("not answered: the device hung while the service was closed")
        self.queue.give_up_running(hung)
        if (task := self._task) is not None:
            task.give_up(hung)
        return False

    # -- the device thread --------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._busy_since = time.monotonic()
            self._warm_up()
            self._busy_since = None
            self.queue.open()
            full_batch = partial(self.queue.full_batch, self._tasks)
            run_batches(self._next_batch, full_batch, self._run, self._answer)
        except BaseException as error:
            self._fail(error)
            logger.critical("%s", self.queue.state.value, exc_info=error)

    def _next_batch(self) -> list[QueueEntry[I, R]]:
        """Wait for work and take it; empty when the batcher is closed. No batch is under way here."""
        if self._fault is not None:
            self._recover()
        while True:
            if self._tasks:
                self._run_task()
            if batch := self.queue.next_batch(self._tasks):
                self._busy_since = time.monotonic()
                return batch
            if self.queue.state is State.CLOSED:
                return []

    def _answer(self, batch: InFlightBatch[I, R]) -> None:
        """Settle the items of a batch that has ended; DeviceLostError if the device is gone with it."""
        now, failure, size = time.monotonic(), batch.failure, len(batch.entries)
        if failure is not None:
            logger.error("a batch of %d items failed", size, exc_info=failure)
        service_s = now - max(batch.started, self._free_since)  # not what it waited behind another
        self._free_since = now
        self._busy_since = now if len(self.queue.running) > size else None
        outcomes = batch.outcomes(service_s)
        broken = self._broken(failure) if isinstance(failure, DeviceError) else None
        self.queue.settle(batch.entries, outcomes, service_s, broken)
        cost, queue_s = sum(entry.cost for entry in batch.entries), tuple(o.queue_s for o in outcomes)
        self._on_batch(BatchReport(size, cost, queue_s, service_s, failure is not None))
        if isinstance(failure, DeviceLostError):
            raise failure
        if isinstance(failure, DeviceError):
            self._fault = failure

    def _broken(self, failure: DeviceError) -> State | None:
        """State of a device that has failed; None where its next batch is tried as it is."""
        if isinstance(failure, DeviceLostError):
            return State.LOST
        return None if self._recovery is None else State.RECOVERING

    def _recover(self) -> None:
        """Get the device back after a fault, unless the end has come meanwhile."""
        self._fault = None
        if self._recovery is None or self.queue.state is State.CLOSED:
            return
        if self._recovery.run(self._still_recovering):
            self.recoveries += 1
            self.queue.open()

    def _still_recovering(self, seconds: float) -> bool:
        """Wait; False as soon as the batcher is drained or closed instead."""
        return not self.queue.wait_unless_recovering(seconds)

    def _run_task(self) -> None:
        """Do one thing that is no batch, if there is one."""
        with self.queue.mutex:
            if not self._tasks or self.queue.state is State.CLOSED:
                return
            self._task = task = self._tasks.popleft()
            self._busy_since = time.monotonic()
        failure = task.run()
        self._task = self._busy_since = None
        if isinstance(failure, DeviceLostError) or not isinstance(failure, Exception | None):
            raise failure

    def _refuse_tasks(self) -> None:
        """Once the state says that no more are run."""
        with self.queue.mutex:
            tasks = tuple(self._tasks)
            self._tasks.clear()
        for task in tasks:
            task.refuse(NotReadyError(f"not done: {self.queue.state.value}"))

    def _fail(self, error: BaseException) -> None:
        self.failure, self._busy_since = error, None
        state = State.LOST if isinstance(error, DeviceLostError) else State.FAILED
        self.queue.fail(state, lambda: engine_error(error))
        self._refuse_tasks()
