"""A typed graph on the CPU, where its type has no kernels: float32 arithmetic, every value rounded."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

from mimic_engine.encoding.manifest import GraphEntry, ModelManifest
from mimic_engine.encoding.onnx import CPU, cpu_options
from mimic_engine.encoding.session import Arrays, RunnableGraph
from mimic_engine.export.typed import emulate
from mimic_engine.types import Array


class EmulatedGraph(RunnableGraph):
    """Runs :func:`~mimic_engine.export.typed.emulate`'s twin of a typed graph; its speed says nothing.

    Parameters
    ----------
    typed : in fp16 or bf16, under 2 GB, weights included.
    """

    def __init__(self, title: str, entry: GraphEntry, typed: onnx.ModelProto, threads: int = 1) -> None:
        super().__init__(title, entry)
        options = cpu_options(threads)
        # Optimisations would take the roundings out: a cast to a type and back looks like nothing.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            emulate(typed).SerializeToString(), options, providers=[CPU]
        )

    @classmethod
    def open(
        cls, folder: Path, manifest: ModelManifest, name: str, precision: str, *, threads: int = 1
    ) -> EmulatedGraph:
        """Open a graph of a model folder; errors as in :meth:`OnnxGraph.open`."""
        entry = manifest.entry(name, precision)
        if entry.data is not None:
            entry.data.check(folder, verify=True)
        path = entry.onnx.check(folder, verify=True)
        return cls(f"{path.name} (emulated)", entry, onnx.load(path), threads)

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs."""
        return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
