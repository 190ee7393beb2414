"""Ranking metrics against a brute-force sort; ties; bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.errors import InvalidInputError
from mimic_engine.metrics import HITS, ranking_metrics
from mimic_engine.scan.topk import pessimistic_ranks


def _brute_rank(scores: np.ndarray, gold: int) -> int:
    others = [s for i, s in enumerate(scores) if i != gold]
    return 1 + sum(1 for s in others if s >= scores[gold])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 10_000))
def test_metrics_equal_brute_force_with_many_ties(mentions: int, candidates: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (mentions, candidates)).astype(np.float32)
    gold = rng.integers(0, candidates, mentions)
    ranks = [_brute_rank(s, g) for s, g in zip(scores, gold, strict=True)]
    m = ranking_metrics(pessimistic_ranks(scores, gold), candidates)
    for k, hits in zip(HITS, m.hits, strict=True):
        assert hits == pytest.approx(sum(r <= k for r in ranks) / mentions)
    assert m.mrr == pytest.approx(sum(1 / r for r in ranks) / mentions)
    assert m.mr == pytest.approx(sum(ranks) / mentions)
    assert (m.mentions, m.candidates) == (mentions, candidates)


def test_a_mention_whose_scores_are_all_equal_ranks_last() -> None:
    assert pessimistic_ranks(np.zeros((1, 7), np.float32), np.array([0])).tolist() == [7]


def test_json_has_the_documented_names() -> None:
    assert ranking_metrics(np.array([1, 4]), 9).to_json() == {
        "hits@1": 0.5, "hits@3": 0.5, "hits@5": 1.0, "hits@10": 1.0, "hits@20": 1.0,
        "mrr": 0.625, "mr": 2.5, "mentions": 2, "candidates": 9,
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [[], [0], [1, 10]])
def test_impossible_ranks_are_refused(ranks: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="ranks"):
        ranking_metrics(np.array(ranks, dtype=np.int64), 9)
