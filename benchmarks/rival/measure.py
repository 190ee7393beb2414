"""How well the rival links, tuned without the tested set and on it.

Two variants: ``sentence`` has one vector of the mention in its sentence, ``sentence_and_surface`` adds one
of the surface by itself. Of every variant and tested split there are two rows. ``left_out``: weights from dev
mentions of the other sets, so that nothing of the tested set was seen but its names. ``own``: weights from
mentions of the set itself. Ranks are over all entities by the sum of the terms, ties against the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.names.accuracy import SETS
from benchmarks.rival.encoded import EncodedEntities, encode_mentions
from benchmarks.rival.encoders import Encoders
from benchmarks.rival.latency import latency
from benchmarks.rival.search import RivalWeights
from benchmarks.rival.sets import RivalSet
from benchmarks.rival.tuning import GRID, VARIANTS, best
from mimic_engine.metrics import ranking_metrics
from mimic_engine.types import LabelledMention

LEFT_OUT, OWN = "left_out", "own"
EXPECTED = {
    # Hits@1 of names alone by the engine's own features, which know words and their weight. The rival knows
    # a name only as a whole, and most surfaces of these sets are a part of one.
    "left_out_below": {"WikiMEL": 0.828, "RichpediaMEL": 0.793, "WikiDiverse": 0.764},
    "own_not_below_left_out": True,
}
Choice = tuple[str, str]  # variant, way of tuning


@dataclass(frozen=True, slots=True)
class TunedSet:
    """A set with its entities encoded, and the grid's ranks of its dev mentions and of its own."""

    set: RivalSet
    entities: EncodedEntities
    dev: NDArray[np.int64]  # (W, M)
    own: NDArray[np.int64]  # (W, M')


def measure(sets: Sequence[RivalSet], encoders: Encoders) -> Iterator[dict[str, Any]]:
    """Rows of accuracy by set, tested split, variant and way of tuning, and of latency by set and variant.

    ``left_out`` weights are tuned on the other sets of ``SETS`` alone; errors as of the encoders and of
    :func:`benchmarks.rival.latency.latency`.
    """
    tuned = [_tuned(one, encoders) for one in sets]
    for one in tuned:
        others = [o for o in tuned if o.set.name in SETS and o is not one and o.set.dev]
        chosen = _chosen(one, others)
        on = {
            LEFT_OUT: _counts([m for o in others for m in o.set.dev]),
            OWN: _counts(one.set.own) | {"split": one.set.own_split},
        }
        for split in one.set.tested:
            for row in _accuracy(one, split, chosen, encoders):
                yield row | {"tuned_on": on[row["tuned"]]}
        first = next(iter(one.set.tested.values()))
        for variant in dict.fromkeys(variant for variant, _ in chosen):
            weights = next(w for (v, _), w in chosen.items() if v == variant)
            timed = latency(one.entities, first, weights, encoders)
            yield {"kind": "latency", "set": one.set.name, "variant": variant} | timed


def _tuned(one: RivalSet, encoders: Encoders) -> TunedSet:
    entities = EncodedEntities.of(one.entities, encoders, one.name)

    def ranks(mentions: Sequence[LabelledMention]) -> NDArray[np.int64]:
        vectors = encode_mentions([m.mention for m in mentions], encoders, one.name)
        return entities.ranks(mentions, vectors, GRID)

    dev = ranks(one.dev)
    return TunedSet(one, entities, dev, dev if one.own is one.dev else ranks(one.own))


def _chosen(one: TunedSet, others: Sequence[TunedSet]) -> dict[Choice, RivalWeights]:
    """The best weights of every variant, for each way of tuning that there are mentions for."""
    ways = {LEFT_OUT: np.concatenate([o.dev for o in others], axis=1)} if others else {}
    if one.set.own:
        ways[OWN] = one.own
    return {
        (variant, way): best(ranks[points], GRID[points])
        for variant, points in VARIANTS.items()
        for way, ranks in ways.items()
    }


def _counts(mentions: Sequence[LabelledMention]) -> dict[str, Any]:
    return {"mentions": len(mentions), "pictured": sum(m.mention.image is not None for m in mentions)}


def _accuracy(
    one: TunedSet, split: str, chosen: Mapping[Choice, RivalWeights], encoders: Encoders
) -> Iterator[dict[str, Any]]:
    tested = one.set.tested[split]
    vectors = encode_mentions([m.mention for m in tested], encoders, one.set.name)
    found = one.entities.ranks(tested, vectors, list(chosen.values()))  # (choices, M)
    for ((variant, way), weights), ranks in zip(chosen.items(), found, strict=True):
        yield {
            "kind": "accuracy",
            "set": one.set.name,
            "split": split,
            "variant": variant,
            "tuned": way,
            "weights": asdict(weights),
            "descriptions": "blanked" if one.set.blanked else "kept",
            "pictured": _counts(tested)["pictured"],
            "pictured_entities": sum(bool(e.images) for e in one.set.entities),
            **ranking_metrics(ranks, len(one.entities)).to_json(),
        }


def outcome(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`, of what was measured: the better variant of a set counts."""
    found = {
        (r["set"], r["split"], r["variant"], r["tuned"]): r["hits@1"] for r in rows if r["kind"] == "accuracy"
    }
    limits: Mapping[str, float] = EXPECTED["left_out_below"]  # type: ignore[assignment]
    left_out: dict[str, float] = {}
    for (name, _, _, way), hits in found.items():
        if way == LEFT_OUT and name in limits:
            left_out[name] = max(hits, left_out.get(name, 0.0))
    gains = [
        hits - found[name, split, variant, LEFT_OUT]
        for (name, split, variant, way), hits in found.items()
        if way == OWN and (name, split, variant, LEFT_OUT) in found
    ]
    return {
        "left_out": left_out,
        "left_out_below_met": {name: hits < limits[name] for name, hits in left_out.items()},
        "least_own_above_left_out": min(gains, default=None),
        "own_not_below_left_out_met": min(gains) >= 0 if gains else None,
    }
