"""Two batches under way in the batcher: what overlaps, in which order, and what an error touches."""

import threading
import time

import pytest

from mimic_engine.batching.batcher import Batcher
from mimic_engine.batching.queue import BatchLimits, State
from mimic_engine.batching.recovery import Recovery
from mimic_engine.errors import DeviceError, DeviceLostError, EngineError, NotReadyError
from tests.batching.device import in_thread, submit, submit_into, wait_ready, wait_until

LIMITS = BatchLimits(max_batch_size=2, max_queue_size=64)


class SlowDevice:
    """Doubles integers; a batch is done when it is let go. ``events`` says what happened in which order."""

    def __init__(self):
        self.events, self.gates = [], {}
        self.fail_start, self.fail_finish = set(), set()
        self.most = self.under_way = 0
        self.all_open = False
        self.fault = ValueError  # what a failed finish raises

    def __call__(self, items):
        number = len([e for e in self.events if e.startswith("start")])
        self.events.append(f"start {number}")
        if number in self.fail_start:
            raise self.fault(f"start {number}")
        gate = self.gates.setdefault(number, threading.Event())
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def finish():
            if not self.all_open:
                assert gate.wait(30)
            self.under_way -= 1
            self.events.append(f"finish {number}")
            if number in self.fail_finish:
                raise self.fault(f"finish {number}")
            return [2 * item for item in items]

        return finish

    def let_go(self, number):
        self.gates.setdefault(number, threading.Event()).set()

    def open(self):
        self.all_open = True
        for gate in list(self.gates.values()):
            gate.set()


@pytest.fixture
def device():
    return SlowDevice()


@pytest.fixture
def batcher(device):
    made = Batcher(device, LIMITS)
    assert wait_ready(made, 10)
    yield made
    device.open()
    assert made.close(10)


def send(batcher, *items):
    """Queue items of one call; their outcomes are in the future."""
    before = batcher.queue.waiting
    answer = in_thread(submit, batcher, list(items))
    wait_until(lambda: batcher.queue.waiting != before or answer.done() or batcher.busy_s)
    return answer


def seen(device, *events):
    wait_until(lambda: len(device.events) >= len(events))
    assert device.events == list(events)


def test_a_full_batch_is_started_while_the_first_is_on_the_device(device, batcher):
    every = in_thread(submit, batcher, list(range(6)))
    seen(device, "start 0", "start 1")  # and none has been finished
    device.let_go(0)
    seen(device, "start 0", "start 1", "finish 0", "start 2")
    device.let_go(2)  # the device may be as quick as it likes: answers are in order
    device.let_go(1)
    assert [o.unwrap() for o in every.result(10)] == [0, 2, 4, 6, 8, 10]
    assert device.events[4:] == ["finish 1", "finish 2"]
    assert device.most == 2


def test_no_more_than_two_are_under_way_and_the_rest_waits_in_the_queue(device, batcher):
    in_thread(submit, batcher, list(range(9)))
    seen(device, "start 0", "start 1")
    wait_until(lambda: batcher.queue.waiting == 5)
    assert batcher.busy_s > 0
    device.open()
    wait_until(lambda: batcher.queue.waiting == 0 and batcher.busy_s == 0)
    assert device.most == 2


def test_what_is_not_full_grows_until_the_device_is_free(device, batcher):
    first = send(batcher, 1)
    seen(device, "start 0")
    second = in_thread(submit, batcher, [2])
    wait_until(lambda: batcher.queue.waiting == 1)
    assert device.events == ["start 0"]
    device.let_go(0)
    seen(device, "start 0", "finish 0", "start 1")
    device.open()
    assert first.result(10)[0].unwrap() == 2 and second.result(10)[0].unwrap() == 4


@pytest.mark.parametrize("where", ["start", "finish"])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_batch_does_not_touch_the_other(device, batcher, where, broken):
    getattr(device, f"fail_{where}").add(broken)
    with batcher.queue.reserve(4) as reservation:
        answer = in_thread(submit_into, reservation, [10, 11, 12, 13])
        wait_until(lambda: "start 1" in device.events)
        device.open()
        outcomes = answer.result(10)
    bad, good = (outcomes[:2], outcomes[2:]) if broken == 0 else (outcomes[2:], outcomes[:2])
    assert all(
        isinstance(o.error, EngineError) and str(o.error.__cause__) == f"{where} {broken}" for o in bad
    )
    assert [o.unwrap() for o in good] == ([24, 26] if broken == 0 else [20, 22])
    assert batcher.alive and batcher.queue.state is State.READY
    assert submit(batcher, [5])[0].unwrap() == 10


def test_draining_answers_what_is_under_way_and_what_waits(device, batcher):
    answer = in_thread(submit, batcher, list(range(7)))
    seen(device, "start 0", "start 1")
    drained = in_thread(batcher.queue.drain, 20)
    wait_until(lambda: batcher.queue.state is State.DRAINING)
    assert not drained.done()
    device.open()
    assert drained.result(10)
    assert [o.unwrap() for o in answer.result(10)] == [2 * i for i in range(7)]


def test_closing_ends_what_is_under_way_and_refuses_what_waits(device, batcher):
    answer = in_thread(submit, batcher, list(range(7)))
    seen(device, "start 0", "start 1")
    closed = in_thread(batcher.close, 20)
    wait_until(lambda: batcher.queue.state is State.CLOSED)
    device.open()
    assert closed.result(10)
    outcomes = answer.result(10)
    assert [o.unwrap() for o in outcomes[:4]] == [0, 2, 4, 6]
    assert all(isinstance(o.error, NotReadyError) for o in outcomes[4:])
    assert device.events == ["start 0", "start 1", "finish 0", "finish 1"]


def test_a_device_that_hangs_fails_both_batches_when_it_is_closed(device, batcher):
    answer = in_thread(submit, batcher, list(range(4)))
    seen(device, "start 0", "start 1")
    assert not batcher.close(0.05)
    assert all("hung" in str(o.error) for o in answer.result(10))


def test_death_while_two_are_under_way_fails_everybody(device):
    def run(items):
        if device.events:
            raise SystemExit(1)
        return device(items)

    batcher = Batcher(run, LIMITS)
    assert wait_ready(batcher, 10)
    outcomes = submit(batcher, list(range(5)))
    assert all(isinstance(o.error, EngineError) for o in outcomes)
    assert batcher.queue.state is State.FAILED


def test_service_time_leaves_out_the_wait_behind_another_batch(device):
    reports = []
    batcher = Batcher(device, LIMITS, on_batch=reports.append)
    assert wait_ready(batcher, 10)
    began = time.monotonic()
    answer = in_thread(submit, batcher, list(range(4)))
    seen(device, "start 0", "start 1")
    threading.Event().wait(0.1)
    device.open()
    answer.result(10)
    assert batcher.close(10)
    assert [r.size for r in reports] == [2, 2]
    assert 0.1 <= reports[0].service_s + reports[1].service_s <= time.monotonic() - began


def test_the_service_overlaps_a_linker_that_can(device):
    from mimic_engine.server.service import LinkItem, _run

    class Linker:
        def link_prepared(self, prepared):
            return [f"{p} now" for p in prepared]

        start_prepared = link_prepared

    class Late(Linker):
        def start_prepared(self, prepared):
            return lambda: [f"{p} later" for p in prepared]

    def items(*linkers):
        return [LinkItem(linker, i, 1) for i, linker in enumerate(linkers)]

    late, plain = Late(), Linker()
    assert _run(items(late, late))() == ["0 later", "1 later"]
    assert _run(items(plain, plain)) == ["0 now", "1 now"]
    assert _run(items(late, Late(), plain)) == ["0 now", "1 now", "2 now"]  # several states of the index


def test_a_device_is_taken_up_anew_once_and_only_when_nothing_is_under_way(device):
    device.fault, device.fail_finish = DeviceError, {0, 1}
    recovery = Recovery(lambda: device.events.append("rebuild"))
    batcher = Batcher(device, LIMITS, recovery=recovery)
    assert wait_ready(batcher, 10)
    answer = in_thread(submit, batcher, [1, 2, 3, 4, 5])  # the last waits: it is no full batch
    seen(device, "start 0", "start 1")
    device.let_go(0)
    wait_until(lambda: batcher.queue.state is State.RECOVERING)
    with pytest.raises(NotReadyError, match="recovering"):
        submit(batcher, [6])
    assert not answer.done()
    device.let_go(1)
    errors = [outcome.error for outcome in answer.result(10)]
    assert [isinstance(error, DeviceError) for error in errors] == [True] * 4 + [False]
    assert isinstance(errors[4], NotReadyError)
    assert wait_ready(batcher, 10)
    assert device.events == ["start 0", "start 1", "finish 0", "finish 1", "rebuild"]
    device.open()
    assert [o.value for o in submit(batcher, [7])] == [14]
    assert batcher.recoveries == 1
    assert batcher.close(10)


def test_a_device_that_is_lost_ends_the_thread_and_answers_everybody(device):
    device.fault, device.fail_finish = DeviceLostError, {0}
    batcher = Batcher(device, LIMITS, recovery=Recovery(lambda: pytest.fail("nothing to rebuild")))
    assert wait_ready(batcher, 10)
    answer = in_thread(submit, batcher, [1, 2, 3, 4])
    seen(device, "start 0", "start 1")
    device.let_go(0)
    errors = [outcome.error for outcome in answer.result(10)]
    assert all(isinstance(error, DeviceLostError) for error in errors)
    wait_until(lambda: not batcher.alive)
    assert batcher.queue.state is State.LOST
    device.open()
    batcher.close(10)


def test_nothing_is_begun_on_a_device_that_has_failed_behind_a_batch_under_way(device):
    device.fault, device.fail_start = DeviceError, {1}
    recovery = Recovery(lambda: device.events.append("rebuild"))
    batcher = Batcher(device, LIMITS, recovery=recovery)
    assert wait_ready(batcher, 10)
    answer = in_thread(submit, batcher, [1, 2, 3, 4, 5, 6])
    seen(device, "start 0", "start 1")
    device.let_go(0)
    outcomes = answer.result(10)
    assert [o.value for o in outcomes[:2]] == [2, 4]
    assert all(isinstance(o.error, DeviceError) for o in outcomes[2:4])
    assert all(isinstance(o.error, NotReadyError) for o in outcomes[4:])
    assert wait_ready(batcher, 10)
    assert device.events == ["start 0", "start 1", "finish 0", "rebuild"]
    device.open()
    assert batcher.close(10)
