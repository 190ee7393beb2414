"""The GPU kernels on a GPU: every kernel against its twin, and the searches against each other."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def world():
    from benchmarks.gpu.data import World

    return World.make(torch.device("cuda"), 5)


@pytest.mark.parametrize("size", [(1, 1), (257, 5), (16, 64), (1031, 3)], ids=str)
def test_every_kernel_equals_its_twin(world, size):
    from benchmarks.gpu.checks import run_checks

    checks = list(run_checks(world, (size,), seed=3))
    assert not [c for c in checks if isinstance(c, Exception) or not c.passed]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_certified_is_exact_and_coded_is_near(world, dtype, placement):
    from benchmarks.gpu.data import cluster, fold_entities, fold_mentions
    from mimic_engine.gpu.scan import CudaScan

    entities = fold_entities(world, 5000, dtype)
    mentions = fold_mentions(world, torch.arange(9) * 500, 4)
    book = cluster(world, entities, 256)
    scan = CudaScan((entities,), world.constants, codes=book, placement=placement, chunk_rows=1500)
    exact = scan.search(mentions, 10, mode="exact")
    certified = scan.search(mentions, 10, mode="certified")
    np.testing.assert_array_equal(certified.rows, exact.rows)
    np.testing.assert_allclose(certified.scores, exact.scores, rtol=0, atol=1e-5)
    coded = scan.search(mentions, 10, mode="coded", rerank=512)
    assert (coded.rows[:, 0] == exact.rows[:, 0]).mean() >= 0.8
    bounded, scored = scan.prepare(mentions, "certified"), scan.prepare(mentions, "exact")
    for chunk in scan.index.chunks(1500, queries=True):
        bounds = scan.passes.bounds(bounded, chunk).clone()
        assert (bounds >= scan.passes.totals(scored, chunk)).all()


def test_a_search_can_be_captured_and_replayed(world):
    from benchmarks.gpu.data import fold_entities, fold_mentions
    from mimic_engine.gpu.scan import CudaScan

    scan = CudaScan((fold_entities(world, 3000, "float16"),), world.constants)
    prepared = scan.prepare(fold_mentions(world, torch.arange(4), 4), "certified")
    plain = scan.launch(prepared, 10, "certified").rows.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = scan.launch(prepared, 10, "certified")
    found.rows.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.rows[:, :10], plain[:, :10])
