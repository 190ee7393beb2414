"""What names are worth while a model is trained: added to its scores, so that it learns what they leave open.

A model that will be ranked with names (:mod:`mimic_engine.names.features`) need not spend itself on spelling:
in its loss, its hard negatives and its validation every pair has a name score beside its own. The weights are
fixed, about those that calibration gives divided by its temperature; a calibration after training fits them
anew. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.terms import NameScores, ScoreTerms
from mimic_engine.types import Entity, Mention

WEIGHTS = (1.0, 6.0, 3.0, 3.0)  # exact, words, chars, context
TERMS = ScoreTerms(largest_name=sum(WEIGHTS))


def name_scorer(entities: Sequence[Entity]) -> Callable[[Mention], NameScores]:
    """Name scores of any mention against these entities, whose names and aliases count."""
    lookup = NameLookup([FormArrays.of([(e.name, *e.aliases) for e in entities])], [len(entities)])

    def scores(mention: Mention) -> NameScores:
        features = lookup.features(mention.mention, mention.sentence)
        return NameScores(features.rows, features.weighted(WEIGHTS))

    return scores


def among(names: Sequence[NameScores], entities: NDArray[np.int64]) -> Tensor:
    """Name scores (B, C) of B mentions against entity rows (C,), float32."""
    return torch.from_numpy(np.stack([own.at(entities) for own in names]))
