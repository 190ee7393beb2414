"""Top-k, ties and pessimistic ranks against sorting in full."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.scan.topk import order, pessimistic_ranks, topk_with_ties

# Few distinct values, so that ties at the border of the k best are common.
score_lists = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40)


def top_k(scores, k, key=None):
    """The k best as a search finds them: those that reach the k-th, in order, cut."""
    chosen = topk_with_ties(scores, k)
    return chosen[order(scores[chosen], chosen, key)][:k]


def names(rows):
    return [f"id-{(7 * r) % 41:02d}" for r in rows.tolist()]


@given(score_lists, st.integers(1, 45))
def test_top_k_equals_a_full_sort_with_ties_by_id(values, k):
    scores = np.array(values, np.float32)
    everything = sorted(range(len(values)), key=lambda r: (-values[r], names(np.array([r]))[0]))
    assert top_k(scores, k, names).tolist() == everything[:k]


@given(score_lists, st.integers(1, 45))
def test_without_a_key_ties_go_by_row(values, k):
    scores = np.array(values, np.float32)
    assert top_k(scores, k).tolist() == sorted(range(len(values)), key=lambda r: (-values[r], r))[:k]


@given(score_lists, st.data())
def test_ranks_count_ties_against_the_gold_entity(values, data):
    gold = data.draw(st.integers(0, len(values) - 1))
    [rank] = pessimistic_ranks(np.array([values], np.float32), np.array([gold]))
    assert rank == sum(v >= values[gold] for v in values)


@pytest.mark.parametrize("k", [1, 5])
def test_one_row(k):
    assert top_k(np.zeros(1, np.float32), k).tolist() == [0]
