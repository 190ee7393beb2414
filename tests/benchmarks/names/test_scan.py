"""The benchmark of searches with names: a wrong answer stops it, and its outcome is that of its rows."""

import numpy as np
import pytest

from benchmarks.names import scan as benchmark
from mimic_engine.calibration.weights import ScoreWeights
from mimic_engine.engine.weighed_names import WeighedNames
from mimic_engine.errors import EngineError
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.scan.terms import ScoreTerms
from mimic_engine.types import Mention
from tests.scan.arrays import Pairs, Shape


def test_a_row_says_what_names_cost(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 3)
    pairs = Pairs(Shape(6, 50, 7, 5, 16, 8))
    forms = FormArrays.of([f"name{i % 9} other{i}"] for i in range(50))
    names = WeighedNames(NameLookup([forms], [50]), ScoreWeights(exact=9.0, words=5.0))
    kernels = BlockKernels(NumpyScorer(pairs.constants), pairs.constants)
    scan = Scan([pairs.entities], kernels, threads=1, terms=ScoreTerms(None, 14.0))
    mentions = [Mention(f"name{i}", "") for i in range(6)]
    row = benchmark._row(scan, names, mentions, pairs.mentions, 2)
    assert (row["n"], row["b"]) == (50, 2)
    assert row["ratio"] > 0
    assert row["with_ms"] > 0
    scan.close()


def test_another_answer_than_the_exact_one_is_an_error():
    def found(score):
        one = np.array([[score]], np.float32)
        return TopK(np.zeros((1, 1), np.int64), one, {}, ("certified",), np.ones(1, np.int64))

    benchmark._check(found(1.0), found(1.0))
    with pytest.raises(EngineError, match="not the exact one"):
        benchmark._check(found(1.0), found(2.0))


def test_the_outcome_is_the_worst_ratio_of_the_size_that_was_aimed_at():
    rows = [{"n": 110_000, "b": b, "ratio": r} for b, r in ((1, 1.05), (20, 1.2))] + [
        {"n": 20, "b": 1, "ratio": 3.0}
    ]
    assert benchmark.outcome(rows) == {"ratio": 1.2, "ratio_met": False}
    assert benchmark.outcome([]) == {"ratio": None, "ratio_met": None}
