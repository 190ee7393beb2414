"""The device through PyCUDA: on the primary context, its graphs by the driver (PyCUDA has none)."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mimic_engine.device import Buffer, Device, Stream, host_memory, import_library, library_errors
from mimic_engine.driver_graphs import DriverGraphs

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
