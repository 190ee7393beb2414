"""A device that tests hold back, callers without an event loop, and calls beside the test."""

import asyncio
import threading
import time
from concurrent.futures import Future

from mimic_engine.batching.queue import State


class Device:
    """Doubles integers; every batch waits for a permit while ``held``."""

    def __init__(self, held=False):
        self.batches, self.permits, self.held = [], threading.Semaphore(0), held
        self.reached = threading.Semaphore(0)
        self.fail = None

    def __call__(self, items):
        self.batches.append(list(items))
        self.reached.release()
        if self.held:
            assert self.permits.acquire(timeout=30)
        if self.fail is not None:
            raise self.fail
        return [2 * item for item in items]

    def open(self):
        self.held = False
        self.permits.release(1000)


def in_thread(call, *args):
    """Run a blocking call beside the test; its result or error is in the future."""
    future = Future()

    def work():
        try:
            future.set_result(call(*args))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def wait_until(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "condition never held"
        time.sleep(0.001)


async def submit_async(batcher, items, deadline=None):
    """Reserve and submit items that are ready; their outcomes."""
    with batcher.queue.reserve(len(items)) as reservation:
        return await reservation.submit(items, deadline)


def submit(batcher, items, deadline=None):
    """The same for a caller without an event loop."""
    return asyncio.run(submit_async(batcher, items, deadline))


def submit_into(reservation, items):
    """Submit into room that was reserved before; for a caller without an event loop."""
    return asyncio.run(reservation.submit(items))


def wait_ready(batcher, timeout_s=10):
    """Wait until the warm-up or a recovery has ended; True if the batcher is ready then."""
    wait_until(lambda: batcher.queue.state not in (State.STARTING, State.RECOVERING), timeout_s)
    return batcher.queue.state is State.READY
