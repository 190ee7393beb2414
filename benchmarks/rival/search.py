"""Search of the rival: one flat faiss index over [text, image], and a bonus for whoever bears the name.

The score of an entity is the weighted sum of the cosines of its text with the mention in its sentence and
with the mention's surface by itself, of the cosine of the images (0 where either side has none), and of
whether the names are equal. The weights are on the mention's side, so one index serves all of them. The twin
in NumPy is :meth:`Terms.scores` over all entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from mimic_engine.names.text import normal_form
from mimic_engine.types import Array, Entity

TIE = 1e-6  # scores this near are equal: float32 sums of equal vectors differ in their last bits
NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class RivalWeights:
    """Weights of the terms; the name's is not negative, and 0 for the surface leaves out its vector."""

    image: float
    name: float
    surface: float = 0.0
    text: float = 1.0


@dataclass(frozen=True, slots=True)
class EntityVectors:
    """Unit vectors of N entities; an image that is not there is zeros."""

    text: Array  # (N, T)
    image: Array  # (N, G)


@dataclass(frozen=True, slots=True)
class MentionVectors:
    """Unit vectors of B mentions; an image that is not there, or a surface that is not asked, is zeros."""

    text: Array  # (B, T)
    surface: Array  # (B, T)
    image: Array  # (B, G)

    def block(self, start: int, stop: int) -> MentionVectors:
        """Rows start:stop."""
        return MentionVectors(self.text[start:stop], self.surface[start:stop], self.image[start:stop])


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of B mentions against N entities, (B, N) each."""

    text: Array
    surface: Array
    image: Array
    name: Array

    def scores(self, weights: RivalWeights) -> Array:
        """Their weighted sum, (B, N) float32: the readable twin of the search."""
        total = weights.text * self.text
        for weight, term in (
            (weights.surface, self.surface),
            (weights.image, self.image),
            (weights.name, self.name),
        ):
            if weight:
                total += weight * term
        return total


def terms(mentions: MentionVectors, surfaces: Sequence[str], entities: EntityVectors, names: Names) -> Terms:
    """The terms of B mentions, whose surfaces are given, against all entities."""
    name = np.zeros((len(surfaces), len(entities.text)), np.float32)  # (B, N)
    for row, surface in enumerate(surfaces):
        name[row, names.rows(surface)] = 1
    texts = entities.text.T  # (T, N)
    return Terms(mentions.text @ texts, mentions.surface @ texts, mentions.image @ entities.image.T, name)


def ranks(scores: Array, gold: NDArray[np.int64]) -> NDArray[np.int64]:
    """1-based ranks (B,) of gold entities by scores (B, N); equal scores count against them."""
    own = scores[np.arange(len(gold)), gold][:, None]  # (B, 1)
    return np.count_nonzero(scores >= own - TIE, axis=1)


class Names:
    """The rows that bear each normal form as a name or an alias."""

    def __init__(self, entities: Iterable[Entity]) -> None:
        found: dict[str, list[int]] = {}
        for row, entity in enumerate(entities):
            for form in {normal_form(name) for name in (entity.name, *entity.aliases)} - {""}:
                found.setdefault(form, []).append(row)
        self._rows: Mapping[str, NDArray[np.int64]] = {f: np.array(r, np.int64) for f, r in found.items()}

    def rows(self, surface: str) -> NDArray[np.int64]:
        """Rows (n,) whose name or alias is the surface, ascending."""
        return self._rows.get(normal_form(surface), NOBODY)


class FlatSearch:
    """The best entities of one mention, exact over all of them.

    Parameters
    ----------
    entities : vectors of N entities.
    names : of the same entities.
    weights : of the terms.
    """

    def __init__(self, entities: EntityVectors, names: Names, weights: RivalWeights) -> None:
        self.names = names
        self.weights = weights
        self._index = faiss.IndexFlatIP(entities.text.shape[1] + entities.image.shape[1])
        self._index.add(np.concatenate([entities.text, entities.image], axis=1))

    @property
    def size_bytes(self) -> int:
        """Size of the vectors in memory."""
        return int(self._index.ntotal * self._index.d * 4)

    def __call__(self, mention: MentionVectors, surface: str, count: int) -> tuple[NDArray[np.int64], Array]:
        """Rows and scores (K,) of the best entities of one mention, ties by row; fewer where N is less.

        What bears the name is scored by itself, so nothing that the bonus lifts can be missed: an entity of
        the answer either bears it or is among the best without it.
        """
        w = self.weights
        text = w.text * mention.text + w.surface * mention.surface  # (1, T)
        query = np.concatenate([text, w.image * mention.image], axis=1, dtype=np.float32)  # (1, T + G)
        scores, rows = (a[0] for a in self._index.search(query, min(count, self._index.ntotal)))
        named = self.names.rows(surface)
        if len(named):
            others = ~np.isin(rows, named)
            lifted = self._index.reconstruct_batch(named) @ query[0] + np.float32(w.name)
            rows, scores = np.append(rows[others], named), np.append(scores[others], lifted)
        order = np.lexsort((rows, -scores))[:count]
        return rows[order], scores[order]
