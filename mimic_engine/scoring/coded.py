"""Totals as the codes give them, in NumPy: the estimate of the coded mode over all segments.

The formulas are in ``kernels/coded_ref.py``; here they are applied block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mimic_engine.kernels.coded_ref import coded_context_ref, tables_ref
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scoring.base import Codes
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays

_VALUES_AT_ONCE = 1 << 23  # table rows gathered (B, n, L, D): 32 MiB


class CodedEstimates:
    """Estimates of mentions against every entity; one core, several times slower than a compiled pass.

    Parameters
    ----------
    segments : stored entities, row numbers running on from one to the next
    codes : (rows, L) of each segment
    centroids : (C, D) float32
    constants : of the model, with the unit "tglu"
    """

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        codes: Sequence[Codes],
        centroids: Array,
        constants: FoldConstants,
    ) -> None:
        self._parts = list(zip(segments, codes, strict=True))
        self._centroids = centroids
        self._constants = constants

    def __call__(self, mentions: MentionArrays) -> Array:
        """Total scores by the codes of B mentions and all N entities, (B, N) float32."""
        tables = tables_ref(mentions, self._centroids)  # (B, C, D)
        parts = [part for s, c in self._parts for part in self._blocks(mentions, tables, s, c)]
        return np.concatenate(parts, axis=1)  # (B, N)

    def _blocks(
        self, mentions: MentionArrays, tables: Array, segment: EntityArrays, codes: Codes
    ) -> Iterator[Array]:
        size = max(1, _VALUES_AT_ONCE // (tables.shape[0] * tables.shape[2] * codes.shape[1]))
        for start in range(0, len(codes), size):
            block = segment.block(start, start + size)
            context = coded_context_ref(tables, codes[start : start + size], block.tglu_token_weight)
            yield scores_ref(mentions, block, self._constants, context).total
