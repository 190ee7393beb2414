"""The batcher under random calls of its users, its device and its operator."""

import asyncio
import threading

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import BatchLimits
from mimic_engine.errors import NotReadyError, QueueFullError, TooLargeError
from tests.batching.device import submit_async, wait_ready


class GatedDevice:
    """Doubles integers; every batch needs a permit."""

    def __init__(self):
        self.batches, self.permits = [], threading.Semaphore(0)

    def __call__(self, items):
        self.batches.append(list(items))
        assert self.permits.acquire(timeout=30)
        return [2 * item for item in items]

    def open(self):
        self.permits.release(1000)


LIMITS = BatchLimits(max_batch_size=3, max_batch_cost=7, max_queue_size=8, queue_timeout_ms=60_000)


class BatcherMachine(RuleBasedStateMachine):
    """Whatever callers, device and operator do: one outcome an item, batches within limits."""

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.device = GatedDevice()
        self.batcher = Batcher(self.device, LIMITS, cost=lambda item: item % 5 + 1)
        assert wait_ready(self.batcher)
        self.calls, self.next_item, self.closing = [], 0, None

    @rule(count=st.integers(1, 9))
    def submit(self, count):
        items = list(range(self.next_item, self.next_item + count))
        self.next_item += count
        self.calls.append(
            (items, asyncio.run_coroutine_threadsafe(submit_async(self.batcher, items), self.loop))
        )
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(10)

    @rule()
    def finish_a_batch(self):
        self.device.permits.release()

    @rule(which=st.integers(0, 30))
    def leave(self, which):
        if self.calls:
            self.calls[which % len(self.calls)][1].cancel()

    @rule()
    def drain(self):
        self.batcher.queue.drain(0)

    @rule()
    def close(self):
        if self.closing is None:
            self.closing = threading.Thread(target=self.batcher.close, daemon=True)
            self.closing.start()

    @invariant()
    def batches_are_within_limits(self):
        for batch in list(self.device.batches) if hasattr(self, "device") else []:
            assert 1 <= len(batch) <= 3
            assert sum(item % 5 + 1 for item in batch) <= 7

    def teardown(self):
        if hasattr(self, "batcher"):
            try:
                self.check_every_call()
            finally:
                self.loop.call_soon_threadsafe(self.loop.stop)
                self.thread.join(10)
                self.loop.close()

    def check_every_call(self):
        self.device.open()
        if self.closing is None:
            assert self.batcher.queue.drain(10)
        assert self.batcher.close(10)
        ran = [item for batch in self.device.batches for item in batch]
        assert len(ran) == len(set(ran))
        for items, call in self.calls:
            if call.cancelled():
                continue
            error = call.exception(10)
            if error is not None:
                assert isinstance(error, QueueFullError | NotReadyError | TooLargeError)
                assert not set(items) & set(ran)
                continue
            outcomes = call.result()
            assert len(outcomes) == len(items)
            for item, outcome in zip(items, outcomes, strict=True):
                if outcome.error is None:
                    assert outcome.value == 2 * item
                    assert item in ran
                else:
                    assert isinstance(outcome.error, NotReadyError)
                    assert item not in ran
                    assert self.closing is not None
        assert self.batcher.queue.waiting == 0


def test_batcher_as_a_state_machine():
    run_state_machine_as_test(
        BatcherMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
