"""Names as they count in a score: what a mention shares with them, weighed as the model was calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.calibration.weights import ScoreWeights
from mimic_engine.names.features import best_form
from mimic_engine.names.lookup import NameLookup
from mimic_engine.names.prior import prior_of
from mimic_engine.scan.terms import NameScores, ScoreTerms
from mimic_engine.types import Mention


@dataclass(frozen=True, slots=True)
class WeighedNames:
    """The names of an index's entities, and what they weigh."""

    lookup: NameLookup
    weights: ScoreWeights

    def scores(self, mention: Mention) -> NameScores:
        """Name scores of one mention: the weighed sum of its features."""
        features = self.lookup.features(mention.mention, mention.sentence)
        return NameScores(features.rows, features.weighted(self.weights.names))

    def matched(self, mention: Mention, forms: Sequence[str]) -> str | None:
        """Of an entity's name and aliases the one that counts; None where none shares anything."""
        return best_form(mention.mention, mention.sentence, forms, self.lookup.idf, self.weights.names)


def score_terms(
    weights: ScoreWeights, popularity: NDArray[np.float64], alive: NDArray[np.bool_] | None = None
) -> ScoreTerms:
    """Terms that a scan of entities with these popularities (N,) adds to the model's scores."""
    prior = prior_of(popularity, alive) if weights.prior else None
    weighed = None if prior is None else np.float32(weights.prior) * prior
    return ScoreTerms(weighed, sum(weights.names))
