"""The scan: the k best of all entities of an index, exactly, certified or by codes.

exact
    Every entity is scored by every unit.
certified
    The same answer for a fraction of the work: a pass over all entities bounds
    every score from above (``kernels/cone_bound_ref.py``), then entities are scored
    exactly in descending bound until the k-th best score reaches the next bound.
    A mention for which too many survive is finished by scoring every entity,
    and its answer says so.
coded
    A pass over codes estimates every score (``kernels/coded_tglu_ref.py``), and the
    best R are scored exactly. Measured, not proved: see the index's agreement.

Knows nothing of files or models: it takes folded arrays (memory-mapped or
not) and kernels for the passes (:mod:`mimic_engine.scan.passes`), and
returns row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.scan.base import ScanKernels
from mimic_engine.scan.certified import MAX_SHARE, Refinement
from mimic_engine.scan.passes import CodeBook, Passes
from mimic_engine.scan.topk import TieKey, check_finite, contenders, kth_largest, order, pessimistic_ranks
from mimic_engine.types import MODES, Array, EntityArrays, MentionArrays, Mode

DEFAULT_RERANK = 128

Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]


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
        self._passes = Passes(segments, kernels, threads, codes)
        self._tie_key = tie_key
        self.scorer_name, self.threads = kernels.name, self._passes.threads

    def __len__(self) -> int:
        return len(self._passes)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        return MODES if self._passes.codes is not None else tuple(m for m in MODES if m != "coded")

    def over(
        self, segments: Sequence[EntityArrays], tie_key: TieKey | None, codes: CodeBook | None = None
    ) -> Scan:
        """Give a scan of other entities with the same kernels, and threads of its own."""
        return Scan(segments, self._passes.kernels, threads=self.threads, tie_key=tie_key, codes=codes)

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """What TGLU's attention needs of n rows: token queries (n, L, D) float32, and their weights."""
        return self._passes.segments.token_queries(rows)

    def warm_up(self, mention: MentionArrays, allowed: Mask | None) -> int:
        """Search once in every mode: a size prepares nothing here; the number of searches."""
        for mode in self.modes:
            self.search(mention, 1, mode=mode, allowed=allowed)
        return len(self.modes)

    def rebuild(self) -> None:
        """Nothing to rebuild: the kernels keep no state of a device."""

    def close(self) -> None:
        """Stop the threads."""
        self._passes.close()

    # -- one number a pair ----------------------------------------------------------------------------

    def totals(self, mentions: MentionArrays) -> Array:
        """Exact total scores of B mentions against all N entities, (B, N); EngineError if not finite."""
        return self._passes.totals(mentions)

    def bounds(self, mentions: MentionArrays) -> Array:
        """Upper bounds of the totals, (B, N); errors as in :meth:`totals`."""
        return self._passes.bounds(mentions)

    def estimates(self, mentions: MentionArrays) -> Array:
        """The totals as the codes give them, (B, N); InvalidInputError without codes."""
        return self._passes.estimates(mentions)

    def ranks(
        self, mentions: MentionArrays, gold: _Rows, *, allowed: Mask | None = None
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,).

        ``allowed`` as in :meth:`search`; the gold rows must be allowed. Where the kernels give a pair
        the same bits in every pass, only rows whose bound reaches the gold row's score are scored.
        """
        ranked = self._dense_ranks if self._passes.kernels.rounding else self._certified_ranks
        parts, start = [np.empty(0, np.int64)], 0
        for part in self._passes.parts(mentions):
            parts.append(ranked(part, gold[start : start + part.rows], allowed))
            start += part.rows
        return np.concatenate(parts)

    def _dense_ranks(self, mentions: MentionArrays, gold: _Rows, allowed: Mask | None) -> _Rows:
        return pessimistic_ranks(_restrict(self.totals(mentions), allowed), gold)

    def _certified_ranks(self, mentions: MentionArrays, gold: _Rows, allowed: Mask | None) -> _Rows:
        """Ranks from the rows that may come before the gold one; too many of them, and all are scored."""
        bounds = _restrict(self.bounds(mentions), allowed)  # (B, N)
        singles = self._passes.singles(mentions)
        own = np.concatenate(
            self._passes.totals_of([(one, gold[[b]]) for b, one in enumerate(singles)])
        )  # (B,)
        check_finite(own)
        rivals = [np.flatnonzero(row >= score) for row, score in zip(bounds, own, strict=True)]
        most = MAX_SHARE * _count(len(self), None, allowed)
        dense = np.array([len(rows) > most for rows in rivals])  # (B,)
        ranks = np.empty(len(gold), np.int64)
        if dense.any():
            ranks[dense] = self._dense_ranks(mentions.take(np.flatnonzero(dense)), gold[dense], allowed)
        sparse = np.flatnonzero(~dense)
        for b, totals in zip(
            sparse, self._passes.totals_of([(singles[b], rivals[b]) for b in sparse]), strict=True
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
        for part in self._passes.parts(mentions):
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
        return [self._rank(one, k, rows, "exact", len(rows)) for one in self._passes.singles(mentions)]

    def _exact(self, mentions: MentionArrays, k: int, allowed: Mask | None) -> list[_Best]:
        totals = _restrict(self.totals(mentions), allowed)  # (B, N)
        scored = _count(len(self), None, allowed)
        chosen = self._passes.each(lambda row: self._contenders(row, k), totals)
        singles = self._passes.singles(mentions)
        return [self._rank(one, k, c, "exact", scored) for one, c in zip(singles, chosen, strict=True)]

    def _certified(self, mentions: MentionArrays, k: int, allowed: Mask | None) -> list[_Best]:
        bounds = _restrict(self.bounds(mentions), allowed)  # (B, N)
        searches = [Refinement(row, k, self._passes.kernels.rounding) for row in bounds]
        singles = self._passes.singles(mentions)
        waiting = list(range(mentions.rows))
        while waiting:
            rows = dict(
                zip(waiting, self._passes.each(lambda b: searches[b].next_rows(), waiting), strict=True)
            )
            waiting = [b for b in waiting if len(rows[b])]
            for b, totals in zip(
                waiting, self._passes.totals_of([(singles[b], rows[b]) for b in waiting]), strict=True
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
        chosen = self._passes.each(lambda row: contenders(row, rerank), estimates)
        singles = self._passes.singles(mentions)
        return [self._rank(one, k, c, "coded", len(c)) for one, c in zip(singles, chosen, strict=True)]

    def _rank(self, prepared: Any, k: int, rows: _Rows, mode: Mode, scored: int) -> _Best:
        """The k best of a few rows of one mention, with their units' scores."""
        [totals] = self._passes.totals_of([(prepared, rows)])
        check_finite(totals)
        near = self._contenders(totals, k)
        best = self._passes.scores_of(prepared, rows[near])
        final = order(best.total[0], rows[near], self._tie_key)[:k]
        units = {name: score[0, final] for name, score in best.units.items()}
        return _Best(rows[near][final], best.total[0, final], units, mode, scored)

    def _contenders(self, scores: Array, k: int) -> _Rows:
        """The k best, and all that rounding could put among them."""
        margin = 0.0
        if self._passes.kernels.rounding and k < len(scores):
            margin = 2 * self._passes.kernels.rounding * (1 + abs(kth_largest(scores, k)))
        return contenders(scores, k, margin)


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
