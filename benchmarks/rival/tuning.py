"""Tuning of the rival's weights: the best of a small grid on labelled mentions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.rival.search import RivalWeights

# Of points that do equally well the first is taken: where nothing speaks for or against them, images weigh as
# much as texts, and surfaces nothing.
SURFACE = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)
IMAGE = (1.0, 0.5, 0.25, 0.1, 0.0, 2.0, 4.0)
NAME = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0, 2.0)
GRID = tuple(RivalWeights(image, name, surface) for surface, image, name in product(SURFACE, IMAGE, NAME))
# The points of the grid that each variant has to choose from: it begins with those without surfaces.
VARIANTS = {"sentence": slice(0, len(IMAGE) * len(NAME)), "sentence_and_surface": slice(None)}


def best(ranks: NDArray[np.int64], grid: Sequence[RivalWeights] = GRID) -> RivalWeights:
    """The weights with the most first ranks, then the greatest mean reciprocal rank, then the first.

    Parameters
    ----------
    ranks : (W, M) of the answers of M mentions, a row a point of the grid.
    grid : W weights.
    """
    first, reciprocal = (ranks == 1).mean(axis=1), (1 / ranks).mean(axis=1)  # (W,)
    return grid[max(range(len(grid)), key=lambda point: (first[point], reciprocal[point], -point))]
