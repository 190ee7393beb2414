"""The scan behind the linker on a GPU: nothing is compiled after the warm-up, and real faults are told apart."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
ROWS = 3000


@pytest.fixture(scope="module")
def world():
    from benchmarks.gpu.data import World

    return World.make(torch.device("cuda"), 5)


@pytest.fixture(scope="module")
def scan(world):
    from benchmarks.gpu.data import cluster, fold_entities
    from mimic_engine.gpu.scan import CudaScan
    from mimic_engine.scan.terms import ScoreTerms

    entities = fold_entities(world, ROWS, "float16")
    terms = ScoreTerms(np.linspace(-1, 1, ROWS, dtype=np.float32), 3.0)
    return CudaScan((entities,), world.constants, codes=cluster(world, entities, 256), terms=terms)


@pytest.fixture(scope="module")
def mentions(world):
    from benchmarks.gpu.data import fold_mentions

    return fold_mentions(world, torch.arange(64) * 40, 4)


def test_nothing_is_compiled_after_the_warm_up(scan, mentions):
    from triton import knobs

    from tests.gpu.test_terms import names_of

    compiled, names = [], names_of(*range(0, 640, 10), entities=ROWS)
    scan.warm_up(mentions.take([0]), None)
    hook, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, lambda **k: compiled.append(k["repr"])
    try:
        for count in (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64):
            for k in (1, 5, 10, 24, 37, 50, 100):
                for mode in scan.modes:
                    scan.search(mentions.take(list(range(count))), k, mode=mode)
                    scan.search(mentions.take(list(range(count))), k, mode=mode, names=names[:count])
                    scan.search(mentions.take(list(range(count))), k, mode=mode, allowed=np.ones(ROWS, bool))
    finally:
        knobs.runtime.jit_cache_hook = hook
    assert not compiled


def test_names_lift_the_same_entities_in_every_mode(scan, mentions):
    from tests.gpu.test_terms import names_of

    names = names_of(*range(0, 640, 10), entities=ROWS)
    totals = scan.totals(mentions)  # (B, N)
    for row, name in zip(totals, names, strict=True):
        row[name.rows] += name.scores
    totals += np.linspace(-1, 1, ROWS, dtype=np.float32)
    best = np.sort(totals, axis=1)[:, ::-1][:, :10]
    for mode in ("exact", "certified"):
        found = scan.search(mentions, 10, mode=mode, names=names)
        np.testing.assert_allclose(found.scores, best, rtol=0, atol=5e-3)


def test_out_of_memory_is_told_and_the_index_comes_back(scan, mentions, monkeypatch):
    from mimic_engine.errors import DeviceError, DeviceLostError
    from mimic_engine.gpu.scan import CudaScan

    before = scan.search(mentions, 10)
    with monkeypatch.context() as broken:
        broken.setattr(
            CudaScan, "launch", lambda *a, **k: torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        )
        with pytest.raises(DeviceError) as caught:
            scan.search(mentions, 10)
    assert caught.value.reason == "out of memory" and not isinstance(caught.value, DeviceLostError)
    scan.rebuild()
    after = scan.search(mentions, 10)
    np.testing.assert_array_equal(before.rows, after.rows)


STICKY = """
import torch, triton, triton.language as tl
from mimic_engine.errors import DeviceError, DeviceLostError
from mimic_engine.device_errors import device_faults

@triton.jit
def wild(pointer):
    tl.store(pointer + (1 << 45), 1.0)

def attempt(work):
    try:
        with device_faults("scan"):
            work()
            torch.cuda.synchronize()
    except DeviceError as error:
        return type(error).__name__ + ": " + error.reason
    return "fine"

array = torch.zeros(16, device="cuda")
print(attempt(lambda: wild[(1,)](array)))
print(attempt(lambda: torch.zeros(16, device="cuda") + 1))
"""


def test_a_sticky_error_is_lost_for_this_call_and_all_that_follow(tmp_path):
    """In a process of its own, whose context it breaks."""
    script = tmp_path / "sticky.py"
    script.write_text(STICKY)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines() == ["DeviceLostError: its context is broken"] * 2, done.stderr[-2000:]
