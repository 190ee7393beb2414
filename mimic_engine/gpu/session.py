"""Encoders and folds on the GPU, opened once: for host arrays, and for the GPU pipeline. No torch here.

A backend gives one :class:`DeviceGraph` for each graph of a model, with one way
in: :meth:`~DeviceGraph.launcher`, a call that runs the graph on arrays at fixed
addresses. The session for host arrays is that with a copy before and one
behind; the pipeline chains launchers (:mod:`mimic_engine.gpu.request`). All
graphs of a session share one device and its stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, Shape
from mimic_engine.encoding.session import Arrays, GraphSession, RunnableGraph
from mimic_engine.errors import DeviceError
from mimic_engine.gpu.device import Device
from mimic_engine.gpu.layout import Bytes, Layout, Placed
from mimic_engine.types import Array

Launch = Callable[[], None]
Sizes = Mapping[str, int]  # length of every free axis


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One set of shapes: the graph on its arrays, and their counterparts in pinned memory."""

    launch: Launch
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    sent: Bytes  # all inputs
    received: Bytes  # all outputs


class DeviceGraph(RunnableGraph):
    """A graph on the GPU, from one thread at a time; memory is that of its largest shapes, and never grows.

    Parameters
    ----------
    title : names it in messages.
    entry : names and shapes of its inputs and outputs.
    device : where it runs, on its stream.
    dtypes : of all inputs and outputs.
    largest : length of every free axis at most.
    """

    capturable = True  # whether a CUDA graph can hold what a launcher queues

    def __init__(
        self,
        title: str,
        entry: GraphEntry,
        device: Device,
        dtypes: Mapping[str, np.dtype[Any]],
        largest: Sizes,
    ) -> None:
        super().__init__(title, entry)
        self.device = device
        self.dtypes = dtypes
        sizes = [layout.size_bytes for layout in self._layouts(largest)]
        self._host = [device.pinned(size) for size in sizes]
        self._memory = [device.allocate(size) for size in sizes]
        self._buckets: dict[tuple[int, ...], _Bucket] = {}

    @abstractmethod
    def launcher(self, arrays: Mapping[str, Placed]) -> Launch:
        """A call that queues the graph on arrays at fixed addresses on the device's stream.

        Parameters
        ----------
        arrays : all inputs and outputs of the graph, by name; rows as many as a bucket has.
        """

    @abstractmethod
    def padded(self, sizes: Sizes) -> Sizes:
        """The least sizes that the graph runs at which hold these."""

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs, padded to their bucket by repeating the last row."""
        self.device.activate()  # the service opens a session in one thread and runs it in another
        sizes = self.sizes(feeds)
        bucket = self._bucket(self.padded(sizes))
        for name, array in feeds.items():
            view = bucket.inputs[name]
            view[: len(array)] = array
            view[len(array) :] = array[-1]
        up, down = self._memory
        self.device.upload(bucket.sent, up)
        bucket.launch()
        self.device.download(down, bucket.received)
        self.device.synchronize()
        return {
            name: view[_without_padding(self.outputs[name], sizes)].copy()
            for name, view in bucket.outputs.items()
        }

    def sizes(self, arrays: Arrays | Mapping[str, Placed]) -> dict[str, int]:
        """Length of every free axis, from the inputs."""
        return {
            axis: arrays[name].shape[i]
            for name, shape in self.inputs.items()
            for i, axis in enumerate(shape)
            if isinstance(axis, str)
        }

    def _bucket(self, sizes: Sizes) -> _Bucket:
        """The bucket of these sizes; made on its first use."""
        key = tuple(sizes.values())
        if key not in self._buckets:
            self._buckets[key] = self._new_bucket(sizes)
        return self._buckets[key]

    def _new_bucket(self, sizes: Sizes) -> _Bucket:
        layouts = self._layouts(sizes)
        placed: dict[str, Placed] = {}
        for layout, memory in zip(layouts, self._memory, strict=True):
            placed |= layout.placed(memory.address)
        sent, received = (host[: layout.size_bytes] for layout, host in zip(layouts, self._host, strict=True))
        inputs, outputs = layouts
        return _Bucket(self.launcher(placed), inputs.views(sent), outputs.views(received), sent, received)

    def _layouts(self, sizes: Sizes) -> tuple[Layout, Layout]:
        """Inputs and outputs."""
        inputs, outputs = (
            Layout({name: (lengths(shape, sizes), self.dtypes[name]) for name, shape in shapes.items()})
            for shapes in (self.inputs, self.outputs)
        )
        return inputs, outputs


class DeviceSession(GraphSession):
    """Encoders and folds of an exported model on the GPU.

    Parameters
    ----------
    manifest : of the exported model.
    opened : opens its graphs; once more after a device has failed.
    tokenizer_json : the checked tokenizer file.
    backend : short name for logs and reports.
    device : that all graphs run on.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        opened: Callable[[], Mapping[str, DeviceGraph]],
        tokenizer_json: Path,
        backend: str,
        device: Device,
    ) -> None:
        self.device = device
        self._open = opened
        self._on_device: Mapping[str, DeviceGraph] = opened()
        super().__init__(manifest, self._on_device, tokenizer_json, backend, reopen=self._opened_anew)

    @property
    def graphs(self) -> Mapping[str, DeviceGraph]:
        """The graphs by name, others after a rebuild; DeviceError where they could not be opened again."""
        if not self._on_device:
            raise DeviceError("encoders: not there since the device failed", reason="no session")
        return self._on_device

    def rebuild(self) -> None:
        """Let go of every graph and open all of them anew; errors as of opening."""
        self._on_device = {}
        super().rebuild()

    def _opened_anew(self) -> Mapping[str, DeviceGraph]:
        self.device.activate()
        self._on_device = self._open()
        return self._on_device


def lengths(shape: Shape, sizes: Sizes) -> tuple[int, ...]:
    """A graph's shape with its free axes given."""
    return tuple(sizes[n] if isinstance(n, str) else n for n in shape)


def _without_padding(shape: Shape, sizes: Sizes) -> tuple[slice, ...]:
    return tuple(slice(n) for n in lengths(shape, sizes))
