"""Work on the device thread that is no batch: between which batches it runs, and whose its errors are."""

import threading

import pytest

from mimic_engine.batching.batcher import Batcher, DeviceTask
from mimic_engine.batching.queue import BatchLimits, State
from mimic_engine.errors import DeviceError, DeviceLostError, EngineError, NotReadyError
from tests.batching.device import in_thread, submit, wait_ready, wait_until

LIMITS = BatchLimits(max_batch_size=1, max_queue_size=64)


@pytest.fixture
def gated():
    """A batcher whose batches wait for ``gate``; ``events`` says what ran."""
    gate, events = threading.Event(), []

    def run(items):
        events.append(items[0])

        def finish():
            assert gate.wait(30)
            return items

        return finish

    batcher = Batcher(run, LIMITS)
    assert wait_ready(batcher, 30)
    yield batcher, gate, events
    gate.set()
    batcher.close(30)


def test_an_idle_device_does_it_at_once_on_its_own_thread(gated):
    batcher, _, _ = gated
    assert batcher.on_device(lambda: threading.current_thread().name).result(30) == "mimic-device"
    wait_until(lambda: batcher.busy_s == 0)


def test_it_goes_before_full_batches_that_wait_and_only_one_before_each(gated):
    batcher, gate, events = gated
    answers = [in_thread(lambda: submit(batcher, [0]))]
    wait_until(lambda: events == [0])
    done = [batcher.on_device(lambda n=n: events.append(n)) for n in ("a", "b")]
    for number in (1, 2):
        answers.append(in_thread(lambda n=number: submit(batcher, [n])))
        wait_until(lambda n=number: batcher.queue.waiting >= n)
    assert events == [0]  # no batch was put behind the first
    gate.set()
    for future in done:
        future.result(30)
    wait_until(lambda: len(events) == 5)
    assert events == [0, "a", 1, "b", 2]


@pytest.mark.parametrize("error", [ValueError("no"), DeviceError("out of memory")])
def test_an_error_is_the_callers_alone(gated, error):
    batcher, gate, _ = gated
    gate.set()

    def fail():
        raise error

    assert batcher.on_device(fail).exception(30) is error
    [outcome] = submit(batcher, [7])
    assert outcome.unwrap() == 7


def test_a_device_that_is_lost_ends_the_thread(gated):
    batcher, _, _ = gated

    def fail():
        raise DeviceLostError("illegal memory access")

    with pytest.raises(DeviceLostError):
        batcher.on_device(fail).result(30)
    wait_until(lambda: batcher.queue.state is State.LOST)
    with pytest.raises(NotReadyError):
        batcher.on_device(fail)


def test_closing_refuses_what_was_not_done(gated):
    batcher, gate, events = gated
    in_thread(lambda: submit(batcher, [0]))
    wait_until(lambda: events == [0])
    waiting = batcher.on_device(lambda: events.append("a"))
    closing = in_thread(lambda: batcher.close(30))
    with pytest.raises(NotReadyError, match="not done"):
        waiting.result(30)
    gate.set()
    assert closing.result(30)
    assert events == [0]


def test_what_was_cancelled_is_not_done():
    done = []
    task = DeviceTask(lambda: done.append(1))
    assert task.future.cancel()
    assert task.run() is None
    task = DeviceTask(lambda: done.append(1))
    assert task.future.cancel()
    task.refuse(NotReadyError("closed"))
    assert not done


def test_nobody_waits_for_work_that_hangs_while_the_batcher_is_closed():
    gate, began = threading.Event(), threading.Event()
    batcher = Batcher(lambda items: items, LIMITS)
    assert wait_ready(batcher, 30)

    def hanging():
        began.set()
        assert gate.wait(30)

    future = batcher.on_device(hanging)
    behind = batcher.on_device(lambda: 1)
    assert began.wait(30)
    assert not batcher.close(0.01)
    with pytest.raises(EngineError, match="the device hung while the service was closed"):
        future.result(0)
    with pytest.raises(NotReadyError, match="not done: "):
        behind.result(0)
    gate.set()
    assert batcher.close(30)  # what it gave in the end is nobody's error
