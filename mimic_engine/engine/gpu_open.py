"""Opens a model and an index as one chain on a GPU."""

from __future__ import annotations

from pathlib import Path

from mimic_engine.backends.scan import DEVICE
from mimic_engine.engine.gpu_linker import DeviceLinker
from mimic_engine.engine.linker import GPU_BACKENDS, Linker
from mimic_engine.errors import (
    InvalidInputError,
    MissingDependencyError,
)
from mimic_engine.gpu.graphs import BoundGraphs, DeviceGraphs, EngineGraphs, SharedGraphs
from mimic_engine.gpu.stream import TorchDevice, cuda_available
from mimic_engine.images import ImageLimits
from mimic_engine.types import PlacementChoice


def open_device_linker(
    model: str | Path,
    index: str | Path,
    *,
    backend: str = "tensorrt",
    precision: str = "fp32",
    placement: PlacementChoice = "auto",
    verify: bool = True,
    image_limits: ImageLimits | None = None,
    engines: str | Path | None = None,
) -> DeviceLinker:
    """Open an exported model and an index built with it, whole requests on the device.

    Parameters
    ----------
    model, index, precision, placement, verify, image_limits, engines : as in ``Linker.open``.
    backend : what runs the encoders in the chain, "cuda" or "tensorrt".

    Raises
    ------
    InvalidInputError
        If the backend is none that is chained.
    MissingDependencyError
        If there is no CUDA device, or the backend's library is not installed.
    ModelError, IndexFormatError, IndexMismatchError, BackendError, EngineError
        As of ``Linker.open``; EngineError too if the index does not fit in the device's memory.
    """
    if backend not in GPU_BACKENDS:
        known = ", ".join(GPU_BACKENDS)
        raise InvalidInputError(f"backend: {backend!r} is not one of {known}", field="backend")
    if not cuda_available():
        raise MissingDependencyError("a chain on the device needs a CUDA device and a CUDA build of torch")
    linker = Linker.open(
        model,
        index,
        backend=backend,
        precision=precision,
        scorer="cuda",
        placement=placement,
        verify=verify,
        image_limits=image_limits,
        engines=engines,
    )
    return chain_over(linker, model, precision=precision, engines=engines, verify=verify)


def chain_over(
    linker: Linker,
    model: str | Path,
    *,
    precision: str = "fp32",
    engines: str | Path | None = None,
    verify: bool = True,
) -> DeviceLinker:
    """A chain over the index, the scan and the backend of a linker whose parts are on the device.

    Parameters
    ----------
    linker : without a cache; the chain takes its place.
    model, precision, engines, verify : that it was opened with.

    Raises
    ------
    BackendError, MissingDependencyError, ModelError
        As of :meth:`DeviceLinker.of`, or if the encoders cannot be opened again on the chain's stream.
    """
    device, backend = TorchDevice.open(DEVICE), linker.featurizer.backend
    graphs = SharedGraphs(
        lambda: _open_graphs(Path(model), device.stream, backend, precision, engines, verify)
    )
    return DeviceLinker.of(linker, graphs, device)


def _open_graphs(
    model: Path, stream: int, backend: str, precision: str, engines: str | Path | None, verify: bool
) -> DeviceGraphs:
    if backend == "cuda":
        return BoundGraphs.open(model, stream, precision=precision, verify=verify)
    where = None if engines is None else Path(engines)
    return EngineGraphs.open(model, stream, engines=where, precision=precision)
