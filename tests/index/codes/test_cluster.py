"""Clustering: what is sampled, what is found, and that it is found again."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.index.codes import cluster
from mimic_engine.index.codes.cluster import cluster_tokens
from mimic_engine.index.codes.read import mean_error, token_queries
from mimic_engine.types import EntityArrays


def test_the_sample_is_bounded_and_spread_over_the_segments(tiny, monkeypatch):
    monkeypatch.setattr(cluster, "_SAMPLE_BYTES", 100 * 8 * 4)
    segments = [tiny.stored_queries(40, 0), tiny.stored_queries(1, 1), tiny.stored_queries(79, 2)]
    sample = cluster._sample(segments, 10**6, seed=3)
    assert sample.shape == (100, 8) and sample.dtype == np.float32
    tokens = np.concatenate([s.tglu_query.reshape(-1, 8) for s in segments]).astype(np.float32)  # (600, 8)
    where = [int(np.flatnonzero((tokens == row).all(axis=1))[0]) for row in sample]
    assert [w // 6 for w in where] == list(range(100))  # one of each six tokens
    assert len({w % 6 for w in where}) == 6
    np.testing.assert_array_equal(cluster._sample(segments, 10**6, seed=3), sample)
    assert (cluster._sample(segments, 10**6, seed=4) != sample).any()
    assert cluster._sample(segments, 7, seed=0).shape == (7, 8)


def test_tokens_without_weight_are_not_clustered(tiny):
    segment = tiny.stored_queries(50, weight=True)
    found = cluster_tokens([segment], 65_536, threads=1)
    kept = segment.tglu_query[segment.tglu_token_weight > 0]
    assert found.sample == len(kept) < 250 and found.error == 0
    assert {tuple(row) for row in found.centroids} == {tuple(row) for row in kept.astype(np.float32)}


def test_int8_queries_are_clustered_and_coded_as_their_values():
    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (90, 5, 8)).astype(np.int8)
    scale = (2.0 ** rng.integers(-6, -2, (90, 5))).astype(np.float32)
    wide = (whole * scale[..., None]).astype(np.float32)
    small, plain = EntityArrays(tglu_query=whole, tglu_query_scale=scale), EntityArrays(tglu_query=wide)
    np.testing.assert_array_equal(token_queries(small, slice(3, 80)), wide[3:80])
    np.testing.assert_array_equal(token_queries(small, np.array([7, 2, 7])), wide[[7, 2, 7]])
    found = [cluster_tokens([arrays], 9, threads=1) for arrays in (small, plain)]
    np.testing.assert_array_equal(found[0].centroids, found[1].centroids)


def test_clustering_is_the_same_each_time_and_leaves_the_threads_alone(tiny):
    segments = [tiny.stored_queries(300, 0), tiny.stored_queries(211, 1)]
    before = faiss.omp_get_max_threads()
    first, again = (cluster_tokens(segments, 31, seed=5, threads=1) for _ in range(2))
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert first.error == again.error
    assert faiss.omp_get_max_threads() == before
    assert (cluster_tokens(segments, 31, seed=6, threads=1).centroids != first.centroids).any()
    with pytest.raises(InvalidInputError, match="threads: must be at least 1, got 0"):
        cluster_tokens(segments, 31, threads=0)


def test_clusters_that_are_there_are_found():
    """Tokens around eleven points far apart: the centroids are those points."""
    rng = np.random.default_rng(1)
    points = 20 * rng.normal(size=(11, 8))
    queries = points[rng.integers(0, 11, (500, 5))] + 0.01 * rng.normal(size=(500, 5, 8))
    found = cluster_tokens([EntityArrays(tglu_query=queries.astype(np.float32))], 33, threads=1)
    assert found.error < 0.05
    assert mean_error(points.astype(np.float32), found.centroids) < 0.05


def test_more_centroids_lie_nearer(tiny):
    errors = [cluster_tokens([tiny.stored_queries(400)], c, threads=1).error for c in (1, 4, 64, 1500, 2000)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 < errors[-2]
