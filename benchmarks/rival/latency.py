"""How long the rival takes for one mention: single mentions in one process on one thread.

Every timed answer is held against the plain sum of the terms over all entities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.rival.encoded import EncodedEntities, encode_mention
from benchmarks.rival.encoders import Encoders
from benchmarks.rival.search import FlatSearch, RivalWeights, terms
from benchmarks.rival.sets import sample
from mimic_engine.errors import EngineError
from mimic_engine.types import Array, LabelledMention, Mention

TOP_K = 10
TIMED = 200  # mentions of each kind
WARM_UP = 10
ATOL = 1e-5  # of a score by the index, against the sum in NumPy


def latency(
    entities: EncodedEntities, tested: Sequence[LabelledMention], weights: RivalWeights, encoders: Encoders
) -> dict[str, Any]:
    """Milliseconds of mentions without their images and, where some have one, with it; bytes of the vectors.

    Raises
    ------
    EngineError
        If an answer is not the best of all entities.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    search = FlatSearch(entities.vectors, entities.names, weights)
    asked = [replace(m.mention, image=None) for m in sample(tested, TIMED)]
    pictured = [m.mention for m in sample([m for m in tested if m.mention.image is not None], TIMED)]
    try:
        return {
            "entities": len(entities),
            "weights": asdict(weights),
            "vector_bytes": search.size_bytes,
            "without_image": _timed(asked, entities, search, encoders),
            "with_image": _timed(pictured, entities, search, encoders),
        }
    finally:
        faiss.omp_set_num_threads(threads)


def _timed(
    mentions: Sequence[Mention], entities: EncodedEntities, search: FlatSearch, encoders: Encoders
) -> dict[str, Any] | None:
    """Percentiles of mentions asked one by one; None where there are none."""
    if not mentions:
        return None
    surface = search.weights.surface != 0
    for mention in mentions[:WARM_UP]:
        search(encode_mention(mention, encoders, surface=surface), mention.mention, TOP_K)
    whole, alone = [], []
    for mention in mentions:
        start = time.perf_counter()
        vectors = encode_mention(mention, encoders, surface=surface)
        encoded = time.perf_counter()
        rows, scores = search(vectors, mention.mention, TOP_K)
        stop = time.perf_counter()
        whole.append(stop - start)
        alone.append(stop - encoded)
        exact = terms(vectors, [mention.mention], entities.vectors, entities.names)
        check(rows, scores, exact.scores(search.weights)[0])
    return {
        "mentions": len(whole),
        "encoded_and_searched_ms": _percentiles(whole),
        "searched_ms": _percentiles(alone),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(1e3 * np.array(seconds), [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def check(rows: NDArray[np.int64], scores: Array, exact: Array) -> None:
    """Raise EngineError unless an answer (K,) is that of the exact scores (N,), up to rounding."""
    most = np.sort(exact)[::-1][: len(rows)]  # (K,)
    if not all(np.allclose(scores, other, rtol=0, atol=ATOL) for other in (most, exact[rows])):
        raise EngineError("flat search: an answer is not the best of all entities")
