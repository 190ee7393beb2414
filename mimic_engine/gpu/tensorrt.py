"""The TensorRT session: one execution context a bucket, its tensors at fixed addresses. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from mimic_engine.encoding.buckets import LENGTH
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest
from mimic_engine.encoding.onnx import precisions
from mimic_engine.errors import DeviceError, EngineError, InvalidInputError, ModelError
from mimic_engine.gpu.device import Device, open_device
from mimic_engine.gpu.engine_files import FOLDER, EngineRecord, Spans, engine_file
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.session import DeviceGraph, DeviceSession, Launch, Sizes, lengths
from mimic_engine.gpu.tensorrt_library import Library, load_library


class EngineGraph(DeviceGraph):
    """An engine that is ready to run.

    Parameters
    ----------
    title : names it in messages.
    entry : names and shapes of its inputs and outputs.
    library, engine : the library and its deserialised engine.
    device : where it runs, on its stream.
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
        self._trt = library.trt
        self._engine = engine
        self._profiles = profiles
        _check_engine(title, entry, engine, len(profiles))
        dtypes = {
            name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name)))
            for name in (*entry.inputs, *entry.outputs)
        }
        axes = {axis for spans in profiles for axis in spans}
        largest = {axis: max(spans[axis][2] for spans in profiles) for axis in axes}
        super().__init__(title, entry, device, dtypes, largest)

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Rows at the top of each profile."""
        axis = str(next(iter(self.inputs.values()))[0])
        return tuple(sorted({spans[axis][2] for spans in self._profiles}))

    def padded(self, sizes: Sizes) -> Sizes:
        """The top of the profile; texts come at the length of their bucket."""
        spans = self._profiles[self._profile(sizes)]
        return {axis: size if axis == LENGTH else spans[axis][2] for axis, size in sizes.items()}

    def launcher(self, arrays: Mapping[str, Placed]) -> Launch:
        """A call that queues the engine on arrays at fixed addresses; a CUDA graph can hold it.

        Raises
        ------
        ModelError
            If the engine has another type or shape for one of them.
        """
        self.device.activate()
        context = self._context(self.sizes(arrays))
        for name in (*self.inputs, *self.outputs):
            at, shape = arrays[name], tuple(context.get_tensor_shape(name))
            if (at.shape, at.dtype) != (shape, self.dtypes[name]):
                raise ModelError(
                    f"{self.title}: {name} is {self.dtypes[name]} {shape}, not {at.dtype} {at.shape}"
                )
            context.set_tensor_address(name, at.address)

        def launch() -> None:
            if not context.execute_async_v3(self.device.stream):
                raise DeviceError(f"{self.title}: the engine did not start")

        return launch

    def _profile(self, sizes: Sizes) -> int:
        for i, spans in enumerate(self._profiles):
            if all(spans[axis][0] <= size <= spans[axis][2] for axis, size in sizes.items()):
                return i
        raise InvalidInputError(
            f"{self.title}: {dict(sizes)} is in none of the engine's profiles {list(self._profiles)}; "
            "build it with larger --profiles"
        )

    def _context(self, sizes: Sizes) -> Any:
        """An execution context with its shapes set."""
        profile = self._profile(sizes)
        strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise DeviceError(
                f"{self.title}: no execution context: not enough device memory", reason="out of memory"
            )
        if not context.set_optimization_profile_async(profile, self.device.stream):
            raise EngineError(f"{self.title}: profile {profile} cannot be chosen")
        for name, shape in self.inputs.items():
            if not context.set_input_shape(name, lengths(shape, sizes)):
                raise EngineError(f"{self.title}: {name} cannot have the shape {lengths(shape, sizes)}")
        unset = context.infer_shapes()
        if unset:
            raise EngineError(f"{self.title}: shapes cannot be inferred from {unset}")
        return context


def _check_engine(title: str, entry: GraphEntry, engine: Any, profiles: int) -> None:
    """Raise ModelError unless the engine has the tensors and profiles that its manifests name."""
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    wanted = {*entry.inputs, *entry.outputs}
    if found != wanted or engine.num_optimization_profiles != profiles:
        raise ModelError(
            f"{title}: has tensors {sorted(found)} and {engine.num_optimization_profiles} profiles, "
            f"its manifest says {sorted(wanted)} and {profiles}"
        )


class TensorRtSession(DeviceSession):
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
        on = open_device() if device is None else device
        on.activate()

        def graphs() -> dict[str, EngineGraph]:
            return {
                name: open_engine(folder, where, manifest, name, chosen, on)
                for name, chosen in precisions(precision).items()
            }

        return cls(manifest, graphs, manifest.tokenizer.check(folder, verify=verify), "tensorrt", on)


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
