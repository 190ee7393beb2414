"""The batcher: items become batches within limits, in order, and their results come back."""

import pytest

from mimic_engine.batching.queue import BatchLimits
from mimic_engine.errors import (
    InvalidInputError,
)
from tests.batching.device import Device, in_thread, submit, wait_until


def test_one_item_goes_at_once_and_comes_back(make):
    device = Device()
    batcher = make(device)
    [outcome] = submit(batcher, [21])
    assert outcome.unwrap() == 42
    assert device.batches == [[21]]
    assert outcome.queue_s >= 0
    assert outcome.service_s >= 0


def test_busy_device_collects_and_limits_hold(make):
    device = Device(held=True)
    limits = BatchLimits(max_batch_size=3, max_batch_cost=10, max_queue_size=16)
    batcher = make(device, limits, cost=lambda item: item)
    answers = [in_thread(submit, batcher, [1])]
    assert device.reached.acquire(timeout=10)
    for n, item in enumerate([2, 3, 4, 5, 6, 1], start=1):
        answers.append(in_thread(submit, batcher, [item]))
        wait_until(lambda n=n: batcher.queue.waiting == n)
    device.open()
    assert [a.result(10)[0].unwrap() for a in answers] == [2, 4, 6, 8, 10, 12, 2]
    # size 3 ends [2, 3, 4]; cost 10 ends [5]; first come, first served throughout
    assert device.batches == [[1], [2, 3, 4], [5], [6, 1]]


def test_many_items_of_one_call_spread_over_batches_in_order(make):
    device = Device()
    batcher = make(device, BatchLimits(max_batch_size=4, max_queue_size=13))
    outcomes = submit(batcher, list(range(13)))
    assert [o.unwrap() for o in outcomes] == [2 * i for i in range(13)]
    assert sum(map(len, device.batches)) == 13
    assert max(map(len, device.batches)) <= 4


def test_no_items_is_no_work(make):
    device = Device()
    assert submit(make(device), []) == []
    assert device.batches == []


def test_delay_gathers_a_batch(make):
    device = Device()
    limits = BatchLimits(max_batch_size=2, max_batch_cost=2, max_queue_size=4, max_queue_delay_us=20_000_000)
    batcher = make(device, limits)
    first = in_thread(submit, batcher, [1])
    wait_until(lambda: batcher.queue.waiting == 1)
    second = in_thread(submit, batcher, [2])
    assert (first.result(10)[0].unwrap(), second.result(10)[0].unwrap()) == (2, 4)
    assert device.batches == [[1, 2]]


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


def test_reports_add_up(make):
    reports = []
    device = Device()
    batcher = make(
        device, BatchLimits(max_batch_size=2, max_queue_size=5), cost=lambda _: 3, on_batch=reports.append
    )
    submit(batcher, [1, 2, 3, 4, 5])
    wait_until(lambda: sum(r.size for r in reports) == 5)
    assert all(r.cost == 3 * r.size and len(r.queue_s) == r.size and not r.failed for r in reports)
