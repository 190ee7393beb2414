"""Confidence against accuracy, before and after the temperature."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.experiments.probes import PROBES
from benchmarks.experiments.probes.calibration import (
    calibration,
    expected_calibration_error,
    risk_coverage,
)
from benchmarks.experiments.probes.temperature import mean_nll
from mimic_engine.errors import InvalidInputError


def _answers(mentions, shift, seed=0):
    """Confidences, and answers that are right as often as they say plus ``shift``."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 0.8, mentions)
    return confidence, rng.random(mentions) < confidence + shift


@pytest.mark.parametrize("shift", [0.0, 0.15, -0.15])
def test_the_error_is_how_far_confidence_is_from_accuracy(shift):
    error, points = expected_calibration_error(*_answers(100_000, shift))
    assert error == pytest.approx(abs(shift), abs=0.01)
    assert len(points) == 15
    assert all(p["accuracy"] - p["confidence"] == pytest.approx(shift, abs=0.03) for p in points)


def test_bins_are_of_equal_size_and_hold_every_mention_once():
    confidence, right = _answers(101, 0.0)
    error, points = expected_calibration_error(confidence, right, bins=7)
    sizes = [p["mentions"] for p in points]
    assert sum(sizes) == 101
    assert max(sizes) - min(sizes) <= 1
    order, start, brute = sorted(range(101), key=lambda i: confidence[i]), 0, 0.0
    for size in sizes:
        part = order[start : start + size]
        brute += abs(sum(right[i] for i in part) - sum(confidence[i] for i in part)) / 101
        start += size
    assert error == pytest.approx(brute)


def test_a_single_mention_is_a_bin_of_its_own():
    error, points = expected_calibration_error(np.array([0.7]), np.array([True]))
    assert error == pytest.approx(0.3)
    assert points == [{"confidence": 0.7, "accuracy": 1.0, "mentions": 1}]


def test_the_most_confident_come_first_in_risk_coverage():
    confidence = np.array([0.1, 0.9, 0.5, 0.8])
    points = risk_coverage(confidence, np.array([False, True, False, True]))
    found = {p["share"]: (p["mentions"], p["accuracy"]) for p in points}
    assert found[0.1] == (1, 1.0)
    assert found[0.5] == (2, 1.0)
    assert found[0.8] == (3, pytest.approx(2 / 3))
    assert found[1.0] == (4, 0.5)


@pytest.mark.parametrize("k", [4, 100])
def test_a_run_is_calibrated_on_dev_and_measured_on_the_split(tiny, make_run, brute_scores, k):
    run = make_run(tiny)
    result = calibration(run, "test", k=k)
    ranked = {}
    for name in ("dev", "test"):
        split = run.encode.corpus.splits[name]
        scores = brute_scores(run, split.records).astype(np.float64)
        rows = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, 18)]
        best = np.take_along_axis(scores, rows, 1)
        position = [list(r).index(g) if g in r else -1 for r, g in zip(rows, split.gold, strict=True)]
        ranked[name] = best, np.array(position)
    (dev, dev_gold), (test, test_gold) = ranked["dev"], ranked["test"]
    kept = dev_gold >= 0
    assert result["k"] == min(k, 18)
    assert result["fit"] == {"split": "dev", "mentions": 18, "gold_among_k": int(kept.sum())}
    assert result["measured"] == {
        "split": "test",
        "mentions": 12,
        "gold_among_k": int((test_gold >= 0).sum()),
    }
    assert kept.all() == (k == 100)
    assert result["temperature"] is not None
    grid = np.geomspace(0.01, 100, 4000)
    best = min(grid, key=lambda t: mean_nll(dev[kept], dev_gold[kept], t))
    assert result["temperature"] == pytest.approx(best, rel=0.01)
    for name, t in (("before", 1.0), ("after", result["temperature"])):
        odds = np.exp((test - test[:, :1]) / t)
        confidence = 1 / odds.sum(1)
        part = result[name]
        assert part["confidence"] == pytest.approx(confidence.mean(), rel=1e-4)
        assert part["accuracy"] == pytest.approx((test_gold == 0).mean())
        error, _ = expected_calibration_error(confidence, test_gold == 0)
        assert part["ece"] == pytest.approx(error, abs=1e-4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_where_no_temperature_is_best_only_the_raw_scores_are_measured(tiny, make_run):
    """The single candidate of k = 1 has the probability one at every temperature."""
    result = calibration(make_run(tiny), "test", k=1)
    assert result["temperature"] is None
    assert result["after"] is None
    assert result["before"]["confidence"] == 1.0
    assert result["before"]["ece"] == pytest.approx(1 - result["before"]["accuracy"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_an_unknown_split_is_named(tiny, make_run):
    with pytest.raises(InvalidInputError, match="'later' is not among"):
        PROBES["calibration"](make_run(tiny), "later")
