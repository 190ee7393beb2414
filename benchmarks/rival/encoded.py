"""Vectors of a set: its entities, once, and of any of its mentions; and the ranks that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.rival.encoders import Encoders, entity_text, mention_text, unit
from benchmarks.rival.search import EntityVectors, MentionVectors, Names, RivalWeights, ranks, terms
from mimic_engine.types import Array, Entity, ImageSource, LabelledMention, Mention

BLOCK = 16  # mentions scored at a time, against all entities


@dataclass(frozen=True, slots=True)
class EncodedEntities:
    """Entities as vectors, by what names they are found, and the row of every id."""

    vectors: EntityVectors
    names: Names
    number: dict[str, int]

    @classmethod
    def of(cls, entities: Sequence[Entity], encoders: Encoders, name: str) -> Self:
        """Encode entities, or take them from the cache, where they are called by ``name``."""
        text = encoders.cached_texts([entity_text(e) for e in entities], f"{name}-entities")
        image = _means([e.images for e in entities], encoders, f"{name}-entity-images")
        return cls(EntityVectors(text, image), Names(entities), {e.id: row for row, e in enumerate(entities)})

    def __len__(self) -> int:
        return len(self.number)

    def gold(self, mentions: Sequence[LabelledMention]) -> NDArray[np.int64]:
        """Rows (M,) of the answers."""
        return np.array([self.number[m.answer] for m in mentions], np.int64)

    def ranks(
        self, labelled: Sequence[LabelledMention], vectors: MentionVectors, grid: Sequence[RivalWeights]
    ) -> NDArray[np.int64]:
        """Ranks (W, M) of the answers of M mentions under W weights, ties counted against them."""
        gold, surfaces = self.gold(labelled), [m.mention.mention for m in labelled]
        found = np.empty((len(grid), len(labelled)), np.int64)
        for start in range(0, len(labelled), BLOCK):
            rows = slice(start, start + BLOCK)
            block = terms(vectors.block(start, start + BLOCK), surfaces[rows], self.vectors, self.names)
            for point, weights in enumerate(grid):
                found[point, rows] = ranks(block.scores(weights), gold[rows])
        return found


def encode_mentions(mentions: Sequence[Mention], encoders: Encoders, name: str) -> MentionVectors:
    """Vectors of mentions, kept in the cache under a name."""
    text = encoders.cached_texts([mention_text(m) for m in mentions], f"{name}-mentions")
    surface = encoders.cached_texts([m.mention for m in mentions], f"{name}-surfaces")
    return MentionVectors(text, surface, _means(_albums(mentions), encoders, f"{name}-mention-images"))


def encode_mention(mention: Mention, encoders: Encoders, *, surface: bool) -> MentionVectors:
    """Vectors of one mention, its surface's where it is asked for."""
    texts = [mention_text(mention), *([mention.mention] if surface else [])]
    found = encoders.texts(texts)  # (1 or 2, T)
    own = found[1:] if surface else np.zeros_like(found)
    return MentionVectors(found[:1], own, _means(_albums([mention]), encoders, None))


def _albums(mentions: Sequence[Mention]) -> list[tuple[ImageSource, ...]]:
    return [() if m.image is None else (m.image,) for m in mentions]


def _means(albums: Sequence[Sequence[ImageSource]], encoders: Encoders, name: str | None) -> Array:
    """The mean of each album's vectors at length 1 again, zeros for an empty one; (n, G)."""
    images = [image for album in albums for image in album]
    vectors = encoders.images(images) if name is None else encoders.cached_images(images, name)
    owner = np.repeat(np.arange(len(albums)), np.array([len(album) for album in albums], np.int64))
    sums = np.zeros((len(albums), encoders.image_width), np.float32)
    np.add.at(sums, owner, vectors)
    return unit(sums)
