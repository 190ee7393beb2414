"""The NumPy scorer: the reference formulas as a :class:`~mimic_engine.scoring.base.Scorer`."""

from __future__ import annotations

from mimic_engine.kernels.reference import scores_ref
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays, Scores


class NumpyScorer:
    """Works everywhere and without an exported graph; several times slower than the ONNX scorer."""

    name = "numpy"
    pairs_per_block = 128

    def __init__(self, constants: FoldConstants) -> None:
        self._constants = constants

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32."""
        return scores_ref(mentions, entities, self._constants)
