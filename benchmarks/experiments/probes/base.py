"""Contract of a probe, and the steps that probes share: folding the mentions of a split, scanning entities.

A probe is asked about a trained run and the name of a split, and answers in plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.trained import TrainedRun
from mimic_engine.errors import InvalidInputError
from mimic_engine.scan.scan import Scan
from mimic_engine.train.corpus import Split
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.ranking import entity_scan
from mimic_engine.types import MentionArrays

Rows = NDArray[np.int64]
Probe = Callable[[TrainedRun, str], dict[str, Any]]


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


def folded(run: TrainedRun, records: Rows, encode: RecordEncoder | None = None) -> MentionArrays:
    """Fold mention records, the model in evaluation mode; ``encode`` may show them otherwise than the run.

    To be called before a scan is opened: that leaves PyTorch one thread.
    """
    run.encode.model.eval()
    return fold_mentions(encode or run.encode, records, run.config.encode_batch)


@contextmanager
def scanning(run: TrainedRun, encode: RecordEncoder | None = None) -> Iterator[Scan]:
    """Scan all entities, the model in evaluation mode; ``encode`` may show them otherwise than the run."""
    run.encode.model.eval()
    with entity_scan(encode or run.encode, run.config.encode_batch) as scan:
        yield scan
