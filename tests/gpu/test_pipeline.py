"""Batches under way on a device that runs late, and stages that become graphs: numbers, order, slots, errors."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.gpu.layout import Layout
from mimic_engine.gpu.pipeline import SLOTS, CapturedPipeline, GpuPipeline, overlapped
from mimic_engine.gpu.request import Layouts, Stage
from tests.gpu.pipeline_fakes import LateDevice


@dataclass(frozen=True)
class Rows:
    rows: int
    mode: str = "exact"


class Doubling:
    """A plan that folds x to 2 x and answers with 2 x + 1; a batch is the array x."""

    largest = Rows(4)

    def __init__(self, device, fail=None):
        self.device, self.made, self.fail = device, [], fail
        self.broken = set()

    def bucket(self, x, k, mode):
        return Rows(len(x))

    def fill(self, host, x, names):
        if "fill" in self.broken:
            raise KeyError("pixels")
        host["x"][...] = x

    def layouts(self, bucket):
        def layout(name):
            return Layout({name: ((bucket.rows, 3), np.float32)})

        return Layouts(layout("x"), layout("half"), layout("mention_cmfu"), layout("answer"))

    def stages(self, bucket, arrays):
        self.made.append(bucket)
        native = {name: placed.native for name, placed in arrays.items()}

        def fold():
            assert self.device.inside, "launched on another stream"
            if self.fail:
                raise self.fail
            self.device.queue("fold", lambda: np.multiply(native["x"], 2, out=native["mention_cmfu"]))

        def search():
            self.device.queue("search", lambda: np.add(native["mention_cmfu"], 1, out=native["answer"]))

        return [Stage("fold", fold), Stage("search", search)]

    def answer(self, results, mentions, k, mode, take, names):
        assert self.device.inside, "more is searched on another stream"
        if "answer" in self.broken:
            raise KeyError("rows")
        if k == 0:  # as for a mention that fell short
            return take([mentions - 1]).cmfu
        return results["answer"].copy()


@pytest.fixture
def device():
    return LateDevice()


@pytest.fixture
def pipeline(device):
    return GpuPipeline(device, Doubling(device))


def values(seed, rows):
    return np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)


def start(pipeline, x, k=1):
    return pipeline.start(x, k, "exact")


def test_batches_of_any_bucket_in_any_order_are_right(pipeline):
    under_way = []
    for number, rows in enumerate([1, 4, 3, 4, 1, 2, 4, 3, 3]):
        if len(under_way) == SLOTS:
            x, batch = under_way.pop(0)
            np.testing.assert_array_equal(pipeline.finish(batch), 2 * x + 1)
        x = values(number, rows)
        under_way.append((x, start(pipeline, x)))
    for x, batch in under_way:
        np.testing.assert_array_equal(pipeline.finish(batch), 2 * x + 1)
    assert pipeline.free == SLOTS
    assert sorted(b.rows for b in pipeline.plan.made) == [1, 2, 3, 4]  # stages are made once a bucket


def test_the_second_may_be_finished_before_the_first(pipeline):
    first, second = values(1, 3), values(2, 4)
    batches = start(pipeline, first), start(pipeline, second)
    np.testing.assert_array_equal(pipeline.finish(batches[1]), 2 * second + 1)
    np.testing.assert_array_equal(pipeline.finish(batches[0]), 2 * first + 1)


def test_the_next_batch_is_uploaded_while_the_device_works(pipeline, device):
    start(pipeline, values(1, 2))
    assert device.log == ["queue upload"]  # and nothing has happened on the device
    batch = start(pipeline, values(2, 2))
    assert device.log == ["queue upload"] * 2
    pipeline.finish(batch)
    one = ["wait", "upload", "copy", "fold", "search", "copy", "download", "mark"]
    assert device.log == ["queue upload"] * 2 + one * 2


def test_a_third_batch_has_no_slot(pipeline):
    batches = [start(pipeline, values(i, 2)) for i in range(SLOTS)]
    assert pipeline.free == 0
    with pytest.raises(EngineError, match="all 2 slots"):
        start(pipeline, values(9, 2))
    pipeline.finish(batches[0])
    assert pipeline.free == 1
    with pytest.raises(InvalidInputError, match="finished before"):
        pipeline.finish(batches[0])


def test_what_was_folded_is_that_batchs_own(pipeline):
    x, y = values(1, 3), values(2, 4)
    first, second = start(pipeline, x, k=0), start(pipeline, y)
    pipeline.finish(second)  # the shared arrays hold the second batch by now
    np.testing.assert_array_equal(pipeline.folded(first).cmfu, 2 * x)
    np.testing.assert_array_equal(pipeline.finish(first), 2 * x[2:])


def test_a_fault_in_one_batch_leaves_the_other_alone(pipeline):
    x, plan = values(1, 3), pipeline.plan
    good = start(pipeline, x)
    plan.fail = ValueError("no engine")
    with pytest.raises(ValueError, match="no engine"):
        start(pipeline, values(2, 2))
    assert pipeline.free == 1
    np.testing.assert_array_equal(pipeline.finish(good), 2 * x + 1)
    plan.fail = None
    np.testing.assert_array_equal(pipeline.finish(start(pipeline, x)), 2 * x + 1)


def test_a_fault_while_filling_or_answering_frees_the_slot(pipeline):
    pipeline.plan.broken = {"fill", "answer"}
    with pytest.raises(KeyError, match="pixels"):
        start(pipeline, values(1, 2))
    assert pipeline.free == SLOTS
    pipeline.plan.broken.remove("fill")
    batch = start(pipeline, values(1, 2))
    with pytest.raises(KeyError, match="rows"):
        pipeline.finish(batch)
    assert pipeline.free == SLOTS


def test_a_bucket_beyond_the_largest_is_refused(pipeline):
    with pytest.raises(InvalidInputError, match="memory: "):
        start(pipeline, np.zeros((70, 3), np.float32))
    assert pipeline.free == SLOTS


# -- the stages of a bucket -------------------------------------------------------------------------------

ORDER = ["text", "image", "assemble", "fold", "search"]


def stages(device, launched, alone=()):
    def launch(name):
        launched.append(name)
        device.queue(name, lambda: None)

    return [Stage(name, lambda n=name: launch(n), name not in alone) for name in ORDER]


def ran(device):
    """Names in the order in which the device got them."""
    names = [name for name, _ in device.main]
    device.main.clear()
    return names


@pytest.mark.parametrize(
    ("alone", "graphs"),
    [((), 1), (("text",), 1), (("text", "image", "fold"), 2), (("fold",), 2), (tuple(ORDER), 0)],
)
def test_stages_run_in_order_and_neighbours_become_one_graph(device, alone, graphs):
    launched = []
    captured = CapturedPipeline(device, stages(device, launched, alone))
    captured.run()
    assert ran(device) == ORDER
    assert (captured.graphs, captured.launched) == (graphs, alone)
    assert launched == ORDER + [name for name in ORDER if name not in alone]  # once more, to be captured
    for _ in range(2):
        launched.clear()
        captured.run()
        assert ran(device) == ORDER
        assert launched == list(alone)  # all else is replayed


def test_apart_every_stage_is_a_graph(device):
    captured = CapturedPipeline(device, stages(device, [], ("image",)), apart=True)
    heard = []
    captured.run()
    ran(device)
    captured.run(heard.append)
    assert heard == ORDER
    assert captured.graphs == 4


def test_without_graphs_everything_is_launched(device):
    launched = []
    captured = CapturedPipeline(device, stages(device, launched), graphs=False)
    captured.run()
    captured.run()
    assert launched == ORDER * 2
    assert captured.launched == tuple(ORDER)


def test_a_capture_that_fails_is_said_and_the_launches_go_on(device, caplog):
    device.fail_capture = RuntimeError("operation not permitted when stream is capturing")
    launched = []
    captured = CapturedPipeline(device, stages(device, launched, ("text",)))
    for _ in range(3):
        captured.run()
        assert ran(device) == ORDER
    assert captured.graphs == 0
    [record] = caplog.records
    assert "image+assemble+fold+search" in record.getMessage() and "not permitted" in record.getMessage()


def test_an_error_of_a_stage_goes_to_the_caller_and_the_next_run_is_whole(device):
    launched = []
    broken = stages(device, launched)
    broken_launch, faults = broken[1].launch, [ValueError("bad graph")]

    def launch():
        if faults:
            raise faults.pop()
        broken_launch()

    captured = CapturedPipeline(device, [broken[0], Stage("image", launch), *broken[2:]])
    with pytest.raises(ValueError, match="bad graph"):
        captured.run()
    assert ran(device) == ["text"]
    captured.run()
    assert ran(device) == ORDER
    assert captured.graphs == 1


# -- two at a time ----------------------------------------------------------------------------------------


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
