"""Opens a model and an index as one chain on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from mimic_engine.chain.graphs import BoundGraphs, DeviceGraphs, EngineGraphs, SharedGraphs
from mimic_engine.chain.linker import DeviceLinker
from mimic_engine.chain.pictures import PicturePlace
from mimic_engine.chain.torch_device import TorchDevice
from mimic_engine.encoding.open import open_featurizer
from mimic_engine.errors import InvalidInputError, MissingDependencyError
from mimic_engine.images import ImageLimits
from mimic_engine.index.store import Index
from mimic_engine.nil import NilThreshold
from mimic_engine.scoring.cuda_ranker import CudaRanker

CHAINED = ("tensorrt", "cuda")


def open_device_linker(
    model: str | Path,
    index: str | Path,
    *,
    backend: str = "tensorrt",
    precision: str = "fp32",
    resize: PicturePlace = "host",
    verify: bool = True,
    image_limits: ImageLimits | None = None,
    engines: str | Path | None = None,
) -> DeviceLinker:
    """Open an exported model and an index built with it, whole requests on the device.

    Parameters
    ----------
    model, index, precision, verify, image_limits, engines : as in ``Linker.open``.
    backend : what runs the encoders in the chain, one of :data:`CHAINED`.
    resize : where pictures are resized; the pixels are the same.

    Raises
    ------
    InvalidInputError
        If the backend is none that is chained.
    MissingDependencyError
        If there is no CUDA device, or the backend's library is not installed.
    ModelError, IndexFormatError, IndexMismatchError, BackendError, EngineError
        As of ``Linker.open``; EngineError too if the index does not fit in the device's memory.
    """
    if backend not in CHAINED:
        raise InvalidInputError(f"backend: {backend!r} is not one of {', '.join(CHAINED)}", field="backend")
    if not torch.cuda.is_available():
        raise MissingDependencyError("a chain on the device needs a CUDA device and a CUDA build of torch")
    opened = Index.open(index, verify=verify)
    featurizer = open_featurizer(
        model,
        backend=backend,
        precision=precision,
        verify=verify,
        image_limits=image_limits,
        engines=engines,
    )
    opened.check_model(featurizer.model_hash)
    device = TorchDevice(torch.device("cuda"))
    graphs = SharedGraphs(
        lambda: _open_graphs(Path(model), device.stream, backend, precision, engines, verify)
    )
    ranker = CudaRanker(opened.segments, featurizer.constants, tie_key=opened.ids, codes=opened.codes)
    nil = NilThreshold.read(Path(model), featurizer.model_hash)
    return DeviceLinker(
        featurizer, opened, ranker, nil, verify=verify, graphs=graphs, device=device, resize=resize
    )


def _open_graphs(
    model: Path, stream: int, backend: str, precision: str, engines: str | Path | None, verify: bool
) -> DeviceGraphs:
    if backend == "cuda":
        return BoundGraphs.open(model, stream, precision=precision, verify=verify)
    where = None if engines is None else Path(engines)
    return EngineGraphs.open(model, stream, engines=where, precision=precision)
