"""How batches and batchers begin and end: warm-up, failures, a thread that dies, drain, close."""

import threading

import pytest

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import BatchLimits, State
from mimic_engine.errors import (
    EngineError,
    NotReadyError,
)
from tests.batching.device import Device, in_thread, submit, submit_into, wait_ready, wait_until


def test_failure_of_run_fails_its_batch_only(make):
    device = Device()
    batcher = make(device)
    device.fail = ValueError("bad graph")
    outcomes = submit(batcher, [1, 2])
    assert all(isinstance(o.error, EngineError) for o in outcomes)
    assert isinstance(outcomes[0].error.__cause__, ValueError)
    device.fail = None
    assert submit(batcher, [3])[0].unwrap() == 6
    assert batcher.alive


def test_wrong_number_of_results_is_an_engine_error(make):
    [outcome] = submit(make(lambda items: []), [1])
    assert isinstance(outcome.error, EngineError)
    assert "0 results for 1 items" in str(outcome.error.__cause__)


def test_death_of_the_thread_fails_everybody_at_once(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    running = in_thread(submit, batcher, [1])
    assert device.reached.acquire(timeout=10)
    queued = in_thread(submit, batcher, [2, 3])
    wait_until(lambda: batcher.queue.waiting == 2)
    device.fail = SystemExit("the driver is gone")
    device.open()
    for outcome in [*running.result(10), *queued.result(10)]:
        assert isinstance(outcome.error, EngineError)
        assert isinstance(outcome.error.__cause__, SystemExit)
    wait_until(lambda: not batcher.alive)
    assert (batcher.queue.state, batcher.queue.waiting) == (State.FAILED, 0)
    assert isinstance(batcher.failure, SystemExit)
    with pytest.raises(NotReadyError, match="died"):
        batcher.queue.reserve(1)
    assert device.batches == [[1]]


def test_warm_up_comes_first_on_the_device_thread(make):
    gate, threads = threading.Event(), []

    def warm_up():
        threads.append(threading.current_thread().name)
        assert gate.wait(10)

    batcher = make(lambda items: threads.append(threading.current_thread().name) or items, warm_up=warm_up)
    with pytest.raises(NotReadyError, match="warming up"):
        batcher.queue.reserve(1)
    assert batcher.busy_s >= 0
    gate.set()
    assert wait_ready(batcher, 10)
    submit(batcher, [1])
    assert threads == ["mimic-device", "mimic-device"]


def test_failed_warm_up_never_gets_ready():
    def warm_up():
        raise RuntimeError("no such graph")

    batcher = Batcher(lambda items: items, warm_up=warm_up)
    assert not wait_ready(batcher, 10)
    assert (batcher.queue.state, str(batcher.failure)) == (State.FAILED, "no such graph")
    assert batcher.close(10)
    assert batcher.queue.state is State.FAILED


def test_heartbeat_shows_the_age_of_the_batch(make):
    device = Device(held=True)
    batcher = make(device)
    assert batcher.busy_s == 0.0
    answer = in_thread(submit, batcher, [1])
    assert device.reached.acquire(timeout=10)
    wait_until(lambda: batcher.busy_s > 0.02)
    device.open()
    answer.result(10)
    assert batcher.busy_s == 0.0


def test_drain_answers_what_was_admitted_and_admits_no_more(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    answers = [in_thread(submit, batcher, [1])]
    assert device.reached.acquire(timeout=10)
    answers.append(in_thread(submit, batcher, [2]))
    wait_until(lambda: batcher.queue.waiting == 1)
    with batcher.queue.reserve(1) as reservation:  # still being prepared when the drain begins
        assert not batcher.queue.drain(0.01)
        drained = in_thread(batcher.queue.drain)
        with pytest.raises(NotReadyError, match="draining"):
            batcher.queue.reserve(1)
        device.open()
        assert [a.result(10)[0].unwrap() for a in answers] == [2, 4]
        assert not drained.done()
        assert submit_into(reservation, [3])[0].unwrap() == 6
    assert drained.result(10)


def refusal_of(submitted):
    """The error that an item met in the queue, or on its way there: it counts as waiting once it has room."""
    try:
        return submitted.result(10)[0].error
    except NotReadyError as error:
        return error


def test_close_refuses_the_waiting_and_finishes_the_running(make):
    device = Device(held=True)
    batcher = make(device, BatchLimits(max_batch_size=1))
    running = in_thread(submit, batcher, [1])
    assert device.reached.acquire(timeout=10)
    queued = in_thread(submit, batcher, [2])
    wait_until(lambda: batcher.queue.waiting == 1)
    with batcher.queue.reserve(1) as reservation:
        closed = in_thread(batcher.close, 10)
        assert isinstance(refusal_of(queued), NotReadyError)
        with pytest.raises(NotReadyError, match="closed"):
            submit_into(reservation, [3])
    device.open()
    assert running.result(10)[0].unwrap() == 2
    assert closed.result(10)
    assert not batcher.alive
    assert device.batches == [[1]]


def test_close_does_not_hang_with_the_device(make):
    device = Device(held=True)
    batcher = make(device)
    running = in_thread(submit, batcher, [1])
    assert device.reached.acquire(timeout=10)
    assert not batcher.close(0.01)
    assert isinstance(running.result(10)[0].error, EngineError)
