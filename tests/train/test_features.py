"""The feature cache: right values, computed once a row, shared, interrupted and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mimic_engine.errors import DataError
from mimic_engine.train import features
from mimic_engine.train.features import CachedFeatures, cache_key, cached_features

KEY = "k" * 64


class Encoder:
    """Known features of each input; counts the inputs it was asked for and fails at one of them."""

    def __init__(self, inputs: list[int], fails_at: int = -1) -> None:
        self.inputs = np.array(inputs)
        self.asked: list[int] = []
        self.fails_at = fails_at

    @property
    def names(self) -> list[str]:
        return [cache_key([str(i)]) for i in self.inputs]

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        inputs = self.inputs[rows]
        if self.fails_at in inputs:
            raise KeyboardInterrupt
        self.asked += inputs.tolist()
        x = inputs.astype(np.float32)[:, None]
        return x + np.arange(3, dtype=np.float32), np.tile(x[:, None] / 8, (1, 2, 5)), x[:, 0] % 2

    def cached(self, folder: Path, **options) -> CachedFeatures:
        options = {"batch_size": 5, "progress": False} | options
        return cached_features(folder, KEY, self.names, self, **options)


def _check(cached: CachedFeatures, encoder: Encoder, rows: list[int]) -> None:
    cls, tokens = cached.take(np.array(rows))
    want = Encoder(encoder.inputs.tolist())(np.array(rows))
    assert np.array_equal(cls, want[0]) and np.array_equal(tokens, want[1])
    assert cls.dtype == tokens.dtype == np.float32
    assert np.array_equal(cached.broken, encoder.inputs % 2)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_come_back_and_are_computed_once(tmp_path: Path, rows: int, dtype: str) -> None:
    encoder = Encoder(list(range(rows)))
    cached = encoder.cached(tmp_path, dtype=dtype)
    _check(cached, encoder, [rows - 1, 0])
    assert cached.arrays[0].dtype == dtype
    again = Encoder(list(range(rows)))
    _check(again.cached(tmp_path, dtype=dtype), again, [rows - 1, 0])
    assert not again.asked


def test_data_sets_share_rows_and_repeated_inputs(tmp_path: Path) -> None:
    one, two = Encoder([5, 3, 5, 8]), Encoder([9, 8, 3, 2, 9])
    first = one.cached(tmp_path)
    assert sorted(one.asked[1:]) == [3, 5, 8]  # after the one that shows the shapes
    second = two.cached(tmp_path)
    assert sorted(two.asked) == [2, 9]
    _check(first, one, [0, 1, 2, 3])
    _check(second, two, [4, 3, 2, 1, 0])


@pytest.mark.parametrize("past", [[], [40, 41, 42]])
def test_an_interrupted_fill_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past: list[int]
) -> None:
    monkeypatch.setattr(features, "BATCHES_PER_SYNC", 2)
    if past:
        Encoder(past).cached(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Encoder(list(range(30)), fails_at=21).cached(tmp_path, batch_size=4)
    names = tmp_path / KEY[:32] / "names"
    assert names.stat().st_size == 32 * (16 + len(past))
    with names.open("ab") as file:
        file.write(b"cut short")
    rest = Encoder(list(range(30)))
    _check(rest.cached(tmp_path, batch_size=4), rest, list(range(30)))
    assert set(rest.asked) == set(range(16, 30))


def test_damage_is_named(tmp_path: Path) -> None:
    encoder = Encoder([1, 2])
    encoder.cached(tmp_path)
    store = tmp_path / KEY[:32]
    (store / "tokens").write_bytes(b"x")
    with pytest.raises(DataError, match="kkk: the cached features are damaged; delete the folder"):
        encoder.cached(tmp_path)
    with pytest.raises(DataError, match=r"tokens: holds 1 bytes of 80: .* delete the folder"):
        Encoder([1, 2, 3]).cached(tmp_path)
    (store / "shapes.json").unlink()
    with pytest.raises(DataError, match="kkk: the cached features are damaged"):
        encoder.cached(tmp_path)


def test_keys_tell_parts_apart() -> None:
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"])
    assert cache_key(["ab"]) == cache_key([b"ab"])
