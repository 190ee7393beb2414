"""The chain on a GPU: graphs capture, answers are a plain search's, two batches under way change nothing."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
ENTITIES, BATCH = 5003, 5
PRECISIONS = ("fp32", "fp16")
PLACES = ("host", "device")
MODES = ("exact", "certified", "coded")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from benchmarks.gpu_data import World
    from benchmarks.link_cases import Encoders, open_scan
    from benchmarks.published_model import Towers

    world = World.make(torch.device("cuda"), 5)
    encoders = Encoders(tmp_path_factory.mktemp("model"), world, Towers(2, 128), BATCH)
    return encoders, *open_scan(world, ENTITIES, 64, BATCH, 0)


@pytest.fixture(scope="module")
def make(made):
    from benchmarks.link_cases import Bench
    from mimic_engine.chain.torch_device import TorchDevice

    encoders, scan, given = made

    def bench(precision, place):
        device = TorchDevice(torch.device("cuda"))
        graphs = encoders.open("torch", precision, device)
        return Bench.make(encoders, graphs, scan, given, device, place)

    return bench


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_mode_is_one_graph_and_right(make, precision, place):
    bench = make(precision, place)
    for mode in MODES:
        for batch in (1, BATCH):
            bench.check(batch, mode, precision)
    assert all(p.graphs == 1 and not p.launched for p in bench.chain.programs.values())


def test_two_batches_under_way_give_what_each_gives_alone(make):
    from mimic_engine.chain.staging import overlapped

    bench = make("fp32", "host")
    parts = [bench.prepared[i % BATCH : i % BATCH + 1] for i in range(40)]
    parts += [bench.prepared[i % 2 : i % 2 + 3] for i in range(40)]

    def folded(flight):
        return bench.chain.finish(flight, lambda results, fetch: fetch()["mention_cmfu"].copy())

    # Nothing is replaced here: what was folded tells one batch from another.
    bench = type(bench)(*(getattr(bench, n) for n in ("encoders", "scan", "honest", "honest", "given")),
                        bench.pictures, bench.place, bench.prepared)  # fmt: skip
    alone = [folded(bench.start(part, "exact")) for part in parts]
    together = list(overlapped(parts, lambda part: bench.start(part, "exact"), folded))
    near = 1e-4 * np.abs(alone[0]).max()  # a captured product may add up in another order
    assert np.abs(alone[0] - alone[1]).max() > 10 * near
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=near)


def test_pictures_resized_on_either_side_are_the_same_bits(make):
    def pixels(bench):
        bucket = bench.bucket(bench.prepared, "exact")
        bench.answer(bench.prepared, "exact")
        return bench.chain.arrays(bucket)["pixels"].native[:BATCH].cpu().numpy()

    here, there = (pixels(make("fp32", place)) for place in PLACES)
    np.testing.assert_array_equal(there, here)
