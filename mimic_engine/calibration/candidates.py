"""Candidates of labelled mentions, with the numbers that a calibration weighs: gathered from a scan.

Of each mention the best by the model's own score, and the best by what they share with its name; few
entities, but those among which weights have to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mimic_engine.calibration.weights import RankedMention
from mimic_engine.names.features import FEATURES, NameFeatures
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.ranker import Ranker
from mimic_engine.types import Mention, MentionArrays

CANDIDATES = 20  # by the model, and as many by name


def ranked_mentions(
    scan: Ranker,
    lookup: NameLookup,
    prior: NDArray[np.float32] | None,
    mentions: Sequence[Mention],
    arrays: MentionArrays,
    gold: Sequence[int | None],
    *,
    allowed: NDArray[np.bool_] | None = None,
) -> list[RankedMention]:
    """The candidates of each of B mentions, their answer always among them.

    Parameters
    ----------
    scan : over the entities.
    lookup : of their names.
    prior : (N,) of the entities, None where no popularity is known.
    mentions : B mentions.
    arrays : the same, folded.
    gold : row of each answer, None where no entity is right.
    allowed : (N,) rows that may be answered; all by default.

    Errors as of :meth:`mimic_engine.scan.scan.Scan.search`.
    """
    count = min(CANDIDATES, len(scan) if allowed is None else int(np.count_nonzero(allowed)))
    best = scan.search(arrays, count, allowed=allowed).rows  # (B, count)
    found = []
    for b, mention in enumerate(mentions):
        features = lookup.features(mention.mention, mention.sentence)
        answer = gold[b]
        own = np.array([] if answer is None else [answer], np.int64)
        rows = np.unique(np.concatenate([best[b], _most_alike(features), own]))
        scored = scan.search(arrays.block(b, b + 1), len(rows), rows=rows)
        order = np.argsort(scored.rows[0])
        numbers = np.zeros((len(rows), len(FEATURES) + 1))
        numbers[:, :-1] = features.at(rows)
        if prior is not None:
            numbers[:, -1] = prior[rows]
        place = None if answer is None else int(np.searchsorted(rows, answer))
        found.append(RankedMention(scored.scores[0, order].astype(np.float64), numbers, place))
    return found


def _most_alike(features: NameFeatures) -> NDArray[np.int64]:
    """Rows that share most with the mention."""
    sums = features.weighted([1.0] * len(FEATURES))
    return features.rows[np.argsort(-sums, kind="stable")[:CANDIDATES]]
