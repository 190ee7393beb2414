"""Opening a chain: what is refused before anything is read."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mimic_engine.engine.gpu_open import open_device_linker
from mimic_engine.errors import InvalidInputError, MissingDependencyError


def test_a_backend_that_is_not_chained_is_named():
    with pytest.raises(InvalidInputError, match="'onnx' is not one of cuda, tensorrt"):
        open_device_linker("model", "index", backend="onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so():
    with pytest.raises(MissingDependencyError, match="CUDA device"):
        open_device_linker("model", "index")
