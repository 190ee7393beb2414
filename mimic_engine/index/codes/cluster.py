"""Centroids of an index's token queries: a sample drawn from the segments, and k-means over it.

The sample is what bounds time and memory, whatever the number of entities. The
k-means is faiss's, imported when it is needed; opening, scanning and changing an
index do without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.index.codes.read import mean_error
from mimic_engine.index.manifest import MAX_CENTROIDS
from mimic_engine.types import Array, EntityArrays

SEED = 20230806

_TOKENS_A_CENTROID = 64
_LEAST_TOKENS = 16_384
_SAMPLE_BYTES = 256 << 20
_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class Clustering:
    """Centroids (C, D) float32, the size of the sample, its mean distance from them, its mean length."""

    centroids: Array
    sample: int
    error: float
    norm: float


def cluster_tokens(
    segments: Sequence[EntityArrays], centroids: int, *, seed: int = SEED, threads: int | None = None
) -> Clustering:
    """Cluster the token queries of all segments.

    Parameters
    ----------
    segments : stored entities with token queries, at least one entity
    centroids : how many are wanted; there are fewer where the sample has fewer distinct vectors,
        and each of those is then its own centroid
    seed : the same one gives the same centroids, with the same number of threads
    threads : cores to use; all that the process may use by default

    Raises
    ------
    InvalidInputError
        If ``centroids`` or ``threads`` is outside its limits.
    """
    if not 1 <= centroids <= MAX_CENTROIDS:
        raise InvalidInputError(f"centroids: {centroids} is not between 1 and {MAX_CENTROIDS}")
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if threads < 1:
        raise InvalidInputError(f"threads: must be at least 1, got {threads}")
    sample = _sample(segments, max(_LEAST_TOKENS, _TOKENS_A_CENTROID * centroids), seed)
    distinct = _distinct(sample)
    found = distinct if len(distinct) <= centroids else _k_means(sample, centroids, seed, threads)
    norm = float(np.linalg.norm(sample, axis=1).mean(dtype=np.float64))
    return Clustering(found, len(sample), mean_error(sample, found), norm)


def _sample(segments: Sequence[EntityArrays], wanted: int, seed: int) -> Array:
    """About ``wanted`` token queries (T, D) float32, one drawn from each of as many equal parts of the index.

    Tokens of weight 0 (padding, where it is masked) are left out: no score depends on them.
    """
    assert segments[0].tglu_query is not None
    _, length, width = segments[0].tglu_query.shape
    starts = np.cumsum([0, *(s.rows * length for s in segments)])  # (segments + 1,), in tokens
    size = min(int(starts[-1]), wanted, _SAMPLE_BYTES // (4 * width))
    edges = np.arange(size + 1) * starts[-1] // size  # (size + 1,)
    draw = np.random.default_rng(seed).random(size)
    positions = edges[:-1] + (draw * np.diff(edges)).astype(np.int64)  # (size,), rising
    cuts = np.searchsorted(positions, starts)  # (segments + 1,)
    return np.concatenate(
        [
            _weighted_tokens(s, positions[a:b] - start)
            for s, a, b, start in zip(segments, cuts[:-1], cuts[1:], starts[:-1], strict=True)
        ]
    )


def _weighted_tokens(segment: EntityArrays, tokens: NDArray[np.int64]) -> Array:
    """Query vectors of those of ``tokens`` (numbered over all rows) whose weight is not 0; (t, D)."""
    assert segment.tglu_query is not None
    if segment.tglu_token_weight is not None:
        tokens = tokens[segment.tglu_token_weight.reshape(-1)[tokens] > 0]
    vectors = segment.tglu_query.reshape(-1, segment.tglu_query.shape[-1])[tokens].astype(np.float32)
    if segment.tglu_query_scale is not None:
        vectors *= segment.tglu_query_scale.reshape(-1)[tokens, None]
    return vectors


def _distinct(vectors: Array) -> Array:
    """The different rows of ``vectors`` (T, D), in an order that depends on them alone."""
    rows = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * 4)))  # (T, 1)
    return np.unique(rows).view(np.float32).reshape(-1, vectors.shape[1])


def _k_means(sample: Array, centroids: int, seed: int, threads: int) -> Array:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        found = faiss.Kmeans(
            sample.shape[1],
            centroids,
            niter=_ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),  # the sample is bounded above, once
        )
        found.train(sample)
    finally:
        faiss.omp_set_num_threads(before)
    return np.array(found.centroids, dtype=np.float32)
