"""Top-k of score rows, ties broken by a key, and ranks with ties counted against the gold entity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import Array

TieKey = Callable[[NDArray[np.int64]], Sequence[str]]  # row numbers to sortable keys (entity ids)


def order(scores: Array, rows: NDArray[np.int64], tie_key: TieKey | None) -> NDArray[np.int64]:
    """Positions that sort ``scores`` (M,) from high to low; ties by ``tie_key`` of their rows, or by row."""
    if tie_key is not None and len(np.unique(scores)) < len(scores):
        keys = np.asarray(tie_key(rows), dtype=np.str_)
        return np.lexsort((keys, -scores))
    return np.lexsort((rows, -scores))


def top_k(scores: Array, k: int, tie_key: TieKey | None = None) -> NDArray[np.int64]:
    """Positions of the k highest of ``scores`` (N,), best first.

    Every position whose score equals the k-th one takes part in the tie break,
    so the answer does not depend on how the scores were laid out.
    """
    if k >= len(scores):
        chosen = np.arange(len(scores), dtype=np.int64)
    else:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= kth)
    return chosen[order(scores[chosen], chosen, tie_key)][:k]


def pessimistic_ranks(scores: Array, gold: NDArray[np.int64]) -> NDArray[np.int64]:
    """1-based rank of column ``gold[b]`` in each row of ``scores`` (B, N); every tie counts against it."""
    own = scores[np.arange(len(gold)), gold]  # (B,)
    return (~(scores < own[:, None])).sum(1).astype(np.int64)
