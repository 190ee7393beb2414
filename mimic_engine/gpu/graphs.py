"""Encoders and folds as stages on arrays at fixed addresses: TensorRT, ONNX Runtime, or modules of torch.

How each is chained:

- **TensorRT** queues an engine on the chain's stream (``execute_async_v3``), so a CUDA graph can hold it.
- **ONNX Runtime** is opened on the chain's stream (``user_compute_stream``). It keeps a CUDA graph of its
  own for every binding, which no other graph may hold, and waits for it: arrays stay on the device and
  the order is the stream's, but the host waits three times a batch. Its stages are launched one by one.
- **torch** launches on the chain's stream, and a CUDA graph can hold it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mimic_engine.config import ImageConfig, TextConfig
from mimic_engine.encoding.manifest import ModelManifest, Shape
from mimic_engine.encoding.onnx import precisions
from mimic_engine.errors import DeviceError
from mimic_engine.gpu.device import Device, open_device
from mimic_engine.gpu.engine_files import FOLDER
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.onnx_cuda import BoundGraph, check_provider, open_graph
from mimic_engine.gpu.pipeline import Stage
from mimic_engine.gpu.tensorrt import EngineGraph, open_engine
from mimic_engine.model.fold import FoldMention
from mimic_engine.model.units import Mimic

GRAPHS = ("text_encoder", "image_encoder", "mention_fold")


class GraphShapes(Protocol):
    """Names and shapes of what goes in and out of a graph; a manifest's entry is one."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """By name; a string stands for an axis of any length."""
        ...

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """By name, as the inputs."""
        ...


@dataclass(frozen=True, slots=True)
class ShapesOf:
    """The shapes of a graph that no manifest describes."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


class DeviceGraphs(Protocol):
    """The graphs that a mention goes through, on one backend of the device."""

    @property
    def backend(self) -> str:
        """Short name for logs and reports."""
        ...

    @property
    def entries(self) -> Mapping[str, GraphShapes]:
        """The shapes of each of :data:`GRAPHS`."""
        ...

    @property
    def text_config(self) -> TextConfig:
        """Of the model."""
        ...

    @property
    def image_config(self) -> ImageConfig:
        """Of the model."""
        ...

    def stage(self, graph: str, arrays: Mapping[str, Placed]) -> Stage:
        """One graph on its inputs and outputs, by their names in the graph."""
        ...


class SharedGraphs:
    """The graphs of one model on one device, for all linkers over it; opened anew after a device error.

    Parameters
    ----------
    opened : opens them.
    """

    def __init__(self, opened: Callable[[], DeviceGraphs]) -> None:
        self._open = opened
        self._graphs: DeviceGraphs | None = opened()
        self.generation = 0  # programs are of the graphs of one generation

    @property
    def graphs(self) -> DeviceGraphs:
        """Those of now; DeviceError where they could not be opened again."""
        if self._graphs is None:
            raise DeviceError("chain: its encoders are not there since the device failed", reason="no graphs")
        return self._graphs

    def rebuild(self) -> None:
        """Let go of the graphs and open them anew; errors as of opening."""
        self._graphs = None
        self.generation += 1
        gc.collect()  # device memory goes with the objects, before the new ones ask for it
        self._graphs = self._open()


class EngineGraphs:
    """TensorRT engines, launched on the chain's stream.

    Parameters
    ----------
    manifest : of the exported model.
    graphs : one for each of :data:`GRAPHS`.
    stream : handle of the chain's stream.
    """

    backend = "tensorrt"

    def __init__(self, manifest: ModelManifest, graphs: Mapping[str, EngineGraph], stream: int) -> None:
        self.text_config, self.image_config = manifest.text, manifest.image
        self.entries: Mapping[str, GraphShapes] = {name: graph.entry for name, graph in graphs.items()}
        self._graphs, self._stream = graphs, stream

    @classmethod
    def open(
        cls,
        folder: Path,
        stream: int,
        *,
        engines: Path | None = None,
        precision: str = "fp32",
        device: Device | None = None,
    ) -> EngineGraphs:
        """Open the engines of an exported model; errors as in ``TensorRtSession.open``."""
        manifest, device = ModelManifest.read(folder), device or open_device()
        where = folder / FOLDER if engines is None else engines
        graphs = {
            name: open_engine(folder, where, manifest, name, precisions(precision)[name], device)
            for name in GRAPHS
        }
        return cls(manifest, graphs, stream)

    def stage(self, graph: str, arrays: Mapping[str, Placed]) -> Stage:
        """An engine."""
        return Stage(graph, self._graphs[graph].launcher(arrays, self._stream))


class BoundGraphs:
    """ONNX Runtime sessions that were opened on the chain's stream.

    Parameters
    ----------
    manifest : of the exported model.
    graphs : one for each of :data:`GRAPHS`.
    """

    backend = "cuda"

    def __init__(self, manifest: ModelManifest, graphs: Mapping[str, BoundGraph]) -> None:
        self.text_config, self.image_config = manifest.text, manifest.image
        self.entries: Mapping[str, GraphShapes] = {name: graph.entry for name, graph in graphs.items()}
        self._graphs = graphs

    @classmethod
    def open(cls, folder: Path, stream: int, *, precision: str = "fp32", verify: bool = True) -> BoundGraphs:
        """Open the graphs of an exported model; errors as in ``CudaSession.open``."""
        manifest = ModelManifest.read(folder)
        check_provider()
        graphs = {
            name: open_graph(folder, manifest, name, precisions(precision)[name], verify, stream)
            for name in GRAPHS
        }
        return cls(manifest, graphs)

    def stage(self, graph: str, arrays: Mapping[str, Placed]) -> Stage:
        """A session's run; it cannot be captured."""
        return Stage(graph, self._graphs[graph].launcher(arrays), capturable=False)


Launch = Callable[[Mapping[str, Placed]], Callable[[], None]]


class LaunchedGraphs:
    """Graphs given as functions that make their launches, such as modules of torch.

    Parameters
    ----------
    backend : short name for logs and reports.
    text, image : of the model.
    entries, launches : shapes, and from arrays by name to a call that queues the work, of :data:`GRAPHS`.
    """

    def __init__(
        self,
        backend: str,
        text: TextConfig,
        image: ImageConfig,
        entries: Mapping[str, GraphShapes],
        launches: Mapping[str, Launch],
    ) -> None:
        self.backend, self.text_config, self.image_config = backend, text, image
        self.entries, self._launches = entries, launches

    def stage(self, graph: str, arrays: Mapping[str, Placed]) -> Stage:
        """A function's launch."""
        return Stage(graph, self._launches[graph](arrays))


# A PyTorch model's graphs as stages of a chain: what there is to run where no engine and no provider
# is.

Call = Callable[..., Mapping[str, Tensor]]
_INPUTS = {
    "text_encoder": ("input_ids", "attention_mask", "token_type_ids"),
    "image_encoder": ("pixels",),
    "mention_fold": ("text_cls", "text_tokens", "text_mask", "image_cls", "image_tokens"),
}


def torch_graphs(model: Mimic) -> LaunchedGraphs:
    """The graphs of a model that lies on the chain's device, encoders and matcher each in its own type.

    Parameters
    ----------
    model : in eval mode.
    """
    encoder, fold = model.encoder, FoldMention(model.matcher)

    def text(*tensors: Tensor) -> dict[str, Tensor]:
        out = encoder.text_backbone(*tensors)
        return {"cls": out.cls, "tokens": out.tokens}

    def image(pixels: Tensor) -> dict[str, Tensor]:
        out = encoder.project_image(encoder.image_backbone(pixels))
        return {"cls": out.cls, "tokens": out.tokens}

    def folded(*tensors: Tensor) -> dict[str, Tensor]:
        return {f"mention_{name}": tensor for name, tensor in fold(*tensors).items()}

    calls: dict[str, tuple[Call, nn.Module]] = {
        "text_encoder": (text, encoder),
        "image_encoder": (image, encoder),
        "mention_fold": (folded, model.matcher),
    }
    launches = {name: _launch(call, _INPUTS[name], module) for name, (call, module) in calls.items()}
    text_config, image_config = model.config.text, model.config.image
    shapes = _shapes({name: call for name, (call, _) in calls.items()}, model)
    return LaunchedGraphs("torch", text_config, image_config, shapes, launches)


@torch.no_grad()
def _shapes(calls: Mapping[str, Call], model: Mimic) -> dict[str, GraphShapes]:
    """Shapes of every graph, from what it gives for one row."""
    weight, other = next(model.encoder.parameters()), next(model.matcher.parameters())
    length, size = model.config.text.max_length, model.config.image.size
    ids = torch.ones((1, length), dtype=torch.int64, device=weight.device)
    pixels = torch.zeros((1, 3, size, size), dtype=weight.dtype, device=weight.device)
    given: dict[str, tuple[Tensor, ...]] = {"text_encoder": (ids, ids, ids * 0), "image_encoder": (pixels,)}
    found: dict[str, GraphShapes] = {}
    for name in GRAPHS:
        if name == "mention_fold":
            features = (*_features(calls, given, "text"), ids, *_features(calls, given, "image"))
            given[name] = tuple(t.to(other.dtype) for t in features)
        inputs = {n: ("batch", *t.shape[1:]) for n, t in zip(_INPUTS[name], given[name], strict=True)}
        outputs = {n: ("batch", *t.shape[1:]) for n, t in calls[name](*given[name]).items()}
        found[name] = ShapesOf(inputs, outputs)
    return found


def _features(
    calls: Mapping[str, Call], given: Mapping[str, tuple[Tensor, ...]], kind: str
) -> tuple[Tensor, ...]:
    return tuple(calls[f"{kind}_encoder"](*given[f"{kind}_encoder"]).values())


def _launch(
    call: Call, inputs: tuple[str, ...], module: nn.Module
) -> Callable[[Mapping[str, Placed]], Callable[[], None]]:
    """A call's launch: its inputs cast to the module's type, its outputs copied to where they belong."""

    def bind(arrays: Mapping[str, Placed]) -> Callable[[], None]:
        given: list[Tensor] = [arrays[name].native for name in inputs]
        dtype = next(module.parameters()).dtype

        @torch.no_grad()
        def launch() -> None:
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in given]
            for name, tensor in call(*tensors).items():
                arrays[name].native.copy_(tensor)

        return launch

    return bind
