"""Terms that are added to the model's score of a pair: a name score of a few entities, a prior of each.

A total is then ``(score + name) + prior``, float32 additions in that order. Adding a number rounds
monotonically: what bounds a score from above still does once both have had the same numbers added, so a
search by bounds proves its answers as before. An entity without a name score has 0 there, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.types import Array

NAME, PRIOR = "name", "prior"  # their names among the units of an answer

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class NameScores:
    """Name scores of a mention: ``rows`` (n,), ascending, each once, and their ``scores`` (n,) float32."""

    rows: Rows
    scores: Array

    def at(self, rows: Rows) -> Array:
        """The scores (m,) of any rows; 0 where there is none."""
        if not len(self.rows):
            return np.zeros(len(rows), np.float32)
        position = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[position] == rows, self.scores[position], np.float32(0))


NO_NAMES = NameScores(np.empty(0, np.int64), np.empty(0, np.float32))  # of a mention that no name is like


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTerms:
    """Terms that hold for every search of some entities.

    ``prior`` is (N,) float32, None where there is none; ``largest_name`` is above every name score's size.
    """

    prior: Array | None = None
    largest_name: float = 0.0

    @property
    def largest(self) -> float:
        """No sum of terms is larger than this in size."""
        prior = 0.0 if self.prior is None or not len(self.prior) else float(np.abs(self.prior).max())
        return self.largest_name + prior

    def of(self, names: Sequence[NameScores] | None, mentions: int) -> list[MentionTerms]:
        """The terms of each of B mentions; of none where ``names`` is None: the model's score alone.

        Raises
        ------
        InvalidInputError
            If the names are those of another number of mentions.
        """
        if names is None:
            return [MentionTerms.nothing()] * mentions
        if len(names) != mentions:
            raise InvalidInputError(f"names: {len(names)} for {mentions} mentions", field="names")
        return [MentionTerms(name, self.prior) for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class MentionTerms:
    """The terms of one mention."""

    names: NameScores | None
    prior: Array | None

    @classmethod
    def nothing(cls) -> Self:
        """No terms."""
        return cls(None, None)

    def add_to_all(self, scores: Array) -> None:
        """Add to the scores, or bounds of scores, (N,) of all rows, in place."""
        if self.names is not None:
            scores[self.names.rows] += self.names.scores
        if self.prior is not None:
            scores += self.prior

    def add_to(self, scores: Array, rows: Rows) -> None:
        """Add to the scores (n,) of some rows, in place."""
        for term in self.units(rows).values():
            scores += term

    def units(self, rows: Rows) -> dict[str, Array]:
        """Terms (n,) of some rows by name, in the order they are added in."""
        terms: dict[str, Array] = {}
        if self.names is not None:
            terms[NAME] = self.names.at(rows)
        if self.prior is not None:
            terms[PRIOR] = self.prior[rows]
        return terms
