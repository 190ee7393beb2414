"""The best of a row of scores: top-k with ties by a key, ranks with ties against the gold entity.

NaN has no rank: :func:`check_finite` refuses it before anything is ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import EngineError
from mimic_engine.types import Array

TieKey = Callable[[NDArray[np.int64]], Sequence[str]]  # row numbers to sortable keys (entity ids)

_STRIP = 128  # scores whose largest stands for all of them in a first look


def check_finite(scores: Array) -> None:
    """Raise :class:`EngineError` unless all of the scores, of any shape, are finite."""
    # Two reductions instead of a mask of the whole: NaN comes out of both.
    if scores.size and not (np.isfinite(scores.max()) and np.isfinite(scores.min())):
        raise EngineError(
            "scores: not all of them are finite: the weights or the index are damaged, "
            "or the encoders' precision has too small a range"
        )


def kth_largest(scores: Array, k: int) -> float:
    """The k-th largest of ``scores`` (N,), 1 <= k <= N.

    A first look at the largest of every strip leaves few scores to sort: the
    k-th largest of the strips' maxima is a score that at least k reach.
    """
    strips = len(scores) // _STRIP
    if strips > 2 * k:
        tops = scores[: strips * _STRIP].reshape(strips, _STRIP).max(1)  # (strips,)
        scores = scores[scores >= np.partition(tops, strips - k)[strips - k]]
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def topk_with_ties(scores: Array, k: int, margin: float = 0.0) -> NDArray[np.int64]:
    """Positions of all scores (N,) that reach the k-th largest less ``margin``, in ascending order.

    With a margin of 0 these are the k best and whatever ties with the last of them.
    """
    if k >= len(scores):
        return np.arange(len(scores), dtype=np.int64)
    return np.flatnonzero(scores >= np.float32(kth_largest(scores, k) - margin))


def order(scores: Array, rows: NDArray[np.int64], tie_key: TieKey | None) -> NDArray[np.int64]:
    """Positions that sort ``scores`` (M,) from high to low; ties by ``tie_key`` of their rows, or by row."""
    if tie_key is not None and len(np.unique(scores)) < len(scores):
        keys = np.asarray(tie_key(rows), dtype=np.str_)
        return np.lexsort((keys, -scores))
    return np.lexsort((rows, -scores))


def pessimistic_ranks(scores: Array, gold: NDArray[np.int64]) -> NDArray[np.int64]:
    """1-based rank of column ``gold[b]`` in each row of ``scores`` (B, N); every tie counts against it."""
    own = scores[np.arange(len(gold)), gold]  # (B,)
    return (~(scores < own[:, None])).sum(1).astype(np.int64)
