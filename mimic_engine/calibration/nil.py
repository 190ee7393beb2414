"""Nil threshold of a model, below which its best candidate is not good enough: chosen, kept, read.

A mention whose best score lies below the threshold is answered "nil", none of these. The threshold belongs to
a model and to a kind of knowledge base: :func:`choose` takes it from labelled mentions, ``mimic-engine
calibrate`` writes it as ``nil.json`` into the model's folder, and ``Linker.open`` reads it from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.files import Natural, read_versioned, write_versioned

FILE = "nil.json"
FORMAT = "mimic-nil"
VERSION = 1


@dataclass(frozen=True, slots=True)
class NilThreshold:
    """A threshold and what it was chosen from.

    ``precision`` is the share of right answers among the ``answered`` of ``mentions`` labelled mentions,
    ``wanted_precision`` what was asked for, ``entities`` the size of the index at that time.
    """

    threshold: float
    wanted_precision: float
    precision: float
    mentions: Natural
    answered: Natural
    model_hash: str
    entities: Natural

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold {self.threshold} is not finite")

    def write(self, model: Path) -> None:
        """Store with the model, whole or not at all."""
        write_versioned(model / FILE, self, format=FORMAT, version=VERSION)

    @classmethod
    def read(cls, model: Path, model_hash: str) -> Self | None:
        """Read what was stored with the model; None where nothing was.

        Raises
        ------
        ModelError
            If the file is damaged, of another version, or belongs to another model.
        """
        path = model / FILE
        try:
            stored = read_versioned(path, cls, format=FORMAT, version=VERSION, error=ModelError)
        except FileNotFoundError:
            return None
        except ModelError as error:
            raise ModelError(f"{error}; run mimic-engine calibrate") from error
        if stored.model_hash != model_hash:
            raise ModelError(f"{path}: belongs to model {stored.model_hash}, not to {model_hash}")
        return stored


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold, the precision above it, and how many mentions reach it."""

    threshold: float
    precision: float
    answered: int


def choose(scores: Sequence[float], right: Sequence[bool], precision: float) -> Choice:
    """Choose the lowest threshold above which at least ``precision`` of the answers are right.

    Parameters
    ----------
    scores : best score of each of M mentions.
    right : whether that candidate is the labelled answer; False where the answer is nil.
    precision : wanted share of right answers among those given, above 0, at most 1.

    Returns
    -------
    Choice
        Its threshold lies midway between the last score that is answered and the next.

    Raises
    ------
    InvalidInputError
        If there is no mention, the precision is out of range, or no threshold reaches it.
    """
    if not 0 < precision <= 1:
        raise InvalidInputError(
            f"precision: must be above 0, at most 1, got {precision:g}", field="precision"
        )
    if not len(scores):
        raise InvalidInputError("mentions: there is none to calibrate on", field="mentions")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")  # (M,)
    best = np.asarray(scores, np.float64)[order]  # (M,) descending
    reached = np.cumsum(np.asarray(right, np.bool_)[order]) / np.arange(1, len(best) + 1)  # (M,)
    ends = np.append(best[1:] < best[:-1], True)  # (M,) equal scores are answered together
    enough = np.flatnonzero(ends & (reached >= precision))
    if not len(enough):
        top = reached[ends].max()
        raise InvalidInputError(
            f"precision: no threshold reaches {precision:g} on these {len(best)} mentions; "
            f"the highest is {top:.4f}",
            field="precision",
        )
    last = int(enough[-1])
    below = best[last + 1] if last + 1 < len(best) else best[last]
    return Choice(float((best[last] + below) / 2), float(reached[last]), last + 1)
