"""Seen and unseen entities: metrics by whether training had the gold entity as an answer.

Every candidate is in the knowledge base from the start; "unseen" means that no training mention had it
as its answer (it may have been a negative).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiments.probes.base import Rows, folded, mentions_of, scanning
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.metrics import ranking_metrics


def seen(run: TrainedRun, split: str) -> dict[str, Any]:
    """Metrics of a split's mentions, by whether their gold entity is a gold answer in "train".

    Returns
    -------
    dict
        ``all``, ``seen``, ``unseen``: metrics, None where there is no such mention; ``entities``: how many
        distinct gold entities the split has of each kind, and "train" in all.

    Raises
    ------
    InvalidInputError
        If the split, or "train", was not read or has no mentions.
    """
    mentions = mentions_of(run, split)
    trained = np.unique(mentions_of(run, "train").gold)
    arrays = folded(run, mentions.records)
    with scanning(run) as scan:
        ranks, candidates = scan.ranks(arrays, mentions.gold), len(scan)
    known = np.isin(mentions.gold, trained)  # (M,)
    return {
        "all": ranking_metrics(ranks, candidates).to_json(),
        "seen": _metrics(ranks[known], candidates),
        "unseen": _metrics(ranks[~known], candidates),
        "entities": {
            "train": len(trained),
            "seen": len(np.unique(mentions.gold[known])),
            "unseen": len(np.unique(mentions.gold[~known])),
        },
    }


def _metrics(ranks: Rows, candidates: int) -> dict[str, float | int] | None:
    return ranking_metrics(ranks, candidates).to_json() if len(ranks) else None
