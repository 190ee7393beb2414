"""Ranking metrics: Hits@k, mean reciprocal rank and mean rank, from ranks of gold entities. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError

HITS = (1, 3, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Fractions, not percentages; ``mr`` is a mean rank (1 is best)."""

    hits: tuple[float, ...]  # at HITS
    mrr: float
    mr: float
    mentions: int
    candidates: int

    def to_json(self) -> dict[str, float | int]:
        """``{"hits@1": ..., ..., "mrr", "mr", "mentions", "candidates"}``."""
        hits = {f"hits@{k}": h for k, h in zip(HITS, self.hits, strict=True)}
        return hits | {
            "mrr": self.mrr,
            "mr": self.mr,
            "mentions": self.mentions,
            "candidates": self.candidates,
        }


def ranking_metrics(ranks: NDArray[np.int64], candidates: int) -> Metrics:
    """Metrics of 1-based ranks (M,) among ``candidates`` entities.

    Raises
    ------
    InvalidInputError
        If there is no mention, or a rank is not between 1 and ``candidates``.
    """
    if not len(ranks):
        raise InvalidInputError("ranks: no mentions to evaluate")
    if ranks.min() < 1 or ranks.max() > candidates:
        raise InvalidInputError(
            f"ranks: {ranks.min()} to {ranks.max()} are not within 1 to {candidates} candidates"
        )
    hits = tuple(float((ranks <= k).mean()) for k in HITS)
    return Metrics(hits, float((1 / ranks).mean()), float(ranks.mean()), len(ranks), candidates)
