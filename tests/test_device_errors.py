"""What the words of a failure mean: the texts are those of CUDA, ONNX Runtime, torch, Triton and PyCUDA."""

import pytest

from mimic_engine.device_errors import device_error, device_faults
from mimic_engine.errors import BackendError, DeviceError, DeviceLostError, EngineError, InvalidInputError

LOST = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a ; expr=cudaStreamSync",
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later",
    "Triton Error [CUDA]: device-side assert triggered",
    "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
    "cuStreamSynchronize failed: unspecified launch failure",
    "CUDA_ERROR_LAUNCH_FAILED",
    "cudaErrorMisalignedAddress",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED: context is destroyed",
    "CUDA error: the launch timed out and was terminated",
)
MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRaw"
    "Internal(size_t) Failed to allocate memory for requested buffer of size 1073741824",
    "cuMemAlloc failed: out of memory",
    "std::bad_alloc",
)
FAILED = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node",
    "CUDA_ERROR_INVALID_VALUE: invalid argument",
    "CUDA error: too many resources requested for launch",
    "CUDA error: no kernel image is available for execution on the device",
    "cuGraphLaunch: CUDA_ERROR_INVALID_HANDLE",
)


@pytest.mark.parametrize("text", LOST)
def test_a_broken_context_is_told_from_what_can_be_mended(text):
    error = device_error("scan", RuntimeError(text))
    assert isinstance(error, DeviceLostError) and error.reason == "its context is broken"
    assert str(error).startswith("scan: its context is broken: RuntimeError: ")


@pytest.mark.parametrize(
    ("text", "reason"), [(t, "out of memory") for t in MEMORY] + [(t, "a run failed") for t in FAILED]
)
def test_other_failures_leave_the_context_whole(text, reason):
    error = device_error("scan", RuntimeError(text))
    assert type(error) is DeviceError and error.reason == reason


def test_the_word_may_stand_in_what_the_error_came_from():
    try:
        try:
            raise RuntimeError(LOST[0])
        except RuntimeError as inner:
            raise BackendError("device: synchronize") from inner
    except BackendError as outer:
        assert isinstance(device_error("graph", outer), DeviceLostError)
    assert device_error("graph", MemoryError()).reason == "out of memory"
    assert isinstance(device_error("again", DeviceLostError("gone")), DeviceLostError)


@pytest.mark.parametrize("error", [InvalidInputError("top_k: 0"), EngineError("scores: not finite")])
def test_our_own_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, device_faults("scan"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), AssertionError("c")])
def test_a_mistake_in_the_program_is_none_of_the_device(error):
    with pytest.raises(type(error)), device_faults("scan"):
        raise error


@pytest.mark.parametrize("error", [BackendError("copy: failed"), RuntimeError("CUDA error"), OSError("a")])
def test_what_a_library_raises_is_a_device_error(error):
    with pytest.raises(DeviceError, match="scan: a run failed") as caught, device_faults("scan"):
        raise error
    assert caught.value.__cause__ is error


def test_a_long_text_is_cut():
    assert len(str(device_error("scan", RuntimeError("x" * 10_000)))) < 400
