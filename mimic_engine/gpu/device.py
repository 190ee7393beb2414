"""Device layer under TensorRT and ONNX Runtime: memory, pinned memory, one stream, copies; no torch here.

Two implementations of one small interface: PyCUDA where it is installed,
NVIDIA's ``cuda.core`` otherwise. Both work in the device's primary context, as
the CUDA runtime does, so that torch may use the same device and the same
stream. Nothing is imported before :func:`open_device`.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import logging
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu.layout import Bytes
from mimic_engine.types import DEVICE_LAYERS, DeviceLayer

INSTALL = {
    "pycuda": "pip install 'mimic-engine[pycuda]' (it is compiled then, with the CUDA toolkit)",
    "cuda-core": "pip install 'mimic-engine[gpu]'",
}
_MODULES = {"pycuda": "pycuda.driver", "cuda-core": "cuda.core"}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default one, nor that for it
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory on the device, kept as long as the object; ``native`` is the library's own."""

    address: int
    native: Any


class Device(ABC):
    """One CUDA device with one stream, used from one thread at a time.

    Copies are queued on the stream and return at once; host memory of a copy
    comes from :meth:`pinned` and stays untouched until :meth:`synchronize`.
    """

    layer: DeviceLayer  # which implementation
    architecture: str  # "sm_90"
    stream: int  # CUstream, for libraries that take one

    @abstractmethod
    def activate(self) -> None:
        """Make the device's primary context the calling thread's; before anything else in a thread."""

    @abstractmethod
    def allocate(self, size_bytes: int) -> DeviceMemory:
        """Device memory; BackendError if there is not enough."""

    @abstractmethod
    def pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory, which the device reads and writes itself; the array keeps it."""

    @abstractmethod
    def upload(self, host: Bytes, memory: DeviceMemory) -> None:
        """Queue a copy of pinned memory to the start of device memory."""

    @abstractmethod
    def download(self, memory: DeviceMemory, host: Bytes) -> None:
        """Queue a copy of the start of device memory to pinned memory."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for everything that was queued; raises what went wrong."""


def open_device(layer: DeviceLayer = "auto", index: int = 0) -> Device:
    """Open a device.

    Parameters
    ----------
    layer : "pycuda", "cuda-core", or "auto": PyCUDA where it is installed, else cuda.core.
    index : number of the device.

    Raises
    ------
    InvalidInputError
        If there is no such layer.
    MissingDependencyError
        If the layer that was asked for is not installed, or none is; with the line that installs it.
    BackendError
        If there is no driver, or it is too old, or there is no such device.
    """
    chosen = _installed_layer() if layer == "auto" else layer
    library = import_layer(chosen)
    return PycudaDevice(library, index) if chosen == "pycuda" else CudaCoreDevice(library, index)


def import_layer(layer: DeviceLayer) -> Any:
    """The module of a layer, asked for by name; errors as of :func:`open_device`."""
    if layer not in _MODULES:
        raise InvalidInputError(
            f"device_layer: {layer!r} is not one of {', '.join(DEVICE_LAYERS)}", field="device_layer"
        )
    try:
        return _import(layer)
    except ImportError as error:
        raise MissingDependencyError(
            f"device_layer: {layer!r} needs {_MODULES[layer]} ({error}): {INSTALL[layer]}"
        ) from error


def _installed_layer() -> DeviceLayer:
    try:
        _import("pycuda")
    except ImportError as error:
        if error.name != "pycuda":  # it is there, and lacks something of its own
            logger.warning("device layer: cuda-core, since PyCUDA cannot be imported: %s", error)
        return "cuda-core"
    return "pycuda"


def _import(layer: DeviceLayer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyCUDA warns of the error that it raises
        return importlib.import_module(_MODULES[layer])


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what a library raises into BackendError, with what was tried."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{what}: {type(error).__name__}: {error}") from error


class CudaCoreDevice(Device):
    """A device through NVIDIA's ``cuda.core``."""

    layer = "cuda-core"

    def __init__(self, core: Any, index: int) -> None:
        self._core = core
        with library_errors(f"CUDA device {index}"):
            self._device = core.Device(index)
            self._device.set_current()
            major, minor = self._device.compute_capability
            self._stream = self._device.create_stream()  # non-blocking by default
            self._host_memory = core.LegacyPinnedMemoryResource()
            self.stream = int(self._stream.handle)
        self.architecture = f"sm_{major}{minor}"

    def activate(self) -> None:
        """Set the device's context."""
        with library_errors("device"):
            self._device.set_current()

    def allocate(self, size_bytes: int) -> DeviceMemory:
        """Allocate, and wait until it can be used on any stream."""
        with library_errors(f"{size_bytes} bytes of device memory"):
            native = self._device.allocate(max(1, size_bytes), stream=self._stream)
            self._stream.sync()
            return DeviceMemory(int(native.handle), native)

    def pinned(self, size_bytes: int) -> Bytes:
        """Allocate host memory, and keep its owner with the array."""
        with library_errors(f"{size_bytes} bytes of pinned memory"):
            native = self._host_memory.allocate(max(1, size_bytes))
            memory = (ctypes.c_uint8 * max(1, size_bytes)).from_address(int(native.handle))
        memory.owner = native  # type: ignore[attr-defined]
        return np.ctypeslib.as_array(memory)

    def upload(self, host: Bytes, memory: DeviceMemory) -> None:
        """Copy by addresses."""
        self._copy(memory.address, host.ctypes.data, host.nbytes)

    def download(self, memory: DeviceMemory, host: Bytes) -> None:
        """Copy by addresses."""
        self._copy(host.ctypes.data, memory.address, host.nbytes)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with library_errors("device"):
            self._stream.sync()

    def _copy(self, target: int, source: int, size_bytes: int) -> None:
        with library_errors("copy"):
            at = self._core.Buffer.from_handle
            at(target, size_bytes).copy_from(at(source, size_bytes), stream=self._stream)


class PycudaDevice(Device):
    """A device through PyCUDA."""

    layer = "pycuda"

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self._thread = threading.local()
        with library_errors(f"CUDA device {index}"):
            driver.init()
            device = driver.Device(index)
            major, minor = device.compute_capability()
            self._context = device.retain_primary_context()
            self.activate()
            self._stream = driver.Stream(_NON_BLOCKING)
            self.stream = int(self._stream.handle)
        self.architecture = f"sm_{major}{minor}"

    def activate(self) -> None:
        """Push the context, once in a thread."""
        if not getattr(self._thread, "active", False):
            with library_errors("device"):
                _push_until_the_thread_ends(self._context)
            self._thread.active = True

    def allocate(self, size_bytes: int) -> DeviceMemory:
        """Allocate device memory."""
        with library_errors(f"{size_bytes} bytes of device memory"):
            native = self._driver.mem_alloc(max(1, size_bytes))
            return DeviceMemory(int(native), native)

    def pinned(self, size_bytes: int) -> Bytes:
        """Allocate host memory."""
        with library_errors(f"{size_bytes} bytes of pinned memory"):
            array: Bytes = self._driver.pagelocked_empty(max(1, size_bytes), np.uint8)
            return array

    def upload(self, host: Bytes, memory: DeviceMemory) -> None:
        """Copy to the device."""
        with library_errors("copy"):
            self._driver.memcpy_htod_async(memory.address, host, self._stream)

    def download(self, memory: DeviceMemory, host: Bytes) -> None:
        """Copy from the device."""
        with library_errors("copy"):
            self._driver.memcpy_dtoh_async(host, memory.address, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with library_errors("device"):
            self._stream.synchronize()


class _Pushed:
    """A context on PyCUDA's stack of this thread, taken off when the thread ends or the program does."""

    def __init__(self, context: Any) -> None:
        context.push()
        self._context = context
        if threading.current_thread() is threading.main_thread():
            atexit.register(self._exit)

    def pop(self) -> None:
        """Take it off, once."""
        context, self._context = self._context, None
        if context is not None:
            context.pop()

    __del__ = pop

    def _exit(self) -> None:
        context = self._context
        self.pop()
        context.detach()  # as the primary context that it is, which its destructor would not do


# PyCUDA has a stack a thread, and ends the process where one is not empty when its thread ends. Not of a
# device: one that is dropped by another thread would take the context off that thread's stack.
_stacks = threading.local()


def _push_until_the_thread_ends(context: Any) -> None:
    _stacks.pushed = [*getattr(_stacks, "pushed", ()), _Pushed(context)]
