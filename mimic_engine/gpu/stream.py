"""The GPU pipeline's device on torch: memory, two streams, events and CUDA graphs.

The main stream is the encoders' own (:mod:`mimic_engine.gpu.device`), so that
what they queue and what torch and Triton launch run one after the other. On
"cpu" there are no streams; copies happen when they are queued, and a "graph" is
the work itself, called again: that is how kernels are tried in Triton's
interpreter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_engine.device_errors import device_faults
from mimic_engine.gpu.layout import Bytes, Layout, Placed

_TYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class TorchDevice:
    """A device with a main stream that everything runs on, and another for uploads.

    From one thread at a time. What is queued returns at once. Host memory of a
    copy comes from :meth:`pinned`.

    Parameters
    ----------
    device : "cuda", "cuda:1" or "cpu".
    stream : handle of the main stream (CUstream); whoever made it keeps it.
    """

    def __init__(self, device: torch.device, stream: int) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._main = torch.cuda.ExternalStream(stream, device)
            self._uploads = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def current(self) -> AbstractContextManager[object]:
        """Make the main stream torch's, and Triton's, within the block."""
        return torch.cuda.stream(self._main) if self._cuda else contextlib.nullcontext()

    def memory(self, size_bytes: int) -> Tensor:
        """Device memory; DeviceError if there is no room."""
        with device_faults(f"GPU pipeline: {size_bytes / 2**20:.0f} MiB of buffers (--chain off needs none)"):
            zeros = torch.zeros(max(1, size_bytes), dtype=torch.uint8, device=self.device)
            if self._cuda:  # it was cleared on whatever stream was current
                torch.cuda.current_stream(self.device).synchronize()
        return zeros

    def pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory; the array keeps it."""
        return torch.zeros(max(1, size_bytes), dtype=torch.uint8, pin_memory=self._cuda).numpy()

    def place(self, memory: Tensor, layout: Layout) -> dict[str, Placed]:
        """The arrays of a layout at the start of device memory, as tensors."""
        layout.check(memory.numel())
        placed = {}
        for name, f in layout.fields.items():
            part = memory[f.offset : f.offset + f.size_bytes].view(_TYPES[f.dtype]).view(f.shape)
            placed[name] = Placed(part.data_ptr(), f.shape, f.dtype, part)
        return placed

    def upload(self, host: Bytes, memory: Tensor) -> Any:
        """Copy on the upload stream; an event for its end."""
        source = torch.from_numpy(host)
        if not self._cuda:
            memory[: len(host)].copy_(source)
            return None
        with torch.cuda.stream(self._uploads):
            memory[: len(host)].copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._uploads)
        return event

    def wait(self, event: Any) -> None:
        """Hold the main stream."""
        if event is not None:
            self._main.wait_event(event)

    def copy(self, source: Tensor, target: Tensor, size_bytes: int) -> None:
        """Copy within the device."""
        with self.current():
            target[:size_bytes].copy_(source[:size_bytes], non_blocking=True)

    def download(self, memory: Tensor, host: Bytes) -> None:
        """Copy to pinned memory."""
        with self.current():
            torch.from_numpy(host).copy_(memory[: len(host)], non_blocking=True)

    def mark(self) -> Any:
        """Record an event on the main stream."""
        if not self._cuda:
            return None
        event = torch.cuda.Event()
        event.record(self._main)
        return event

    def finish(self, event: Any) -> None:
        """Wait for an event; DeviceError with what went wrong."""
        if event is not None:
            with device_faults("GPU pipeline"):
                event.synchronize()

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture a CUDA graph; other threads go on using the device meanwhile."""
        if not self._cuda:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._main, capture_error_mode="thread_local"):
            work()
        return graph

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        if not self._cuda:
            graph()
            return
        with self.current():
            graph.replay()
