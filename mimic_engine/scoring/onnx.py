"""The ONNX Runtime scorer: the exported scorer graph on one block of entities. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from mimic_engine.encoding.graph import OnnxGraph
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.types import EntityArrays, MentionArrays, Scores


class OnnxScorer:
    """Scores a block with the exported graph, one core a call.

    Safe to call from several threads at once, which is how the scan uses more
    cores: ONNX Runtime releases the interpreter lock while it runs.
    """

    name = "onnx"
    pairs_per_block = 512  # fewer pay for the dispatch of its many small operators

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "fp32", verify: bool = True) -> Self:
        """Open the scorer graph of an exported model folder.

        Raises
        ------
        ModelError
            If the graph is missing, damaged, or was not exported in that precision.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        return cls(OnnxGraph.open(folder, manifest, "scorer", precision, threads=1, verify=verify))

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores of B mentions against N entities, (B, N) float32.

        Half-precision entity arrays are widened first; a caller that scores many
        blocks widens them into buffers of its own.
        """
        feeds = {f"mention_{name}": array for name, array in mentions.items()}
        feeds |= {f"entity_{name}": array.astype(np.float32, copy=False) for name, array in entities.items()}
        if 0 in (mentions.rows, entities.rows):
            empty = np.empty((mentions.rows, entities.rows), np.float32)
            return Scores(empty, {name: empty for name in self._graph.outputs if name != "total"})
        out = self._graph.run(feeds)
        total = out.pop("total")
        return Scores(total, out)
