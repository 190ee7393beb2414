"""A program: launches first, then as few graphs as there can be, always in order."""

import pytest

from mimic_engine.gpu.pipeline import Program, Stage
from tests.gpu import chain_fakes as fakes

ORDER = ["text", "image", "assemble", "fold", "search"]


@pytest.fixture
def device():
    return fakes.LateDevice()


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
    program = Program(device, stages(device, launched, alone))
    program.run()
    assert ran(device) == ORDER
    assert (program.graphs, program.launched) == (graphs, alone)
    assert launched == ORDER + [name for name in ORDER if name not in alone]  # once more, to be captured
    for _ in range(2):
        launched.clear()
        program.run()
        assert ran(device) == ORDER
        assert launched == list(alone)  # all else is replayed


def test_apart_every_stage_is_a_graph(device):
    program = Program(device, stages(device, [], ("image",)), apart=True)
    heard = []
    program.run()
    ran(device)
    program.run(heard.append)
    assert heard == ORDER
    assert program.graphs == 4


def test_without_graphs_everything_is_launched(device):
    launched = []
    program = Program(device, stages(device, launched), graphs=False)
    program.run()
    program.run()
    assert launched == ORDER * 2
    assert program.launched == tuple(ORDER)


def test_a_capture_that_fails_is_said_and_the_launches_go_on(device, caplog):
    device.fail_capture = RuntimeError("operation not permitted when stream is capturing")
    launched = []
    program = Program(device, stages(device, launched, ("text",)))
    for _ in range(3):
        program.run()
        assert ran(device) == ORDER
    assert program.graphs == 0
    [record] = caplog.records
    assert "image+assemble+fold+search" in record.getMessage() and "not permitted" in record.getMessage()


def test_an_error_of_a_stage_goes_to_the_caller_and_the_next_run_is_whole(device):
    launched = []
    broken = stages(device, launched)
    program = Program(device, broken)
    broken_launch, faults = broken[1].launch, [ValueError("bad graph")]

    def launch():
        if faults:
            raise faults.pop()
        broken_launch()

    program = Program(device, [broken[0], Stage("image", launch), *broken[2:]])
    with pytest.raises(ValueError, match="bad graph"):
        program.run()
    assert ran(device) == ["text"]
    program.run()
    assert ran(device) == ORDER
    assert program.graphs == 1
