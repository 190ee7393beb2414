"""Scores that are not finite are an error: NaN has no rank."""

from __future__ import annotations

import numpy as np

from mimic_engine.errors import EngineError
from mimic_engine.types import Array


def check_finite(scores: Array) -> None:
    """Raise :class:`EngineError` unless all of the scores, of any shape, are finite."""
    # Two reductions instead of a mask of the whole: NaN comes out of both.
    if scores.size and not (np.isfinite(scores.max()) and np.isfinite(scores.min())):
        raise EngineError(
            "scores: not all of them are finite: the weights or the index are damaged, "
            "or the encoders' precision has too small a range"
        )
