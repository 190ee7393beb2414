"""Shapes that encoders and folds run at: buckets over (rows, tokens), and their padding.

The same buckets give a TensorRT engine its optimisation profiles, a CUDA graph
its shapes, and the device buffers their sizes. Rows beyond the largest bucket
run in several goes. Texts are cut to the length bucket of the longest one
where the graph leaves the length free, which it does for models that mask
padding; elsewhere the padded length is part of the model and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import Array

ROWS = (1, 4, 8, 16, 32)
ROWS_PER_RUN = ROWS[-1]  # bounds the encoders' working memory, about 10 MB an image, whatever the batch
LENGTH = "length"  # name of a graph's free axis of text tokens
_STEP = 8  # tokens; lengths of matrix products that tensor cores like


@dataclass(frozen=True, slots=True)
class RunShapes:
    """Shapes of a session: rows and tokens, ascending, and runs of a shape until its time is steady."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    runs: int = 1


def bucket(size: int, buckets: Sequence[int]) -> int:
    """The least bucket that holds ``size``; buckets ascend and the last one does."""
    return next(b for b in buckets if size <= b)


def ranges(buckets: Sequence[int]) -> list[tuple[int, int]]:
    """Least and largest size of each bucket: together they take every size from 1 to the last, once."""
    lows = (1, *(b + 1 for b in buckets[:-1]))
    return list(zip(lows, buckets, strict=True))


def length_buckets(longest: int) -> tuple[int, ...]:
    """A quarter, half and all of the model's text length, rounded up to multiples of 8 tokens.

    >>> length_buckets(40)
    (16, 24, 40)
    """
    parts = (-(-longest // (part * _STEP)) * _STEP for part in (4, 2))
    return tuple(sorted({min(p, longest) for p in parts} | {longest}))


def cut(
    feeds: Mapping[str, NDArray[np.generic]], mask: NDArray[np.generic], longest: int
) -> dict[str, NDArray[np.generic]]:
    """Arrays (B, L) without the columns beyond the length bucket of the longest text of ``mask``; (B, L')."""
    real = (mask != 0).any(axis=0)  # (L,)
    used = int(np.flatnonzero(real)[-1]) + 1 if real.any() else 1
    stop = bucket(used, length_buckets(longest))
    return {name: array[:, :stop] for name, array in feeds.items()}


def pad_length(states: Array, length: int) -> Array:
    """Token states (B, L', W) with zeros for the tokens that were cut; (B, L, W)."""
    missing = length - states.shape[1]
    return states if missing == 0 else np.pad(states, ((0, 0), (0, missing), (0, 0)))


def pad_rows(array: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """The array with its last row repeated up to ``rows`` rows, so that no row holds what no input would."""
    return (
        array if len(array) == rows else np.concatenate([array, np.repeat(array[-1:], rows - len(array), 0)])
    )
