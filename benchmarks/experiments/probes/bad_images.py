"""Bad images: how a model fares when a growing share of the mentions' images is, and what its gate does.

Each mention is ranked with its image as it is and once under each treatment; every share of treated
mentions is then a mixture of the two. Which mentions are treated, and how, follows from the data and a seed
alone: runs over the same data differ by their models only. Entities keep their images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.experiments.probes.base import Rows, folded, mentions_of, scanning
from benchmarks.experiments.probes.gates import distribution, gate_weights
from benchmarks.experiments.probes.treatments import TREATMENTS
from benchmarks.experiments.probes.views import (
    decode_images,
    others_images,
    treated,
    with_numbers,
    without_images,
)
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.errors import InvalidInputError
from mimic_engine.metrics import ranking_metrics
from mimic_engine.model.fold import fold_constants
from mimic_engine.scan.scan import Scan
from mimic_engine.train.corpus import Split
from mimic_engine.train.encode import fold_entities
from mimic_engine.types import MentionArrays

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LIMIT = 1000  # mentions that are treated
LEAST = 100  # with fewer, H@1 has a standard error of more than three points (at 0.9)
OTHER, NONE = "another entity's picture", "no picture"


class _Seen(NamedTuple):
    """Ranks (M,) of the gold entities, and the gates towards them and towards the best wrong ones."""

    ranks: Rows
    gate: dict[str, Any] | None


def bad_images(
    run: TrainedRun,
    split: str,
    *,
    shares: Sequence[float] = SHARES,
    limit: int = LIMIT,
    least: int = LEAST,
    seed: int = 0,
) -> dict[str, Any]:
    """Treat the images of a split's mentions and rank their gold entities.

    Parameters
    ----------
    run, split : the trained run, and the split that is measured.
    shares : of the mentions that have an image, each the mentions of the one before and more.
    limit : measure on this many mentions with an image, drawn once.
    least : with fewer than this, nothing is measured and the result says why.
    seed : of every draw.

    Returns
    -------
    dict
        ``mentions`` of the split, ``pictures``: how many of them have one, ``broken``: how many of those
        drawn have a broken one, ``used``: measured; ``conclusive``, and ``reason`` where it is not. Else
        ``untreated`` and ``text_only`` (no images at all, neither of mentions nor of entities): metrics;
        ``treatments``: for each name a ``curve`` (metrics at each ``share``, with the number ``treated``) and
        the ``gate`` with all mentions treated; ``gate``: as it is. A gate is None in a model without VDLU; a
        treatment is None where the data has no images for it.

    Raises
    ------
    InvalidInputError
        If the split was not read or has no mentions, or a share is not between 0 and 1.
    """
    _check_shares(shares)
    mentions = mentions_of(run, split)
    drawn, counts = _draw(run, mentions, limit, seed)
    decoded = decode_images(run, drawn.records)
    usable = np.isin(run.encode.corpus.image[drawn.records], list(decoded))
    chosen = Split(drawn.records[usable], drawn.gold[usable])
    counts |= {"broken": int((~usable).sum()), "used": len(chosen.records), "seed": seed}
    if len(chosen.records) < least:
        reason = f"{len(chosen.records)} mentions with a picture are too few: at least {least} are needed"
        return counts | {"conclusive": False, "reason": reason}
    shown = dict(_shown(run, chosen, decoded, seed))
    return counts | {"conclusive": True} | _measure(run, chosen, shown, shares, seed)


def _draw(run: TrainedRun, mentions: Split, limit: int, seed: int) -> tuple[Split, dict[str, Any]]:
    """Up to ``limit`` of the mentions that have an image, and the counts."""
    having = np.flatnonzero(run.encode.corpus.image[mentions.records] > 0)
    rows = np.sort(np.random.default_rng(seed).permutation(having)[:limit])
    counts = {"mentions": len(mentions.records), "pictures": len(having)}
    return Split(mentions.records[rows], mentions.gold[rows]), counts


def _shown(
    run: TrainedRun, chosen: Split, decoded: Mapping[int, Image.Image], seed: int
) -> Iterator[tuple[str, MentionArrays | None]]:
    """The mentions, folded, under each treatment; None where the data has no images for it."""
    records = chosen.records
    for name, treatment in TREATMENTS.items():
        yield name, folded(run, records, treated(run, records, decoded, name, treatment, seed))
    numbers = others_images(run.encode.corpus, records, chosen.gold, seed)
    yield OTHER, None if numbers is None else folded(run, records, with_numbers(run, records, numbers))
    yield NONE, folded(run, records, with_numbers(run, records, 0))


def _measure(
    run: TrainedRun,
    chosen: Split,
    shown: Mapping[str, MentionArrays | None],
    shares: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    turn = np.random.default_rng(seed).permutation(len(chosen.records))  # (M,), who is treated first
    as_is = folded(run, chosen.records)
    with scanning(run) as scan:
        candidates = len(scan)
        plain = _look(run, scan, as_is, chosen.gold)
        seen = {n: a and _look(run, scan, a, chosen.gold) for n, a in shown.items()}

    def curve(ranks: Rows) -> list[dict[str, float | int]]:
        counts = {float(share): round(share * len(turn)) for share in shares}
        return [
            {"share": share, "treated": count}
            | ranking_metrics(mixed(plain.ranks, ranks, turn, count), candidates).to_json()
            for share, count in counts.items()
        ]

    return {
        "untreated": ranking_metrics(plain.ranks, candidates).to_json(),
        "text_only": _text_only(run, chosen),
        "gate": plain.gate,
        "treatments": {n: s and {"curve": curve(s.ranks), "gate": s.gate} for n, s in seen.items()},
    }


def _look(run: TrainedRun, scan: Scan, mentions: MentionArrays, gold: Rows) -> _Seen:
    ranks = scan.ranks(mentions, gold)
    if run.encode.model.config.matcher.vision != "vdlu" or len(scan) < 2:
        return _Seen(ranks, None)
    best = scan.search(mentions, 2).rows  # (M, 2)
    wrong = np.where(best[:, 0] == gold, best[:, 1], best[:, 0])
    return _Seen(ranks, {"gold": _gates(run, mentions, gold), "wrong": _gates(run, mentions, wrong)})


def _gates(run: TrainedRun, mentions: MentionArrays, rows: Rows) -> dict[str, Any]:
    """Distribution of the gate in each direction, mention m with entity ``rows[m]``."""
    distinct, where = np.unique(rows, return_inverse=True)
    entities = fold_entities(run.encode, distinct, run.config.encode_batch).take(where)
    weights = gate_weights(mentions, entities, fold_constants(run.encode.model.matcher))
    return {direction: distribution(w) for direction, w in weights.items()}


def mixed(plain: Rows, seen: Rows, turn: Rows, count: int) -> Rows:
    """Ranks (M,) where the ``count`` mentions of the first turns are treated and the others are not."""
    return np.where(turn < count, seen, plain)


def _text_only(run: TrainedRun, chosen: Split) -> dict[str, float | int]:
    view = without_images(run)
    mentions = folded(run, chosen.records, view)
    with scanning(run, view) as scan:
        return ranking_metrics(scan.ranks(mentions, chosen.gold), len(scan)).to_json()


def _check_shares(shares: Sequence[float]) -> None:
    for share in shares:
        if not 0 <= share <= 1:
            raise InvalidInputError(f"shares: {share:g} is not between 0 and 1")
