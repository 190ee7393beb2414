"""A trained run in memory: what a probe is asked about."""

from __future__ import annotations

from dataclasses import dataclass

from mimic_engine.data.source import Dataset
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import RecordEncoder


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """Options, model and data of a finished run; entity rows of corpus and data set are the same."""

    config: TrainConfig
    encode: RecordEncoder  # model = best checkpoint; corpus holds the splits being read
    dataset: Dataset  # entities and labelled mentions of those splits
