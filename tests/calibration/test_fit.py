"""A calibration fitted to made-up mentions does on others what it says it does."""

import numpy as np
import pytest

from mimic_engine.calibration.fit import fit_calibration
from mimic_engine.calibration.weights import ScoreWeights, calibration_error
from mimic_engine.errors import InvalidInputError
from tests.calibration.test_weights import made_up

TRUE = ScoreWeights(exact=6.0, words=3.0, context=2.0, prior=1.0)


def test_a_fit_says_how_it_does_on_mentions_it_has_not_seen():
    found = fit_calibration(made_up(800, TRUE, nil=1.0), "abc", 8, precision=0.8)
    assert (found.model_hash, found.fit.entities, found.fit.mentions) == ("abc", 8, 800)
    assert found.fit.nil == sum(m.gold is None for m in made_up(800, TRUE, nil=1.0))
    others = made_up(3000, TRUE, seed=1, nil=1.0)
    best = [found.weights.best(m) for m in others]
    right = [gold == 0 for _, gold in best]
    sure = [float(found.probability.of(totals)[0][0]) for totals, _ in best]
    assert np.mean(right) == pytest.approx(found.fit.hits_at_1, abs=0.06)
    assert calibration_error(sure, right) < 0.05
    assert found.fit.calibration_error < 0.06
    assert found.fit.hits_at_1 > found.fit.hits_at_1_without_names + 0.1
    answered = [r for (totals, _), r in zip(best, right, strict=True) if totals[0] >= found.nil.threshold]
    assert np.mean(answered) == pytest.approx(0.8, abs=0.06)


def test_without_names_nothing_weighs_and_no_precision_means_no_threshold():
    found = fit_calibration(made_up(200, TRUE), "abc", 8, names=False)
    assert not found.weights
    assert found.nil is None
    assert found.fit.hits_at_1 == found.fit.hits_at_1_without_names


def test_too_few_mentions_are_refused():
    with pytest.raises(InvalidInputError, match="mentions: 19 of them, at least 20 are needed"):
        fit_calibration(made_up(19, TRUE), "abc", 8)
