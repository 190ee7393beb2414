"""The scan: the k best of all entities of an index, exactly, certified or by codes.

exact
    Every entity is scored by every unit.
certified
    The same answer for a fraction of the work: a pass over all entities bounds
    every score from above (``kernels/cone_bound.py``), then entities are scored
    exactly in descending bound until the k-th best score reaches the next bound.
    A mention for which too many survive is finished by scoring every entity,
    and its answer says so.
coded
    A pass over codes estimates every score (``kernels/coded_ref.py``), and the
    best R are scored exactly. Measured, not proved: see the index's agreement.

Knows nothing of files or models: it takes folded arrays (memory-mapped or
not) and kernels for the passes, and returns row numbers. Passes run in
cache-sized blocks spread over threads, so nothing but (B, N) float32 grows
with N.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.scoring.base import Codes, ScanKernels
from mimic_engine.scoring.certified import MAX_SHARE, Refinement
from mimic_engine.scoring.finite import check_finite
from mimic_engine.scoring.segments import Block, Segments, Shared
from mimic_engine.scoring.topk import TieKey, contenders, kth_largest, order, pessimistic_ranks
from mimic_engine.types import MODES, Array, EntityArrays, MentionArrays, Mode, Scores

MENTIONS_PER_PASS = 64
PAIRS_PER_PASS = 1 << 26  # bounds the (B, N) scores of a pass to 256 MB, but for one mention
DEFAULT_RERANK = 128
_LEAST_ROWS = 1024  # of a pass that does little for each: bounds and estimates
_ROWS_PER_TASK = 64  # of exact scoring by row number: 64 entities are about 0.2 ms

Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]
_Pass = Callable[[Any, Block, Array], None]  # prepared mentions, block, (B, n) to write


class CodeBook(Protocol):
    """What the coded mode needs of an index."""

    @property
    def centroids(self) -> Array:
        """(C, D) float32."""
        ...

    @property
    def segments(self) -> Sequence[Codes]:
        """Codes of every segment, (rows, L)."""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """The K best rows of each of B mentions, best first, with total and unit scores."""

    rows: _Rows  # (B, K)
    scores: Array  # (B, K)
    units: dict[str, Array]  # (B, K) each
    modes: tuple[Mode, ...]  # (B,), which mode answered
    scored: _Rows  # (B,), entities scored exactly


@dataclass(frozen=True, slots=True)
class _Best:
    """One mention's answer; arrays (K,)."""

    rows: _Rows
    scores: Array
    units: dict[str, Array]
    mode: Mode
    scored: int


class Scan:
    """Ranks entities for mentions; safe to use from one thread at a time.

    Parameters
    ----------
    segments : folded entities, row numbers running on from one to the next.
    kernels : the passes; called from several threads at once.
    threads : cores to use; all that the process may use by default.
    tie_key : entity ids of rows, to break ties; by row number if absent.
    codes : for the mode "coded".

    Raises
    ------
    InvalidInputError
        If ``threads`` is below 1.
    """

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        kernels: ScanKernels,
        *,
        threads: int | None = None,
        tie_key: TieKey | None = None,
        codes: CodeBook | None = None,
    ) -> None:
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if self.threads < 1:
            raise InvalidInputError(f"threads: must be at least 1, got {threads}", field="threads")
        self.scorer_name = kernels.name
        self._segments = Segments(segments)
        self._kernels = kernels
        self._tie_key = tie_key
        self._codes = codes
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mimic-scan")

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        return MODES if self._codes is not None else tuple(m for m in MODES if m != "coded")

    def over(
        self, segments: Sequence[EntityArrays], tie_key: TieKey | None, codes: CodeBook | None = None
    ) -> Scan:
        """Give a scan of other entities with the same kernels, and threads of its own."""
        return Scan(segments, self._kernels, threads=self.threads, tie_key=tie_key, codes=codes)

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """What TGLU's attention needs of n rows: token queries (n, L, D) float32, and their weights."""
        return self._segments.token_queries(rows)

    def warm_up(self, mention: MentionArrays, allowed: Mask | None) -> int:
        """Search once in every mode: a size prepares nothing here; the number of searches."""
        for mode in self.modes:
            self.search(mention, 1, mode=mode, allowed=allowed)
        return len(self.modes)

    def rebuild(self) -> None:
        """Nothing to rebuild: the kernels keep no state of a device."""

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    # -- one number a pair ----------------------------------------------------------------------------

    def totals(self, mentions: MentionArrays) -> Array:
        """Exact total scores of B mentions against all N entities, (B, N).

        Raises
        ------
        EngineError
            If a score is not finite: NaN has no rank.
        """
        return self._all_rows(self._kernels.prepare(mentions), mentions.rows, self._totals_pass)

    def bounds(self, mentions: MentionArrays) -> Array:
        """Upper bounds of the totals, (B, N); errors as in :meth:`totals`."""
        return self._all_rows(self._kernels.prepare(mentions), mentions.rows, self._bounds_pass, _LEAST_ROWS)

    def estimates(self, mentions: MentionArrays) -> Array:
        """The totals as the codes give them, (B, N); errors as in :meth:`totals`.

        Raises
        ------
        InvalidInputError
            If the scan has no codes.
        """
        prepared = self._kernels.prepare(mentions, self._code_book().centroids)
        return self._all_rows(prepared, mentions.rows, self._estimates_pass, _LEAST_ROWS)

    def ranks(
        self, mentions: MentionArrays, gold: _Rows, *, allowed: Mask | None = None
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,).

        ``allowed`` as in :meth:`search`; the gold rows must be allowed. Where the kernels give a pair
        the same bits in every pass, only rows whose bound reaches the gold row's score are scored.
        """
        ranked = self._dense_ranks if self._kernels.rounding else self._certified_ranks
        parts, start = [np.empty(0, np.int64)], 0
        for part in self._passes(mentions):
            parts.append(ranked(part, gold[start : start + part.rows], allowed))
            start += part.rows
        return np.concatenate(parts)

    def _dense_ranks(self, mentions: MentionArrays, gold: _Rows, allowed: Mask | None) -> _Rows:
        return pessimistic_ranks(_restrict(self.totals(mentions), allowed), gold)

    def _certified_ranks(self, mentions: MentionArrays, gold: _Rows, allowed: Mask | None) -> _Rows:
        """Ranks from the rows that may come before the gold one; too many of them, and all are scored."""
        bounds = _restrict(self.bounds(mentions), allowed)  # (B, N)
        singles = self._singles(mentions)
        own = np.concatenate(self._score_rows([(one, gold[[b]]) for b, one in enumerate(singles)]))  # (B,)
        check_finite(own)
        rivals = [np.flatnonzero(row >= score) for row, score in zip(bounds, own, strict=True)]
        most = MAX_SHARE * _count(len(self), None, allowed)
        dense = np.array([len(rows) > most for rows in rivals])  # (B,)
        ranks = np.empty(len(gold), np.int64)
        if dense.any():
            ranks[dense] = self._dense_ranks(mentions.take(np.flatnonzero(dense)), gold[dense], allowed)
        sparse = np.flatnonzero(~dense)
        for b, totals in zip(
            sparse, self._score_rows([(singles[b], rivals[b]) for b in sparse]), strict=True
        ):
            check_finite(totals)
            ranks[b] = np.count_nonzero(totals >= own[b])
        return ranks

    # -- the k best -----------------------------------------------------------------------------------

    def search(
        self,
        mentions: MentionArrays,
        k: int,
        *,
        mode: Mode = "certified",
        rows: _Rows | None = None,
        allowed: Mask | None = None,
        rerank: int | None = None,
    ) -> TopK:
        """The k best entities of each mention.

        Parameters
        ----------
        mentions : B mentions.
        k : entities wanted for each.
        mode : how to find them. Given ``rows`` are all scored exactly, whatever the mode.
        rows : row numbers to choose among; all rows by default.
        allowed : (N,), rows that may be answered (not deleted, of the wanted type); all by default.
        rerank : in mode "coded", entities that are scored exactly (R), at least k.

        Raises
        ------
        InvalidInputError
            If there are no mentions, k is not between 1 and the number of candidates, the mode is
            unknown, or "coded" has no codes.
        EngineError
            If a score is not finite.
        """
        if rows is not None and allowed is not None:
            rows = rows[allowed[rows]]
        candidates = _count(len(self), rows, allowed)
        if not 1 <= k <= candidates:
            raise InvalidInputError(
                f"top_k: {k} is not between 1 and the {candidates} candidates", field="top_k"
            )
        if not mentions.rows:
            raise InvalidInputError("mentions: none to search for", field="mentions")
        if mode not in MODES:
            raise InvalidInputError(f"mode: {mode!r} is not one of {', '.join(MODES)}", field="mode")
        found: list[_Best] = []
        for part in self._passes(mentions):
            if rows is not None:
                found += self._among(part, k, rows)
            elif mode == "exact":
                found += self._exact(part, k, allowed)
            elif mode == "certified":
                found += self._certified(part, k, allowed)
            else:
                found += self._coded(part, k, allowed, max(k, rerank or DEFAULT_RERANK))
        return _stack(found)

    def _among(self, mentions: MentionArrays, k: int, rows: _Rows) -> list[_Best]:
        return [self._rank(one, k, rows, "exact", len(rows)) for one in self._singles(mentions)]

    def _exact(self, mentions: MentionArrays, k: int, allowed: Mask | None) -> list[_Best]:
        totals = _restrict(self.totals(mentions), allowed)  # (B, N)
        scored = _count(len(self), None, allowed)
        chosen = self._pool.map(lambda row: self._contenders(row, k), totals)
        singles = self._singles(mentions)
        return [self._rank(one, k, c, "exact", scored) for one, c in zip(singles, chosen, strict=True)]

    def _certified(self, mentions: MentionArrays, k: int, allowed: Mask | None) -> list[_Best]:
        bounds = _restrict(self.bounds(mentions), allowed)  # (B, N)
        searches = [Refinement(row, k, self._kernels.rounding) for row in bounds]
        singles = self._singles(mentions)
        waiting = list(range(mentions.rows))
        while waiting:
            rows = dict(zip(waiting, self._pool.map(lambda b: searches[b].next_rows(), waiting), strict=True))
            waiting = [b for b in waiting if len(rows[b])]
            for b, totals in zip(
                waiting, self._score_rows([(singles[b], rows[b]) for b in waiting]), strict=True
            ):
                check_finite(totals)
                searches[b].add(rows[b], totals)
        return self._finish(mentions, k, allowed, searches, singles)

    def _finish(
        self,
        mentions: MentionArrays,
        k: int,
        allowed: Mask | None,
        searches: Sequence[Refinement],
        singles: Sequence[Any],
    ) -> list[_Best]:
        dense = [b for b, search in enumerate(searches) if search.dense]
        finished = (
            dict(zip(dense, self._exact(mentions.take(dense), k, allowed), strict=True)) if dense else {}
        )
        for b, search in enumerate(searches):
            if b not in finished:
                finished[b] = self._rank(singles[b], k, search.best(), "certified", search.scored)
        return [finished[b] for b in range(len(searches))]

    def _coded(self, mentions: MentionArrays, k: int, allowed: Mask | None, rerank: int) -> list[_Best]:
        estimates = _restrict(self.estimates(mentions), allowed)  # (B, N)
        rerank = min(rerank, _count(len(self), None, allowed))
        chosen = self._pool.map(lambda row: contenders(row, rerank), estimates)
        singles = self._singles(mentions)
        return [self._rank(one, k, c, "coded", len(c)) for one, c in zip(singles, chosen, strict=True)]

    def _rank(self, prepared: Any, k: int, rows: _Rows, mode: Mode, scored: int) -> _Best:
        """The k best of a few rows of one mention, with their units' scores."""
        [totals] = self._score_rows([(prepared, rows)])
        check_finite(totals)
        near = self._contenders(totals, k)
        best = self._gather(prepared, rows[near])
        final = order(best.total[0], rows[near], self._tie_key)[:k]
        units = {name: score[0, final] for name, score in best.units.items()}
        return _Best(rows[near][final], best.total[0, final], units, mode, scored)

    def _contenders(self, scores: Array, k: int) -> _Rows:
        """The k best, and all that rounding could put among them."""
        margin = 0.0
        if self._kernels.rounding and k < len(scores):
            margin = 2 * self._kernels.rounding * (1 + abs(kth_largest(scores, k)))
        return contenders(scores, k, margin)

    # -- passes ---------------------------------------------------------------------------------------

    def _totals_pass(self, prepared: Any, block: Block, out: Array) -> None:
        self._kernels.totals(prepared, self._segments.arrays[block.segment], block.local, out)

    def _bounds_pass(self, prepared: Any, block: Block, out: Array) -> None:
        self._kernels.bounds(prepared, self._segments.arrays[block.segment], block.local, out)

    def _estimates_pass(self, prepared: Any, block: Block, out: Array) -> None:
        codes = self._code_book().segments[block.segment]
        self._kernels.estimates(prepared, self._segments.arrays[block.segment], codes, block.local, out)

    def _all_rows(self, prepared: Any, mentions: int, run: _Pass, least: int = 1) -> Array:
        """Run a pass over every row, in blocks of at least ``least`` spread over the threads; (B, N)."""
        out = np.empty((mentions, len(self)), np.float32)  # (B, N)
        limit = max(least, self._kernels.pairs_per_block // max(1, mentions))
        blocks = Shared(self._segments.blocks(limit, self.threads))

        def work() -> None:
            for block in blocks:
                run(prepared, block, out[:, block.start : block.stop])

        for worker in [self._pool.submit(work) for _ in range(self.threads)]:
            worker.result()
        check_finite(out)
        return out

    def _score_rows(self, wanted: Sequence[tuple[Any, _Rows]]) -> list[Array]:
        """Exact totals (n,) of the wanted rows of each single mention, spread over the threads."""
        outs = [np.empty((1, len(rows)), np.float32) for _, rows in wanted]
        tasks = [
            (prepared, rows[start : start + _ROWS_PER_TASK], out[:, start : start + _ROWS_PER_TASK])
            for (prepared, rows), out in zip(wanted, outs, strict=True)
            for start in range(0, len(rows), _ROWS_PER_TASK)
        ]
        for _ in self._pool.map(lambda task: self._score_task(*task), tasks):
            pass
        return [out[0] for out in outs]

    def _score_task(self, prepared: Any, rows: _Rows, out: Array) -> None:
        for segment, local, where in self._segments.split(rows):
            part = np.empty((1, len(local)), np.float32)
            self._kernels.totals(prepared, self._segments.arrays[segment], local, part)
            out[:, where] = part

    def _gather(self, prepared: Any, rows: _Rows) -> Scores:
        """Total and unit scores, (1, n) each, of one mention and rows of any segment."""
        total = np.empty((1, len(rows)), np.float32)
        units: dict[str, Array] = {}
        for segment, local, where in self._segments.split(rows):
            part = self._kernels.scores(prepared, self._segments.arrays[segment], local)
            total[:, where] = part.total
            for name, score in part.units.items():
                units.setdefault(name, np.empty_like(total))[:, where] = score
        return Scores(total, units)

    def _singles(self, mentions: MentionArrays) -> list[Any]:
        return [self._kernels.prepare(mentions.take([b])) for b in range(mentions.rows)]

    def _passes(self, mentions: MentionArrays) -> Iterator[MentionArrays]:
        size = max(1, min(MENTIONS_PER_PASS, PAIRS_PER_PASS // max(1, len(self))))
        for start in range(0, mentions.rows, size):
            yield mentions.block(start, start + size)

    def _code_book(self) -> CodeBook:
        if self._codes is None:
            raise InvalidInputError(
                "mode: 'coded' needs an index with codes; build it with --centroids", field="mode"
            )
        return self._codes


def _restrict(scores: Array, allowed: Mask | None) -> Array:
    """Put -inf in place of the scores (B, N) of rows that may not be answered."""
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return scores


def _count(rows: int, chosen: _Rows | None, allowed: Mask | None) -> int:
    if chosen is not None:
        return len(chosen)
    return rows if allowed is None else int(np.count_nonzero(allowed))


def _stack(found: Sequence[_Best]) -> TopK:
    return TopK(
        np.stack([b.rows for b in found]),
        np.stack([b.scores for b in found]),
        {name: np.stack([b.units[name] for b in found]) for name in found[0].units},
        tuple(b.mode for b in found),
        np.array([b.scored for b in found], np.int64),
    )
