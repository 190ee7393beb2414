"""Tiling of a real index: its folded rows repeated with noise, for timing at any number of entities.

Row n takes its text part from row n of the index and its image part from
another row, so that no two rows are equal; vectors get noise of a twentieth of
their own deviation. Scores of such rows are as good as real ones for timing and
for comparing scans with one another; they say nothing about linking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mimic_engine.scan.base import Codes
from mimic_engine.types import Array, EntityArrays

NOISE = 0.05  # of an array's standard deviation
_NOISY = ("text_cls", "tglu_query", "tglu_cls", "cmfu", "concat")  # VDLU's arrays belong together: kept as is
_IMAGE = ("vdlu_query", "vdlu_query_scalars", "vdlu_key", "vdlu_key_scalars")
_STEP = 7919  # rows between a text and its image in each further repetition
_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class TiledCodes:
    """Codes of a larger index with the centroids of the real one."""

    centroids: Array
    segments: Sequence[Codes]


def gathered(segments: Sequence[EntityArrays]) -> EntityArrays:
    """All rows of several segments in one."""
    names = [name for name, _ in segments[0].items()]
    return EntityArrays(**{n: np.concatenate([getattr(s, n) for s in segments]) for n in names})


def tile(entities: EntityArrays, rows: int, seed: int = 0) -> EntityArrays:
    """``rows`` entities from those of an index: the same ones first, then noisy repetitions.

    Parameters
    ----------
    entities : N rows, as stored (float16 or float32).
    rows : how many are wanted; up to N the first of them, without noise.
    seed : of the noise.

    Returns
    -------
    EntityArrays
        The same fields and dtypes with ``rows`` rows, in memory.
    """
    if rows <= entities.rows:
        return entities.block(0, rows)
    out = {name: np.empty((rows, *a.shape[1:]), a.dtype) for name, a in entities.items()}
    for start, stop in _blocks(rows):
        for name, block in noisy_rows(entities, start, stop, seed).items():
            out[name][start:stop] = block
    return EntityArrays(**out)


def noisy_rows(entities: EntityArrays, start: int, stop: int, seed: int = 0) -> EntityArrays:
    """Rows start:stop of the tiling; the noise depends on ``seed`` and the block's ends."""
    rng = np.random.default_rng((seed, start))
    numbers = np.arange(start, stop)
    turn, row = np.divmod(numbers, entities.rows)
    image = (row + turn * _STEP) % entities.rows
    out: dict[str, Array] = {}
    for name, array in entities.items():
        values = array[image if name in _IMAGE else row]
        if name in _NOISY and turn[-1]:
            scale = NOISE * float(array[:1024].std(dtype=np.float64))
            noise = rng.standard_normal(values.shape, dtype=np.float32) * scale
            noise[turn == 0] = 0
            values = (values + noise).astype(array.dtype)
        out[name] = values
    return EntityArrays(**out)


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _BLOCK_ROWS):
        yield start, min(start + _BLOCK_ROWS, rows)
