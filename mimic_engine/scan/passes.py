"""The passes of a scan: one number a pair, over every row of an index or over some, spread over threads.

An index is a run of rows over several segments (:class:`Segments`); a pass over
all of them runs in cache-sized blocks, so nothing but the (B, N) float32 that
it gives grows with N (:class:`Passes`). What the numbers are for is in
:mod:`mimic_engine.scan.scan`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.scan.base import Codes, Prepared, ScanKernels
from mimic_engine.scan.topk import check_finite
from mimic_engine.types import Array, EntityArrays, MentionArrays, Scores

MENTIONS_PER_PASS = 64
PAIRS_PER_PASS = 1 << 26  # bounds the (B, N) scores of a pass to 256 MB, but for one mention
_LEAST_ROWS = 1024  # of a pass that does little for each: bounds and estimates
_ROWS_PER_TASK = 64  # of exact scoring by row number: 64 entities are about 0.2 ms

Item = TypeVar("Item")
Result = TypeVar("Result")
_Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``local`` of one segment, which are rows start:stop of all of them."""

    segment: int
    local: slice
    start: int
    stop: int


class SharedBlocks(Iterator[Block]):
    """Hands each block to one of several threads, in order: a thread that is held up takes fewer."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()

    def __next__(self) -> Block:
        with self._lock:
            return next(self._blocks)


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
            for start, stop in _cuts(arrays.rows, limit, threads):
                yield Block(number, slice(start, stop), offset + start, offset + stop)

    def split(self, rows: _Rows) -> Iterator[tuple[int, _Rows, _Rows]]:
        """Rows by segment: its number, the rows within it, and their positions in ``rows``."""
        segment = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(segment).tolist():
            positions = np.flatnonzero(segment == number)
            yield number, rows[positions] - self._starts[number], positions

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """Token queries of n rows as float32 (n, L, D), and the tokens' weights where there are any."""
        out: dict[str, Array] = {}
        for number, local, positions in self.split(rows):
            for name, part in _token_queries(self.arrays[number], local).items():
                out.setdefault(name, np.empty((len(rows), *part.shape[1:]), np.float32))[positions] = part
        return EntityArrays(**out)


def _cuts(rows: int, limit: int, threads: int) -> Iterator[tuple[int, int]]:
    """Ends of equal parts of at most ``limit`` rows, as many for each thread."""
    rounds = -(-rows // (limit * threads))
    size = max(1, -(-rows // max(1, rounds * threads)))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _token_queries(stored: EntityArrays, rows: _Rows) -> EntityArrays:
    query, scale, weight = stored.tglu_query, stored.tglu_query_scale, stored.tglu_token_weight
    if query is None:
        return EntityArrays()
    wide = query[rows].astype(np.float32)  # (n, L, D)
    if scale is not None:
        wide *= scale[rows][..., None]
    return EntityArrays(tglu_query=wide, tglu_token_weight=None if weight is None else weight[rows])


class CodeBook(Protocol):
    """The part of an index that the coded mode needs."""

    @property
    def centroids(self) -> Array:
        """(C, D) float32."""
        ...

    @property
    def segments(self) -> Sequence[Codes]:
        """Codes of every segment, (rows, L)."""
        ...


class Passes:
    """Scores of mentions against the rows of an index; safe to use from one thread at a time.

    Parameters
    ----------
    segments : folded entities, row numbers running on from one to the next.
    kernels : the passes; called from several threads at once.
    threads : cores to use; all that the process may use by default.
    codes : for estimates.

    Raises
    ------
    InvalidInputError
        If ``threads`` is below 1.
    """

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        kernels: ScanKernels,
        threads: int | None = None,
        codes: CodeBook | None = None,
    ) -> None:
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if self.threads < 1:
            raise InvalidInputError(f"threads: must be at least 1, got {threads}", field="threads")
        self.segments = Segments(segments)
        self.kernels = kernels
        self.codes = codes
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mimic-scan")

    def __len__(self) -> int:
        return len(self.segments)

    def prepare(self, mentions: MentionArrays) -> Prepared:
        """B mentions for totals and bounds."""
        return self.kernels.prepare(mentions)

    def prepare_coded(self, mentions: MentionArrays) -> Prepared:
        """B mentions for estimates too; InvalidInputError if there are no codes."""
        return self.kernels.prepare(mentions, self._code_book().centroids)

    def singles(self, prepared: Prepared) -> list[Prepared]:
        """Each of B prepared mentions alone."""
        return [self.kernels.take(prepared, [b]) for b in range(prepared.count)]

    def totals(self, prepared: Prepared) -> Array:
        """Exact total scores of B mentions against all N entities, (B, N).

        Raises
        ------
        EngineError
            If a score is not finite: NaN has no rank.
        """

        def write(block: Block, entities: EntityArrays, out: Array) -> None:
            self.kernels.totals(prepared, entities, block.local, out)

        return self._all_rows(prepared.count, write)

    def bounds(self, prepared: Prepared) -> Array:
        """Upper bounds of the totals, (B, N), of kernels with a bound pass; errors as in :meth:`totals`."""
        bound = self.kernels.bounds
        assert bound is not None

        def write(block: Block, entities: EntityArrays, out: Array) -> None:
            bound(prepared, entities, block.local, out)

        return self._all_rows(prepared.count, write, _LEAST_ROWS)

    def estimates(self, prepared: Prepared) -> Array:
        """The totals as the codes give them, (B, N), of mentions from :meth:`prepare_coded`; errors alike."""
        codes = self._code_book().segments

        def write(block: Block, entities: EntityArrays, out: Array) -> None:
            self.kernels.estimates(prepared, entities, codes[block.segment], block.local, out)

        return self._all_rows(prepared.count, write, _LEAST_ROWS)

    def totals_of(self, mentions: Sequence[tuple[Prepared, _Rows]]) -> list[Array]:
        """Exact totals (n,) of some rows for each single mention, which comes with its rows (n,)."""
        outs = [np.empty((1, len(rows)), np.float32) for _, rows in mentions]
        tasks = [
            (prepared, rows[start : start + _ROWS_PER_TASK], out[:, start : start + _ROWS_PER_TASK])
            for (prepared, rows), out in zip(mentions, outs, strict=True)
            for start in range(0, len(rows), _ROWS_PER_TASK)
        ]
        for _ in self._pool.map(lambda task: self._totals_task(*task), tasks):
            pass
        return [out[0] for out in outs]

    def scores_of(self, prepared: Prepared, rows: _Rows) -> Scores:
        """Total and unit scores, (1, n) each, of one prepared mention and rows of any segment."""
        total = np.empty((1, len(rows)), np.float32)
        units: dict[str, Array] = {}
        for segment, local, positions in self.segments.split(rows):
            part = self.kernels.scores(prepared, self.segments.arrays[segment], local)
            total[:, positions] = part.total
            for name, score in part.units.items():
                units.setdefault(name, np.empty_like(total))[:, positions] = score
        return Scores(total, units)

    def parts(self, mentions: MentionArrays) -> Iterator[MentionArrays]:
        """Mentions in batches whose scores of all rows fit in memory."""
        size = max(1, min(MENTIONS_PER_PASS, PAIRS_PER_PASS // max(1, len(self))))
        for start in range(0, mentions.rows, size):
            yield mentions.block(start, start + size)

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of ``work`` for every item, in order, spread over the threads."""
        return self._pool.map(work, items)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def _all_rows(
        self, count: int, write: Callable[[Block, EntityArrays, Array], None], least: int = 1
    ) -> Array:
        """Run a pass over every row for B = ``count`` mentions, spread over the threads; (B, N).

        ``write`` gets a block, the segment that it is of, and the columns (B, n) to write. A block may
        hold ``least`` rows however many mentions there are.
        """
        out = np.empty((count, len(self)), np.float32)  # (B, N)
        limit = max(least, self.kernels.pairs_per_block // max(1, count))
        blocks = SharedBlocks(self.segments.blocks(limit, self.threads))

        def work() -> None:
            for block in blocks:
                write(block, self.segments.arrays[block.segment], out[:, block.start : block.stop])

        for worker in [self._pool.submit(work) for _ in range(self.threads)]:
            worker.result()
        check_finite(out)
        return out

    def _totals_task(self, prepared: Prepared, rows: _Rows, out: Array) -> None:
        for segment, local, positions in self.segments.split(rows):
            part = np.empty((1, len(local)), np.float32)
            self.kernels.totals(prepared, self.segments.arrays[segment], local, part)
            out[:, positions] = part

    def _code_book(self) -> CodeBook:
        if self.codes is None:
            raise InvalidInputError(
                "mode: 'coded' needs an index with codes; build it with --centroids", field="mode"
            )
        return self.codes
