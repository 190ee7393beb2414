"""Weights found on made-up mentions are those that made them; probabilities are calibrated."""

import math

import numpy as np
import pytest

from mimic_engine.calibration.weights import (
    Probability,
    RankedMention,
    ScoreWeights,
    calibration_error,
    fit_probability,
    fit_weights,
)
from mimic_engine.errors import InvalidInputError


def made_up(count, weights, *, seed=0, candidates=8, temperature=1.0, nil=None):
    """Answers drawn with the probabilities that the weights give."""
    rng = np.random.default_rng(seed)
    mentions = []
    for _ in range(count):
        features = np.where(rng.random((candidates, 5)) < 0.4, rng.random((candidates, 5)), 0.0)
        one = RankedMention(rng.normal(0, 2, candidates), features, None)
        totals = weights.totals(one) / temperature
        chances = np.exp(np.append(totals, -math.inf if nil is None else nil / temperature) - totals.max())
        drawn = int(rng.choice(candidates + 1, p=chances / chances.sum()))
        mentions.append(RankedMention(one.score, features, drawn if drawn < candidates else None))
    return mentions


def test_weights_are_found_again():
    true = ScoreWeights(exact=6.0, words=3.0, chars=0.0, context=2.0, prior=1.0)
    found = fit_weights(made_up(4000, true))
    np.testing.assert_allclose(found.names, true.names, atol=0.5)
    assert found.prior == pytest.approx(1.0, abs=0.4)


def test_no_weight_is_below_zero():
    chars_against = np.array([1, 1, -1, 1, 1])
    made = made_up(1500, ScoreWeights(exact=4.0, chars=5.0))
    found = fit_weights([RankedMention(m.score, m.features * chars_against, m.gold) for m in made])
    assert min(*found.names, found.prior) == 0.0
    assert found.exact > 2


def test_a_feature_that_never_differs_weighs_nothing():
    mentions = [
        RankedMention(m.score, m.features * [1, 0, 1, 1, 1], m.gold)
        for m in made_up(200, ScoreWeights(exact=4.0))
    ]
    assert fit_weights(mentions).words == 0.0


def test_temperature_and_nil_are_found_again_and_are_calibrated():
    true = ScoreWeights(exact=5.0)
    mentions = made_up(5000, true, temperature=1.7, nil=3.0)
    found = fit_probability(mentions, true)
    assert found.temperature == pytest.approx(1.7, rel=0.1)
    assert found.nil_score == pytest.approx(3.0, abs=0.4)
    held_out = made_up(3000, true, seed=1, temperature=1.7, nil=3.0)
    confidence, right = [], []
    for one in held_out:
        shares, nil = found.of(true.totals(one))
        best = int(np.argmax(shares))
        confidence.append(max(nil, shares[best]))
        right.append(one.gold is None if nil > shares[best] else one.gold == best)
    assert calibration_error(confidence, right) < 0.03


def test_shares_sum_to_one_whatever_the_scores():
    shares, nil = Probability(0.5, -1e6).of(np.array([1e5, 1e5, -1e5]))
    assert shares.sum() + nil == pytest.approx(1)
    assert shares[0] == shares[1] == pytest.approx(0.5)


def test_too_few_mentions_and_a_model_that_tells_nothing_are_named():
    with pytest.raises(InvalidInputError, match="19 have their answer"):
        fit_weights(made_up(19, ScoreWeights()))
    backwards = [RankedMention(-m.score, m.features, m.gold) for m in made_up(300, ScoreWeights())]
    with pytest.raises(InvalidInputError, match="own score"):
        fit_weights(backwards)


def test_calibration_error_of_a_known_case():
    assert calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False]) == pytest.approx(0.3)
