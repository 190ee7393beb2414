"""Boosted trees over what a name and a description show without any model: the least that a model must beat.

Of every mention the entities most alike by name; of each pair the name features, how many entities bear the
surface exactly, and how many of the sentence's words, by rarity, the description has. Fitted to mentions of
other sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.base.worlds import World
from mimic_engine.names.text import normal_form
from mimic_engine.types import LabelledMention

CANDIDATES = 60
EVEN = [1.0] * 4

Pairs = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (n, F) of n candidates; their rows (n,)


class TreeFeatures:
    """Features of the candidates of a world's mentions."""

    def __init__(self, world: World) -> None:
        self._lookup = world.lookup
        entities = world.dataset.entities
        self._words = [frozenset(normal_form(e.description).split()) for e in entities]
        self._row = {e.id: i for i, e in enumerate(entities)}
        counts = Counter(word for words in self._words for word in words)
        self._idf = {word: math.log(1 + len(entities) / (1 + n)) for word, n in counts.items()}

    def gold(self, labelled: LabelledMention) -> int:
        """Row of the answer."""
        return self._row[labelled.answer]

    def of(self, labelled: LabelledMention) -> Pairs:
        """Candidates of one mention."""
        own = labelled.mention
        features = self._lookup.features(own.mention, own.sentence)
        order = np.argsort(-features.weighted(EVEN), kind="stable")[:CANDIDATES]
        rows = features.rows[order]
        around = frozenset(normal_form(own.sentence).split()) - frozenset(normal_form(own.mention).split())
        whole = sum(self._idf.get(word, 0.0) for word in around) or 1.0
        shared = [sum(self._idf[w] for w in self._words[row] & around) for row in rows]
        names = features.at(rows)  # (n, 4)
        bearers = np.full(len(rows), names[:, 0].sum(), np.float32)
        return np.column_stack([names, bearers, shared, np.array(shared) / whole]).astype(np.float32), rows


def ranks_by_trees(world: World, fitted_to: Sequence[World]) -> NDArray[np.int64]:
    """Ranks (M,) of the tested mentions' answers by trees fitted to the dev mentions of other worlds.

    Ties count against the answer; one that is no candidate has the last rank.
    """
    parts, labels = [], []
    for other in fitted_to:
        features = TreeFeatures(other)
        for labelled in other.dev:
            numbers, rows = features.of(labelled)
            parts.append(numbers)
            labels.append(rows == features.gold(labelled))
    model = HistGradientBoostingClassifier(max_iter=200, learning_rate=0.05, random_state=0)
    model.fit(np.concatenate(parts), np.concatenate(labels))
    features, found = TreeFeatures(world), []
    for labelled in world.tested:
        numbers, rows = features.of(labelled)
        place = np.flatnonzero(rows == features.gold(labelled))
        if not len(place):
            found.append(len(world.dataset.entities))
            continue
        chance = model.predict_proba(numbers)[:, 1]
        found.append(int((chance >= chance[place[0]]).sum()))
    return np.array(found, np.int64)
