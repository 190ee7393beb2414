"""Evaluation in candidate sets: every mention brings its own (:mod:`mimic_engine.data.with_candidates`).

The gold entity is ranked in its candidate set alone, so figures say nothing of a search among all entities,
and depend on who drew the sets. A mention whose answer is not in its set counts as missed at every k; how
many there are is told, for no model can do better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.data.with_candidates import MentionWithCandidates
from mimic_engine.errors import InvalidInputError
from mimic_engine.metrics import HITS, Metrics, ranking_metrics
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import Mention, MentionArrays


@dataclass(frozen=True, slots=True)
class CandidateSetEvaluation:
    """Metrics in candidate sets of ``candidates`` in all.

    ``answerable`` are those of the mentions whose answer is in their set, None where there are none;
    their ``candidates`` are the most that a mention has.
    """

    mentions: int
    candidates: int
    answerable: Metrics | None

    def to_json(self) -> dict[str, Any]:
        """Metrics over all mentions, a missing answer being a miss, and ``answerable`` beside them."""
        own = self.answerable
        share = own.mentions / self.mentions if own else 0.0
        hits = own.hits if own else (0.0,) * len(HITS)
        return {
            **{f"hits@{k}": share * h for k, h in zip(HITS, hits, strict=True)},
            "mrr": share * own.mrr if own else 0.0,
            "mentions": self.mentions,
            "candidates_per_mention": self.candidates / self.mentions,
            "answer_given": share,
            "answerable": own and own.to_json(),
        }


class CandidateSetRanks:
    """Collects ranks of mentions, batch by batch.

    Parameters
    ----------
    scan : over the folded entities.
    rows_of : gives the rows (n,) of entity ids.
    names : gives the name scores of a mention; None: the model's score alone.
    """

    def __init__(
        self,
        scan: Scan,
        rows_of: Callable[[Sequence[str]], NDArray[np.int64]],
        names: Callable[[Mention], NameScores] | None = None,
    ) -> None:
        self._scan, self._rows_of, self._names = scan, rows_of, names
        self._ranks: list[int] = []
        self._mentions = self._candidates = self._most = 0

    def add(self, arrays: MentionArrays, mentions: Sequence[MentionWithCandidates]) -> None:
        """Rank the answers of B mentions, folded and as they were read, among their candidates."""
        for b, one in enumerate(mentions):
            self._mentions += 1
            self._candidates += len(one.candidates)
            self._most = max(self._most, len(one.candidates))
            if one.labelled.answer in one.candidates:
                rows = self._rows_of(one.candidates)
                gold = int(rows[one.candidates.index(one.labelled.answer)])
                names = None if self._names is None else self._names(one.labelled.mention)
                self._ranks.append(rank_among(self._scan, arrays.take([b]), rows, gold, names))

    def result(self) -> CandidateSetEvaluation:
        """Metrics of the mentions added.

        Raises
        ------
        InvalidInputError
            If there were no mentions.
        """
        if not self._mentions:
            raise InvalidInputError("candidates: no mentions to evaluate")
        ranks = np.array(self._ranks, np.int64)
        answerable = ranking_metrics(ranks, self._most) if len(ranks) else None
        return CandidateSetEvaluation(self._mentions, self._candidates, answerable)


def rank_among(
    scan: Scan, mention: MentionArrays, rows: NDArray[np.int64], gold: int, names: NameScores | None = None
) -> int:
    """1-based rank of row ``gold`` among ``rows`` (n,), which hold it; ties count against it."""
    ranked = scan.search(mention, len(rows), rows=rows, names=None if names is None else [names])
    own = ranked.scores[0, ranked.rows[0] == gold][0]
    return int(np.count_nonzero(ranked.scores[0] >= own))
