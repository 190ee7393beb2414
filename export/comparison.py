"""How far exported graphs are from PyTorch: errors of each graph, and agreement of the links.

Each graph is judged alone, on the inputs that PyTorch gives it, against the
same module in float64. For fp32 the error may be at most twice that of
PyTorch's own float32 plus ``ATOL`` of the largest value; the other precisions
are held to the links: with this graph in place of PyTorch's (and at last with
all graphs in place), the top-k entities of the mentions must be the same ones
to a stated share.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.encoding.graph_names import (
    CLS,
    ENTITY_FOLD,
    FEATURES,
    GRAPHS,
    IMAGE_ENCODER,
    MASK,
    MENTION_FOLD,
    PIXELS,
    SCORER,
    TEXT_ENCODER,
    TOKENS,
    TOTAL,
)
from mimic_engine.encoding.manifest import CPU_PRECISIONS, GraphEntry, ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.encoding.session import RunnableGraph
from mimic_engine.export.emulated import EmulatedGraph
from mimic_engine.export.graphs import Graph, model_graphs
from mimic_engine.export.profiles import USUAL
from mimic_engine.export.samples import Arrays, Sample, Side
from mimic_engine.model.units import Mimic

ATOL = 2e-6  # of the largest value: 16 units in the last place of float32
WHOLE = "all graphs"
# Least share of a mention's top-k entities that must be the same ones.
AGREEMENT = {"fp32": 1.0, "fp16": 0.97, "bf16": 0.90, "int8": 0.80, "fp8": 0.80}
TIE = 1e-5  # scores closer than this (of the largest) may change places in fp32

T = TypeVar("T")
Run = Callable[[str, Arrays], Arrays]  # graph name, inputs -> outputs


@dataclass(frozen=True)
class Row:
    """Findings about one graph in one precision."""

    graph: str
    precision: str
    max_abs: float
    relative: float  # max_abs over the largest value
    allowed: float | None  # bound on max_abs (fp32)
    agreement: float  # mean share of the top-k that is the same
    size_bytes: int
    ms: (
        float | None
    )  # least of a few runs at the usual shape; for all graphs, over the whole sample; None: emulated

    @property
    def ok(self) -> bool:
        """Whether the row is within tolerance."""
        numbers = self.allowed is None or self.max_abs <= self.allowed
        return bool(np.isfinite(self.max_abs)) and numbers and self.agreement >= AGREEMENT[self.precision]


@dataclass(frozen=True)
class Opened:
    """A graph to judge, on any backend."""

    graph: RunnableGraph
    size_bytes: int
    timed: bool = True  # whether its speed says anything


class Comparison:
    """Runs a sample through PyTorch and through the exported graphs.

    Parameters
    ----------
    model : the model that was exported.
    folder, manifest : its exported folder.
    sample : what to run.
    k : length of the compared top-k, at most the number of entities.
    threads : cores that one run of a graph may use.
    """

    def __init__(
        self, model: Mimic, folder: Path, manifest: ModelManifest, sample: Sample, *, k: int, threads: int = 1
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._sample = sample
        self._k = min(k, len(sample.entities.image[PIXELS]))
        self._threads = threads
        self._graphs = model_graphs(model)
        self._exact = model_graphs(copy.deepcopy(model).double())
        self._inputs: dict[str, Arrays] = {}
        self._outputs: dict[str, tuple[Arrays, Arrays]] = {}
        self._memo: dict[tuple[str, int], Arrays] = {}
        self._expected = self._scores(self._reference)  # fills _inputs

    def rows(self, precision: str, graphs: Mapping[str, Opened] | None = None) -> list[Row]:
        """One row for each graph that there is in the precision, and one for all of them together.

        Parameters
        ----------
        precision : decides what is tolerated.
        graphs : what to judge; by default the exported graphs on the CPU.
        """
        opened = graphs or self.exported(precision)
        rows = [self._row(name, precision, graph) for name, graph in opened.items()]
        return [*rows, self._whole(precision, opened)]

    def exported(self, precision: str) -> dict[str, Opened]:
        """The exported graphs of a precision, on the CPU; emulated where it has no kernels for it."""
        names = [name for name in GRAPHS if precision in self._manifest.graphs[name]]
        return {name: self._open(name, precision) for name in names}

    def _open(self, name: str, precision: str) -> Opened:
        size = _size(self._manifest.entry(name, precision))
        where = (self._folder, self._manifest, name, precision)
        if precision not in CPU_PRECISIONS:
            return Opened(EmulatedGraph.open(*where, threads=self._threads), size, timed=False)
        return Opened(OnnxGraph.open(*where, threads=self._threads, verify=True), size)

    def _row(self, name: str, precision: str, opened: Opened) -> Row:
        inputs, graph = self._inputs[name], opened.graph
        usual = _usual(self._graphs[name], inputs)
        seconds = _timed(lambda: graph.run(usual))[0] if opened.timed else None
        found = graph.run(inputs)
        exact, own = self._exact_and_own(name)
        # The output that is nearest to its bound speaks for the graph.
        judged = [_judge(found[o], own[o], exact[o]) for o in self._graphs[name].outputs]
        max_abs, scale, allowed = max(
            judged, key=lambda j: j[0] / j[2] if precision == "fp32" else j[0] / j[1]
        )
        scores = self._scores(lambda n, x: graph.run(x) if n == name else self._reference(n, x))
        return Row(
            name,
            precision,
            max_abs,
            max_abs / scale,
            allowed if precision == "fp32" else None,
            self._agreement(scores),
            opened.size_bytes,
            None if seconds is None else seconds * 1e3,
        )

    def _exact_and_own(self, name: str) -> tuple[Arrays, Arrays]:
        """PyTorch's outputs in float64 and in float32; computed once for all precisions."""
        if name not in self._outputs:
            inputs = self._inputs[name]
            self._outputs[name] = _torch(self._exact[name], inputs), _torch(self._graphs[name], inputs)
        return self._outputs[name]

    def _whole(self, precision: str, opened: Mapping[str, Opened]) -> Row:
        """All graphs together; where the precision has none, that of fp32 stands in, as in the runtime."""
        graphs = {name: opened.get(name) or self._open(name, "fp32") for name in GRAPHS}
        seconds, scores = _timed(lambda: self._scores(lambda n, x: graphs[n].graph.run(x)), runs=1)
        max_abs = float(np.abs(scores - self._expected).max())
        max_abs = max_abs if np.isfinite(max_abs) else float("inf")
        return Row(
            WHOLE,
            precision,
            max_abs,
            max_abs / float(np.abs(self._expected).max()),
            None,
            self._agreement(scores),
            sum(graph.size_bytes for graph in opened.values()),
            seconds * 1e3 if all(graph.timed for graph in graphs.values()) else None,
        )

    def _scores(self, run: Run) -> NDArray[np.floating]:
        """Total scores (B, N) of the sample, through ``run`` for every graph."""
        mention = self._folded(run, MENTION_FOLD, self._sample.mentions)
        entity = self._folded(run, ENTITY_FOLD, self._sample.entities)
        return np.asarray(run(SCORER, mention | entity)[TOTAL], np.float64)

    def _folded(self, run: Run, fold: str, side: Side) -> Arrays:
        text, image = run(TEXT_ENCODER, side.text), run(IMAGE_ENCODER, side.image)
        mask = side.text[MASK].astype(np.float32)
        values = (text[CLS], text[TOKENS], mask, image[CLS], image[TOKENS])
        return run(fold, dict(zip(FEATURES, values, strict=True)))

    def _reference(self, name: str, inputs: Arrays) -> Arrays:
        """PyTorch in float32; encoders run once for each side, and the first inputs seen are kept."""
        self._inputs.setdefault(name, inputs)
        if not name.endswith("encoder"):
            return _torch(self._graphs[name], inputs)
        key = (name, id(next(iter(inputs.values()))))
        if key not in self._memo:
            self._memo[key] = _torch(self._graphs[name], inputs)
        return self._memo[key]

    def _agreement(self, scores: NDArray[np.floating]) -> float:
        """Mean share of the k best by ``scores`` that PyTorch has among its k best, or within a near-tie."""
        slack = TIE * float(np.abs(self._expected).max())
        kept = []
        for found, expected in zip(scores, self._expected, strict=True):
            chosen = np.argsort(-found, kind="stable")[: self._k]
            kth = np.sort(expected)[-self._k]
            kept.append(float((expected[chosen] >= kth - slack).mean()))
        return float(np.mean(kept))


def _torch(graph: Graph, inputs: Arrays) -> Arrays:
    dtype = next((p.dtype for p in graph.module.parameters()), None)
    example = next(iter(graph.inputs.values()))
    floats = dtype or example.dtype
    tensors = {name: _as(torch.from_numpy(np.asarray(a)), floats) for name, a in inputs.items()}
    return {name: value.numpy() for name, value in graph.run(tensors).items()}


def _usual(graph: Graph, inputs: Arrays) -> Arrays:
    """As many rows of the inputs as a usual run has, or all if there are fewer."""
    return {name: array[: USUAL[graph.axes[name]]] for name, array in inputs.items()}


def _as(tensor: Tensor, floats: torch.dtype) -> Tensor:
    return tensor.to(floats) if tensor.is_floating_point() else tensor


def _judge(
    found: NDArray[np.generic], own: NDArray[np.generic], exact: NDArray[np.generic]
) -> tuple[float, float, float]:
    """Largest error, largest value, and what the error may be in fp32."""
    reference = exact.astype(np.float64)
    scale = max(float(np.abs(reference).max()), 1e-30)
    error = float(np.abs(found.astype(np.float64) - reference).max())
    error = error if np.isfinite(error) else float("inf")  # NaN would compare as no error at all
    return error, scale, 2 * float(np.abs(own.astype(np.float64) - reference).max()) + ATOL * scale


def _size(entry: GraphEntry) -> int:
    return entry.onnx.bytes + (entry.data.bytes if entry.data else 0)


def _timed(work: Callable[[], T], runs: int = 3) -> tuple[float, T]:
    """Least wall seconds of a few runs, and the last result."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result
