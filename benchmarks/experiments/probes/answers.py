"""Several right answers: entities that nothing in name and type tells from the gold one.

Two films of one title, or two people of one name: such candidates form a *set* with the gold entity. The
probe says how large the sets are and whether the best candidates lie in them or hold them whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.probes.base import Rows, folded, mentions_of, scanning
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.types import Entity

TOP = (1, 3, 5, 10)


def answers(run: TrainedRun, split: str) -> dict[str, Any]:
    """How the best candidates of a split's mentions lie to the sets of their gold entities.

    Returns
    -------
    dict
        ``by``: "name and type", or "name" where the knowledge base knows fewer than two types; ``sizes``:
        mentions by the size of their set; ``all`` and ``several``: the figures of :func:`_figures` over all
        mentions and over those whose set has more than one entity (None where there is none).

    Raises
    ------
    InvalidInputError
        If the split was not read or has no mentions.
    """
    mentions = mentions_of(run, split)
    by, group = same_entities(run.dataset.entities)
    arrays = folded(run, mentions.records)
    with scanning(run) as scan:
        best = scan.search(arrays, min(max(TOP), len(scan))).rows  # (M, K)
    sizes = np.bincount(group)[group[mentions.gold]]  # (M,)
    several = sizes > 1
    inside = group[best] == group[mentions.gold][:, None]  # (M, K)
    right = best[:, 0] == mentions.gold  # (M,)
    return {
        "by": by,
        "sizes": {str(size): count for size, count in sorted(Counter(sizes.tolist()).items())},
        "all": _figures(inside, right, sizes),
        "several": _figures(inside[several], right[several], sizes[several]) if several.any() else None,
    }


def same_entities(entities: Sequence[Entity]) -> tuple[str, Rows]:
    """What makes entities the same, and the number of each one's set, (N,).

    Names are compared without regard to case and to white space around them. Where the knowledge base
    knows two types or more, the type must agree too; entities without a type agree with each other.
    """
    typed = len({e.type for e in entities if e.type}) > 1
    keys = [(e.name.strip().casefold(), e.type if typed else "") for e in entities]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return "name and type" if typed else "name", np.array([number[key] for key in keys], np.int64)


def _figures(inside: NDArray[np.bool_], right: NDArray[np.bool_], sizes: Rows) -> dict[str, Any]:
    """Figures of M mentions.

    ``top1_is_gold`` and ``top1_in_set`` are shares of the mentions; ``top`` says for each k the share whose
    best k hold ``any`` and the ``whole`` of the set (a set of more than k entities cannot be held whole), and
    ``fits``, the share whose set has at most k.
    """
    top = {}
    for k in TOP:
        held = inside[:, :k].sum(1)  # (M,)
        top[str(k)] = {
            "any": float((held > 0).mean()),
            "whole": float((held == sizes).mean()),
            "fits": float((sizes <= k).mean()),
        }
    return {
        "mentions": len(sizes),
        "mean_size": float(sizes.mean()),
        "top1_is_gold": float(right.mean()),
        "top1_in_set": top["1"]["any"],
        "top": top,
    }
