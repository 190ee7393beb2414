"""Folding entities for an index: what it asks of a model, and the check that the arrays can be stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mimic_engine.errors import ModelError
from mimic_engine.index.schema import Trailing, check_layout, trailing_shapes
from mimic_engine.types import Entity, EntityArrays, FoldConstants


class EntityFeaturizer(Protocol):
    """What an index needs of a model: entities in, folded float32 arrays out."""

    @property
    def constants(self) -> FoldConstants:
        """What the scores need beyond the arrays."""

    @property
    def model_hash(self) -> str:
        """Hash over weights and configuration."""

    def entities(self, entities: Sequence[Entity], /) -> EntityArrays:
        """Fold n entities; every array float32, n rows in the order given."""


class CheckedFold:
    """A featurizer whose arrays have one layout: the one given, or that of the first batch.

    Attributes
    ----------
    layout : shape of every array without its first axis; empty before the first batch
    """

    def __init__(self, featurizer: EntityFeaturizer, layout: Trailing) -> None:
        self.layout = dict(layout)
        self._featurizer = featurizer

    def __call__(self, batch: Sequence[Entity]) -> EntityArrays:
        """Fold a batch; raises :class:`ModelError` if the arrays cannot be stored."""
        arrays = self._featurizer.entities(batch)
        layout = trailing_shapes(arrays)
        try:
            if not self.layout:
                check_layout(layout, self._featurizer.constants)
                self.layout = layout
            if layout != self.layout:
                raise ValueError(f"shapes {layout} differ from those of earlier entities, {self.layout}")
            for name, value in arrays.items():
                if value.dtype != np.float32 or len(value) != len(batch):
                    raise ValueError(
                        f"array {name}: {value.shape} {value.dtype}, expected {len(batch)} rows float32"
                    )
        except ValueError as error:
            raise ModelError(f"the model's folded entities cannot be stored: {error}") from error
        return arrays
