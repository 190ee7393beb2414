"""Engines against PyTorch on real inputs: the same comparison as of exported graphs, on the device.

An engine beyond its tolerance is marked in its manifest, and the runtime then
refuses it. Needs the device that the engines were built for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mimic_engine.encoding.buckets import ROWS_PER_RUN
from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.session import Arrays, RunnableGraph
from mimic_engine.export.comparison import WHOLE, Comparison, Opened, Row
from mimic_engine.export.graphs import BATCH, ROWS
from mimic_engine.export.profiles import USUAL
from mimic_engine.gpu.device import Device
from mimic_engine.gpu.engine_files import EngineRecord, engine_file
from mimic_engine.gpu.tensorrt import open_engine
from mimic_engine.types import Array


class InBlocks(RunnableGraph):
    """A graph over more rows than it takes at once: a run of rows after another, the scorer in tiles."""

    def __init__(self, graph: RunnableGraph) -> None:
        super().__init__(graph.title, graph.entry)
        self._graph = graph
        axes = {shape[0] for shape in self.inputs.values()}
        self._limits = USUAL if {BATCH, ROWS} <= axes else dict.fromkeys((BATCH, ROWS), ROWS_PER_RUN)

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs."""
        first = {str(self.inputs[name][0]): len(array) for name, array in feeds.items()}
        mentions = self._starts(first, BATCH)
        entities = self._starts(first, ROWS)
        strips = [self._joined([self._block(feeds, b, r) for r in entities], axis=1) for b in mentions]
        return self._joined(strips, axis=0)

    def _starts(self, lengths: Mapping[str, int], axis: str) -> Sequence[int]:
        return range(0, lengths.get(axis, 1), self._limits[axis])

    def _block(self, feeds: Arrays, batch: int, rows: int) -> dict[str, Array]:
        starts = {BATCH: batch, ROWS: rows}
        cut = {}
        for name, array in feeds.items():
            axis = str(self.inputs[name][0])
            cut[name] = array[starts[axis] : starts[axis] + self._limits[axis]]
        return self._graph.run(cut)

    def _joined(self, parts: Sequence[Mapping[str, Array]], axis: int) -> dict[str, Array]:
        """Blocks side by side: along the first axis of that name, which for entity graphs is the only one."""
        if len(parts) == 1:
            return dict(parts[0])
        only = BATCH not in {shape[0] for shape in self.inputs.values()}
        return {
            name: np.concatenate([part[name] for part in parts], axis=0 if only else axis)
            for name in parts[0]
        }


def engines_of(engines: Path, precision: str, target: str) -> list[str]:
    """Names of the graphs that have an engine of this precision for this target."""
    return [name for name in GRAPHS if (engines / engine_file(name, precision, target)).is_file()]


def verify_engines(
    comparison: Comparison,
    folder: Path,
    engines: Path,
    manifest: ModelManifest,
    precision: str,
    device: Device,
) -> list[Row]:
    """Compare the engines of a precision with PyTorch, and note in each manifest what was found.

    Raises
    ------
    ModelError, BackendError
        If an engine cannot be opened on this device.
    """
    opened = {}
    for name in engines_of(engines, precision, device.architecture):
        graph = open_engine(folder, engines, manifest, name, precision, device)
        size = (engines / engine_file(name, precision, device.architecture)).stat().st_size
        opened[name] = Opened(InBlocks(graph), size)
    rows = comparison.rows(precision, opened)
    mark(engines, device.architecture, rows)
    return rows


def mark(engines: Path, target: str, rows: Sequence[Row]) -> None:
    """Note in the manifests what was found; where only all graphs together fail, every engine is refused."""
    whole = next(row for row in rows if row.graph == WHOLE)
    alone = [row for row in rows if row.graph != WHOLE]
    together = not whole.ok and all(row.ok for row in alone)
    for row in alone:
        path = engines / engine_file(row.graph, row.precision, target)
        guilty = whole if together else row
        found = {
            k: v if v is None or not isinstance(v, float) or np.isfinite(v) else None
            for k, v in asdict(row).items()
        }
        reason = (
            None
            if guilty.ok
            else (
                f"{guilty.graph}: error {guilty.max_abs:.1e} (allowed {guilty.allowed}), "
                f"top-k agreement {guilty.agreement:.3f}"
            )
        )
        verified = {"ok": guilty.ok, "reason": reason, **found}
        replace(EngineRecord.read(path), verified=verified).write(engines)
