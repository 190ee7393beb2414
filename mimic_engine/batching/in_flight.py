"""Batches on the device, two at a time: how one starts and ends, and in which order a thread sees to them.

No queue and no lock here; :mod:`mimic_engine.batching.batcher` has both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mimic_engine.batching.queue import Outcome, QueueEntry
from mimic_engine.errors import DeviceError, EngineError

I = TypeVar("I")  # noqa: E741 - an item, as its caller prepared it
R = TypeVar("R")  # its result

Run = Callable[[list[I]], list[R] | Callable[[], list[R]]]
AT_ONCE = 2  # batches under way at most, one of them on the device behind the other


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch that went to the device, for metrics."""

    size: int
    cost: int
    queue_s: tuple[float, ...]
    service_s: float
    failed: bool


@dataclass(slots=True)
class InFlightBatch(Generic[I, R]):
    """One batch from the moment the device gets it; it ends with results or a failure."""

    entries: list[QueueEntry[I, R]]
    started: float = field(default_factory=time.monotonic)
    finish: Callable[[], list[R]] | None = None  # None once it has ended
    results: list[R] = field(default_factory=list)
    failure: Exception | None = None

    def begin(self, run: Run[I, R]) -> None:
        """Give the batch to the device."""
        try:
            given = run([entry.item for entry in self.entries])
        except Exception as error:
            self.failure = error
            return
        if callable(given):
            self.finish = given
        else:
            self._take(given)

    def end(self) -> None:
        """Wait for the device."""
        finish, self.finish = self.finish, None
        if finish is None:
            return
        try:
            self._take(finish())
        except Exception as error:
            self.failure = error

    def _take(self, results: list[R]) -> None:
        self.results = results
        if len(results) != len(self.entries):
            message = f"run gave {len(results)} results for {len(self.entries)} items"
            self.failure = EngineError(message)

    def outcomes(self, service_s: float) -> list[Outcome[R]]:
        """Outcome of each item, in order; a failure is all items' own."""
        waits = [self.started - entry.enqueued for entry in self.entries]
        if self.failure is None:
            pairs = zip(self.results, waits, strict=True)
            return [Outcome(result, None, wait, service_s) for result, wait in pairs]
        failure = self.failure
        return [Outcome(None, engine_error(failure), wait, service_s) for wait in waits]


def engine_error(cause: BaseException) -> EngineError:
    """Error that a caller gets for the failure of its items' batch; it tells nothing of the inside."""
    if isinstance(cause, DeviceError):
        error: EngineError = type(cause)(f"the device failed on a batch: {cause.reason}", reason=cause.reason)
    else:
        error = EngineError(f"the engine failed on a batch: {type(cause).__name__}")
    error.__cause__ = cause
    return error


def run_batches(
    next_batch: Callable[[], list[QueueEntry[I, R]]],
    full_batch: Callable[[], list[QueueEntry[I, R]]],
    run: Run[I, R],
    answer: Callable[[InFlightBatch[I, R]], None],
) -> None:
    """Put batches on the device and answer them in order, until there are none any more.

    Parameters
    ----------
    next_batch : waits for work; empty at the end.
    full_batch : asked while a batch is under way: one that cannot grow any more, or an empty list.
    run : gives a batch to the device; where it gives results at once, nothing overlaps.
    answer : told of every batch that has ended.
    """
    under_way: list[InFlightBatch[I, R]] = []
    while _turn(under_way, full_batch() if under_way else next_batch(), run, answer):
        pass


def _turn(
    under_way: list[InFlightBatch[I, R]],
    entries: list[QueueEntry[I, R]],
    run: Run[I, R],
    answer: Callable[[InFlightBatch[I, R]], None],
) -> bool:
    """Begin a batch if there is one, end the oldest if nothing else is to be done; False at the end."""
    if entries:
        batch = InFlightBatch(entries)
        batch.begin(run)
        if batch.finish is None and not under_way:
            answer(batch)
        else:  # behind the one under way, even if it has ended: answers are in order
            under_way.append(batch)
    elif not under_way:
        return False
    if under_way and (not entries or len(under_way) == AT_ONCE):
        under_way[0].end()
        while under_way and under_way[0].finish is None:  # one behind it may have ended by itself
            answer(under_way.pop(0))
    return True
