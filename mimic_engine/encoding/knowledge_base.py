"""Folds knowledge-base entities for an index: decodes their pictures by policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mimic_engine.data.pictures import BrokenImages
from mimic_engine.encoding.base import Featurizer
from mimic_engine.types import Entity, EntityArrays, FoldConstants


@dataclass(frozen=True)
class KnowledgeBaseFeaturizer:
    """What ``build_index`` asks for its arrays.

    Parameters
    ----------
    featurizer : model and preprocessing.
    broken : stops at a broken picture, or takes it for missing and lists it.
    """

    featurizer: Featurizer
    broken: BrokenImages

    @property
    def constants(self) -> FoldConstants:
        """What the scores need beyond the folded arrays."""
        return self.featurizer.constants

    @property
    def model_hash(self) -> str:
        """Identity of the model."""
        return self.featurizer.model_hash

    def entities(self, entities: Sequence[Entity], /) -> EntityArrays:
        """Folded arrays of a batch; the first picture of each entity, where it has one.

        Raises
        ------
        DataError
            If a picture is broken and the policy is to stop; names file and entity.
        """
        pixels = [
            self.broken.load(self.featurizer.images, e.images[0] if e.images else None, f"entity {e.id!r}")
            for e in entities
        ]
        return self.featurizer.entities(entities, pixels)
