"""Nil threshold of a model, below which its best candidate is not good enough: chosen on labelled mentions.

A mention whose best total lies below the threshold is answered "nil", none of these. It is kept with the
weights that the total counts (:mod:`mimic_engine.calibration.stored`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mimic_engine.errors import InvalidInputError
from mimic_engine.files import Natural


@dataclass(frozen=True, slots=True)
class NilThreshold:
    """A threshold and what it was chosen from.

    ``precision`` is the share of right answers among the ``answered`` of ``mentions`` labelled mentions,
    ``wanted_precision`` what was asked for.
    """

    threshold: float
    wanted_precision: float
    precision: float
    mentions: Natural
    answered: Natural

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold {self.threshold} is not finite")


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold, the precision above it, and how many mentions reach it."""

    threshold: float
    precision: float
    answered: int


def choose(scores: Sequence[float], right: Sequence[bool], precision: float) -> Choice:
    """Choose the lowest threshold above which at least ``precision`` of the answers are right.

    Parameters
    ----------
    scores : best score of each of M mentions.
    right : whether that candidate is the labelled answer; False where the answer is nil.
    precision : wanted share of right answers among those given, above 0, at most 1.

    Returns
    -------
    Choice
        Its threshold lies midway between the last score that is answered and the next.

    Raises
    ------
    InvalidInputError
        If there is no mention, the precision is out of range, or no threshold reaches it.
    """
    if not 0 < precision <= 1:
        raise InvalidInputError(
            f"precision: must be above 0, at most 1, got {precision:g}", field="precision"
        )
    if not len(scores):
        raise InvalidInputError("mentions: there is none to calibrate on", field="mentions")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")  # (M,)
    best = np.asarray(scores, np.float64)[order]  # (M,) descending
    reached = np.cumsum(np.asarray(right, np.bool_)[order]) / np.arange(1, len(best) + 1)  # (M,)
    ends = np.append(best[1:] < best[:-1], True)  # (M,) equal scores are answered together
    enough = np.flatnonzero(ends & (reached >= precision))
    if not len(enough):
        top = reached[ends].max()
        raise InvalidInputError(
            f"precision: no threshold reaches {precision:g} on these {len(best)} mentions; "
            f"the highest is {top:.4f}",
            field="precision",
        )
    last = int(enough[-1])
    below = best[last + 1] if last + 1 < len(best) else best[last]
    return Choice(float((best[last] + below) / 2), float(reached[last]), last + 1)
