"""Tile sides: powers of two that cover an axis and waste little."""

import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.tiles import check_shape, cover, power_of_two


@pytest.mark.parametrize("length", range(1, 257))
def test_two_powers_of_two_cover_a_length(length):
    first, second = cover(length)
    assert first + second >= length
    assert first >= 16 and (second == 0 or 8 <= second < first)
    assert all(side & (side - 1) == 0 for side in (first, second))
    assert first + second <= max(16, 2 * length - 2)


def test_the_published_shapes_waste_nothing():
    assert cover(40) == (32, 8)
    assert cover(96, 16) == (64, 32)
    assert [power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


@pytest.mark.parametrize(("tokens", "width"), [((0,), 8), ((129,), 8), ((8,), 0), ((8,), 257)])
def test_shapes_without_a_tile_are_named(tokens, width):
    with pytest.raises(InvalidInputError, match="GPU kernels take 1 to"):
        check_shape(tokens, width)
