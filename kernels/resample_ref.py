"""Pillow's resize of 8-bit pictures in NumPy, pixel by pixel the same: the readable twin of ``resample``.

Two passes, one an axis, each a weighted sum in fixed point. Weights are computed
in double precision, normalised, and rounded to 22 bits behind the point; a sum
starts at one half and is shifted back and clipped to 8 bits, so that the picture
between the passes has 8 bits too, and the order of the passes shows. A pass that
changes nothing is left out. Normalisation is a table of 256 values a channel, as
in :mod:`mimic_engine.images`.

Sines and divisions must be the C library's: weights one unit in the last place
away round to other integers now and then. The order of the passes is that of
Pillow 13, found by trying; before, x always came first. :func:`exact_here` says
whether this machine's Pillow agrees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_BITS = 22  # 32 bits less 8 of the pixel and 2 for overshoot
HALF = 1 << (PRECISION_BITS - 1)

Pixels = NDArray[np.uint8]  # (H, W, 3)


def _bilinear(x: float) -> float:
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x = x * math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


# By Pillow's names: the filter, and how far it reaches at the size of the larger side.
FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """One axis of a resize: from ``source`` to ``len(starts)`` pixels, T taps at most."""

    source: int
    starts: NDArray[np.int32]  # (S,) first pixel that counts
    counts: NDArray[np.int32]  # (S,) how many count
    taps: NDArray[np.int32]  # (S, T) in 22 bits, zero beyond the counts


@functools.lru_cache(maxsize=256)
def axis_weights(source: int, target: int, kind: str = "lanczos") -> Weights:
    """Weights of one axis, from ``source`` to ``target`` pixels, both at least 1."""
    shape, reach = FILTERS[kind]
    scale = source / target
    stretch = max(scale, 1.0)
    support, step = reach * stretch, 1.0 / stretch
    taps = np.zeros((target, math.ceil(support) * 2 + 1), np.int32)  # (S, T)
    starts, counts = np.zeros(target, np.int32), np.zeros(target, np.int32)
    for place in range(target):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        number = min(source, int(centre + support + 0.5)) - first
        values = [shape((x + first - centre + 0.5) * step) for x in range(number)]
        total = 0.0
        for value in values:  # one after the other, as the C code does
            total += value
        starts[place], counts[place] = first, number
        taps[place, :number] = [_fixed(v / total if total != 0.0 else v) for v in values]
    for array in (starts, counts, taps):
        array.flags.writeable = False  # it is kept and handed out again
    return Weights(source, starts, counts, taps)


def _fixed(weight: float) -> int:
    """The weight in 22 bits, rounded half away from zero."""
    return int((-0.5 if weight < 0 else 0.5) + weight * (1 << PRECISION_BITS))


def resample_axis_ref(pixels: NDArray[np.uint8], weights: Weights) -> NDArray[np.uint8]:
    """One pass along the first axis, (source, ...) -> (S, ...)."""
    out = np.empty((len(weights.starts), *pixels.shape[1:]), np.uint8)
    wide = pixels.astype(np.int32)
    for place, (first, number) in enumerate(zip(weights.starts, weights.counts, strict=True)):
        own = wide[first : first + number]  # (n, ...)
        total = np.tensordot(weights.taps[place, :number], own, axes=1) + HALF
        out[place] = np.clip(total >> PRECISION_BITS, 0, 255)
    return out


def rows_first(height: int, width: int, tall: int, wide: int) -> bool:
    """Whether the pass along y comes first: it does where it takes away the most."""
    return tall < height and height - tall > 2 * (width - wide)


def resample_ref(pixels: Pixels, tall: int, wide: int, kind: str = "lanczos") -> Pixels:
    """Pillow's ``resize((wide, tall))`` of an RGB picture, (H, W, 3) -> (tall, wide, 3)."""

    def along_x(values: Pixels) -> Pixels:
        if values.shape[1] == wide:
            return values
        weights = axis_weights(values.shape[1], wide, kind)
        return resample_axis_ref(values.swapaxes(0, 1), weights).swapaxes(0, 1)

    def along_y(values: Pixels) -> Pixels:
        same = values.shape[0] == tall
        return values if same else resample_axis_ref(values, axis_weights(values.shape[0], tall, kind))

    height, width = pixels.shape[:2]
    return along_x(along_y(pixels)) if rows_first(height, width, tall, wide) else along_y(along_x(pixels))


def normalise_ref(pixels: Pixels, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Table (3, 256) of every value: (S, S, 3) -> (3, S, S) float32."""
    return np.stack([table[c][pixels[:, :, c]] for c in range(3)])  # (3, S, S)


@functools.cache
def exact_here(kind: str = "lanczos") -> bool:
    """Whether the twin gives Pillow's pixels on this machine, tried on a few pictures, up and down."""
    from PIL import Image

    rng = np.random.default_rng(0)
    trials = ((61, 37, 16, 29), (37, 61, 29, 16), (7, 90, 24, 24), (90, 7, 24, 24), (5, 3, 31, 17))
    for height, width, tall, wide in trials:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = Image.fromarray(pixels).resize((wide, tall), Image.Resampling[kind.upper()])
        if not np.array_equal(resample_ref(pixels, tall, wide, kind), np.asarray(expected)):
            return False
    return True
