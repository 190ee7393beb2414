"""A row of ``base.json``: how well a model links the tested mentions of one world, and what else would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.base.trees import ranks_by_trees
from benchmarks.base.worlds import Judged, Ranks, World, ranks_by_name
from mimic_engine.calibration.weights import RankedMention, fit_weights
from mimic_engine.evaluate.ambiguity import SurfaceAmbiguity
from mimic_engine.metrics import ranking_metrics

FEW = ("hits@1", "hits@3", "hits@5", "mrr", "mentions", "candidates")


def figures(ranks: Ranks, candidates: int) -> dict[str, float | int]:
    """Hits at 1, 3 and 5, and MRR, of ranks (M,)."""
    found = ranking_metrics(ranks, candidates).to_json()
    return {name: found[name] for name in FEW}


def left_out_row(judged: Judged, others: Sequence[Sequence[RankedMention]]) -> dict[str, Any]:
    """A world that neither the model nor its weights have seen.

    ``others`` are the ranked dev mentions of the worlds that the weights are fitted to.
    """
    weights = fit_weights([one for ranked in others for one in ranked])
    return _row(judged, judged.ranks(weights)) | {"weights": asdict(weights)}


def beside(world: World, fitted_to: Sequence[World]) -> dict[str, Any]:
    """What links the same mentions without the model: names alone, and trees fitted to other worlds."""
    count = len(world.dataset.entities)
    return {
        "names_alone": figures(ranks_by_name(world), count),
        "trees_on_names": figures(ranks_by_trees(world, fitted_to), count),
    }


def _row(judged: Judged, ranks: Ranks) -> dict[str, Any]:
    world, count = judged.world, len(judged.world.dataset.entities)
    row: dict[str, Any] = {"split": world.split, **figures(ranks, count)}
    row["without_names"] = figures(judged.ranks(None), count)
    bearers = SurfaceAmbiguity([e.name for e in world.dataset.entities]).counts(
        [m.mention.mention for m in world.tested]
    )
    row["ambiguous"] = _part(ranks, bearers > 1, count)
    if world.split == "test":
        row["deduplicated"] = _part(ranks, _new(world), count)
    return row


def _part(ranks: Ranks, chosen: NDArray[np.bool_], count: int) -> dict[str, float | int] | None:
    return figures(ranks[chosen], count) if chosen.any() else None


def _new(world: World) -> NDArray[np.bool_]:
    """Tested mentions whose sentence is in no other split, by words, (M,)."""
    known = {
        _words(m.mention.sentence)
        for split, mentions in world.dataset.splits.items()
        if split != world.split
        for m in mentions
    }
    return np.array([_words(m.mention.sentence) not in known for m in world.tested])


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
