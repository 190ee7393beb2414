"""The exact scan: every entity of an index scored, in cache-sized blocks spread over threads.

Knows nothing of files or models: it takes folded arrays (memory-mapped or
not), a scorer for one block, and returns row numbers. Half-precision arrays
are widened block by block into buffers that each thread reuses, so nothing
but the (B, N) totals grows with N.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.scoring.base import Scorer
from mimic_engine.scoring.half import widen_into
from mimic_engine.scoring.topk import TieKey, order, pessimistic_ranks, top_k
from mimic_engine.types import Array, EntityArrays, MentionArrays

MENTIONS_PER_PASS = 32  # bounds the (B, N) totals to 128 bytes an entity

_Best = tuple[NDArray[np.int64], Array, dict[str, Array]]  # rows (K,), scores (K,), unit scores (K,) each


@dataclass(frozen=True, slots=True)
class TopK:
    """The K best rows of each of B mentions, best first, with total and unit scores."""

    rows: NDArray[np.int64]  # (B, K)
    scores: Array  # (B, K)
    units: dict[str, Array]  # (B, K) each


class _Block(NamedTuple):
    """Columns start:stop of the scores, and where their entities come from."""

    start: int
    stop: int
    load: Callable[[], EntityArrays]  # float32, perhaps in the calling thread's buffers


class _Shared(Iterator[_Block]):
    """Hands each block to one of several threads, in order: a thread that is held up takes fewer."""

    def __init__(self, blocks: Iterator[_Block]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()

    def __next__(self) -> _Block:
        with self._lock:
            return next(self._blocks)


class ExactScan:
    """Scores mentions against every entity.

    Parameters
    ----------
    segments : folded entities, row numbers running on from one to the next.
    scorer : scores one block; called from several threads at once.
    threads : cores to use; all that the process may use by default.
    tie_key : entity ids of rows, to break ties; by row number if absent.

    Raises
    ------
    InvalidInputError
        If ``threads`` is below 1.
    """

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        scorer: Scorer,
        *,
        threads: int | None = None,
        tie_key: TieKey | None = None,
    ) -> None:
        self._segments = tuple(segments)
        self._starts = np.cumsum([0, *(s.rows for s in self._segments)])  # (segments + 1,)
        self._scorer = scorer
        self._tie_key = tie_key
        self.scorer_name = scorer.name
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if self.threads < 1:
            raise InvalidInputError(f"threads: must be at least 1, got {threads}", field="threads")
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mimic-scan")
        self._scratch = threading.local()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def totals(self, mentions: MentionArrays, rows: NDArray[np.int64] | None = None) -> Array:
        """Total scores of B mentions against all N entities, or against ``rows``; (B, N).

        Raises
        ------
        EngineError
            If a score is not finite: NaN has no rank.
        """
        count = len(self) if rows is None else len(rows)
        out = np.empty((mentions.rows, count), np.float32)  # (B, N)
        limit = max(1, self._scorer.pairs_per_block // max(1, mentions.rows))
        blocks = _Shared(self._segment_blocks(limit) if rows is None else self._row_blocks(rows, limit))
        workers = [self._pool.submit(self._score_blocks, mentions, blocks, out) for _ in range(self.threads)]
        for worker in workers:
            worker.result()
        finite = np.isfinite(out).all(axis=1)  # (B,)
        if not finite.all():
            raise EngineError(
                f"scores: those of mention {int(np.argmin(finite))} of the batch are not all finite: "
                "the weights are damaged, or the encoders' precision has too small a range"
            )
        return out

    def search(self, mentions: MentionArrays, k: int, *, rows: NDArray[np.int64] | None = None) -> TopK:
        """The k best entities of each mention, among all or among ``rows``.

        Raises
        ------
        InvalidInputError
            If k is not between 1 and the number of candidates.
        """
        candidates = len(self) if rows is None else len(rows)
        if not 1 <= k <= candidates:
            raise InvalidInputError(
                f"top_k: {k} is not between 1 and the {candidates} candidates", field="top_k"
            )
        ranked = [best for part in _passes(mentions) for best in self._search_pass(part, k, rows)]
        return TopK(
            np.stack([r for r, _, _ in ranked]),
            np.stack([s for _, s, _ in ranked]),
            {name: np.stack([u[name] for _, _, u in ranked]) for name in ranked[0][2]},
        )

    def ranks(self, mentions: MentionArrays, gold: NDArray[np.int64]) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,)."""
        parts, start = [], 0
        for part in _passes(mentions):
            parts.append(pessimistic_ranks(self.totals(part), gold[start : start + part.rows]))
            start += part.rows
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def gather(self, rows: NDArray[np.int64]) -> EntityArrays:
        """The given rows of all segments, copied and widened to float32."""
        segment = np.searchsorted(self._starts, rows, side="right") - 1
        parts: dict[str, Array] = {}
        for s in np.unique(segment):
            where = np.flatnonzero(segment == s)
            for name, values in self._segments[s].take(rows[where] - self._starts[s]).items():
                if name not in parts:
                    parts[name] = np.empty((len(rows), *values.shape[1:]), np.float32)
                parts[name][where] = self._float32(name, values)
        return EntityArrays(**parts)

    def _search_pass(self, mentions: MentionArrays, k: int, rows: NDArray[np.int64] | None) -> list[_Best]:
        key = self._tie_key
        within = key if key is None or rows is None else lambda chosen: key(rows[chosen])
        totals = self.totals(mentions, rows)  # (B, N)

        def best(b: int) -> _Best:
            chosen = top_k(totals[b], k, within)
            return self._rescore(_take(mentions, b), chosen if rows is None else rows[chosen])

        return list(self._pool.map(best, range(mentions.rows)))

    def _rescore(self, mention: MentionArrays, rows: NDArray[np.int64]) -> _Best:
        """Unit scores of one mention's K winners, in their final order."""
        size = self._scorer.pairs_per_block
        parts = [
            self._scorer.score(mention, self.gather(rows[i : i + size])) for i in range(0, len(rows), size)
        ]
        total = np.concatenate([p.total[0] for p in parts])  # (K,)
        best = order(total, rows, self._tie_key)
        units = {name: np.concatenate([p.units[name][0] for p in parts])[best] for name in parts[0].units}
        return rows[best], total[best], units

    def _segment_blocks(self, limit: int) -> Iterator[_Block]:
        for segment, offset in zip(self._segments, self._starts.tolist(), strict=False):
            for start, stop in self._cuts(segment.rows, limit):
                yield _Block(offset + start, offset + stop, partial(self._widened, segment, start, stop))

    def _row_blocks(self, rows: NDArray[np.int64], limit: int) -> Iterator[_Block]:
        for start, stop in self._cuts(len(rows), limit):
            yield _Block(start, stop, partial(self.gather, rows[start:stop]))

    def _cuts(self, rows: int, limit: int) -> Iterator[tuple[int, int]]:
        """Cut rows into equal blocks of at most ``limit``, as many for each thread."""
        rounds = -(-rows // (limit * self.threads))
        size = max(1, -(-rows // max(1, rounds * self.threads)))
        for start in range(0, rows, size):
            yield start, min(start + size, rows)

    def _score_blocks(self, mentions: MentionArrays, blocks: Iterator[_Block], out: Array) -> None:
        for block in blocks:
            out[:, block.start : block.stop] = self._scorer.score(mentions, block.load()).total

    def _widened(self, segment: EntityArrays, start: int, stop: int) -> EntityArrays:
        block = segment.block(start, stop)
        return EntityArrays(**{name: self._float32(name, array) for name, array in block.items()})

    def _float32(self, name: str, array: Array) -> Array:
        """The array itself, or a half-precision one widened into this thread's buffer of that name."""
        if array.dtype == np.float32:
            return array
        buffers: dict[str, Array] = self._scratch.__dict__
        buffer = buffers.get(name)
        if buffer is None or len(buffer) < len(array) or buffer.shape[1:] != array.shape[1:]:
            buffer = buffers[name] = np.empty(array.shape, np.float32)
        view = buffer[: len(array)]
        widen_into(array.view(np.float16), view)
        return view


def _take(mentions: MentionArrays, b: int) -> MentionArrays:
    return MentionArrays(**{name: a[b : b + 1] for name, a in mentions.items()})


def _passes(mentions: MentionArrays) -> Iterator[MentionArrays]:
    for start in range(0, mentions.rows, MENTIONS_PER_PASS):
        stop = start + MENTIONS_PER_PASS
        yield MentionArrays(**{name: a[start:stop] for name, a in mentions.items()})
