"""Whether requests stay on the GPU: what decides, and what is said where they do not."""

import logging
import sys
from types import SimpleNamespace

import pytest

from mimic_engine.backends.pipeline import takes_pipeline
from mimic_engine.encoding.cache import CachingFeaturizer
from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError


class CudaScan:
    scorer_name = "triton"


class OnTheCpu:
    scorer_name = "avx512"


@pytest.fixture(autouse=True)
def gpu_scan(monkeypatch):
    """The module of the GPU scan, without torch."""
    monkeypatch.setitem(sys.modules, "mimic_engine.gpu.scan", SimpleNamespace(CudaScan=CudaScan))


def featurizer(backend="cuda"):
    return SimpleNamespace(backend=backend)


class Remembering(CachingFeaturizer):
    backend = "cuda"

    def __init__(self):
        pass


@pytest.mark.parametrize("choice", ["auto", "on"])
@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_where_encoders_and_scan_are_on_the_gpu_requests_stay_there(choice, backend):
    assert takes_pipeline(choice, featurizer(backend), CudaScan())


def test_off_is_off_and_nothing_is_said(caplog):
    caplog.set_level(logging.INFO)
    assert not takes_pipeline("off", featurizer(), CudaScan())
    assert not caplog.records


@pytest.mark.parametrize(
    ("encoders", "scan", "reason"),
    [
        (featurizer("onnx"), CudaScan(), "the encoders run on 'onnx', not on cuda or tensorrt"),
        (featurizer("torch"), CudaScan(), "the encoders run on 'torch'"),
        (Remembering(), CudaScan(), "mention_cache_bytes=0"),
        (featurizer(), OnTheCpu(), "the scan runs on 'avx512', not on the GPU"),
    ],
)
def test_what_stands_in_the_way_is_said(caplog, encoders, scan, reason):
    caplog.set_level(logging.INFO)
    assert not takes_pipeline("auto", encoders, scan)
    [record] = caplog.records
    assert reason in record.getMessage()
    with pytest.raises(BackendError, match=reason):
        takes_pipeline("on", encoders, scan)


def test_without_its_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mimic_engine.gpu.scan", None)
    assert not takes_pipeline("auto", featurizer(), OnTheCpu())
    with pytest.raises(MissingDependencyError, match=r"torch and Triton .*pip install 'mimic-engine\[gpu\]'"):
        takes_pipeline("on", featurizer(), OnTheCpu())


def test_another_choice_is_refused():
    with pytest.raises(InvalidInputError, match="chain: 'yes' is not one of auto, on, off"):
        takes_pipeline("yes", featurizer(), CudaScan())
