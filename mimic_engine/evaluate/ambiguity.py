"""Ambiguity of surface forms: how many entities bear the name that a mention uses, whatever its sentence;
and whether the answer is among those that bear it.

Words are compared without case and accents; an entity bears a name if its own holds every word of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mimic_engine.names.lookup import NameLookup

# Group -> fewest and most entities that bear the mention's name.
GROUPS: Mapping[str, tuple[int, int | None]] = {
    "0": (0, 0),
    "1": (1, 1),
    "2-4": (2, 4),
    "5-19": (5, 19),
    "20 and more": (20, None),
}


class SurfaceAmbiguity:
    """Ambiguity of surface forms in a knowledge base.

    Parameters
    ----------
    names : of the entities.
    """

    def __init__(self, names: Sequence[str]) -> None:
        rows: dict[str, set[int]] = defaultdict(set)
        for row, name in enumerate(names):
            for word in _words(name):
                rows[word].add(row)
        self._rows = dict(rows)

    def count(self, surface: str) -> int:
        """Entities whose names hold every word of a surface form; 0 if it has no word."""
        bearers = sorted((self._rows.get(word, set()) for word in _words(surface)), key=len)
        return len(bearers[0].intersection(*bearers[1:])) if bearers else 0

    def counts(self, surfaces: Sequence[str]) -> NDArray[np.int64]:
        """:meth:`count` of each of M surface forms, (M,) int64."""
        return np.array([self.count(surface) for surface in surfaces], np.int64)


def in_group(counts: NDArray[np.int64], group: str) -> NDArray[np.bool_]:
    """Which of M ``counts`` belong to a group of :data:`GROUPS`, (M,) bool."""
    fewest, most = GROUPS[group]
    return (counts >= fewest) & (counts <= (np.inf if most is None else most))


BY_NAME = ("equal", "alike", "unknown")


def known_names(
    lookup: NameLookup, surfaces: Sequence[str], gold: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Mentions by whether their answer is known by that name, (M,) bool for each of :data:`BY_NAME`.

    "equal": the surface is a name or alias of the answer, by normal forms; "alike": one of them shares words
    or most letters with it; "unknown": none does.

    Parameters
    ----------
    lookup : names of the entities.
    surfaces : M surface forms.
    gold : (M,) rows of their answers.
    """
    pairs = zip(surfaces, gold, strict=True)
    features = np.stack([lookup.features(surface).at(row[None])[0] for surface, row in pairs])  # (M, 4)
    equal: NDArray[np.bool_] = features[:, 0] > 0
    some: NDArray[np.bool_] = np.any(features > 0, axis=1)
    return {"equal": equal, "alike": some & ~equal, "unknown": ~some}


def _words(name: str) -> set[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return set(re.findall(r"\w+", plain.casefold()))
