"""Device errors in the batcher: who is told what, when it is ready again, and when only a restart helps."""

import threading
import time
from contextlib import contextmanager

import pytest

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import BatchLimits, State
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeviceError, DeviceLostError, EngineError, InvalidInputError, NotReadyError
from tests.batching.device import submit, submit_into, wait_ready

OOM = DeviceError("text_encoder: out of memory", reason="out of memory")
LIMITS = BatchLimits(max_batch_size=2, max_queue_size=8)


class Device:
    """Doubles integers, or raises what it is told to; rebuilding is counted, may be held, and may fail."""

    def __init__(self, *errors):
        self.errors, self.fail_rebuild = list(errors), []
        self.rebuilt, self.batches = 0, []
        self.rebuilding, self.gate = threading.Semaphore(0), threading.Event()
        self.running, self.permit = threading.Semaphore(0), threading.Event()
        self.gate.set()
        self.permit.set()

    def __call__(self, items):
        self.batches.append(items)
        self.running.release()
        assert self.permit.wait(30)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return [2 * item for item in items]

    def rebuild(self):
        self.rebuilding.release()
        assert self.gate.wait(30)
        if self.fail_rebuild:
            raise self.fail_rebuild.pop(0)
        self.rebuilt += 1


@contextmanager
def running(device, **options):
    recovery = Recovery(device.rebuild, **{"delay_s": 0.0, **options})
    batcher = Batcher(device, LIMITS, recovery=recovery)
    try:
        assert wait_ready(batcher, 10)
        yield batcher
    finally:
        device.gate.set()
        device.permit.set()
        assert batcher.close(10)


def beside(call):
    """What a call in a thread returns or raises."""
    found = []

    def work():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def result():
        thread.join(10)
        assert not thread.is_alive(), "it hangs"
        return found[0]

    return result


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "condition never held"
        time.sleep(0.001)


def wait_for(batcher, state):
    assert wait_ready(batcher, 10) is (state is State.READY)
    assert batcher.queue.state is state


def test_an_error_once_fails_its_callers_and_the_next_batch_works():
    device = Device(OOM)
    device.gate.clear()
    with running(device) as batcher:
        [outcome] = submit(batcher, [1])
        assert isinstance(outcome.error, DeviceError) and not isinstance(outcome.error, DeviceLostError)
        assert str(outcome.error) == "the device failed on a batch: out of memory"
        assert outcome.error.__cause__ is OOM
        assert device.rebuilding.acquire(timeout=10)
        assert batcher.queue.state is State.RECOVERING and batcher.alive
        with pytest.raises(NotReadyError, match="recovering from a device error"):
            submit(batcher, [2])
        device.gate.set()
        wait_for(batcher, State.READY)
        assert submit(batcher, [3])[0].unwrap() == 6
        assert (device.rebuilt, batcher.recoveries) == (1, 1)


def test_who_waits_is_refused_at_once_and_not_put_to_a_device_that_failed():
    device = Device(OOM)
    device.gate.clear()
    device.permit.clear()
    with running(device) as batcher:
        first = beside(lambda: submit(batcher, [1]))
        assert device.running.acquire(timeout=10)
        waiting = beside(lambda: submit(batcher, [2, 3, 4]))
        reservation = batcher.queue.reserve(1)  # somebody who still prepares an item
        until(lambda: batcher.queue.waiting == 4)
        device.permit.set()
        assert isinstance(first()[0].error, DeviceError)
        outcomes = waiting()
        assert all(isinstance(o.error, NotReadyError) for o in outcomes)
        assert "recovering from a device error" in str(outcomes[0].error)
        with pytest.raises(NotReadyError, match="recovering"):
            submit_into(reservation, [5])
        reservation.give_back()
        device.gate.set()
        wait_for(batcher, State.READY)
        assert device.batches == [[1]] and batcher.queue.waiting == 0


def test_attempts_that_fail_are_repeated_with_a_growing_wait(monkeypatch):
    device, waits = Device(OOM), []
    device.fail_rebuild = [OOM, OSError("no driver"), OOM]
    real = Batcher._still_recovering
    monkeypatch.setattr(
        Batcher, "_still_recovering", lambda self, s: (waits.append(s), real(self, s / 1e3))[1]
    )
    with running(device, attempts=4, delay_s=0.5) as batcher:
        submit(batcher, [1])
        wait_for(batcher, State.READY)
        assert waits == [0.5, 1.0, 2.0] and device.rebuilt == 1
        assert submit(batcher, [2])[0].unwrap() == 4


@pytest.mark.parametrize("why", ["for ever", "sticky"])
def test_a_device_that_does_not_come_back_refuses_everybody_and_hangs_nobody(why):
    sticky = DeviceLostError("image_encoder: illegal memory access", reason="its context is broken")
    device = Device(OOM if why == "for ever" else sticky)
    device.fail_rebuild = [OOM] * 9
    with running(device, attempts=3) as batcher:
        [outcome] = submit(batcher, [1])
        assert isinstance(outcome.error, DeviceError)
        wait_for(batcher, State.LOST)
        assert not batcher.alive and isinstance(batcher.failure, DeviceLostError)
        for _ in range(3):
            with pytest.raises(NotReadyError, match="only a restart helps"):
                submit(batcher, [2])
        assert len(device.fail_rebuild) == (6 if why == "for ever" else 9)
        assert batcher.queue.drain(10)
        batcher._thread.join(10)
        assert not batcher._thread.is_alive()


def test_a_context_that_breaks_while_it_is_rebuilt_is_not_tried_again():
    device = Device(OOM)
    device.fail_rebuild = [RuntimeError("CUDA failure 700: an illegal memory access was encountered")] * 9
    with running(device, attempts=5) as batcher:
        submit(batcher, [1])
        wait_for(batcher, State.LOST)
        assert len(device.fail_rebuild) == 8 and "illegal memory access" in str(batcher.failure)


@pytest.mark.parametrize("end", ["close", "drain"])
def test_the_end_does_not_wait_for_the_next_attempt(end):
    device = Device(OOM)
    device.fail_rebuild = [OOM] * 9
    with running(device, attempts=9, delay_s=3600) as batcher:
        submit(batcher, [1])
        assert device.rebuilding.acquire(timeout=10)
        assert (batcher.close if end == "close" else batcher.queue.drain)(10)


def test_draining_lets_who_prepares_finish_on_the_device_that_came_back():
    device = Device(OOM)
    device.permit.clear()
    with running(device) as batcher:
        first, reservation = beside(lambda: submit(batcher, [1])), batcher.queue.reserve(1)
        assert device.running.acquire(timeout=10)
        drained = beside(lambda: batcher.queue.drain(10))
        until(lambda: batcher.queue.state is State.DRAINING)
        device.permit.set()
        assert isinstance(first()[0].error, DeviceError)
        assert submit_into(reservation, [4])[0].unwrap() == 8
        assert drained() and device.rebuilt == 1


def test_other_errors_are_no_reason_to_rebuild():
    device = Device(EngineError("score: not finite"), KeyError("id"))
    with running(device) as batcher:
        for _ in range(2):
            [outcome] = submit(batcher, [1])
            assert type(outcome.error) is EngineError and batcher.queue.state is State.READY
        assert submit(batcher, [2])[0].unwrap() == 4 and device.rebuilt == 0


def test_without_a_recovery_the_next_batch_is_tried_as_it_is():
    batcher = Batcher(Device(OOM), LIMITS)
    assert isinstance(submit(batcher, [1])[0].error, DeviceError) if wait_ready(batcher, 10) else False
    assert submit(batcher, [2])[0].unwrap() == 4
    assert batcher.close(10)


@pytest.mark.parametrize(("option", "value"), [("attempts", 0), ("delay_s", -1.0)])
def test_wrong_limits_are_named(option, value):
    with pytest.raises(InvalidInputError, match=option):
        Recovery(lambda: None, **{option: value})
