"""The TensorRT session: engines with pre-bound device buffers and one CUDA graph a bucket. No torch here.

Every tensor has one device buffer and one pinned host buffer of the largest
size it can have. A batch is padded to its bucket, so each bucket has fixed
shapes and addresses, and after its first run is one graph: upload, engine,
download.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.encoding.buckets import LENGTH
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, Shape
from mimic_engine.encoding.onnx import precisions
from mimic_engine.encoding.session import Arrays, GraphSession, RunnableGraph
from mimic_engine.errors import DeviceError, EngineError, InvalidInputError, ModelError
from mimic_engine.gpu.device import Buffer, Device, Stream, open_device
from mimic_engine.gpu.engine_files import FOLDER, EngineRecord, Spans, engine_file
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.tensorrt_library import Library, load_library
from mimic_engine.types import Array


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input or output: device buffer and pinned host memory of its largest size."""

    host: NDArray[Any]  # flat
    buffer: Buffer

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The start of the host memory as an array."""
        return self.host[: prod(shape)].reshape(shape)


@dataclass(slots=True)
class _Bound:
    """One set of shapes, bound to a context; ``graph`` once it was captured."""

    context: Any
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    graph: Any = None


class EngineGraph(RunnableGraph):
    """An engine that is ready to run, from one thread at a time.

    Parameters
    ----------
    title : names it in messages.
    entry : names and shapes of its inputs and outputs.
    library, engine : the library and its deserialised engine.
    device : where it runs.
    profiles : lengths of the free axes that the engine was built for, in its order.
    """

    def __init__(
        self,
        title: str,
        entry: GraphEntry,
        library: Library,
        engine: Any,
        device: Device,
        profiles: tuple[Spans, ...],
    ) -> None:
        super().__init__(title, entry)
        self._trt = library.trt
        self._engine = engine
        self._device = device
        self._profiles = profiles
        self._stream: Stream = device.stream()
        self._check_engine()
        self._tensors = {name: self._allocate(name, shape) for name, shape in self._shapes().items()}
        self._bound: dict[tuple[int, ...], _Bound] = {}

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Rows at the top of each profile."""
        axis = str(next(iter(self.inputs.values()))[0])
        return tuple(sorted({spans[axis][2] for spans in self._profiles}))

    @property
    def runs_until_steady(self) -> int:
        """One that is captured, and one that replays it."""
        return 2

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs, padded to their bucket by repeating the last row."""
        self._device.activate()  # the service opens a session in one thread and runs it in another
        sizes = self._sizes(feeds)
        bound = self._bind(sizes)
        for name, array in feeds.items():
            view = self._tensors[name].view(bound.inputs[name])
            view[: len(array)] = array
            view[len(array) :] = array[-1]
        if bound.graph is not None:
            self._device.replay(bound.graph, self._stream)
        else:
            self._queue(bound)
        self._device.synchronize(self._stream)
        out = {
            name: self._tensors[name].view(shape)[_without_padding(self.outputs[name], sizes)].copy()
            for name, shape in bound.outputs.items()
        }
        if bound.graph is None:  # an engine must have run once before it is captured
            bound.graph = self._device.capture(self._stream, lambda: self._queue(bound))
        return out

    def launcher(self, arrays: Mapping[str, Placed], stream: int) -> Callable[[], None]:
        """A call that queues the engine on arrays at fixed addresses on a stream; it may be captured there.

        Parameters
        ----------
        arrays : all inputs and outputs of the engine, by name; rows as many as a bucket has.
        stream : handle of a stream of the same device (CUstream).

        Raises
        ------
        ModelError
            If the engine has another type or shape for one of them.
        """
        self._device.activate()
        sizes = self._sizes({name: arrays[name] for name in self.inputs})
        bound = self._context(self._profile(sizes), sizes)
        for name, shape in {**bound.inputs, **bound.outputs}.items():
            at, dtype = arrays[name], np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
            if (at.shape, at.dtype) != (tuple(shape), dtype):
                raise ModelError(
                    f"{self.title}: {name} is {dtype} {tuple(shape)}, the chain has {at.dtype} {at.shape}"
                )
            bound.context.set_tensor_address(name, at.address)

        def launch() -> None:
            if not bound.context.execute_async_v3(stream):
                raise DeviceError(f"{self.title}: the engine did not start")

        return launch

    def _queue(self, bound: _Bound) -> None:
        """Upload, engine, download."""
        for name, shape in bound.inputs.items():
            tensor = self._tensors[name]
            self._device.upload(tensor.view(shape), tensor.buffer, self._stream)
        if not bound.context.execute_async_v3(self._stream.handle):
            raise DeviceError(f"{self.title}: the engine did not start")
        for name, shape in bound.outputs.items():
            tensor = self._tensors[name]
            self._device.download(tensor.buffer, tensor.view(shape), self._stream)

    def _sizes(self, feeds: Arrays | Mapping[str, Placed]) -> dict[str, int]:
        """Length of every free axis."""
        return {
            axis: array.shape[i]
            for name, array in feeds.items()
            for i, axis in enumerate(self.inputs[name])
            if isinstance(axis, str)
        }

    def _bind(self, sizes: Mapping[str, int]) -> _Bound:
        """The bucket's context with shapes and addresses set; made on its first use."""
        profile = self._profile(sizes)
        spans = self._profiles[profile]
        sizes = {axis: size if axis == LENGTH else spans[axis][2] for axis, size in sizes.items()}
        key = (profile, *sizes.values())
        if key not in self._bound:
            self._bound[key] = self._context(profile, sizes)
        return self._bound[key]

    def _profile(self, sizes: Mapping[str, int]) -> int:
        for i, spans in enumerate(self._profiles):
            if all(spans[axis][0] <= size <= spans[axis][2] for axis, size in sizes.items()):
                return i
        raise InvalidInputError(
            f"{self.title}: {dict(sizes)} is in none of the engine's profiles {list(self._profiles)}; "
            "build it with larger --profiles"
        )

    def _context(self, profile: int, sizes: Mapping[str, int]) -> _Bound:
        strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise DeviceError(
                f"{self.title}: no execution context: not enough device memory", reason="out of memory"
            )
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise EngineError(f"{self.title}: profile {profile} cannot be chosen")
        inputs = {name: _numbers(shape, sizes) for name, shape in self.inputs.items()}
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{self.title}: {name} cannot have the shape {shape}")
        unset = context.infer_shapes()
        if unset:
            raise EngineError(f"{self.title}: shapes cannot be inferred from {unset}")
        for name, tensor in self._tensors.items():
            context.set_tensor_address(name, tensor.buffer.address)
        outputs = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        return _Bound(context, inputs, outputs)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Largest shape of every tensor."""
        axes = {axis for spans in self._profiles for axis in spans}
        largest = {axis: max(spans[axis][2] for spans in self._profiles) for axis in axes}
        return {n: _numbers(s, largest) for n, s in {**self.inputs, **self.outputs}.items()}

    def _allocate(self, name: str, shape: tuple[int, ...]) -> _Tensor:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        host = self._device.pinned((prod(shape),), dtype)
        return _Tensor(host, self._device.allocate(host.nbytes))

    def _check_engine(self) -> None:
        engine = self._engine
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wanted = {*self.inputs, *self.outputs}
        if found != wanted or engine.num_optimization_profiles != len(self._profiles):
            raise ModelError(
                f"{self.title}: has tensors {sorted(found)} and {engine.num_optimization_profiles} profiles, "
                f"its manifest says {sorted(wanted)} and {len(self._profiles)}"
            )


class TensorRtSession(GraphSession):
    """Encoders and folds of an exported model on TensorRT or TensorRT for RTX."""

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        engines: str | Path | None = None,
        precision: str = "fp32",
        verify: bool = True,
        device: Device | None = None,
    ) -> Self:
        """Open the engines of an exported model.

        Parameters
        ----------
        folder : written by ``export/to_onnx.py``.
        engines : folder that ``export/build_trt.py`` wrote; ``engines`` in ``folder`` by default.
        precision : of the encoder graphs.
        verify : check the SHA-256 of the tokenizer; that of engines is always checked.
        device : where to run; the first one by default.

        Raises
        ------
        ModelError
            If an engine is missing, damaged, or was built from another graph, by another version
            or for another device; with the command that builds it.
        BackendError
            If there is no device.
        MissingDependencyError
            If the library is not installed.
        """
        folder = Path(folder)
        where = folder / FOLDER if engines is None else Path(engines)
        manifest = ModelManifest.read(folder)

        def graphs() -> dict[str, EngineGraph]:
            on = open_device() if device is None else device  # anew: pinned memory stays as long as a device
            on.activate()
            return {
                name: open_engine(folder, where, manifest, name, chosen, on)
                for name, chosen in precisions(precision).items()
            }

        tokenizer = manifest.tokenizer.check(folder, verify=verify)
        return cls(manifest, graphs(), tokenizer, "tensorrt", reopen=graphs)


def open_engine(
    folder: Path, engines: Path, manifest: ModelManifest, name: str, precision: str, device: Device
) -> EngineGraph:
    """Open one engine; errors as in :meth:`TensorRtSession.open`."""
    path = engines / engine_file(name, precision, device.architecture)
    if not path.is_file():
        raise ModelError(
            f"{path}: missing; build it: python export/build_trt.py {folder} {engines} "
            f"--precision {precision} --target {device.architecture}"
        )
    record = EngineRecord.read(path)
    entry = manifest.entry(name, precision)
    record.check_graph(path, folder, manifest.model_hash, entry)
    library = load_library(record.flavour)
    record.check_library(path, folder, library.flavour.name, library.version, device.architecture)
    engine = deserialize(library, path, record)
    if record.stripped:
        if entry.data is not None:
            entry.data.check(folder, verify=True)
        refit(library, engine, entry.onnx.check(folder, verify=True), path)
    return EngineGraph(path.name, entry, library, engine, device, record.profiles)


def deserialize(library: Library, path: Path, record: EngineRecord) -> Any:
    """The engine in a file.

    Raises
    ------
    ModelError
        If the library refuses it.
    """
    runtime = library.trt.Runtime(library.logger)
    if record.version_compatible:
        runtime.engine_host_code_allowed = True  # its own lean runtime; the file's SHA-256 was checked
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ModelError(
            f"{path}: {library.flavour.title} {library.version} cannot read it "
            f"(driver too old, another device, or damaged): {library.logger.take()}"
        )
    return engine


def refit(library: Library, engine: Any, graph: Path, path: Path) -> None:
    """Put the weights of the graph into an engine that was built without them."""
    refitter = library.trt.Refitter(engine, library.logger)
    parser = library.trt.OnnxParserRefitter(refitter, library.logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise ModelError(f"{path}: the weights of {graph.name} do not fit: {library.logger.take()}")


def _without_padding(shape: Shape, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    return tuple(slice(sizes[n] if isinstance(n, str) else n) for n in shape)


def _numbers(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[n] if isinstance(n, str) else n for n in shape)
