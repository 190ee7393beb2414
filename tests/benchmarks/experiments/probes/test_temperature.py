"""The temperature that makes gold answers likeliest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiments.probes.temperature import fit_temperature, mean_nll, probabilities


def _drawn(temperature, mentions, k, *, spread=1.0, seed=0):
    """Scores, and gold answers drawn with the probabilities that the scores have at a temperature."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(0, spread, (mentions, k)), axis=1)
    gumbel = rng.gumbel(size=scores.shape)
    return scores, (scores / temperature + gumbel).argmax(1)


@pytest.mark.parametrize(("temperature", "spread"), [(0.5, 1.0), (1.0, 1.0), (3.0, 5.0), (40.0, 100.0)])
def test_a_known_temperature_is_recovered(temperature, spread):
    scores, gold = _drawn(temperature, 20_000, 7, spread=spread)
    assert fit_temperature(scores, gold) == pytest.approx(temperature, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), mentions=st.integers(5, 60), k=st.integers(2, 9), temperature=st.floats(0.2, 4)
)
def test_no_other_temperature_is_better(seed, mentions, k, temperature):
    scores, gold = _drawn(temperature, mentions, k, seed=seed)
    fitted = fit_temperature(scores, gold)
    grid = np.geomspace(1e-2, 1e3, 200)
    best = min(mean_nll(scores, gold, t) for t in grid)
    if fitted is None:  # then it goes on falling at an end of the grid
        assert best in (mean_nll(scores, gold, grid[0]), mean_nll(scores, gold, grid[-1]))
    else:
        assert mean_nll(scores, gold, fitted) <= best + 1e-9


def test_the_scale_of_the_scores_goes_into_the_temperature():
    scores, gold = _drawn(0.7, 500, 5)
    assert fit_temperature(1000 * scores + 5, gold) == pytest.approx(1000 * fit_temperature(scores, gold))


def test_nothing_to_fit_is_said():
    scores = np.array([[3.0, 1.0, 0.0], [2.0, 1.5, 1.0]])
    assert fit_temperature(scores, np.array([0, 0])) is None  # every answer right: zero would be best
    assert fit_temperature(scores, np.array([2, 2])) is None  # the worst scores: infinity would be
    assert fit_temperature(np.ones((2, 3)), np.array([0, 1])) is None  # all the same
    assert fit_temperature(scores[:0], np.empty(0, np.int64)) is None
    assert fit_temperature(scores, np.array([0, 1])) is not None


def test_probabilities_are_the_softmax():
    scores = np.array([[1000.0, 999.0], [2.0, 2.0]])
    half = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(probabilities(scores, 2.0), [[half, 1 - half], [0.5, 0.5]])
    assert mean_nll(scores, np.array([0, 1]), 2.0) == pytest.approx(-(np.log(half) + np.log(0.5)) / 2)
