"""Featurizer of a knowledge base: folds entities for an index, and decodes their images by policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mimic_engine.data.images import BrokenImages
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.types import Array, Entity, EntityArrays, FoldConstants


@dataclass(frozen=True)
class KnowledgeBaseFeaturizer:
    """The source of an index's arrays.

    Parameters
    ----------
    featurizer : model and preprocessing.
    broken : stops at a broken image, or takes it for missing and lists it.
    """

    featurizer: Featurizer
    broken: BrokenImages

    @property
    def constants(self) -> FoldConstants:
        """Numbers that the scores need beyond the folded arrays."""
        return self.featurizer.constants

    @property
    def model_hash(self) -> str:
        """Identity of the model."""
        return self.featurizer.model_hash

    def entities(self, entities: Sequence[Entity], /) -> EntityArrays:
        """Folded arrays of a batch; of each entity the images that the model takes and can use.

        Raises
        ------
        DataError
            If an image is broken and the policy is to stop; names file and entity.
        """
        return self.featurizer.entities(entities, [self._pixels(e) for e in entities])

    def _pixels(self, entity: Entity) -> list[Array]:
        sources = self.featurizer.images_of(entity)
        loaded = [self.broken.load(self.featurizer.images, s, f"entity {entity.id!r}") for s in sources]
        return [pixels for pixels in loaded if pixels is not None]
