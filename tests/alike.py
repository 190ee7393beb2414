"""Entities that are alike, and whose scores therefore tie: to the last bit, on every machine.

A library may multiply a row in another way by its position in a batch, or by how many rows there are.
What has to tie in a test is folded, and scored, alone.
"""

from collections.abc import Sequence

import numpy as np

from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.types import Entity, EntityArrays, MentionArrays, Scores

TWINS = ("E05", "E99")  # of the tiny knowledge base


class TwinsAlone(KnowledgeBaseFeaturizer):
    """Folds entities in batches, and the twins once more, each in a batch of its own."""

    def entities(self, entities: Sequence[Entity], /) -> EntityArrays:
        """Folded arrays of a batch."""
        folded = {name: array.copy() for name, array in super().entities(entities).items()}
        for row, entity in enumerate(entities):
            if entity.id in TWINS:
                for name, array in super().entities([entity]).items():
                    folded[name][row] = array[0]
        return EntityArrays(**folded)


class OneByOne(NumpyScorer):
    """Scores the entities of a block one after another."""

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32."""
        parts = [super(OneByOne, self).score(mentions, entities.take([row])) for row in range(entities.rows)]
        units = {name: np.concatenate([p.units[name] for p in parts], 1) for name in parts[0].units}
        return Scores(np.concatenate([p.total for p in parts], 1), units)
