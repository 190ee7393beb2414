"""Weights of the name features and of the prior, and the temperature that makes a score a probability.

The total score of a mention m and an entity e is linear in a handful of numbers a pair,

    total(m, e) = s(m, e) + sum_i w_i x_i(m, e),

with s the model's own score (section 3.3 of the paper) and x the name features
(:mod:`mimic_engine.names.features`) and the prior. :func:`fit_weights` chooses w so that the labelled
answer stands above the other candidates of its mention: logistic regression on the differences between the
answer's numbers and another candidate's, every mention weighing the same, the strength of regularisation
chosen by cross-validation over mentions. A weight is never below 0: a feature that would get one is left
out and the rest fitted again. :func:`fit_probability` then chooses the temperature T and the score of "none
of these" under which the answers are likeliest, p_i = exp(total_i / T) / (sum_j exp(total_j / T) +
exp(nil / T)).

Needs scikit-learn (the extra ``calibrate``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError, MissingDependencyError
from mimic_engine.names.features import FEATURES

WEIGHTED = (*FEATURES, "prior")
LEAST_MENTIONS = 20
RANKED = 10  # candidates that a probability is shared among, at least; a request for fewer ranks as many
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation, as scikit-learn's C
_FOLDS = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RankedMention:
    """The candidates of one labelled mention.

    ``score`` (n,) is the model's own, ``features`` (n, 5) are those of ``WEIGHTED``; ``gold`` is the
    answer's place among them, None where it is not there or no entity is right.
    """

    score: Floats
    features: Floats
    gold: int | None


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """Weights of the name features and the prior, in units of the model's score; all 0: the model alone."""

    exact: float = 0.0
    words: float = 0.0
    chars: float = 0.0
    context: float = 0.0
    prior: float = 0.0

    def __post_init__(self) -> None:
        for name in WEIGHTED:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"weight {name}: {value} is not a finite number from 0 on")

    def __bool__(self) -> bool:
        """Whether anything weighs."""
        return any(getattr(self, name) for name in WEIGHTED)

    @property
    def names(self) -> tuple[float, ...]:
        """Weights of the name features, in the order of ``FEATURES``."""
        return tuple(getattr(self, name) for name in FEATURES)

    def totals(self, ranked: RankedMention) -> Floats:
        """Total scores (n,) of a mention's candidates."""
        return ranked.score + ranked.features @ np.array([getattr(self, name) for name in WEIGHTED])

    def best(self, ranked: RankedMention) -> tuple[Floats, int | None]:
        """Totals of the ``RANKED`` best, descending, and the answer's place among them; None: it is not."""
        totals = self.totals(ranked)
        order = np.argsort(-totals, kind="stable")[:RANKED]
        place = order.tolist().index(ranked.gold) if ranked.gold in order else None
        return totals[order], place


@dataclass(frozen=True, slots=True)
class Probability:
    """Temperature and the score of "none of these", both in units of the total score."""

    temperature: float
    nil_score: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.nil_score)):
            raise ValueError(
                f"temperature {self.temperature}, nil_score {self.nil_score}: not finite, or not > 0"
            )

    def of(self, totals: Floats) -> tuple[Floats, float]:
        """Probabilities (n,) of the candidates with these totals (n,), and of none of them."""
        scaled = np.append(totals, self.nil_score) / self.temperature
        weights = np.exp(scaled - scaled.max())
        shares = weights / weights.sum()
        return shares[:-1], float(shares[-1])


def fit_weights(mentions: Sequence[RankedMention]) -> ScoreWeights:
    """Weights under which the answers of labelled mentions stand first.

    Raises
    ------
    InvalidInputError
        If fewer than ``LEAST_MENTIONS`` have their answer and another entity among the candidates, or the
        model's own score tells nothing of them, so that nothing can be measured in its units.
    MissingDependencyError
        If scikit-learn is not installed.
    """
    usable = [m for m in mentions if m.gold is not None and len(m.score) > 1]
    if len(usable) < LEAST_MENTIONS:
        raise InvalidInputError(
            f"mentions: {len(usable)} have their answer among other candidates, at least "
            f"{LEAST_MENTIONS} are needed to weigh names",
            field="mentions",
        )
    differences, share, group = _differences(usable)
    scale = np.sqrt((differences**2).mean(axis=0))
    used = np.flatnonzero(scale > 0)
    while True:
        coefficients = _coefficients(differences[:, used] / scale[used], share, group) / scale[used]
        if 0 not in used or coefficients[0] <= 0:
            raise InvalidInputError(
                "mentions: the model's own score does not tell the answers from other candidates",
                field="mentions",
            )
        if not (coefficients < 0).any():
            weights = np.zeros(1 + len(WEIGHTED))
            weights[used] = coefficients / coefficients[0]
            return ScoreWeights(*weights[1:].tolist())
        used = used[coefficients >= 0]


def fit_probability(mentions: Sequence[RankedMention], weights: ScoreWeights) -> Probability:
    """Temperature and score of nil under which the answers are likeliest, among the ``RANKED`` best of each.

    Raises
    ------
    InvalidInputError
        If there is no mention.
    MissingDependencyError
        If scikit-learn, which brings SciPy, is not installed.
    """
    if not mentions:
        raise InvalidInputError("mentions: there is none to calibrate on", field="mentions")
    optimize = _library("scipy.optimize")
    served = [weights.best(m) for m in mentions]
    spread = max(1e-6, float(np.mean([np.std(totals) for totals, _ in served])))
    lowest = float(np.mean([totals[0] for totals, _ in served])) - 3 * spread

    def surprise(point: Floats) -> float:
        probability = Probability(math.exp(point[0]), point[1])
        total = 0.0
        for totals, gold in served:
            shares, nil = probability.of(totals)
            total -= math.log(max(1e-300, nil if gold is None else shares[gold]))
        return total / len(served)

    found = optimize.minimize(surprise, np.array([math.log(spread), lowest]), method="Nelder-Mead")
    return Probability(float(math.exp(found.x[0])), float(found.x[1]))


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width."""
    of = np.asarray(confidence, np.float64)  # (M,)
    hit = np.asarray(right, np.float64)  # (M,)
    number = np.minimum((of * bins).astype(np.int64), bins - 1)
    gaps = [
        abs(of[number == b].mean() - hit[number == b].mean()) * (number == b).mean()
        for b in np.unique(number)
    ]
    return float(sum(gaps))


def _differences(mentions: Sequence[RankedMention]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Answer less other candidate, (pairs, 6); the pair's share of its mention; the mention's number."""
    rows, shares, groups = [], [], []
    for number, one in enumerate(mentions):
        assert one.gold is not None
        numbers = np.column_stack([one.score, one.features])  # (n, 6)
        others = np.delete(np.arange(len(numbers)), one.gold)
        rows.append(numbers[one.gold] - numbers[others])
        shares.append(np.full(len(others), 1 / len(others)))
        groups.append(np.full(len(others), number))
    return np.concatenate(rows), np.concatenate(shares), np.concatenate(groups)


def _coefficients(differences: Floats, share: Floats, group: NDArray[np.int64]) -> Floats:
    """Logistic regression without an intercept, the differences taken both ways."""
    linear = _library("sklearn.linear_model")
    sides = np.concatenate([differences, -differences])
    labels = np.repeat([1, 0], len(differences))
    weight, fold = np.tile(share, 2), np.tile(group % _FOLDS, 2)

    def fitted(strength: float, rows: NDArray[np.bool_]) -> Any:
        model = linear.LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
        return model.fit(sides[rows], labels[rows], sample_weight=weight[rows])

    def surprise(strength: float) -> float:
        total = 0.0
        for held_out in range(_FOLDS):
            rows = fold == held_out
            chance = fitted(strength, ~rows).predict_log_proba(sides[rows])
            total -= float(weight[rows] @ np.where(labels[rows] == 1, chance[:, 1], chance[:, 0]))
        return total

    best = min(_STRENGTHS, key=surprise)
    coefficients: Floats = fitted(best, np.ones(len(sides), np.bool_)).coef_[0]
    return coefficients


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"weighing names needs scikit-learn: pip install 'mimic-engine[calibrate]' ({error})"
        ) from error
