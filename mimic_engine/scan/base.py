"""Contracts of the scan: a scorer of blocks, and the kernels of the passes that a search is made of.

Arrays and shapes alone: kernels that meet them are in :mod:`mimic_engine.scan.cpu` and
:mod:`mimic_engine.scan.blocks`, what a search does with them in :mod:`mimic_engine.scan.scan`.
Axes: B mentions, N entities of a segment, n rows of them, L tokens, D width, C centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import Array, EntityArrays, MentionArrays, Scores

Codes = NDArray[np.uint8] | NDArray[np.uint16]  # (rows, L): the centroid nearest to each entity token
Rows = slice | NDArray[np.int64]  # rows start:stop of a segment, or row numbers within it in any order


class Scorer(Protocol):
    """Scores float32 folded mentions against float32 folded entities; safe to call from several threads."""

    @property
    def name(self) -> str:
        """Short name for logs and reports."""
        ...

    @property
    def pairs_per_block(self) -> int:
        """Mention-entity pairs (B x N) a call: few enough for the cache, enough to hide the overhead."""
        ...

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32, of B mentions against a block of N entities."""
        ...


class Prepared(Protocol):
    """B mentions as a scan's kernels want them."""

    @property
    def count(self) -> int:
        """B."""
        ...


class BoundPass(Protocol):
    """A pass that bounds totals from above."""

    def __call__(self, prepared: Any, entities: EntityArrays, rows: slice, out: Array, /) -> None:
        """Write to ``out``, (B, n) float32, numbers that no total exceeds."""
        ...


class ScanKernels(Protocol):
    """The passes that a search is made of, over B prepared mentions and rows of one stored segment.

    Every pass reads the segment as it is stored (float32, float16, int8 token
    queries), uses one core, releases the interpreter lock, and may be called
    from several threads at once. The score of a pair is the same number in
    every pass and in any batch, up to the rounding that ``rounding`` bounds;
    to the bit where there is a bound pass.
    """

    @property
    def name(self) -> str:
        """Short name for logs and reports."""
        ...

    @property
    def rounding(self) -> float:
        """Bound on the difference of two computations of one total, relative to 1 + |total|; 0 = none."""
        ...

    @property
    def pairs_per_block(self) -> int:
        """Pairs (B x rows) a call: few enough for the cache, enough to hide the overhead."""
        ...

    def prepare(self, mentions: MentionArrays, centroids: Array | None = None) -> Prepared:
        """B mentions as all passes need them; with ``centroids`` (C, D) also the tables of ``estimates``."""
        ...

    def take(self, prepared: Any, rows: Sequence[int]) -> Prepared:
        """Some of the prepared mentions as a batch of their own; nothing is prepared again."""
        ...

    def totals(self, prepared: Any, entities: EntityArrays, rows: Rows, out: Array) -> None:
        """Write the exact total scores, (B, n) float32, of the rows to ``out``."""
        ...

    def scores(self, prepared: Any, entities: EntityArrays, rows: Rows) -> Scores:
        """Total and unit scores, (B, n) float32 each; the totals are those of ``totals``."""
        ...

    @property
    def bounds(self) -> BoundPass | None:
        """The bound pass; None where a bound would cost more than the scores that it spares."""
        ...

    def estimates(self, prepared: Any, entities: EntityArrays, codes: Codes, rows: slice, out: Array) -> None:
        """Write to ``out``, (B, n) float32, the totals as the codes (all rows of the segment) give them."""
        ...
