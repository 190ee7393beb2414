"""Tiles: measured once, kept on disk, read back; foreign files are refused."""

import importlib.util

import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.tiles import Tile, check_shape, cover, power_of_two

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


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


@needs_triton
def test_the_fastest_candidate_is_kept_on_disk(tmp_path):
    from mimic_engine.kernels.tuning import CANDIDATES, Tiles, tuned

    fastest = CANDIDATES["attention_many"][-1]
    seen = []

    def measure(tile: Tile) -> float:
        seen.append(tile)
        if tile.rows == 64:
            raise RuntimeError("out of shared memory")
        return 1.0 if tile == fastest else 2.0

    said = []
    tiles = tuned(tmp_path / "tiles.json", "a", {"attention_many": measure}, said.append)
    assert tiles.attention(5) == fastest
    assert tiles.attention(1) is None
    assert tiles.gated == Tiles().gated
    assert len(said) == len(seen) == len(CANDIDATES["attention_many"])
    assert any("out of shared memory" in line for line in said)
    assert tuned(tmp_path / "tiles.json", "a", {}) == tiles
    assert tuned(tmp_path / "tiles.json", "b", {}) == Tiles()
    assert tuned(tmp_path / "tiles.json", "a", {}) == tiles


@needs_triton
@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a": {"attention_many": {"rows": 1, "colour": 2}}}', '{"a": 3}']
)
def test_a_foreign_file_is_refused(tmp_path, content):
    from mimic_engine.kernels.tuning import tuned

    (tmp_path / "tiles.json").write_text(content, "utf-8")
    with pytest.raises(InvalidInputError, match=r"tiles\.json"):
        tuned(tmp_path / "tiles.json", "a", {})
