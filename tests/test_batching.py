import asyncio
import threading
import time
from concurrent.futures import Future

import pytest

from mimic_engine.batching import Batcher, BatchLimits, State
from mimic_engine.errors import (
    DeadlineError,
    EngineError,
    InvalidInputError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)


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


@pytest.fixture
def make():
    made = []

    def start(run, limits=None, **options):
        batcher = Batcher(run, limits, **options)
        made.append((batcher, run))
        assert "warm_up" in options or batcher.wait_ready(10)
        return batcher

    yield start
    for batcher, run in made:
        if isinstance(run, Device):
            run.open()
        assert batcher.close(10)


def test_one_item_goes_at_once_and_comes_back(make):
    device = Device()
    batcher = make(device)
    [outcome] = batcher.submit_blocking([21])
    assert outcome.unwrap() == 42
    assert device.batches == [[21]]
    assert outcome.queue_s >= 0
    assert outcome.service_s >= 0


def test_busy_device_collects_and_limits_hold(make):
    device = Device(held=True)
    limits = BatchLimits(max_batch_size=3, max_batch_cost=10, max_queue_size=16)
    batcher = make(device, limits, cost=lambda item: item)
    answers = [in_thread(batcher.submit_blocking, [1])]
    assert device.reached.acquire(timeout=10)
    for n, item in enumerate([2, 3, 4, 5, 6, 1], start=1):
        answers.append(in_thread(batcher.submit_blocking, [item]))
        wait_until(lambda n=n: batcher.waiting == n)
    device.open()
    assert [a.result(10)[0].unwrap() for a in answers] == [2, 4, 6, 8, 10, 12, 2]
    # size 3 ends [2, 3, 4]; cost 10 ends [5]; first come, first served throughout
    assert device.batches == [[1], [2, 3, 4], [5], [6, 1]]


def test_many_items_of_one_call_spread_over_batches_in_order(make):
    device = Device()
    batcher = make(device, BatchLimits(max_batch_size=4, max_queue_size=13))
    outcomes = batcher.submit_blocking(list(range(13)))
    assert [o.unwrap() for o in outcomes] == [2 * i for i in range(13)]
    assert sum(map(len, device.batches)) == 13
    assert max(map(len, device.batches)) <= 4


def test_no_items_is_no_work(make):
    device = Device()
    assert make(device).submit_blocking([]) == []
    assert device.batches == []


def test_delay_gathers_a_batch(make):
    device = Device()
    limits = BatchLimits(max_batch_size=2, max_batch_cost=2, max_queue_size=4, max_queue_delay_us=20_000_000)
    batcher = make(device, limits)
    first = in_thread(batcher.submit_blocking, [1])
    wait_until(lambda: batcher.waiting == 1)
    second = in_thread(batcher.submit_blocking, [2])
    assert (first.result(10)[0].unwrap(), second.result(10)[0].unwrap()) == (2, 4)
    assert device.batches == [[1, 2]]


def test_queue_full_names_numbers_and_estimates_a_wait(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=2))
    running = in_thread(batcher.submit_blocking, [0])
    assert device.reached.acquire(timeout=10)
    with batcher.reserve(2), pytest.raises(QueueFullError, match="2 of 2 places taken, 1 asked for") as full:
        batcher.reserve(1)
    assert full.value.retry_after_s == 1.0  # nothing has been measured yet
    time.sleep(0.05)
    device.open()
    running.result(10)
    device.held = True
    device.permits = threading.Semaphore(0)
    with batcher.reserve(2), pytest.raises(QueueFullError) as full:
        batcher.reserve(1)
    assert 0.1 <= full.value.retry_after_s < 5  # two waiting, at least 0.05 s each
    assert batcher.waiting == 0  # places were given back


def test_a_call_that_never_fits_is_too_large(make):
    batcher = make(Device(), BatchLimits(max_batch_size=1, max_batch_cost=5, max_queue_size=2), cost=int)
    with pytest.raises(TooLargeError, match=r"at most 2 .*got 3"):
        batcher.reserve(3)
    with pytest.raises(TooLargeError, match="cost 6 is over max_batch_cost 5"):
        batcher.submit_blocking([6])
    assert batcher.waiting == 0
    with batcher.reserve(1) as places, pytest.raises(InvalidInputError, match="2 for 1 reserved"):
        places.submit_blocking([1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue_size": 3, "max_batch_size": 4}, "max_queue_size: 3 is smaller than max_batch_size 4"),
        ({"max_batch_size": 0}, "max_batch_size: must be above 0"),
        ({"max_batch_cost": -1}, "max_batch_cost"),
        ({"queue_timeout_ms": 0}, "queue_timeout_ms"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us"),
    ],
)
def test_limits_are_checked(options, message):
    with pytest.raises(InvalidInputError, match=message):
        BatchLimits(**options)


def test_waiting_too_long_in_the_queue_fails_and_never_reaches_the_device(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(queue_timeout_ms=50))
    running = in_thread(batcher.submit_blocking, [1])
    assert device.reached.acquire(timeout=10)
    [outcome] = batcher.submit_blocking([2])
    assert isinstance(outcome.error, DeadlineError)
    assert "queue_timeout_ms" in str(outcome.error)
    assert batcher.waiting == 0  # its place is free at once
    device.open()
    assert running.result(10)[0].unwrap() == 2  # on the device in time: the queue timeout does not touch it
    assert device.batches == [[1]]


def test_deadline_frees_the_caller_even_while_the_device_works(make):
    device = Device(held=True)
    batcher = make(device)
    began = time.monotonic()
    [outcome] = batcher.submit_blocking([1], began + 0.05)
    assert isinstance(outcome.error, DeadlineError)
    assert 0.05 <= time.monotonic() - began < 5
    with pytest.raises(DeadlineError):
        outcome.unwrap()


def test_deadline_already_over_never_runs(make):
    device = Device()
    [outcome] = make(device).submit_blocking([1], time.monotonic() - 1)
    assert isinstance(outcome.error, DeadlineError)
    assert device.batches == []


def test_the_expired_do_not_reach_the_device_even_if_their_caller_is_not_looking(make):
    device = Device(held=True)
    batcher = make(device)

    async def main():
        running = asyncio.ensure_future(batcher.submit([1]))
        await asyncio.to_thread(device.reached.acquire)
        late = asyncio.ensure_future(batcher.submit([2], time.monotonic() + 0.02))
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        time.sleep(0.05)  # the event loop stands still: no timer of the caller can fire
        device.open()
        wait_until(lambda: batcher.waiting == 0 and batcher.busy_s == 0.0)
        return [*await running, *await late]

    running, late = asyncio.run(main())
    assert running.unwrap() == 2
    assert isinstance(late.error, DeadlineError)
    assert device.batches == [[1]]


def test_failure_of_run_fails_its_batch_only(make):
    device = Device()
    batcher = make(device)
    device.fail = ValueError("bad graph")
    outcomes = batcher.submit_blocking([1, 2])
    assert all(isinstance(o.error, EngineError) for o in outcomes)
    assert isinstance(outcomes[0].error.__cause__, ValueError)
    device.fail = None
    assert batcher.submit_blocking([3])[0].unwrap() == 6
    assert batcher.alive


def test_wrong_number_of_results_is_an_engine_error(make):
    [outcome] = make(lambda items: []).submit_blocking([1])
    assert isinstance(outcome.error, EngineError)
    assert "0 results for 1 items" in str(outcome.error.__cause__)


def test_death_of_the_thread_fails_everybody_at_once(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    running = in_thread(batcher.submit_blocking, [1])
    assert device.reached.acquire(timeout=10)
    queued = in_thread(batcher.submit_blocking, [2, 3])
    wait_until(lambda: batcher.waiting == 2)
    device.fail = SystemExit("the driver is gone")
    device.open()
    for outcome in [*running.result(10), *queued.result(10)]:
        assert isinstance(outcome.error, EngineError)
        assert isinstance(outcome.error.__cause__, SystemExit)
    wait_until(lambda: not batcher.alive)
    assert (batcher.state, batcher.waiting) == (State.FAILED, 0)
    assert isinstance(batcher.failure, SystemExit)
    with pytest.raises(NotReadyError, match="died"):
        batcher.reserve(1)
    assert device.batches == [[1]]


def test_warm_up_comes_first_on_the_device_thread(make):
    gate, threads = threading.Event(), []

    def warm_up():
        threads.append(threading.current_thread().name)
        assert gate.wait(10)

    batcher = make(lambda items: threads.append(threading.current_thread().name) or items, warm_up=warm_up)
    with pytest.raises(NotReadyError, match="warming up"):
        batcher.reserve(1)
    assert batcher.busy_s >= 0
    gate.set()
    assert batcher.wait_ready(10)
    batcher.submit_blocking([1])
    assert threads == ["mimic-device", "mimic-device"]


def test_failed_warm_up_never_gets_ready():
    def warm_up():
        raise RuntimeError("no such graph")

    batcher = Batcher(lambda items: items, warm_up=warm_up)
    assert not batcher.wait_ready(10)
    assert (batcher.state, str(batcher.failure)) == (State.FAILED, "no such graph")
    assert batcher.close(10)
    assert batcher.state is State.FAILED


def test_heartbeat_shows_the_age_of_the_batch(make):
    device = Device(held=True)
    batcher = make(device)
    assert batcher.busy_s == 0.0
    answer = in_thread(batcher.submit_blocking, [1])
    assert device.reached.acquire(timeout=10)
    wait_until(lambda: batcher.busy_s > 0.02)
    device.open()
    answer.result(10)
    assert batcher.busy_s == 0.0


def test_drain_answers_what_was_admitted_and_admits_no_more(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    answers = [in_thread(batcher.submit_blocking, [1])]
    assert device.reached.acquire(timeout=10)
    answers.append(in_thread(batcher.submit_blocking, [2]))
    wait_until(lambda: batcher.waiting == 1)
    with batcher.reserve(1) as places:  # still being prepared when the drain begins
        assert not batcher.drain(0.01)
        drained = in_thread(batcher.drain)
        with pytest.raises(NotReadyError, match="draining"):
            batcher.reserve(1)
        device.open()
        assert [a.result(10)[0].unwrap() for a in answers] == [2, 4]
        assert not drained.done()
        assert places.submit_blocking([3])[0].unwrap() == 6
    assert drained.result(10)


def test_close_refuses_the_waiting_and_finishes_the_running(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    running = in_thread(batcher.submit_blocking, [1])
    assert device.reached.acquire(timeout=10)
    queued = in_thread(batcher.submit_blocking, [2])
    wait_until(lambda: batcher.waiting == 1)
    with batcher.reserve(1) as places:
        closed = in_thread(batcher.close, 10)
        assert isinstance(queued.result(10)[0].error, NotReadyError)
        with pytest.raises(NotReadyError, match="closed"):
            places.submit_blocking([3])
    device.open()
    assert running.result(10)[0].unwrap() == 2
    assert closed.result(10)
    assert not batcher.alive
    assert device.batches == [[1]]


def test_close_does_not_hang_with_the_device(make):
    device = Device(held=True)
    batcher = make(device)
    running = in_thread(batcher.submit_blocking, [1])
    assert device.reached.acquire(timeout=10)
    assert not batcher.close(0.01)
    assert isinstance(running.result(10)[0].error, EngineError)


def test_cancelled_caller_leaves_the_queue(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))

    async def main():
        running = asyncio.ensure_future(batcher.submit([1]))
        await asyncio.to_thread(device.reached.acquire)
        gone = asyncio.ensure_future(batcher.submit([2, 3]))
        stays = asyncio.ensure_future(batcher.submit([4]))
        await asyncio.sleep(0)
        assert batcher.waiting == 3
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.waiting == 1
        device.open()
        return [o.unwrap() for o in [*await running, *await stays]]

    assert asyncio.run(main()) == [2, 8]
    assert device.batches == [[1], [4]]


def test_asyncio_callers_get_deadlines_too(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, queue_timeout_ms=30))

    async def main():
        running = asyncio.ensure_future(batcher.submit([1], time.monotonic() + 0.1))
        await asyncio.to_thread(device.reached.acquire)
        return [*await batcher.submit([2]), *await running]

    queued, running = asyncio.run(main())
    assert "queue_timeout_ms" in str(queued.error)
    assert "deadline" in str(running.error)


def test_reports_add_up(make):
    reports = []
    device = Device()
    batcher = make(
        device, BatchLimits(max_batch_size=2, max_queue_size=5), cost=lambda _: 3, on_batch=reports.append
    )
    batcher.submit_blocking([1, 2, 3, 4, 5])
    wait_until(lambda: sum(r.size for r in reports) == 5)
    assert all(r.cost == 3 * r.size and len(r.queue_s) == r.size and not r.failed for r in reports)


def test_who_waits_for_room_gets_it_when_there_is_some(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=2, queue_timeout_ms=1))

    async def run():
        first = await batcher.reserve_when_free(1)  # patient too, or it may be late on a busy machine
        running = asyncio.ensure_future(first.submit([1]))
        while not device.reached.acquire(blocking=False):
            await asyncio.sleep(0.001)
        with batcher.reserve(2) as held:
            waiting = [asyncio.ensure_future(batcher.reserve_when_free(1)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(w.done() for w in waiting)
            with pytest.raises(QueueFullError):
                batcher.reserve(1)
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
    assert batcher.waiting == 0


def test_who_waits_for_room_is_told_when_there_will_be_none(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=1))

    async def run():
        with batcher.reserve(1):
            waiting = asyncio.ensure_future(batcher.reserve_when_free(1))
            await asyncio.sleep(0.01)
            batcher.drain(0)
            with pytest.raises(NotReadyError, match="draining"):
                await asyncio.wait_for(waiting, 10)
        with pytest.raises(TooLargeError):
            await batcher.reserve_when_free(2)

    asyncio.run(run())


def test_patient_items_still_have_a_deadline(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1, max_queue_size=1, queue_timeout_ms=1))

    async def run():
        first = await batcher.reserve_when_free(1)  # patient too, or it may be late on a busy machine
        running = asyncio.ensure_future(first.submit([1]))
        while not device.reached.acquire(blocking=False):
            await asyncio.sleep(0.001)
        places = await batcher.reserve_when_free(1)
        [outcome] = await places.submit([2], time.monotonic() + 0.05)
        assert isinstance(outcome.error, DeadlineError)
        device.open()
        await running

    asyncio.run(run())
    assert device.batches == [[1]]
