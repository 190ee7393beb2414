"""The device layer: memory, streams, events, graphs and kernel launches, on cuda.core or PyCUDA.

One small interface (:class:`Device`) under the TensorRT session and the CUDA
kernels. Nothing is imported before :func:`open_device`. Buffers speak
``__cuda_array_interface__``, so torch, CuPy and ONNX Runtime take them without
a copy. Both implementations use the device's primary context, as they do.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError

INSTALL = "pip install 'mimic-engine[gpu]'"
BACKENDS = ("cuda.core", "pycuda")


@dataclass(frozen=True, slots=True)
class Stream:
    """A queue of work on the device."""

    handle: int  # CUstream, for libraries that take one
    native: Any


@dataclass(frozen=True, slots=True)
class Buffer:
    """Device memory."""

    address: int
    size_bytes: int
    native: Any

    def view(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """The memory as an array of a shape, from its start, for libraries that take device arrays."""
        return DeviceArray(self, tuple(shape), np.dtype(dtype))


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A shaped view of a buffer, exchanged by ``__cuda_array_interface__`` (version 3)."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.buffer.address, False),
            "version": 3,
        }


class Device(ABC):
    """One CUDA device, from one thread at a time.

    Copies and launches are queued on a stream and return at once; host memory
    of a copy must come from :meth:`pinned` and stay untouched until the stream
    has got there.
    """

    name: str  # of the library under it
    architecture: str  # "sm_90"

    def __init__(self) -> None:
        self._pinned: dict[int, object] = {}  # address -> what keeps the memory
        self._thread = threading.local()

    def activate(self) -> None:
        """Make the device the calling thread's; needed once in a thread other than the one that opened it."""
        if not getattr(self._thread, "active", False):
            self._make_current()
            self._thread.active = True

    @abstractmethod
    def _make_current(self) -> None:
        """Make the device's primary context the calling thread's."""

    @abstractmethod
    def stream(self) -> Stream:
        """Make a stream."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Wait until everything queued on a stream is done; raises what went wrong there."""

    @abstractmethod
    def record(self, stream: Stream) -> Any:
        """An event that happens when the stream gets here."""

    @abstractmethod
    def wait(self, stream: Stream, event: Any) -> None:
        """Hold what is queued on a stream from now on until an event has happened."""

    @abstractmethod
    def allocate(self, size_bytes: int) -> Buffer:
        """Device memory, kept until the buffer goes; BackendError if there is not enough."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked host array, which the device reads and writes itself."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        address, owner = self._allocate_pinned(size)
        self._pinned[address] = owner
        return np.frombuffer(host_memory(address, size), dtype, count=int(np.prod(shape))).reshape(shape)

    def upload(self, host: NDArray[Any], buffer: Buffer, stream: Stream) -> None:
        """Queue a copy of a pinned array (or its first rows) to the start of a buffer."""
        self._check_copy(host, buffer)
        self._copy(buffer.address, host.ctypes.data, host.nbytes, stream, to_device=True)

    def download(self, buffer: Buffer, host: NDArray[Any], stream: Stream) -> None:
        """Queue a copy of the start of a buffer to a pinned array (or its first rows)."""
        self._check_copy(host, buffer)
        self._copy(host.ctypes.data, buffer.address, host.nbytes, stream, to_device=False)

    @abstractmethod
    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        """A graph of what ``work`` queues on a stream; it is not run yet. Memory that it names must stay."""

    @abstractmethod
    def replay(self, graph: Any, stream: Stream) -> None:
        """Queue a captured graph."""

    @abstractmethod
    def kernel(self, cubin: bytes, name: str) -> Any:
        """A kernel of a compiled module."""

    @abstractmethod
    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
        stream: Stream,
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Queue a kernel; arguments are NumPy scalars (``np.uint64`` of an address for a pointer)."""

    @abstractmethod
    def _allocate_pinned(self, size_bytes: int) -> tuple[int, object]:
        """Address of page-locked memory, and what keeps it."""

    @abstractmethod
    def _copy(self, target: int, source: int, size: int, stream: Stream, *, to_device: bool) -> None:
        """Queue a copy between addresses."""

    def _check_copy(self, host: NDArray[Any], buffer: Buffer) -> None:
        if host.ctypes.data not in self._pinned or not host.flags.c_contiguous:
            raise InvalidInputError("copy: the host array is not a contiguous array from pinned()")
        if host.nbytes > buffer.size_bytes:
            raise InvalidInputError(f"copy: {host.nbytes} bytes, the buffer holds {buffer.size_bytes}")


def host_memory(address: int, size_bytes: int) -> memoryview[int]:
    """Host memory at an address, as bytes."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address))


def open_device(backend: str = "cuda.core", index: int = 0) -> Device:
    """Open a device through cuda.core (the default) or PyCUDA.

    Raises
    ------
    InvalidInputError
        If there is no such backend.
    MissingDependencyError
        If its package is not installed; with the line that installs it.
    BackendError
        If there is no driver, or it is too old, or there is no such device.
    """
    if backend not in BACKENDS:
        raise InvalidInputError(f"device backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "cuda.core":
        return CoreDevice(index)
    from mimic_engine.device_pycuda import PycudaDevice

    return PycudaDevice(index)


def import_library(module: str, install: str) -> Any:
    """A module that an extra brings; MissingDependencyError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{module} cannot be imported ({error}): {install}") from error


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what a library raises into BackendError, with what was tried."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{what}: {type(error).__name__}: {error}") from error


class CoreDevice(Device):
    """A device through NVIDIA's ``cuda.core``."""

    name = "cuda.core"

    def __init__(self, index: int) -> None:
        super().__init__()
        core = self._core = import_library("cuda.core", INSTALL)
        with library_errors(f"CUDA device {index}"):
            self._device = core.Device(index)
            self.activate()
            major, minor = self._device.compute_capability
            self._own = self._device.create_stream()  # for allocations
            self._host_memory = core.LegacyPinnedMemoryResource()
        self.architecture = f"sm_{major}{minor}"

    def _make_current(self) -> None:
        with library_errors("device"):
            self._device.set_current()

    def stream(self) -> Stream:
        """Make a stream."""
        with library_errors("stream"):
            native = self._device.create_stream()
            return Stream(int(native.handle), native)

    def synchronize(self, stream: Stream) -> None:
        """Wait for a stream."""
        with library_errors("device"):
            stream.native.sync()

    def record(self, stream: Stream) -> Any:
        """Record an event."""
        with library_errors("event"):
            return stream.native.record()

    def wait(self, stream: Stream, event: Any) -> None:
        """Wait for an event on the device."""
        with library_errors("event"):
            stream.native.wait(event)

    def allocate(self, size_bytes: int) -> Buffer:
        """Allocate device memory."""
        with library_errors(f"{size_bytes} bytes of device memory"):
            native = self._device.allocate(size_bytes, stream=self._own)
            self._own.sync()
            return Buffer(int(native.handle), size_bytes, native)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        """Capture a graph."""
        with library_errors("graph capture"):
            builder = stream.native.create_graph_builder()
            builder.begin_building()
            try:
                work()
            finally:
                builder.end_building()
            return builder.complete()

    def replay(self, graph: Any, stream: Stream) -> None:
        """Queue a graph."""
        with library_errors("graph launch"):
            graph.launch(stream.native)

    def kernel(self, cubin: bytes, name: str) -> Any:
        """Load a kernel."""
        with library_errors(f"kernel {name}"):
            return self._core.ObjectCode.from_cubin(cubin).get_kernel(name)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
        stream: Stream,
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Queue a kernel."""
        with library_errors("kernel launch"):
            config = self._core.LaunchConfig(grid=grid, block=block, shmem_size=shared_bytes)
            self._core.launch(stream.native, config, kernel, *arguments)

    def _allocate_pinned(self, size_bytes: int) -> tuple[int, object]:
        with library_errors(f"{size_bytes} bytes of pinned memory"):
            native = self._host_memory.allocate(size_bytes)
            return int(native.handle), native

    def _copy(self, target: int, source: int, size: int, stream: Stream, *, to_device: bool) -> None:
        del to_device  # unified addresses say it
        with library_errors("copy"):
            from_handle = self._core.Buffer.from_handle
            from_handle(target, size).copy_from(from_handle(source, size), stream=stream.native)
