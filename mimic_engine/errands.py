"""What the device thread is asked to do between batches: one piece of work each, and what becomes of it.

The thread, the queue and the mutex are :mod:`mimic_engine.batching`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Generic, TypeVar

from mimic_engine.errors import MimicError

T = TypeVar("T")  # what the work gives


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
