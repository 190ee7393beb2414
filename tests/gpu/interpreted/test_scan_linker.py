"""The scorer "cuda" behind the linker, in the interpreter: the answers of the CPU's, and every option's error."""

import shutil
import sys
from contextlib import closing

import numpy as np
import pytest

from mimic_engine import Linker, Mention
from mimic_engine.backends import scan as choose
from mimic_engine.backends.scan import ScanOptions, open_scan
from mimic_engine.errors import DeviceError, DeviceLostError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu import passes as gpu_passes
from mimic_engine.gpu import scan as gpu_scan
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.index.store import Index
from mimic_engine.scan.scan import Scan
from mimic_engine.types import SCORERS
from tests.index.changes import delete

pytestmark = pytest.mark.usefixtures("sorted_topk")
MENTIONS = (Mention("a b", "c a b d"), Mention("j", "j e f"), Mention("", ""))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Triton's interpreter takes tensors of the CPU; few shapes to warm up, few survivors to walk through."""
    monkeypatch.setattr(choose, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_scan, "WARM_MENTIONS", (1, 3))
    monkeypatch.setattr(gpu_scan, "WARM_TOP_K", (1, 10))
    monkeypatch.setattr(gpu_passes, "LEAST_SURVIVORS", 32)
    monkeypatch.setattr(gpu_passes, "FIRST", 16)


@pytest.fixture
def both(tiny_model, tiny_index):
    """The linker under test, and the one over the readable formulas."""
    options = {"threads": 1, "backend": "onnx"}
    with (
        closing(Linker.open(tiny_model, tiny_index, scorer="cuda", **options)) as ours,
        closing(Linker.open(tiny_model, tiny_index, scorer="onnx", **options)) as theirs,
    ):
        yield ours, theirs


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert [c.id for c in one.candidates] == [c.id for c in other.candidates]
        for mine, yours in zip(one.candidates, other.candidates, strict=True):
            assert mine.score == pytest.approx(yours.score, abs=1e-4)
            assert mine.units == pytest.approx(yours.units, abs=1e-4)


def test_links_as_on_the_cpu_in_every_mode(both):
    ours, theirs = both
    assert ours.info()["scorer"] == "triton" and isinstance(ours._scan, CudaScan)
    assert ours.modes == theirs.modes
    for mode in ours.modes:
        same(ours.link(MENTIONS, 4, mode=mode), theirs.link(MENTIONS, 4, mode=mode))
    some = ["E04", "E99", "E00"]
    same(ours.link(MENTIONS, 3, candidates=some), theirs.link(MENTIONS, 3, candidates=some))
    gold = np.array([3, 0, 12])
    np.testing.assert_array_equal(ours.ranks(MENTIONS, gold), theirs.ranks(MENTIONS, gold))
    [explained], [expected] = (one.link(MENTIONS[:1], 2, explain=True) for one in both)
    for mine, yours in zip(explained.candidates, expected.candidates, strict=True):
        assert mine.explanation.attention == pytest.approx(yours.explanation.attention, abs=1e-5)


def test_a_newer_index_is_taken_up(tiny_model, tiny_index, tmp_path):
    shutil.copytree(tiny_index, tmp_path / "index")
    with closing(
        Linker.open(tiny_model, tmp_path / "index", scorer="cuda", placement="host", threads=1)
    ) as old:
        best = old.link(MENTIONS[:1], 1)[0].candidates[0].id
        delete(Index.open(tmp_path / "index"), [best])
        with closing(old.reopened()) as new:
            assert isinstance(new._scan, CudaScan) and new._scan is not old._scan
            assert new._scan._placement == "host"
            assert new.link(MENTIONS[:1], 1)[0].candidates[0].id != best
            assert old.link(MENTIONS[:1], 1)[0].candidates[0].id == best


def test_a_warm_up_searches_every_shape(both, monkeypatch):
    ours, _ = both
    seen, real = set(), CudaScan.search

    def spy(self, mentions, k, **options):
        seen.add((mentions.rows, k, options.get("mode", "certified"), options.get("rows") is None))
        return real(self, mentions, k, **options)

    monkeypatch.setattr(CudaScan, "search", spy)
    mention = ours.featurizer.mentions(MENTIONS[:1])
    assert ours._scan.warm_up(mention, None) == 2 * (2 * len(ours.modes) + 1)
    assert {(b, k, m, True) for b in (1, 3) for k in (1, 10) for m in ours.modes} <= seen
    assert (3, 1, "certified", False) in seen


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA out of memory. Tried to allocate", DeviceError),
        ("Triton Error [CUDA]: misaligned address", DeviceLostError),
    ],
)
def test_a_failure_on_the_device_is_told_and_the_index_comes_back(both, monkeypatch, text, kind):
    ours, theirs = both
    with monkeypatch.context() as broken:
        broken.setattr(CudaScan, "launch", lambda *a, **k: (_ for _ in ()).throw(RuntimeError(text)))
        with pytest.raises(DeviceError) as caught:
            ours.link(MENTIONS, 2)
        assert type(caught.value) is kind
    before = ours._scan.passes
    ours._scan.rebuild()
    assert ours._scan.passes is not before
    same(ours.link(MENTIONS[:1], 2), theirs.link(MENTIONS[:1], 2))


def test_an_index_that_does_not_come_back_fails_every_search(both, monkeypatch):
    ours, _ = both
    with monkeypatch.context() as broken:
        gone = RuntimeError("CUDA error: invalid resource handle")
        broken.setattr(gpu_scan, "DeviceIndex", lambda *a, **k: (_ for _ in ()).throw(gone))
        with pytest.raises(DeviceError, match="invalid resource handle"):
            ours._scan.rebuild()
    with pytest.raises(DeviceError, match="not on the device since it failed"):
        ours.link(MENTIONS, 2)
    ours._scan.rebuild()
    assert ours.link(MENTIONS[:1], 1)


def test_too_little_memory_is_named_when_it_is_opened(tiny_model, tiny_index, monkeypatch):
    monkeypatch.setattr("mimic_engine.gpu.index._free", lambda device: 0)
    with pytest.raises(Exception, match="device memory: 13 entities need"):
        Linker.open(tiny_model, tiny_index, scorer="cuda", threads=1)


def scan_of(folded, model, **options):
    return open_scan([folded.entities], folded.constants, model, ScanOptions(**options))


def test_auto_takes_the_gpu_where_the_encoders_do_and_says_why_not(
    make_folded, tiny_model, monkeypatch, caplog
):
    folded = make_folded(1, 20)
    assert isinstance(scan_of(folded, tiny_model, gpu_encoders=True), CudaScan)
    assert isinstance(scan_of(folded, tiny_model), Scan)
    monkeypatch.setattr("mimic_engine.gpu.index._free", lambda device: 0)
    with closing(scan_of(folded, tiny_model, gpu_encoders=True, threads=1)) as scan:
        assert isinstance(scan, Scan)
    assert "the encoders run on a GPU and the scan does not: device memory" in caplog.text


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    make_folded, tiny_model, monkeypatch, missing, caplog
):
    folded = make_folded(1, 20)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingDependencyError, match=rf"scorer: 'cuda' needs {missing} .*pip install 'mimic-engine\[gpu\]'"
    ):
        scan_of(folded, tiny_model, scorer="cuda")
    with closing(scan_of(folded, tiny_model, gpu_encoders=True, threads=1)) as scan:
        assert isinstance(scan, Scan)
    assert missing in caplog.text


def test_without_a_device_the_error_says_so(make_folded, tiny_model, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a device")
    monkeypatch.setattr(choose, "DEVICE", "cuda")
    with pytest.raises(MissingDependencyError, match=r"CUDA device.*pip install"):
        scan_of(make_folded(1, 20), tiny_model, scorer="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorer": "rocm"}, "scorer: 'rocm' is not one of " + ", ".join(SCORERS)),
        ({"placement": "disk"}, "placement: 'disk'"),
    ],
)
def test_wrong_choices_are_named(make_folded, tiny_model, options, message):
    with pytest.raises(InvalidInputError, match=message):
        scan_of(make_folded(1, 20), tiny_model, **options)
