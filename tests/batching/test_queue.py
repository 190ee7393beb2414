"""Waiting for the device: a full queue, deadlines, callers who leave, room that comes free."""

import asyncio
import threading
import time

import pytest

from mimic_engine.batching.queue import BatchLimits
from mimic_engine.errors import (
    DeadlineError,
    InvalidInputError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)
from tests.batching.device import Device, in_thread, submit, submit_async, submit_into, wait_until


def test_queue_full_names_numbers_and_estimates_a_wait(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=2))
    running = in_thread(submit, batcher, [0])
    assert device.reached.acquire(timeout=10)
    with (
        batcher.queue.reserve(2),
        pytest.raises(QueueFullError, match="2 of 2 places taken, 1 asked for") as full,
    ):
        batcher.queue.reserve(1)
    assert full.value.retry_after_s == 1.0  # nothing has been measured yet
    time.sleep(0.05)
    device.open()
    running.result(10)
    device.held = True
    device.permits = threading.Semaphore(0)
    with batcher.queue.reserve(2), pytest.raises(QueueFullError) as full:
        batcher.queue.reserve(1)
    assert 0.1 <= full.value.retry_after_s < 5  # two waiting, at least 0.05 s each
    assert batcher.queue.waiting == 0  # room was given back


def test_a_call_that_never_fits_is_too_large(make):
    batcher = make(Device(), BatchLimits(max_batch_size=1, max_batch_cost=5, max_queue_size=2), cost=int)
    with pytest.raises(TooLargeError, match=r"at most 2 .*got 3"):
        batcher.queue.reserve(3)
    with pytest.raises(TooLargeError, match="cost 6 is over max_batch_cost 5"):
        submit(batcher, [6])
    assert batcher.queue.waiting == 0
    with batcher.queue.reserve(1) as reservation, pytest.raises(InvalidInputError, match="2 for 1 reserved"):
        submit_into(reservation, [1, 2])


def test_waiting_too_long_in_the_queue_fails_and_never_reaches_the_device(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(queue_timeout_ms=50))
    running = in_thread(submit, batcher, [1])
    assert device.reached.acquire(timeout=10)
    [outcome] = submit(batcher, [2])
    assert isinstance(outcome.error, DeadlineError)
    assert "queue_timeout_ms" in str(outcome.error)
    assert batcher.queue.waiting == 0  # its place is free at once
    device.open()
    assert running.result(10)[0].unwrap() == 2  # on the device in time: the queue timeout does not touch it
    assert device.batches == [[1]]


def test_deadline_frees_the_caller_even_while_the_device_works(make):
    device = Device(held=True)
    batcher = make(device)
    began = time.monotonic()
    [outcome] = submit(batcher, [1], began + 0.05)
    assert isinstance(outcome.error, DeadlineError)
    assert 0.05 <= time.monotonic() - began < 5
    with pytest.raises(DeadlineError):
        outcome.unwrap()


def test_deadline_already_over_never_runs(make):
    device = Device()
    [outcome] = submit(make(device), [1], time.monotonic() - 1)
    assert isinstance(outcome.error, DeadlineError)
    assert device.batches == []


def test_the_expired_do_not_reach_the_device_even_if_their_caller_is_not_looking(make):
    device = Device(held=True)
    batcher = make(device)

    async def main():
        running = asyncio.ensure_future(submit_async(batcher, [1]))
        await asyncio.to_thread(device.reached.acquire)
        late = asyncio.ensure_future(submit_async(batcher, [2], time.monotonic() + 0.02))
        await asyncio.sleep(0)
        assert batcher.queue.waiting == 1
        time.sleep(0.05)  # the event loop stands still: no timer of the caller can fire
        device.open()
        wait_until(lambda: batcher.queue.waiting == 0 and batcher.busy_s == 0.0)
        return [*await running, *await late]

    running, late = asyncio.run(main())
    assert running.unwrap() == 2
    assert isinstance(late.error, DeadlineError)
    assert device.batches == [[1]]


def test_cancelled_caller_leaves_the_queue(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))

    async def main():
        running = asyncio.ensure_future(submit_async(batcher, [1]))
        await asyncio.to_thread(device.reached.acquire)
        gone = asyncio.ensure_future(submit_async(batcher, [2, 3]))
        stays = asyncio.ensure_future(submit_async(batcher, [4]))
        await asyncio.sleep(0)
        assert batcher.queue.waiting == 3
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.queue.waiting == 1
        device.open()
        return [o.unwrap() for o in [*await running, *await stays]]

    assert asyncio.run(main()) == [2, 8]
    assert device.batches == [[1], [4]]


def test_asyncio_callers_get_deadlines_too(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, queue_timeout_ms=30))

    async def main():
        running = asyncio.ensure_future(submit_async(batcher, [1], time.monotonic() + 0.1))
        await asyncio.to_thread(device.reached.acquire)
        return [*await submit_async(batcher, [2]), *await running]

    queued, running = asyncio.run(main())
    assert "queue_timeout_ms" in str(queued.error)
    assert "deadline" in str(running.error)


async def occupy(batcher, device):
    """Have the device work on a batch; the answer to come."""
    first = await batcher.queue.reserve_when_free(1)  # no queue timeout: the machine may be busy
    running = asyncio.ensure_future(first.submit([1]))
    while not device.reached.acquire(blocking=False):
        await asyncio.sleep(0.001)
    return running


def test_who_waits_for_room_gets_it_when_there_is_some(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=2, queue_timeout_ms=1))

    async def run():
        running = await occupy(batcher, device)
        with batcher.queue.reserve(2) as held:
            waiting = [asyncio.ensure_future(batcher.queue.reserve_when_free(1)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(w.done() for w in waiting)
            with pytest.raises(QueueFullError):
                batcher.queue.reserve(1)
        del held
        done, _ = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            done, _ = await asyncio.wait(waiting, timeout=0.01)
        assert len(done) == 2
        answers = [asyncio.ensure_future(w.result().submit([7])) for w in done]
        device.open()
        [last] = set(waiting) - done
        [outcome] = await (await asyncio.wait_for(last, 10)).submit([8])
        assert outcome.unwrap() == 16
        for answer in answers:  # they waited longer than queue_timeout_ms
            assert [o.unwrap() for o in await answer] == [14]
        assert (await running)[0].unwrap() == 2

    asyncio.run(run())
    assert batcher.queue.waiting == 0


def test_who_waits_for_room_is_told_when_there_will_be_none(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=1))

    async def run():
        with batcher.queue.reserve(1):
            waiting = asyncio.ensure_future(batcher.queue.reserve_when_free(1))
            await asyncio.sleep(0.01)
            batcher.queue.drain(0)
            with pytest.raises(NotReadyError, match="draining"):
                await asyncio.wait_for(waiting, 10)
        with pytest.raises(TooLargeError):
            await batcher.queue.reserve_when_free(2)

    asyncio.run(run())


def test_items_that_ignore_the_queue_timeout_still_have_a_deadline(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=1, queue_timeout_ms=1))

    async def run():
        running = await occupy(batcher, device)
        reservation = await batcher.queue.reserve_when_free(1)
        [outcome] = await reservation.submit([2], time.monotonic() + 0.05)
        assert isinstance(outcome.error, DeadlineError)
        device.open()
        await running

    asyncio.run(run())
    assert device.batches == [[1]]
