"""Ambiguity of surface forms: how many entities bear the name that a mention uses, whatever its sentence.

Words are compared without case and accents; an entity bears a name if its own holds every word of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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


def _words(name: str) -> set[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return set(re.findall(r"\w+", plain.casefold()))
