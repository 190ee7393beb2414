"""Pillow's resize and the model's normalisation on the GPU, the same pixels; the twin is ``resample_ref``.

Two launches for any number of pictures of any sizes, one an axis, in each
picture's own order; the second looks the bytes up in the table of normalised
values. Sums are integers, so their order does not matter and every pixel is
exact. Pictures, weights and what each pass must know lie in three buffers, packed
on the host by :func:`pack_pictures`: three copies, whatever the number of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.resample_ref import HALF, PRECISION_BITS, axis_weights, rows_first

BLOCK = 256  # values of a row a program
_FACTS = 8  # numbers a pass: see _facts
_HALF = tl.constexpr(HALF)
_BITS = tl.constexpr(PRECISION_BITS)


@dataclass(frozen=True, slots=True)
class PackedPictures:
    """P pictures of different sizes as the kernel reads them."""

    pixels: NDArray[np.uint8]  # all pictures, one behind the other
    weights: NDArray[np.int32]  # of every axis: starts (S,), counts (S,), taps (S, T)
    facts: NDArray[np.int64]  # (P, 2, 8): of both passes
    rows: int  # that the first pass has at most
    columns: int  # that the first pass has at most
    between_bytes: int  # of the pictures between the passes


def pack_pictures(pictures: Sequence[NDArray[np.uint8]], size: int, kind: str = "lanczos") -> PackedPictures:
    """Pack RGB pictures (H, W, 3) that are to become (3, size, size).

    Raises
    ------
    InvalidInputError
        If a picture has another shape or type.
    """
    facts = np.zeros((len(pictures), 2, _FACTS), np.int64)
    weights = _Weights(size, kind)
    pixels_at = between_at = 0
    for number, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise InvalidInputError(f"picture: must be (H, W, 3) uint8, got {picture.dtype} {picture.shape}")
        facts[number] = _facts(picture.shape[0], picture.shape[1], size, weights)
        facts[number, 0, 0], facts[number, 0, 7] = pixels_at, between_at
        facts[number, 1, 0] = between_at
        pixels_at += picture.size
        between_at += 3 * int(facts[number, 0, 2] * facts[number, 0, 3])
    rows, columns = (int(facts[:, 0, i].max(initial=0)) for i in (2, 3))
    return PackedPictures(
        np.concatenate([np.empty(0, np.uint8), *(np.ravel(p) for p in pictures)]),
        np.concatenate([np.empty(0, np.int32), *weights.parts]),
        facts, rows, columns, between_at,
    )  # fmt: skip


class _Weights:
    """The weights of every axis that occurs, once each, and where they lie."""

    def __init__(self, size: int, kind: str) -> None:
        self.size, self.kind = size, kind
        self.parts: list[NDArray[np.int32]] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def place(self, source: int) -> tuple[int, int]:
        """Where the weights of an axis begin, and its number of taps."""
        if source not in self._places:
            axis = axis_weights(source, self.size, self.kind)
            self._places[source] = (self._end, axis.taps.shape[1])
            self.parts.append(np.concatenate([axis.starts, axis.counts, axis.taps.ravel()]))
            self._end += len(self.parts[-1])
        return self._places[source]


def _facts(height: int, width: int, size: int, weights: _Weights) -> list[tuple[int, ...]]:
    """Of both passes: source, its width, rows and columns out, weights, taps, whether along x, target."""
    x, y = weights.place(width), weights.place(height)
    if rows_first(height, width, size, size):
        return [(0, width, size, width, *y, 0, 0), (0, width, size, size, *x, 1, 0)]
    return [(0, width, height, size, *x, 1, 0), (0, size, size, size, *y, 0, 0)]


@triton.jit
def resample_kernel(
    source, weights, facts, table, out, SIZE: tl.constexpr, PASS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (row, block of its values, picture): one pass along one axis, to bytes or through the table."""
    picture = tl.program_id(2)
    own = facts + (picture * 2 + PASS) * 8
    row = tl.program_id(0)
    columns = tl.load(own + 3).to(tl.int32)
    if (row >= tl.load(own + 2)) | (tl.program_id(1) * BLOCK >= columns * 3):
        return
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = j < columns * 3
    x, channel = j // 3, j % 3
    width = tl.load(own + 1).to(tl.int32)
    taps = tl.load(own + 5).to(tl.int32)
    along_x = tl.load(own + 6) != 0
    place = tl.where(along_x, x, row)
    axis = weights + tl.load(own + 4)
    start = tl.load(axis + place, mask=real, other=0)
    count = tl.load(axis + SIZE + place, mask=real, other=0)
    across = tl.where(along_x, start, x)
    down = tl.where(along_x, row, start)
    at = source + tl.load(own) + (down.to(tl.int64) * width + across) * 3 + channel
    step = tl.where(along_x, 3, width * 3)
    total = tl.full((BLOCK,), _HALF, tl.int32)
    t = 0
    while t < taps:
        inside = real & (t < count)
        value = tl.load(at + t * step, mask=inside, other=0).to(tl.int32)
        total += value * tl.load(axis + 2 * SIZE + place * taps + t, mask=inside, other=0)
        t += 1
    byte = tl.minimum(tl.maximum(total >> _BITS, 0), 255)
    if PASS == 0:
        to = out + tl.load(own + 7) + (row.to(tl.int64) * columns) * 3 + j
        tl.store(to, byte.to(tl.uint8), mask=real)
    else:
        to = out + picture.to(tl.int64) * (3 * SIZE * SIZE) + channel * (SIZE * SIZE) + row * SIZE + x
        tl.store(to, tl.load(table + channel * 256 + byte, mask=real, other=0.0), mask=real)


def resample(
    pixels: Tensor, weights: Tensor, facts: Tensor, table: Tensor, between: Tensor, out: Tensor,
    rows: int, columns: int,
) -> None:  # fmt: skip
    """Resize and normalise P pictures; two launches.

    Parameters
    ----------
    pixels, weights, facts : of :func:`pack_pictures`, on the device.
    table : (3, 256) float32, the normalised value of every byte.
    between : at least ``between_bytes`` of uint8, overwritten.
    out : (P, 3, size, size) float32.
    rows, columns : of :func:`pack_pictures`, or more, which costs programs that end at once.
    """
    pictures, size = out.shape[0], out.shape[2]
    if not pictures:
        return
    for number, (source, target) in enumerate(((pixels, between), (between, out))):
        runtime, constants = arguments(source, weights, facts, table, target, size, number)
        tall, wide = (rows, columns) if number == 0 else (size, size)
        resample_kernel[(tall, triton.cdiv(3 * wide, BLOCK), pictures)](**runtime, **constants)


def arguments(
    source: Tensor, weights: Tensor, facts: Tensor, table: Tensor, out: Tensor, size: int, number: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run-time arguments of pass ``number``, and its constants with the launch options."""
    runtime = {"source": source, "weights": weights, "facts": facts, "table": table, "out": out}
    return runtime, {"SIZE": size, "PASS": number, "BLOCK": BLOCK, "num_warps": 4, "num_stages": 1}
