"""Weights of the name features and of the prior, and the temperature that makes a score a probability.

The total score of a mention m and an entity e is linear in a handful of numbers a pair,

    total(m, e) = s(m, e) + sum_i w_i x_i(m, e),

with s the model's own score (section 3.3 of the paper) and x the name features
(:mod:`mimic_engine.names.features`) and the prior. :func:`fit_weights` chooses w so that the labelled
answer stands above the other candidates of its mention: a conditional logit (McFadden 1974), the answer
drawn among its mention's candidates with chances proportional to exp(total / T), no weight below 0, the pull
towards 0 chosen by cross-validation over mentions. (A logistic regression on the differences to each other
candidate, tried first, fits the many easy candidates and loses points of Hits@1 on unseen sets.)
:func:`fit_probability` then chooses the temperature T and the score of "none of these" under which the
answers are likeliest, p_i = exp(total_i / T) / (sum_j exp(total_j / T) + exp(nil / T)).

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
_STRENGTHS = (1e-4, 1e-3, 1e-2)  # of the pull towards 0, on numbers of unit spread
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
        If scikit-learn, which brings SciPy, is not installed.
    """
    usable = [m for m in mentions if m.gold is not None and len(m.score) > 1]
    if len(usable) < LEAST_MENTIONS:
        raise InvalidInputError(
            f"mentions: {len(usable)} have their answer among other candidates, at least "
            f"{LEAST_MENTIONS} are needed to weigh names",
            field="mentions",
        )
    numbers, there, gold = _stacked(usable)
    fold = np.arange(len(gold)) % _FOLDS

    def held_out(strength: float) -> float:
        parts = [
            _surprise(_coefficients(numbers[fold != f], there[fold != f], gold[fold != f], strength), *own)
            for f in range(_FOLDS)
            for own in [(numbers[fold == f], there[fold == f], gold[fold == f])]
        ]
        return sum(parts)

    best = min(_STRENGTHS, key=held_out)
    coefficients = _coefficients(numbers, there, gold, best)
    if coefficients[0] <= 0:
        raise InvalidInputError(
            "mentions: the model's own score does not tell the answers from other candidates",
            field="mentions",
        )
    return ScoreWeights(*(coefficients[1:] / coefficients[0]).tolist())


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


def _stacked(mentions: Sequence[RankedMention]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Numbers (M, n, 6) of the candidates, the model's score first; which are there (M, n); answers (M,)."""
    most = max(len(m.score) for m in mentions)
    numbers = np.zeros((len(mentions), most, 1 + len(WEIGHTED)))
    there = np.zeros((len(mentions), most), np.bool_)
    for row, one in enumerate(mentions):
        own = np.column_stack([one.score, one.features])  # (n, 6)
        numbers[row, : len(own)] = own - own.mean(axis=0)  # what all candidates share tells nothing
        there[row, : len(own)] = True
    return numbers, there, np.array([m.gold for m in mentions], np.int64)


def _coefficients(
    numbers: Floats, there: NDArray[np.bool_], gold: NDArray[np.int64], strength: float
) -> Floats:
    """Coefficients (6,), none below 0, under which answers are likeliest; ``strength`` pulls them to 0."""
    optimize = _library("scipy.optimize")
    scale = np.sqrt((numbers[there] ** 2).mean(axis=0))
    scaled = numbers / np.where(scale > 0, scale, 1)
    rows = np.arange(len(gold))

    def loss(point: Floats) -> tuple[float, Floats]:
        chance = _chances(scaled @ point, there)  # (M, n)
        surprise = -np.log(np.maximum(chance[rows, gold], 1e-300)).mean()
        slope = (np.einsum("mn,mnf->mf", chance, scaled) - scaled[rows, gold]).mean(axis=0)
        return surprise + strength * float(point @ point), slope + 2 * strength * point

    start = np.where(scale > 0, 1.0, 0.0)
    limits = [(0.0, None if s > 0 else 0.0) for s in scale]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits)
    coefficients: Floats = found.x / np.where(scale > 0, scale, 1)
    return coefficients


def _surprise(
    coefficients: Floats, numbers: Floats, there: NDArray[np.bool_], gold: NDArray[np.int64]
) -> float:
    chance = _chances(numbers @ coefficients, there)
    return float(-np.log(np.maximum(chance[np.arange(len(gold)), gold], 1e-300)).sum())


def _chances(totals: Floats, there: NDArray[np.bool_]) -> Floats:
    """Softmax over the candidates that are there, (M, n)."""
    totals = np.where(there, totals, -np.inf)
    powers = np.exp(totals - totals.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"weighing names needs scikit-learn: pip install 'mimic-engine[calibrate]' ({error})"
        ) from error
