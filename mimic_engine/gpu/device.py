"""The device layer: memory, streams, events, graphs and kernel launches, on cuda.core or PyCUDA.

One small interface (:class:`Device`) under the TensorRT session and the CUDA
kernels. Nothing is imported before :func:`open_device`. Buffers speak
``__cuda_array_interface__``, so torch, CuPy and ONNX Runtime take them without
a copy. Both implementations use the device's primary context, as they do.
"""

from __future__ import annotations

import atexit
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


# The device through PyCUDA: on the primary context, its graphs by the driver (PyCUDA has none).

INSTALL = "pip install 'mimic-engine[pycuda]'"


class _Pushed:
    """A context on PyCUDA's stack of this thread, taken off when the thread ends or the program does."""

    def __init__(self, context: Any) -> None:
        context.push()
        self._pop: Callable[[], None] | None = context.pop
        if threading.current_thread() is threading.main_thread():
            atexit.register(self.pop)

    def pop(self) -> None:
        """Take it off, once."""
        pop, self._pop = self._pop, None
        if pop is not None:
            pop()

    __del__ = pop


_stacks = (
    threading.local()
)  # PyCUDA has one stack a thread, and ends the process where it is not empty at the end


def _push_until_the_thread_ends(context: Any) -> None:
    _stacks.pushed = [*getattr(_stacks, "pushed", ()), _Pushed(context)]


class PycudaDevice(Device):
    """A device through PyCUDA, on the primary context."""

    name = "pycuda"

    def __init__(self, index: int) -> None:
        super().__init__()
        driver = self._driver = import_library("pycuda.driver", INSTALL)
        with library_errors(f"CUDA device {index}"):
            driver.init()
            device = driver.Device(index)
            major, minor = device.compute_capability()
            self._context = device.retain_primary_context()
            self.activate()
        self._graphs = DriverGraphs()  # PyCUDA has none
        self.architecture = f"sm_{major}{minor}"

    def _make_current(self) -> None:
        with library_errors("device"):
            _push_until_the_thread_ends(self._context)

    def stream(self) -> Stream:
        """Make a stream."""
        with library_errors("stream"):
            native = self._driver.Stream()
            return Stream(int(native.handle), native)

    def synchronize(self, stream: Stream) -> None:
        """Wait for a stream."""
        with library_errors("device"):
            stream.native.synchronize()

    def record(self, stream: Stream) -> Any:
        """Record an event."""
        with library_errors("event"):
            return self._driver.Event().record(stream.native)

    def wait(self, stream: Stream, event: Any) -> None:
        """Wait for an event on the device."""
        with library_errors("event"):
            stream.native.wait_for_event(event)

    def allocate(self, size_bytes: int) -> Buffer:
        """Allocate device memory."""
        with library_errors(f"{size_bytes} bytes of device memory"):
            native = self._driver.mem_alloc(size_bytes)
            return Buffer(int(native), size_bytes, native)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        """Capture a graph."""
        with library_errors("graph capture"):
            return self._graphs.capture(stream.handle, work)

    def replay(self, graph: Any, stream: Stream) -> None:
        """Queue a graph."""
        with library_errors("graph launch"):
            graph.launch(stream.handle)

    def kernel(self, cubin: bytes, name: str) -> Any:
        """Load a kernel."""
        with library_errors(f"kernel {name}"):
            return self._driver.module_from_buffer(cubin).get_function(name)

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
            kernel(*arguments, grid=grid, block=block, stream=stream.native, shared=shared_bytes)

    def _allocate_pinned(self, size_bytes: int) -> tuple[int, object]:
        with library_errors(f"{size_bytes} bytes of pinned memory"):
            memory = self._driver.pagelocked_empty(size_bytes, np.uint8)
            return int(memory.ctypes.data), memory

    def _copy(self, target: int, source: int, size: int, stream: Stream, *, to_device: bool) -> None:
        host = np.frombuffer(host_memory(source if to_device else target, size), np.uint8)
        with library_errors("copy"):
            if to_device:
                self._driver.memcpy_htod_async(target, host, stream.native)
            else:
                self._driver.memcpy_dtoh_async(host, source, stream.native)


# CUDA graphs by the driver's own functions, for a library that has streams and no graphs (PyCUDA).
# Holds the six calls from a stream's capture to a graph's launch, and nothing of memory or kernels.
# Handles are plain numbers, so any library's stream will do.

LIBRARY = "libcuda.so.1"
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is their own matter


class DriverGraph:
    """A graph that is ready to be launched; its memory goes with the object."""

    def __init__(self, graphs: DriverGraphs, handle: int) -> None:
        self._graphs, self.handle = graphs, handle

    def launch(self, stream: int) -> None:
        """Queue the graph on a stream (``CUstream``); BackendError if the driver refuses."""
        self._graphs.call("cuGraphLaunch", ctypes.c_void_p(self.handle), ctypes.c_void_p(stream))

    def __del__(self) -> None:
        self._graphs.driver.cuGraphExecDestroy(ctypes.c_void_p(self.handle))


class DriverGraphs:
    """Captures graphs on streams of the context that is current.

    Parameters
    ----------
    driver : the driver's library; the installed one by default.

    Raises
    ------
    BackendError
        If there is no driver.
    """

    def __init__(self, driver: Any = None) -> None:
        try:
            self.driver = ctypes.CDLL(LIBRARY) if driver is None else driver
        except OSError as error:
            raise BackendError(f"{LIBRARY}: no CUDA driver: {error}") from error

    def capture(self, stream: int, work: Callable[[], None]) -> DriverGraph:
        """The graph of what ``work`` queues on a stream (``CUstream``, not the default one); it is not run.

        Raises
        ------
        BackendError
            If the driver refuses something of it.
        """
        self.call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))
        graph = ctypes.c_void_p()
        try:
            work()
        except BaseException:  # a stream must not stay in capture; what work raised says why
            self.driver.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            self._destroy(graph)
            raise
        self.call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            return self._instantiate(graph)
        finally:
            self._destroy(graph)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; BackendError with the error's name unless it succeeds."""
        code = getattr(self.driver, name)(*arguments)
        if code:
            raise BackendError(f"{name}: {self._name(code)}")

    def _instantiate(self, graph: ctypes.c_void_p) -> DriverGraph:
        ready = ctypes.c_void_p()
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        return DriverGraph(self, ready.value or 0)

    def _destroy(self, graph: ctypes.c_void_p) -> None:
        if graph.value:
            self.driver.cuGraphDestroy(graph)

    def _name(self, code: int) -> str:
        name = ctypes.c_char_p()
        self.driver.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name))
        return f"error {code}" if name.value is None else name.value.decode()
