"""Token queries in 8 bits, a scale for each token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import Array

_LEVELS = 127  # on either side of 0; -128 is not used


def quantise_rows(vectors: Array) -> tuple[NDArray[np.int8], Array]:
    """Round every row to whole multiples of its own scale, the row's largest magnitude / 127.

    Parameters
    ----------
    vectors : (..., D) float32, finite

    Returns
    -------
    values, scale : (..., D) int8 from -127 to 127, and (...) float32; ``values * scale`` is
        within half a scale of ``vectors``. A row of zeros has scale 0.
    """
    scale = np.abs(vectors).max(axis=-1, initial=0) / np.float32(_LEVELS)  # (...)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]  # (..., 1)
    values = np.clip(np.rint(vectors / divisor), -_LEVELS, _LEVELS)  # (..., D)
    return values.astype(np.int8), scale.astype(np.float32, copy=False)
