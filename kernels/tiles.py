"""Tile sizes of the GPU kernels: powers of two that cover an axis, and the launch options of one kernel.

Triton's tiles have power-of-two sides. An axis of 40 tokens or 96 values is
therefore cut in two parts, 32 + 8 and 64 + 32, which waste nothing. Imports
neither Triton nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimic_engine.errors import InvalidInputError

MAX_TOKENS = 128  # text tokens of either side
MAX_WIDTH = 256  # of the interaction vectors


def power_of_two(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cover(length: int, least: int = 8) -> tuple[int, int]:
    """Two powers of two whose sum is at least ``length``: (first, second), the second perhaps 0.

    The first is at least 16 (the inner side of a tensor-core product), the
    second at least ``least``.

    Examples
    --------
    >>> cover(40), cover(96), cover(64), cover(100), cover(3)
    ((32, 8), (64, 32), (64, 0), (128, 0), (16, 0))
    """
    whole = max(16, power_of_two(length))
    if length <= 16:
        return 16, 0
    first = whole // 2
    second = max(least, power_of_two(length - first))
    return (whole, 0) if second >= first else (first, second)


@dataclass(frozen=True, slots=True)
class Tile:
    """Launch options of one kernel: rows (entities or token rows) and mentions of a tile, warps, stages.

    What ``rows`` counts is said by the kernel's file.
    """

    rows: int
    mentions: int = 1
    warps: int = 4
    stages: int = 2


def check_shape(tokens: tuple[int, ...], width: int) -> None:
    """Raise InvalidInputError unless the kernels have tiles for these text lengths and this width."""
    for length in tokens:
        if not 1 <= length <= MAX_TOKENS:
            raise InvalidInputError(f"tokens: the GPU kernels take 1 to {MAX_TOKENS}, got {length}")
    if not 1 <= width <= MAX_WIDTH:
        raise InvalidInputError(f"width: the GPU kernels take 1 to {MAX_WIDTH}, got {width}")
