"""Opens a model and an index as one chain on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from mimic_engine.chain.graphs import BoundGraphs, DeviceGraphs, EngineGraphs, SharedGraphs
from mimic_engine.chain.linker import DeviceLinker
from mimic_engine.chain.pictures import PicturePlace
from mimic_engine.chain.torch_device import TorchDevice
from mimic_engine.encoding.open import open_featurizer
from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError
from mimic_engine.images import ImageLimits
from mimic_engine.index.store import Index
from mimic_engine.nil import NilThreshold
from mimic_engine.scoring.cuda_ranker import CudaRanker
from mimic_engine.types import PlacementChoice

CHAINED = ("tensorrt", "cuda")


def open_device_linker(
    model: str | Path,
    index: str | Path,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    placement: PlacementChoice = "auto",
    resize: PicturePlace = "host",
    threads: int | None = None,
    verify: bool = True,
    image_limits: ImageLimits | None = None,
    engines: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> DeviceLinker:
    """Open an exported model and an index built with it, whole requests on the device.

    Parameters
    ----------
    model, index, precision, placement, threads, verify, image_limits, engines, checkpoint : as in
        ``Linker.open``.
    backend : what runs the encoders in the chain: one of :data:`CHAINED`, or "auto", which must come to
        one of them here.
    resize : where pictures are resized; the pixels are the same.

    Raises
    ------
    InvalidInputError
        If the backend or where pictures are resized is none of its choices.
    BackendError
        If "auto" comes to a backend that is not chained.
    MissingDependencyError
        If there is no CUDA device, or the backend's library is not installed.
    ModelError, IndexFormatError, IndexMismatchError, EngineError
        As of ``Linker.open``; EngineError too if the index does not fit in the device's memory.
    """
    if backend not in (*CHAINED, "auto"):
        known = ", ".join(CHAINED)
        raise InvalidInputError(f"backend: {backend!r} is not chained, only {known}", field="backend")
    if resize not in get_args(PicturePlace):
        known = ", ".join(get_args(PicturePlace))
        raise InvalidInputError(f"resize: {resize!r} is not one of {known}", field="resize")
    if not torch.cuda.is_available():
        raise MissingDependencyError("a chain on the device needs a CUDA device and a CUDA build of torch")
    opened = Index.open(index, verify=verify)
    featurizer = open_featurizer(
        model,
        backend=backend,
        precision=precision,
        threads=threads,
        verify=verify,
        image_limits=image_limits,
        engines=engines,
        checkpoint=checkpoint,
    )
    chosen = chained(featurizer.backend)
    opened.check_model(featurizer.model_hash)
    device = TorchDevice(torch.device("cuda"))
    graphs = SharedGraphs(
        lambda: _open_graphs(Path(model), device.stream, chosen, precision, engines, verify)
    )
    ranker = CudaRanker(
        opened.segments,
        featurizer.constants,
        tie_key=opened.ids,
        codes=opened.codes,
        placement=placement,
    )
    nil = NilThreshold.read(Path(model), featurizer.model_hash)
    return DeviceLinker(
        featurizer, opened, ranker, nil, verify=verify, graphs=graphs, device=device, resize=resize
    )


def chained(backend: str) -> str:
    """The backend that the encoders run on, if a chain can have it; BackendError if not."""
    if backend not in CHAINED:
        known = " or ".join(CHAINED)
        raise BackendError(
            f"chain: the fastest backend that works here is {backend!r}, and a chain needs {known}; "
            "ask for one by name to hear what it lacks"
        )
    return backend


def _open_graphs(
    model: Path, stream: int, backend: str, precision: str, engines: str | Path | None, verify: bool
) -> DeviceGraphs:
    if backend == "cuda":
        return BoundGraphs.open(model, stream, precision=precision, verify=verify)
    where = None if engines is None else Path(engines)
    return EngineGraphs.open(model, stream, engines=where, precision=precision)
