"""Two batches under way on a device that runs late: numbers, order, slots, errors."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.gpu.layout import Layout
from mimic_engine.gpu.pipeline import SLOTS, Chain, Layouts, Stage, overlapped
from tests.gpu import chain_fakes as fakes


@dataclass(frozen=True)
class Rows:
    rows: int


class Doubling:
    """Folds x to 2 x, and answers with 2 x + 1."""

    largest = Rows(4)

    def __init__(self, device, fail=None):
        self.device, self.made, self.fail = device, [], fail

    def layouts(self, bucket):
        def layout(name):
            return Layout({name: ((bucket.rows, 3), np.float32)})

        return Layouts(layout("x"), layout("half"), layout("folded"), layout("answer"))

    def stages(self, bucket, arrays):
        self.made.append(bucket)
        native = {name: placed.native for name, placed in arrays.items()}

        def fold():
            assert self.device.inside, "launched on another stream"
            if self.fail:
                raise self.fail
            self.device.queue("fold", lambda: np.multiply(native["x"], 2, out=native["folded"]))

        def search():
            self.device.queue("search", lambda: np.add(native["folded"], 1, out=native["answer"]))

        return [Stage("fold", fold), Stage("search", search)]


@pytest.fixture
def device():
    return fakes.LateDevice()


@pytest.fixture
def chain(device):
    return Chain(device, Doubling(device))


def values(seed, rows):
    return np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)


def start(chain, x):
    def fill(host):
        host["x"][...] = x

    return chain.start(Rows(len(x)), fill)


def answer(chain, flight):
    return chain.finish(flight, lambda results, folded: results["answer"].copy())


def test_batches_of_any_bucket_in_any_order_are_right(chain):
    under_way = []
    for number, rows in enumerate([1, 4, 3, 4, 1, 2, 4, 3, 3]):
        if len(under_way) == SLOTS:
            x, flight = under_way.pop(0)
            np.testing.assert_array_equal(answer(chain, flight), 2 * x + 1)
        x = values(number, rows)
        under_way.append((x, start(chain, x)))
    for x, flight in under_way:
        np.testing.assert_array_equal(answer(chain, flight), 2 * x + 1)
    assert chain.free == SLOTS
    assert sorted(b.rows for b in chain.recipe.made) == [1, 2, 3, 4]  # one program a bucket


def test_the_second_may_be_finished_before_the_first(chain):
    first, second = values(1, 3), values(2, 4)
    flights = start(chain, first), start(chain, second)
    np.testing.assert_array_equal(answer(chain, flights[1]), 2 * second + 1)
    np.testing.assert_array_equal(answer(chain, flights[0]), 2 * first + 1)


def test_the_next_batch_is_staged_while_the_device_works(chain, device):
    start(chain, values(1, 2))
    assert device.log == ["queue upload"]  # and nothing has happened on the device
    flight = start(chain, values(2, 2))
    assert device.log == ["queue upload"] * 2
    answer(chain, flight)
    one = ["wait", "upload", "copy", "fold", "search", "copy", "download", "mark"]
    assert device.log == ["queue upload"] * 2 + one * 2


def test_a_third_batch_has_no_slot(chain):
    flights = [start(chain, values(i, 2)) for i in range(SLOTS)]
    assert chain.free == 0
    with pytest.raises(EngineError, match="all 2 slots"):
        start(chain, values(9, 2))
    answer(chain, flights[0])
    assert chain.free == 1
    with pytest.raises(InvalidInputError, match="finished before"):
        answer(chain, flights[0])


def test_what_was_folded_is_that_batchs_own(chain):
    x, y = values(1, 3), values(2, 4)
    first, second = start(chain, x), start(chain, y)
    answer(chain, second)  # the shared arrays hold the second batch by now
    folded = chain.finish(first, lambda results, fetch: fetch()["folded"].copy())
    np.testing.assert_array_equal(folded, 2 * x)


def test_a_fault_in_one_batch_leaves_the_other_alone(device):
    recipe = Doubling(device)
    chain = Chain(device, recipe)
    x = values(1, 3)
    good = start(chain, x)
    recipe.fail = ValueError("no engine")
    with pytest.raises(ValueError, match="no engine"):
        start(chain, values(2, 2))
    assert chain.free == 1
    np.testing.assert_array_equal(answer(chain, good), 2 * x + 1)
    recipe.fail = None
    np.testing.assert_array_equal(answer(chain, start(chain, x)), 2 * x + 1)


def test_a_fault_while_filling_or_reading_frees_the_slot(chain):
    def broken(*_):
        raise KeyError("pixels")

    with pytest.raises(KeyError):
        chain.start(Rows(2), broken)
    assert chain.free == SLOTS
    flight = start(chain, values(1, 2))
    with pytest.raises(KeyError):
        chain.finish(flight, broken)
    assert chain.free == SLOTS


def test_a_bucket_beyond_the_largest_is_refused(chain):
    with pytest.raises(InvalidInputError, match="memory: "):
        start(chain, np.zeros((70, 3), np.float32))
    assert chain.free == SLOTS


def test_overlapped_starts_the_next_before_it_finishes_the_last():
    events = []

    def begin(item):
        events.append(f"start {item}")
        return item

    def end(item):
        events.append(f"finish {item}")
        return 10 * item

    assert list(overlapped([1, 2, 3], begin, end)) == [10, 20, 30]
    assert events == ["start 1", "start 2", "finish 1", "start 3", "finish 2", "finish 3"]
    events.clear()
    assert list(overlapped([1, 2, 3], begin, end, depth=1)) == [10, 20, 30]
    assert events == list(itertools.chain.from_iterable((f"start {i}", f"finish {i}") for i in (1, 2, 3)))


@pytest.mark.parametrize("where", ["start", "finish"])
def test_overlapped_leaves_nothing_under_way_after_an_error(where):
    under_way = set()

    def begin(item):
        if where == "start" and item == 2:
            raise ValueError("start")
        under_way.add(item)
        return item

    def end(item):
        under_way.discard(item)
        if where == "finish" and item == 1:
            raise ValueError("finish")
        return item

    with pytest.raises(ValueError, match=where):
        list(overlapped(range(1, 5), begin, end))
    assert not under_way
