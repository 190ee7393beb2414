"""``mimic-engine calibrate``: a model's nil threshold, chosen on labelled mentions, kept with the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mimic_engine.calibration.nil import NilThreshold, choose
from mimic_engine.data.records import NIL, read_mentions
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DataError
from mimic_engine.types import LabelledMention

BATCH = 32

T = TypeVar("T")


def calibrate(linker: Linker, model: Path, mentions: Path, precision: float) -> NilThreshold:
    """Link the labelled mentions, choose the threshold, write it into the model's folder.

    Mentions answered ``nil``, or with an entity that the index lacks, teach when not to answer.

    Raises
    ------
    DataError
        If the file cannot be read, or a mention has no answer.
    InvalidInputError
        If no threshold reaches the precision.
    """
    scores: list[float] = []
    right: list[bool] = []
    labelled = _with_answers(read_mentions(mentions), mentions)
    for batch in _batches(labelled, BATCH):
        results = linker.link([one.mention for one in batch], 1)
        for one, result in zip(batch, results, strict=True):
            scores.append(result.candidates[0].score)
            right.append(result.candidates[0].id == one.answer)
    choice = choose(scores, right, precision)
    chosen = NilThreshold(
        threshold=choice.threshold,
        wanted_precision=precision,
        precision=choice.precision,
        mentions=len(scores),
        answered=choice.answered,
        model_hash=linker.model_hash,
        entities=len(linker.index),
    )
    chosen.write(model)
    return chosen


def _with_answers(mentions: Iterable[LabelledMention], path: Path) -> Iterator[LabelledMention]:
    for number, one in enumerate(mentions, 1):
        if not one.answer:
            raise DataError(f"{path}: mention {number} has no answer; write {NIL!r} where no entity is right")
        yield one


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch
