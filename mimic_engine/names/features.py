"""The name features of a mention and an entity, defined; and their readable twin.

With s the normal form of the surface, c the words of the text around it, and f over the normal forms of
the entity's name and aliases, each feature is the best over f, a number from 0 to 1:

- ``exact``: 1 where s = f, else 0.
- ``words``: cosine of the two sets of words, a word weighing ``idf(w) = log(1 + M / (1 + df(w)))``, with
  M forms in the index and df(w) of them holding w:
  ``sum_{w in s and f} idf(w)^2 / (|s| |f|)``, ``|x|^2 = sum_{w in x} idf(w)^2``; 0 below ``LEAST_WORDS``.
- ``chars``: Dice's coefficient of the two sets of character trigrams, ``2 |s and f| / (|s| + |f|)``;
  0 below ``LEAST_CHARS``.
- ``context``: of the words of f that s has not, the share by idf that c has; 0 where ``words`` is 0 for
  that f, or f has no other word.

Thresholds make the features sparse: an entity that shares no word and hardly a trigram with the surface has
none, and is never touched. A deleted entity has no forms. An entity's forms with the same normal form count
once. All sums are taken in float64 in the order of the form's words; results are rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mimic_engine.names.text import grams, normal_form, words

LEAST_WORDS = 0.15
LEAST_CHARS = 0.6
FEATURES = ("exact", "words", "chars", "context")


@dataclass(frozen=True, slots=True)
class NameFeatures:
    """Features of the entities that share something with a mention: n rows of the index, ascending."""

    rows: NDArray[np.int64]  # (n,)
    exact: NDArray[np.float32]  # (n,) each
    words: NDArray[np.float32]
    chars: NDArray[np.float32]
    context: NDArray[np.float32]

    def weighted(self, weights: Sequence[float]) -> NDArray[np.float32]:
        """The name unit: sum of weight times feature in the order of ``FEATURES``, (n,) float32."""
        total = np.zeros(len(self.rows), np.float32)
        for name, weight in zip(FEATURES, weights, strict=True):
            total += np.float32(weight) * getattr(self, name)
        return total

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (n, 4) of any rows, in the order of ``FEATURES``; 0 where a row shares nothing."""
        out = np.zeros((len(rows), len(FEATURES)), np.float32)
        if len(self.rows):
            position = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
            found = np.flatnonzero(self.rows[position] == rows)
            for i, name in enumerate(FEATURES):
                out[found, i] = getattr(self, name)[position[found]]
        return out

    @classmethod
    def none(cls) -> NameFeatures:
        """Of no entity."""
        empty = np.empty(0, np.float32)
        return cls(np.empty(0, np.int64), **{f.name: empty for f in fields(cls)[1:]})


def name_features(
    surface: str, text: str, forms: Sequence[str], idf: Callable[[str], float]
) -> tuple[float, float, float, float]:
    """The features of one pair, in the order of ``FEATURES``; the readable twin of the lookup.

    Parameters
    ----------
    surface : the mention, as it was written.
    text : the text around it.
    forms : name and aliases of the entity.
    idf : weight of a word.
    """
    mention, around = normal_form(surface), frozenset(normal_form(text).split())
    best = [0.0, 0.0, 0.0, 0.0]
    for form in dict.fromkeys(normal_form(f) for f in forms):
        found = _of_one_form(mention, around, form, idf)
        best = [max(a, b) for a, b in zip(best, found, strict=True)]
    return best[0], best[1], best[2], best[3]


def best_form(
    surface: str, text: str, forms: Sequence[str], idf: Callable[[str], float], weights: Sequence[float]
) -> str | None:
    """Of an entity's name and aliases the one whose features weigh most; None where none shares anything.

    ``weights`` are those of ``FEATURES``; of equal forms the first.
    """
    mention, around = normal_form(surface), frozenset(normal_form(text).split())
    best, most = None, 0.0
    for form in forms:
        found = _of_one_form(mention, around, normal_form(form), idf)
        weight = sum(w * x for w, x in zip(weights, found, strict=True))
        if weight > most:
            best, most = form, weight
    return best


def _of_one_form(
    mention: str, around: frozenset[str], form: str, idf: Callable[[str], float]
) -> tuple[float, float, float, float]:
    ours, theirs = words(mention), words(form)
    shared = sum(idf(w) ** 2 for w in theirs if w in ours)
    cosine = shared / (_norm(ours, idf) * _norm(theirs, idf)) if shared else 0.0
    cosine = cosine if cosine >= LEAST_WORDS else 0.0
    ours_g, theirs_g = grams(mention), grams(form)
    dice = 2 * len(ours_g & theirs_g) / (len(ours_g) + len(theirs_g)) if mention and form else 0.0
    rest = [w for w in theirs if w not in ours]
    context = sum(idf(w) for w in rest if w in around) / sum(idf(w) for w in rest) if cosine and rest else 0.0
    return (
        float(mention == form and mention != ""),
        min(1.0, cosine),
        dice if dice >= LEAST_CHARS else 0.0,
        min(1.0, context),
    )


def _norm(these: Sequence[str], idf: Callable[[str], float]) -> float:
    return math.sqrt(sum(idf(w) ** 2 for w in these))
