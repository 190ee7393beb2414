"""The segments of an index as one run of rows: blocks for a pass, and rows by number. No scores here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import Array, EntityArrays


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``local`` of one segment, which are rows start:stop of all of them."""

    segment: int
    local: slice
    start: int
    stop: int


class Segments:
    """Folded entities in several segments, row numbers running on from one to the next."""

    def __init__(self, arrays: Sequence[EntityArrays]) -> None:
        self.arrays = tuple(arrays)
        self._starts = np.cumsum([0, *(s.rows for s in self.arrays)])  # (segments + 1,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, limit: int, threads: int) -> Iterator[Block]:
        """Cut every segment into equal blocks of at most ``limit`` rows, as many for each thread."""
        for number, arrays in enumerate(self.arrays):
            offset = int(self._starts[number])
            for start, stop in cuts(arrays.rows, limit, threads):
                yield Block(number, slice(start, stop), offset + start, offset + stop)

    def split(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Rows by segment: its number, the rows within it, and their places in ``rows``."""
        segment = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(segment).tolist():
            where = np.flatnonzero(segment == number)
            yield number, rows[where] - self._starts[number], where

    def token_queries(self, rows: NDArray[np.int64]) -> EntityArrays:
        """Token queries of n rows as float32 (n, L, D), and the tokens' weights where there are any."""
        found: dict[str, Array] = {}
        for number, local, where in self.split(rows):
            for name, part in _token_queries(self.arrays[number], local).items():
                found.setdefault(name, np.empty((len(rows), *part.shape[1:]), np.float32))[where] = part
        return EntityArrays(**found)


def _token_queries(stored: EntityArrays, rows: NDArray[np.int64]) -> EntityArrays:
    query, scale, weight = stored.tglu_query, stored.tglu_query_scale, stored.tglu_token_weight
    if query is None:
        return EntityArrays()
    wide = query[rows].astype(np.float32)  # (n, L, D)
    if scale is not None:
        wide *= scale[rows][..., None]
    return EntityArrays(tglu_query=wide, tglu_token_weight=None if weight is None else weight[rows])


def cuts(rows: int, limit: int, threads: int) -> Iterator[tuple[int, int]]:
    """Cut ``rows`` into equal parts of at most ``limit``, as many for each thread."""
    rounds = -(-rows // (limit * threads))
    size = max(1, -(-rows // max(1, rounds * threads)))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


class Shared(Iterator[Block]):
    """Hands each block to one of several threads, in order: a thread that is held up takes fewer."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()

    def __next__(self) -> Block:
        with self._lock:
            return next(self._blocks)
