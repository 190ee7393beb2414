"""Search of entities by what they are called: names that begin with a text, then names that are like it.

Entities whose normal forms begin with that of the text come first, by the first such form in the order of
its bytes, so those called exactly so lead; of one form the more popular come first, unknown popularity last,
then by row. Where these are fewer than asked for, those that share words or trigrams with the text follow, by
the sum of the features ``words`` and ``chars`` (:mod:`mimic_engine.names.features`), then likewise. The cost
follows the names that begin with the text or share something with it, not the entities there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError
from mimic_engine.names.features import FEATURES, best_form
from mimic_engine.names.lookup import NameLookup
from mimic_engine.names.text import normal_form
from mimic_engine.types import Entity

_WEIGHTS = tuple(float(name in ("words", "chars")) for name in FEATURES)


@dataclass(frozen=True, slots=True)
class NameMatch:
    """An entity found by a name: its id, its name, and the name or alias that was found, as stored."""

    id: str
    name: str
    matched_name: str


def find_names(
    lookup: NameLookup,
    popularity: NDArray[np.float64],
    entity: Callable[[int], Entity],
    text: str,
    limit: int,
) -> list[NameMatch]:
    """The first ``limit`` entities called like ``text``, each once; the order is the module's.

    Parameters
    ----------
    lookup : names of the index.
    popularity : (N,) of every row; NaN where unknown.
    entity : metadata of a row.
    text : of which ``normal_form`` is sought.
    limit : entities, at least 1.

    Raises
    ------
    InvalidInputError
        If ``limit`` is under 1, or the text has nothing to read.
    """
    if limit < 1:
        raise InvalidInputError(f"limit: {limit} is under 1", field="limit")
    if not normal_form(text):
        raise InvalidInputError("text: is empty", field="text")
    begin = _beginning(lookup, popularity, text, limit)
    found = [_of_form(entity(row), form) for row, form in begin.items()]
    if len(found) < limit:
        like = [row for row in _alike(lookup, popularity, text) if row not in begin]
        found += [_of_text(entity(row), text, lookup) for row in like[: limit - len(found)]]
    return found


def _beginning(lookup: NameLookup, popularity: NDArray[np.float64], text: str, limit: int) -> dict[int, str]:
    """Rows with a form that begins with the text, and the first such form of each."""
    count = 2 * limit
    while True:
        hits = lookup.find(text, count)
        groups = [(form, [row for row, _ in same]) for form, same in groupby(hits, lambda hit: hit[1])]
        whole = groups if len(hits) < count else groups[:-1]  # of the last form there may be more rows
        found: dict[int, str] = {}
        for form, rows in whole:
            for row in sorted(rows, key=lambda row: (*_rank(float(popularity[row])), row)):
                found.setdefault(row, form)
        if len(found) >= limit or len(hits) < count:
            return dict(list(found.items())[:limit])
        count *= 4


def _rank(popularity: float) -> tuple[bool, float]:
    """Sorts the popular first and the unknown last."""
    return (True, 0.0) if np.isnan(popularity) else (False, -popularity)


def _alike(lookup: NameLookup, popularity: NDArray[np.float64], text: str) -> list[int]:
    """Rows that share something with the text, the most alike first."""
    shared = lookup.features(text)
    alike = shared.weighted(_WEIGHTS)  # (n,)
    known = np.nan_to_num(popularity[shared.rows], nan=-1.0)  # (n,)
    order = np.lexsort((shared.rows, -known, -alike))
    return [int(row) for row in shared.rows[order]]


def _of_form(entity: Entity, form: str) -> NameMatch:
    """The entity, by the first of its names that has this normal form."""
    names = (entity.name, *entity.aliases)
    return NameMatch(entity.id, entity.name, next((n for n in names if normal_form(n) == form), entity.name))


def _of_text(entity: Entity, text: str, lookup: NameLookup) -> NameMatch:
    """The entity, by the first of its names that is most like the text."""
    names = (entity.name, *entity.aliases)
    return NameMatch(entity.id, entity.name, best_form(text, "", names, lookup.idf, _WEIGHTS) or entity.name)
