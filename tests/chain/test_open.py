"""Opening a chain: what is refused before anything is read."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mimic_engine.chain.open import CHAINED, chained, open_device_linker
from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError


def test_a_backend_that_is_not_chained_is_named():
    with pytest.raises(InvalidInputError, match="backend: 'onnx' is not chained, only tensorrt, cuda"):
        open_device_linker("model", "index", backend="onnx")


def test_a_place_to_resize_that_there_is_not_is_named():
    with pytest.raises(InvalidInputError, match="resize: 'disk' is not one of host, device"):
        open_device_linker("model", "index", resize="disk")


def test_what_auto_comes_to_must_be_chained():
    assert [chained(name) for name in CHAINED] == ["tensorrt", "cuda"]
    with pytest.raises(BackendError, match="the fastest backend that works here is 'onnx'"):
        chained("onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so():
    with pytest.raises(MissingDependencyError, match="CUDA device"):
        open_device_linker("model", "index")
