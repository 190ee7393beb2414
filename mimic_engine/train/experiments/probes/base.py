"""What a probe is, and the steps that probes share: the mentions of a split, their best candidates.

A probe is asked about a trained run and the name of a split, and answers in plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.scoring.scan import Scan
from mimic_engine.train.corpus import Split
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.experiments.trained import TrainedRun
from mimic_engine.train.ranking import entity_scan
from mimic_engine.types import Array

Rows = NDArray[np.int64]
Probe = Callable[[TrainedRun, str], dict[str, Any]]


class Best(NamedTuple):
    """The K best entities of each of M mentions, best first."""

    rows: Rows  # (M, K)
    scores: Array  # (M, K), total scores


def mentions_of(run: TrainedRun, split: str) -> Split:
    """Records and gold rows of a split that the run has read.

    Raises
    ------
    InvalidInputError
        If the split was not read, or has no mentions.
    """
    splits = run.encode.corpus.splits
    if split not in splits:
        raise InvalidInputError(f"split: {split!r} is not among those that were read, {sorted(splits)}")
    if not len(splits[split].records):
        raise InvalidInputError(f"split: {split!r} has no mentions")
    return splits[split]


@contextmanager
def scanning(run: TrainedRun, encode: RecordEncoder | None = None) -> Iterator[Scan]:
    """Scan all entities with the model in evaluation mode; ``encode`` may see them otherwise than the run."""
    encode = encode or run.encode
    encode.model.eval()
    with entity_scan(encode, run.config.encode_batch) as scan:
        yield scan


def rank_gold(run: TrainedRun, scan: Scan, split: Split) -> Rows:
    """1-based rank of each gold entity among all, ties counted against it; (M,)."""
    mentions = fold_mentions(run.encode, split.records, run.config.encode_batch)
    return scan.ranks(mentions, split.gold)


def find_best(run: TrainedRun, scan: Scan, records: Rows, k: int) -> Best:
    """The ``k`` best entities of mention records, all where there are fewer; equal scores by entity row."""
    mentions = fold_mentions(run.encode, records, run.config.encode_batch)
    found = scan.search(mentions, min(k, len(scan)))
    return Best(found.rows, found.scores)
