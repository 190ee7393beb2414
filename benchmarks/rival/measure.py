"""How well the rival links, tuned without the tested set and on it, and how long one mention takes.

Of every tested split there are two rows. ``left_out``: weights from dev mentions of the other sets, so that
nothing of the tested set was seen but its names. ``own``: weights from mentions of the set itself. Ranks are
over all entities by the sum of the three terms, ties against the answer. Latencies are of single mentions in
one process on one thread; every timed answer is held against that sum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.rival.encoded import EncodedEntities, encode_mentions
from benchmarks.rival.encoders import Encoders
from benchmarks.rival.search import FlatSearch, RivalWeights, terms
from benchmarks.rival.sets import SETS, RivalSet, sample
from benchmarks.rival.tuning import GRID, best
from mimic_engine.errors import EngineError
from mimic_engine.metrics import ranking_metrics
from mimic_engine.types import LabelledMention, Mention

TOP_K = 10
TIMED = 200  # mentions of each kind
WARM_UP = 10
ATOL = 1e-5  # of a score by the index, against the sum in NumPy
EXPECTED = {
    # Hits@1 of names alone by the engine's own features, which know words and their weight. The rival knows
    # a name only as a whole, and most surfaces of these sets are a part of one.
    "left_out_below": {"WikiMEL": 0.828, "RichpediaMEL": 0.793, "WikiDiverse": 0.764},
    "own_not_below_left_out": True,
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """A set with its entities encoded, and the grid's ranks of its dev mentions and of its own."""

    set: RivalSet
    entities: EncodedEntities
    dev: NDArray[np.int64]  # (W, M)
    own: NDArray[np.int64]  # (W, M')


def measure(sets: Sequence[RivalSet], encoders: Encoders) -> Iterator[dict[str, Any]]:
    """Rows of accuracy of every set, tested split and way of tuning, then one of latency a set.

    ``left_out`` weights are tuned on the other sets of ``SETS`` alone; errors as of the encoders.
    """
    tuned = [_tuned(one, encoders) for one in sets]
    for one in tuned:
        others = [o for o in tuned if o.set.name in SETS and o is not one and o.set.dev]
        ways: dict[str, RivalWeights] = {}
        if others:
            ways["left_out"] = best(np.concatenate([o.dev for o in others], axis=1))
        if one.set.own:
            ways["own"] = best(one.own)
        on = {
            "left_out": _counts([m for o in others for m in o.set.dev]),
            "own": _counts(one.set.own) | {"split": one.set.own_split},
        }
        for split in one.set.tested:
            yield from _accuracy(one, split, ways, on, encoders)
        if ways:
            yield _latency(one, next(iter(ways.values())), encoders)


def _tuned(one: RivalSet, encoders: Encoders) -> Tuned:
    entities = EncodedEntities.of(one.entities, encoders, one.name)

    def ranks(mentions: Sequence[LabelledMention], split: str) -> NDArray[np.int64]:
        vectors = encode_mentions([m.mention for m in mentions], encoders, f"{one.name}-{split}")
        return entities.ranks(mentions, vectors, GRID)

    dev = ranks(one.dev, "dev")
    return Tuned(one, entities, dev, dev if one.own is one.dev else ranks(one.own, "own"))


def _counts(mentions: Sequence[LabelledMention]) -> dict[str, Any]:
    return {"mentions": len(mentions), "pictured": sum(m.mention.image is not None for m in mentions)}


def _accuracy(
    one: Tuned, split: str, ways: Mapping[str, RivalWeights], on: Mapping[str, Any], encoders: Encoders
) -> Iterator[dict[str, Any]]:
    tested = one.set.tested[split]
    vectors = encode_mentions([m.mention for m in tested], encoders, f"{one.set.name}-{split}")
    found = one.entities.ranks(tested, vectors, list(ways.values()))  # (ways, M)
    for (way, weights), ranks in zip(ways.items(), found, strict=True):
        yield {
            "kind": "accuracy",
            "set": one.set.name,
            "split": split,
            "tuned": way,
            "tuned_on": on[way],
            "weights": asdict(weights),
            "descriptions": "blanked" if one.set.blanked else "kept",
            "pictured": _counts(tested)["pictured"],
            "pictured_entities": sum(bool(e.images) for e in one.set.entities),
            **ranking_metrics(ranks, len(one.entities)).to_json(),
        }


def _latency(one: Tuned, weights: RivalWeights, encoders: Encoders) -> dict[str, Any]:
    """Milliseconds of mentions of the first tested split, without their images and, where some have, with."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    search = FlatSearch(one.entities.vectors, one.entities.names, weights)
    split = next(iter(one.set.tested))
    asked = [m.mention for m in sample(one.set.tested[split], TIMED)]
    pictured = [m for m in one.set.tested[split] if m.mention.image is not None]
    try:
        return {
            "kind": "latency",
            "set": one.set.name,
            "entities": len(one.entities),
            "vector_bytes": search.size_bytes,
            "without_image": _timed([replace(m, image=None) for m in asked], one, search, encoders),
            "with_image": _timed([m.mention for m in sample(pictured, TIMED)], one, search, encoders),
        }
    finally:
        faiss.omp_set_num_threads(threads)


def _timed(
    mentions: Sequence[Mention], one: Tuned, search: FlatSearch, encoders: Encoders
) -> dict[str, Any] | None:
    """Percentiles of mentions asked one by one; None where there are none."""
    for mention in mentions[:WARM_UP]:
        search(encode_mentions([mention], encoders), mention.mention, TOP_K)
    whole, alone = [], []
    for mention in mentions:
        start = time.perf_counter()
        vectors = encode_mentions([mention], encoders)
        encoded = time.perf_counter()
        rows, scores = search(vectors, mention.mention, TOP_K)
        stop = time.perf_counter()
        whole.append(stop - start)
        alone.append(stop - encoded)
        exact = terms(vectors, [mention.mention], one.entities.vectors, one.entities.names)
        check(rows, scores, exact.scores(search.weights)[0])
    if not whole:
        return None
    return {
        "mentions": len(whole),
        "encoded_and_searched_ms": _percentiles(whole),
        "searched_ms": _percentiles(alone),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(1e3 * np.array(seconds), [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def check(rows: NDArray[np.int64], scores: NDArray[np.float32], exact: NDArray[np.float32]) -> None:
    """Raise EngineError unless an answer (K,) is that of the exact scores (N,), up to rounding."""
    best_scores = np.sort(exact)[::-1][: len(rows)]
    if not (
        np.allclose(scores, best_scores, rtol=0, atol=ATOL)
        and np.allclose(exact[rows], scores, rtol=0, atol=ATOL)
    ):
        raise EngineError("flat search: an answer is not the best of all entities")


def outcome(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`, of what was measured."""
    found = {(r["set"], r["split"], r["tuned"]): r["hits@1"] for r in rows if r["kind"] == "accuracy"}
    limits: Mapping[str, float] = EXPECTED["left_out_below"]  # type: ignore[assignment]
    left_out = {name: hits for (name, _, way), hits in found.items() if way == "left_out" and name in limits}
    gains = {
        f"{name} {split}": hits - found[name, split, "left_out"]
        for (name, split, way), hits in found.items()
        if way == "own" and (name, split, "left_out") in found
    }
    return {
        "left_out": left_out,
        "left_out_below_met": all(h < limits[n] for n, h in left_out.items()) if left_out else None,
        "own_above_left_out": gains,
        "own_not_below_left_out_met": min(gains.values()) >= 0 if gains else None,
    }
