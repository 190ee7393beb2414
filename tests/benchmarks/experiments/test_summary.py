"""The arithmetic of summaries."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiments.declaration import TwoByTwo
from benchmarks.experiments.plots import mean_curve
from benchmarks.experiments.results import Outcome, RunResult
from benchmarks.experiments.summary import METRICS, Spread, differences, summarise, two_by_two


def _outcome(seed: int, dev: float, test: float | None = None, *, diverged: bool = False) -> Outcome:
    curve = [{"epoch": 1, "mrr": dev}, {"epoch": 2}] if not diverged else []
    metrics = None if diverged else dict.fromkeys(METRICS, dev)
    status, message = ("diverged", "the loss is nan") if diverged else ("done", None)
    run = RunResult(seed, status, message, metrics, 1.0, 2, 2, curve, None, None)
    return Outcome(run, None if test is None else dict.fromkeys(METRICS, test), {})


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_mean_and_sample_deviation(values):
    spread = Spread.of(values)
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(sum(values) / len(values))
    variance = sum((v - sum(values) / len(values)) ** 2 for v in values) / (len(values) - 1)
    assert spread.std == pytest.approx(variance**0.5, abs=1e-9)


def test_one_value_has_no_deviation_and_none_no_mean():
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert Spread.of([]) == Spread(None, None, 0)


def test_diverged_and_untested_runs_are_left_out():
    runs = [_outcome(0, 0.2, 0.1), _outcome(1, 0, diverged=True), _outcome(2, 0.4)]
    summary = summarise(runs)
    assert summary["dev"]["mrr"] == Spread(pytest.approx(0.3), statistics.stdev([0.2, 0.4]), 2)
    assert summary["test"]["hits@1"] == Spread(0.1, None, 1)


def test_differences_are_between_runs_of_one_seed():
    baseline = [_outcome(0, 0.5), _outcome(1, 0.1), _outcome(2, 0, diverged=True)]
    runs = [_outcome(0, 0.6), _outcome(1, 0.4), _outcome(2, 0.9)]
    found = differences(runs, baseline)["dev"]["hits@1"]
    assert (found.mean, found.n) == (pytest.approx(0.2), 2)
    assert found.std == pytest.approx(statistics.stdev([0.1, 0.3]))


def test_what_two_changes_add():
    table = TwoByTwo("f", "s", "n", "f1", "s1", "b")
    values = {"n": (0.1, 0.2), "f1": (0.3, 0.5), "s1": (0.2, 0.2), "b": (0.7, 0.6)}
    outcomes = {name: [_outcome(i, v) for i, v in enumerate(pair)] for name, pair in values.items()}
    means = {label: part["dev"]["mrr"].mean for label, part in two_by_two(table, outcomes).items()}
    assert means == {
        "first alone": pytest.approx(0.25),
        "first beside the second": pytest.approx(0.45),
        "second alone": pytest.approx(0.05),
        "second beside the first": pytest.approx(0.25),
        "both": pytest.approx(0.5),
        "beyond the sum": pytest.approx(0.2),
    }
    assert two_by_two(table, {})["both"]["dev"]["mrr"] == Spread(None, None, 0)


def test_the_mean_curve_is_over_the_runs_validated_at_an_epoch():
    runs = [_outcome(0, 0.2), _outcome(1, 0.6), _outcome(2, 0, diverged=True)]
    assert mean_curve(runs) == [(1, pytest.approx(0.4), 0.2, 0.6)]
