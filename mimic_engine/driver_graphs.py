"""CUDA graphs by the driver's own functions, for a library that has streams and no graphs (PyCUDA).

Holds the six calls from a stream's capture to a graph's launch, and nothing of
memory or kernels. Handles are plain numbers, so any library's stream will do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from mimic_engine.errors import BackendError

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
