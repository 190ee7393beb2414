"""``mimic-engine calibrate``: what names weigh, and how sure an answer is, fitted to labelled mentions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mimic_engine.calibration.fit import fit_calibration
from mimic_engine.calibration.stored import Calibration
from mimic_engine.calibration.weights import RankedMention
from mimic_engine.data.records import NIL, read_mentions
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DataError
from mimic_engine.types import LabelledMention

BATCH = 32

T = TypeVar("T")


def calibrate(
    linker: Linker, model: Path, mentions: Path, *, names: bool = True, precision: float | None = None
) -> Calibration:
    """Rank candidates of the labelled mentions, fit to them, and write what is found into the model's folder.

    Mentions answered ``nil``, or with an entity that the index lacks, teach when not to answer.

    Parameters
    ----------
    linker : over the model and an index.
    model : folder of the model.
    mentions : records, in JSON Lines or Parquet.
    names, precision : as of :func:`~mimic_engine.calibration.fit.fit_calibration`.

    Raises
    ------
    DataError
        If the file cannot be read, or a mention has no answer.
    InvalidInputError, MissingDependencyError
        As :func:`~mimic_engine.calibration.fit.fit_calibration`.
    """
    ranked: list[RankedMention] = []
    labelled = _with_answers(read_mentions(mentions), mentions)
    for batch in _batches(labelled, BATCH):
        rows = linker.index.find([one.answer for one in batch]).tolist()
        gold = [None if row < 0 else row for row in rows]
        ranked += linker.ranked_mentions([one.mention for one in batch], gold)
    found = fit_calibration(ranked, linker.model_hash, len(linker.index), names=names, precision=precision)
    found.write(model)
    return found


def _with_answers(mentions: Iterable[LabelledMention], path: Path) -> Iterator[LabelledMention]:
    for number, one in enumerate(mentions, 1):
        if not one.answer:
            raise DataError(f"{path}: mention {number} has no answer; write {NIL!r} where no entity is right")
        yield one


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch
