"""Streamed top-k equals a stable sort; survivors are those whose bound reaches the threshold."""

import itertools

import numpy as np
import pytest
import torch

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.stream_topk import (
    MAX_K,
    NOTHING,
    check_k,
    key_room,
    merge_keys_kernel,
    survivors,
    top_keys,
    top_keys_ref,
    unpack_keys,
)


def room_for(scores, k):
    return torch.full((len(scores), key_room(scores.shape[1], k)), 77, dtype=torch.int64)


def best_of(scores, k, cuts=(), **options):
    side = check_k(k)
    best = torch.full((len(scores), side), NOTHING)
    edges = [0, *cuts, scores.shape[1]]
    allowed = options.pop("allowed", None)
    for start, stop in itertools.pairwise(edges):
        part = None if allowed is None else allowed[start:stop]
        top_keys(scores[:, start:stop], best, room_for(scores, side), offset=start, allowed=part, **options)
    return best


def unpacked(best):
    rows, scores = torch.empty(best.shape, dtype=torch.int32), torch.empty(best.shape)
    counts = torch.empty(len(best), dtype=torch.int32)
    unpack_keys(best, rows, scores, counts)
    return rows, scores, counts


@pytest.mark.parametrize(
    ("mentions", "entities", "k", "cuts"),
    [(1, 1, 1, ()), (3, 2500, 10, (1, 1300)), (2, 1025, 17, ()), (2, 9001, 600, (4096,))],
)
def test_equals_a_stable_sort(sorted_topk, mentions, entities, k, cuts):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(mentions, entities, generator=g) * 1e3
    scores[:, ::7] = scores[:, :1].clone()  # ties
    allowed = (torch.rand(entities, generator=g) < 0.8).to(torch.uint8)
    allowed[0] = 1
    rows, found, counts = unpacked(best_of(scores, k, cuts, allowed=allowed))
    k = min(k, int(allowed.sum()))
    expected_rows, expected = top_keys_ref(scores, k, allowed)
    assert torch.equal(rows[:, :k].long(), expected_rows)
    assert torch.equal(found[:, :k], expected)
    assert (counts == min(check_k(k), int(allowed.sum()))).all()


def test_listed_scores_keep_their_rows_and_counts(sorted_topk):
    scores = torch.tensor([[1.0, 9.0, 5.0, 7.0], [4.0, 3.0, 2.0, 1.0]])
    rows = torch.tensor([[40, 30, 20, 10], [1, 2, 3, 4]], dtype=torch.int32)
    counts = torch.tensor([3, 0], dtype=torch.int32)
    best = torch.full((2, 16), NOTHING)
    top_keys(scores, best, room_for(scores, 16), rows=rows, counts=counts)
    found, values, number = unpacked(best)
    assert number.tolist() == [3, 0]
    assert found[0, :3].tolist() == [30, 20, 40]
    assert values[0, :3].tolist() == [9.0, 5.0, 1.0]
    assert (values[1] == -torch.inf).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_comes_first(sorted_topk, value):
    scores = torch.randn(1, 100)
    scores[0, 63] = value
    rows, found, _ = unpacked(best_of(scores, 3))
    assert rows[0, 0] == 63
    assert not found[0, 0].isfinite()
    assert found[0, 1:].isfinite().all()


def test_survivors_reach_the_threshold_and_have_not_been_scored(sorted_topk):
    g = torch.Generator().manual_seed(1)
    bounds = torch.randn(2, 2500, generator=g)
    allowed = (torch.rand(2500, generator=g) < 0.9).to(torch.uint8)
    first = torch.full((2, 16), NOTHING)
    top_keys(bounds, first, room_for(bounds, 16), offset=10, allowed=allowed, finite=False)
    exact = torch.full((2, 16), -5.0)
    exact[:, :4] = torch.tensor([1.5, 1.25, 1.0, 0.5])
    best = best_of(exact, 16)
    rows, counts = torch.full((2, 2500), -1, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    survivors(bounds, best, 3, first, rows, counts, offset=10, rounding=0.25, allowed=allowed)
    scored = unpacked(first)[0] - 10
    for b in range(2):
        wanted = (bounds[b] >= 0.5) & (allowed != 0)  # 1.0 less 0.25 (1 + 1.0)
        wanted[scored[b].long()] = False
        assert counts[b] == wanted.sum()
        assert sorted(rows[b, : counts[b]].tolist()) == (wanted.nonzero()[:, 0] + 10).tolist()
    few = torch.full((2, 5), -1, dtype=torch.int32)
    survivors(bounds, best, 3, first, few, counts, offset=10, rounding=0.25, allowed=allowed)
    assert (counts > 5).all()
    assert (few >= 10).all()


def test_the_librarys_own_topk_sorts_keys():
    """Small, for the interpreter is slow at it."""
    keys = torch.randint(-(2**62), 2**62, (2, 40))
    out = torch.empty((2, 4), dtype=torch.int64)
    merge_keys_kernel[(1, 2)](keys, out, 40, 40, 4, BLOCK=64, K=4)
    assert torch.equal(out, keys.sort(dim=1, descending=True).values[:, :4])


@pytest.mark.parametrize("k", [0, MAX_K + 1])
def test_k_has_limits(k):
    with pytest.raises(InvalidInputError, match=f"got {k}"):
        check_k(k)
