"""Bounded search: which rows still have to be scored before the k best of one mention are proved.

Holds the upper bounds of all rows and the exact scores of some; knows nothing
of kernels. A row whose bound lies below the k-th best exact score cannot be
among the k best, and one whose bound equals it could tie, so it is scored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimic_engine.scan.topk import kth_largest, topk_with_ties
from mimic_engine.types import Array

MAX_SHARE = 0.25  # of the candidates: above it scoring them all in dense blocks is no slower
_FIRST_ROWS = 32
_ROUND_ROWS = 128


class BoundedSearch:
    """The search for the k best rows of one mention, round by round.

    Parameters
    ----------
    bounds : (N,), no exact score exceeds its bound; -inf for rows that may not be answered
    k : rows wanted, at most the number of rows with a finite bound

    Attributes
    ----------
    dense : True when too many rows survive; the caller scores every row instead
    """

    def __init__(self, bounds: Array, k: int) -> None:
        self._bounds, self._k = bounds, k
        self._candidates = int(np.count_nonzero(bounds > -np.inf))
        self._rows: list[NDArray[np.int64]] = []
        self._totals: list[Array] = []
        self._queue: NDArray[np.int64] | None = None  # survivors in descending bound, once known
        self.dense = False

    @property
    def scored(self) -> int:
        """Rows scored exactly so far."""
        return sum(len(rows) for rows in self._rows)

    def next_rows(self) -> NDArray[np.int64]:
        """Rows to score now, their scores to be given to :meth:`add`; empty when the k best are proved."""
        if not self._rows:
            return self._first()
        threshold = self._threshold()
        if self._queue is None:
            self._queue = self._survivors(threshold)
            if self._queue is None:
                self.dense = True
                return np.empty(0, np.int64)
        alive = int(np.count_nonzero(self._bounds[self._queue] >= threshold))  # a prefix: bounds descend
        count = min(alive, max(_ROUND_ROWS, self.scored))
        rows, self._queue = self._queue[:count], self._queue[count:alive]
        return rows

    def add(self, rows: NDArray[np.int64], totals: Array) -> None:
        """Take in the exact scores (n,) of the rows that :meth:`next_rows` gave."""
        self._rows.append(rows)
        self._totals.append(totals)

    def best(self) -> NDArray[np.int64]:
        """The k best rows and what ties with the last, ascending, once nothing is left to score."""
        rows, totals = np.concatenate(self._rows), np.concatenate(self._totals)
        return np.sort(rows[totals >= np.float32(self._threshold())])

    def _first(self) -> NDArray[np.int64]:
        count = min(self._candidates, max(_FIRST_ROWS, 2 * self._k))
        rows = topk_with_ties(self._bounds, count)
        if len(rows) > 2 * count:  # equal bounds in masses: any of them will do
            rows = rows[np.argsort(-self._bounds[rows], kind="stable")[:count]]
        return rows

    def _threshold(self) -> float:
        """The k-th best exact score so far."""
        return kth_largest(np.concatenate(self._totals), self._k)

    def _survivors(self, threshold: float) -> NDArray[np.int64] | None:
        """Rows that are still to be scored, best bound first; None if they are too many."""
        rows = np.flatnonzero(self._bounds >= np.float32(threshold))
        if len(rows) > max(MAX_SHARE * self._candidates, self.scored):
            return None
        rows = np.setdiff1d(rows, self._rows[0], assume_unique=True)
        return rows[np.argsort(-self._bounds[rows], kind="stable")]
