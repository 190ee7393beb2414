"""The feature cache: right values, interrupted and gone on with, opened again without computing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mimic_engine.train import features
from mimic_engine.train.features import cache_key, cached_features


class Encoder:
    """Known features of each row; counts the rows it was asked for and fails at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.rows: list[int] = []
        self.fails_at = fails_at

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.fails_at in rows:
            raise KeyboardInterrupt
        self.rows += rows.tolist()
        x = rows.astype(np.float32)[:, None]
        return x + np.arange(3, dtype=np.float32), np.tile(x[:, None] / 8, (1, 2, 5)), x[:, 0] % 2


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_come_back_and_are_computed_once(tmp_path: Path, rows: int, dtype: str) -> None:
    encode = Encoder()
    options = {"dtype": dtype, "batch_size": 5, "progress": False}
    cached = cached_features(tmp_path, "k" * 64, rows, encode, **options)
    chosen = np.array([rows - 1, 0])
    cls, tokens = cached.take(chosen)
    want = Encoder()(chosen)
    assert np.array_equal(cls, want[0])
    assert np.array_equal(tokens, want[1])
    assert np.array_equal(cached.broken, np.arange(rows) % 2)
    assert cached.cls.dtype == dtype
    assert cls.dtype == tokens.dtype == np.float32
    again = Encoder()
    cached_features(tmp_path, "k" * 64, rows, again, **options)
    assert not again.rows
    assert [p.name for p in tmp_path.iterdir()] == ["k" * 32]


def test_an_interrupted_fill_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCHES_PER_SYNC", 2)
    options = {"batch_size": 4, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, "q" * 64, 30, Encoder(fails_at=21), **options)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    rest = Encoder()
    cached = cached_features(tmp_path, "q" * 64, 30, rest, **options)
    assert set(rest.rows) - {0} == set(range(16, 30))
    assert np.array_equal(cached.cls[:, 0], np.arange(30))


def test_keys_tell_parts_apart() -> None:
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"])
    assert cache_key(["ab"]) == cache_key([b"ab"])
