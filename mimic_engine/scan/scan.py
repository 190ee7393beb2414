"""The scan: search of all entities of an index for the k best, exactly, certified or by codes.

exact
    Every entity is scored by every unit.
certified
    The same answer for a fraction of the work: a pass over all entities bounds
    every score from above (``kernels/cone_bound_ref.py``), then entities are scored
    exactly in descending bound until the k-th best score reaches the next bound.
    A mention for which too many survive is finished by scoring every entity,
    and its answer says so; so is every mention where the kernels have no bound pass.
coded
    A pass over codes estimates every score (``kernels/coded_tglu_ref.py``), and the
    best R are scored exactly. Measured, not proved: see the index's agreement.

A search that brings name scores adds them, and the entities' prior, to every score, bound and estimate
(:mod:`mimic_engine.scan.terms`).

Knows nothing of files or models: it takes folded arrays (memory-mapped or
not) and kernels for the passes (:mod:`mimic_engine.scan.passes`), and
returns row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.scan.base import Prepared, ScanKernels
from mimic_engine.scan.certified import MAX_SHARE, BoundedSearch
from mimic_engine.scan.passes import CodeBook, Passes
from mimic_engine.scan.terms import MentionTerms, NameScores, ScoreTerms
from mimic_engine.scan.topk import TieKey, check_finite, kth_largest, order, pessimistic_ranks, topk_with_ties
from mimic_engine.types import MODES, Array, EntityArrays, MentionArrays, Mode

DEFAULT_RERANK = 128

Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]
_Terms = Sequence[MentionTerms]


@dataclass(frozen=True, slots=True)
class TopK:
    """The K best rows of each of B mentions, best first, with total scores, units' scores and terms."""

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
    terms : what a search with name scores adds.

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
        terms: ScoreTerms | None = None,
    ) -> None:
        self._passes = Passes(segments, kernels, threads, codes)
        self._terms = terms or ScoreTerms()
        self._largest_term = self._terms.largest
        self._tie_key = tie_key
        self.scorer_name, self.threads = kernels.name, self._passes.threads

    def __len__(self) -> int:
        return len(self._passes)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        return MODES if self._passes.codes is not None else tuple(m for m in MODES if m != "coded")

    def over(
        self,
        segments: Sequence[EntityArrays],
        tie_key: TieKey | None,
        codes: CodeBook | None = None,
        terms: ScoreTerms | None = None,
    ) -> Scan:
        """Give a scan of other entities with the same kernels, and threads of its own."""
        return Scan(
            segments, self._passes.kernels, threads=self.threads, tie_key=tie_key, codes=codes, terms=terms
        )

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """Input of TGLU's attention from n rows: token queries (n, L, D) float32, and their weights."""
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
        """Exact scores (B, N) of B mentions without terms; EngineError if one is not finite."""
        return self._passes.totals(self._passes.prepare(mentions))

    def estimates(self, mentions: MentionArrays) -> Array:
        """The totals as the codes give them, (B, N); InvalidInputError without codes."""
        return self._passes.estimates(self._passes.prepare_coded(mentions))

    def ranks(
        self,
        mentions: MentionArrays,
        gold: _Rows,
        *,
        allowed: Mask | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,).

        ``allowed`` and ``names`` as in :meth:`search`; the gold rows must be allowed. Where the kernels have
        a bound pass, only rows whose bound reaches the gold row's score are scored.
        """
        ranked = self._dense_ranks if self._passes.kernels.bounds is None else self._certified_ranks
        terms = self._terms.of(names, mentions.rows)
        ranks, start = np.empty(len(gold), np.int64), 0
        for part in self._passes.parts(mentions):
            stop = start + part.rows
            prepared = self._passes.prepare(part)
            ranks[start:stop] = ranked(prepared, terms[start:stop], gold[start:stop], allowed)
            start = stop
        return ranks

    def _dense_ranks(self, mentions: Prepared, terms: _Terms, gold: _Rows, allowed: Mask | None) -> _Rows:
        totals = self._with_terms(self._passes.totals(mentions), terms)  # (B, N)
        return pessimistic_ranks(_restrict(totals, allowed), gold)

    def _certified_ranks(self, mentions: Prepared, terms: _Terms, gold: _Rows, allowed: Mask | None) -> _Rows:
        """Ranks from the rows that may come before the gold one; too many of them, and all are scored."""
        bounds = _restrict(self._with_terms(self._passes.bounds(mentions), terms), allowed)  # (B, N)
        singles = self._passes.singles(mentions)
        own = np.concatenate(
            self._totals_of([(one, terms[b], gold[[b]]) for b, one in enumerate(singles)])
        )  # (B,)
        ahead = [np.flatnonzero(row >= score) for row, score in zip(bounds, own, strict=True)]
        most = MAX_SHARE * _count(len(self), None, allowed)
        dense = np.array([len(rows) > most for rows in ahead])  # (B,)
        ranks = np.empty(len(gold), np.int64)
        if dense.any():
            many = np.flatnonzero(dense).tolist()
            chosen = self._passes.kernels.take(mentions, many)
            ranks[dense] = self._dense_ranks(chosen, [terms[b] for b in many], gold[dense], allowed)
        sparse = np.flatnonzero(~dense).tolist()
        scores = self._totals_of([(singles[b], terms[b], ahead[b]) for b in sparse])
        for b, totals in zip(sparse, scores, strict=True):
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
        names: Sequence[NameScores] | None = None,
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
        names : name scores of each mention; with them the prior counts too. None: the model's score alone.

        Raises
        ------
        InvalidInputError
            If there are no mentions, k is not between 1 and the number of candidates, the mode is
            unknown, "coded" has no codes, or the names are of another number of mentions.
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
        prepare = self._passes.prepare_coded if mode == "coded" and rows is None else self._passes.prepare
        terms = self._terms.of(names, mentions.rows)
        answers: list[_Best] = []
        for part in self._passes.parts(mentions):
            prepared, own = prepare(part), terms[len(answers) : len(answers) + part.rows]
            if rows is not None:
                answers += self._among(prepared, own, k, rows)
            elif mode == "coded":
                answers += self._coded(prepared, own, k, allowed, max(k, rerank or DEFAULT_RERANK))
            elif mode == "exact" or self._passes.kernels.bounds is None:
                answers += self._exact(prepared, own, k, allowed)
            else:
                answers += self._certified(prepared, own, k, allowed)
        return _stack(answers)

    def _among(self, mentions: Prepared, terms: _Terms, k: int, rows: _Rows) -> list[_Best]:
        singles = zip(self._passes.singles(mentions), terms, strict=True)
        return [self._best(one, own, k, rows, "exact", len(rows)) for one, own in singles]

    def _exact(self, mentions: Prepared, terms: _Terms, k: int, allowed: Mask | None) -> list[_Best]:
        totals = _restrict(self._with_terms(self._passes.totals(mentions), terms), allowed)  # (B, N)
        scored = _count(len(self), None, allowed)
        chosen = self._passes.each(lambda row: self._topk(row, k), totals)
        singles = zip(self._passes.singles(mentions), terms, chosen, strict=True)
        return [self._best(one, own, k, rows, "exact", scored) for one, own, rows in singles]

    def _certified(self, mentions: Prepared, terms: _Terms, k: int, allowed: Mask | None) -> list[_Best]:
        bounds = _restrict(self._with_terms(self._passes.bounds(mentions), terms), allowed)  # (B, N)
        searches = [BoundedSearch(row, k) for row in bounds]
        singles = self._passes.singles(mentions)
        self._run(searches, singles, terms)
        answers = {
            b: self._best(singles[b], terms[b], k, search.best(), "certified", search.scored)
            for b, search in enumerate(searches)
            if not search.dense
        }
        dense = [b for b in range(mentions.count) if b not in answers]
        if dense:
            rest = self._passes.kernels.take(mentions, dense)
            found = self._exact(rest, [terms[b] for b in dense], k, allowed)
            answers |= dict(zip(dense, found, strict=True))
        return [answers[b] for b in range(mentions.count)]

    def _run(self, searches: Sequence[BoundedSearch], singles: Sequence[Prepared], terms: _Terms) -> None:
        """Score rows, round by round for all mentions together, until no search asks for more."""
        waiting = list(range(len(searches)))
        while waiting:
            asked = self._passes.each(lambda b: searches[b].next_rows(), waiting)
            rows = {b: r for b, r in zip(waiting, asked, strict=True) if len(r)}
            waiting = list(rows)
            scores = self._totals_of([(singles[b], terms[b], rows[b]) for b in waiting])
            for b, totals in zip(waiting, scores, strict=True):
                searches[b].add(rows[b], totals)

    def _coded(
        self, mentions: Prepared, terms: _Terms, k: int, allowed: Mask | None, rerank: int
    ) -> list[_Best]:
        estimates = _restrict(self._with_terms(self._passes.estimates(mentions), terms), allowed)  # (B, N)
        rerank = min(rerank, _count(len(self), None, allowed))
        chosen = self._passes.each(lambda row: topk_with_ties(row, rerank), estimates)
        singles = zip(self._passes.singles(mentions), terms, chosen, strict=True)
        return [self._best(one, own, k, rows, "coded", len(rows)) for one, own, rows in singles]

    def _best(
        self, mention: Prepared, terms: MentionTerms, k: int, rows: _Rows, mode: Mode, scored: int
    ) -> _Best:
        """The k best of a few rows of one mention, with their units' scores and terms."""
        [totals] = self._totals_of([(mention, terms, rows)])
        near = rows[self._topk(totals, k)]
        found = self._passes.scores_of(mention, near)
        scores, units = found.total[0], {name: score[0] for name, score in found.units.items()}
        units |= terms.units(near)
        terms.add_to(scores, near)
        final = order(scores, near, self._tie_key)[:k]
        return _Best(
            near[final], scores[final], {n: score[final] for n, score in units.items()}, mode, scored
        )

    def _totals_of(self, mentions: Sequence[tuple[Prepared, MentionTerms, _Rows]]) -> list[Array]:
        """Exact totals (n,) of some rows for each mention, terms included; EngineError if not finite."""
        found = self._passes.totals_of([(one, rows) for one, _, rows in mentions])
        for (_, terms, rows), totals in zip(mentions, found, strict=True):
            terms.add_to(totals, rows)
            check_finite(totals)
        return found

    @staticmethod
    def _with_terms(scores: Array, terms: _Terms) -> Array:
        """Add to the scores (B, N) of all rows, in place."""
        for row, own in zip(scores, terms, strict=True):
            own.add_to_all(row)
        return scores

    def _topk(self, scores: Array, k: int) -> _Rows:
        """Positions of the k best of ``scores`` (N,), and of all that rounding could put among them."""
        margin = 0.0
        if self._passes.kernels.rounding and k < len(scores):
            size = 1 + abs(kth_largest(scores, k)) + self._largest_term
            margin = 2 * self._passes.kernels.rounding * size
        return topk_with_ties(scores, k, margin)


def _restrict(scores: Array, allowed: Mask | None) -> Array:
    """Put -inf in place of the scores (B, N) of rows that may not be answered."""
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return scores


def _count(rows: int, chosen: _Rows | None, allowed: Mask | None) -> int:
    if chosen is not None:
        return len(chosen)
    return rows if allowed is None else int(np.count_nonzero(allowed))


def _stack(answers: Sequence[_Best]) -> TopK:
    return TopK(
        np.stack([a.rows for a in answers]),
        np.stack([a.scores for a in answers]),
        {name: np.stack([a.units[name] for a in answers]) for name in answers[0].units},
        tuple(a.mode for a in answers),
        np.array([a.scored for a in answers], np.int64),
    )
