"""A calibration fitted to labelled mentions, and how well it does on others: :func:`fit_calibration`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mimic_engine.calibration.nil import NilThreshold, choose
from mimic_engine.calibration.stored import Calibration, Fit
from mimic_engine.calibration.weights import (
    LEAST_MENTIONS,
    RankedMention,
    ScoreWeights,
    calibration_error,
    fit_probability,
    fit_weights,
)
from mimic_engine.errors import InvalidInputError

FOLDS = 5


def fit_calibration(
    mentions: Sequence[RankedMention],
    model_hash: str,
    entities: int,
    *,
    names: bool = True,
    precision: float | None = None,
) -> Calibration:
    """Weights, probability, and a nil threshold if a precision is wanted.

    The threshold is the lowest above which so many of the answers are right. What ``fit`` says is measured
    on a fifth of the mentions after fitting to the others, five times.

    Parameters
    ----------
    mentions : their candidates.
    model_hash, entities : of model and knowledge base.
    names : weigh names and prior; else they weigh 0.
    precision : wanted share of right answers, above 0, at most 1.

    Raises
    ------
    InvalidInputError
        If there are too few mentions, the model's score tells nothing of them, or no threshold reaches
        the precision.
    MissingDependencyError
        If scikit-learn is not installed.
    """
    if len(mentions) < LEAST_MENTIONS:
        raise InvalidInputError(
            f"mentions: {len(mentions)} of them, at least {LEAST_MENTIONS} are needed", field="mentions"
        )
    weights = fit_weights(mentions) if names else ScoreWeights()
    return Calibration(
        model_hash,
        weights,
        fit_probability(mentions, weights),
        None if precision is None else _threshold(mentions, weights, precision),
        _held_out(mentions, entities, names=names),
    )


def _threshold(mentions: Sequence[RankedMention], weights: ScoreWeights, precision: float) -> NilThreshold:
    best = [weights.best(m) for m in mentions]
    choice = choose([totals[0] for totals, _ in best], [gold == 0 for _, gold in best], precision)
    return NilThreshold(choice.threshold, precision, choice.precision, len(mentions), choice.answered)


def _held_out(mentions: Sequence[RankedMention], entities: int, *, names: bool) -> Fit:
    """Every mention ranked by a calibration that has not seen it."""
    alone = ScoreWeights()
    fold = np.arange(len(mentions)) % FOLDS
    confidence, right, right_alone = [], [], []
    for held_out in range(FOLDS):
        others = [m for m, f in zip(mentions, fold, strict=True) if f != held_out]
        weights = fit_weights(others) if names else alone
        probability = fit_probability(others, weights)
        for one in (m for m, f in zip(mentions, fold, strict=True) if f == held_out):
            totals, gold = weights.best(one)
            confidence.append(float(probability.of(totals)[0][0]))
            right.append(gold == 0)
            right_alone.append(alone.best(one)[1] == 0)
    return Fit(
        mentions=len(mentions),
        nil=sum(m.gold is None for m in mentions),
        entities=entities,
        hits_at_1=float(np.mean(right)),
        hits_at_1_without_names=float(np.mean(right_alone)),
        calibration_error=calibration_error(confidence, right),
    )
