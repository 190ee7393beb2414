"""The prior of an entity: how often it is meant at all, from its popularity; equal for every mention.

``log(1 + popularity)``, standardised over the entities whose popularity is known: mean 0 and standard
deviation 1. One that is not known has the mean, 0; so has every entity where all are equally popular.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def prior_of(
    popularity: NDArray[np.float64], alive: NDArray[np.bool_] | None = None
) -> NDArray[np.float32] | None:
    """Priors (N,) of entities with these popularities (N,), NaN where unknown; None where none is known.

    Rows that are not ``alive`` (N,) are left out of mean and deviation, and have 0.
    """
    known = ~np.isnan(popularity)
    if alive is not None:
        known &= alive
    if not known.any():
        return None
    logs = np.log1p(popularity[known])
    prior = np.zeros(len(popularity), np.float32)
    deviation = logs.std()
    if deviation > 0:
        prior[known] = (logs - logs.mean()) / deviation
    return prior
