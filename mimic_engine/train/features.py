"""Features of frozen encoders, computed once and kept on disk as memory-mapped arrays.

A cache folder is named by a hash of everything its content depends on: weights
and configuration of the encoder, preprocessing, inputs, dtype. It is filled
under a temporary name, goes on where an interrupted run left it, and gets its
name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.types import Array

# Rows (B,) -> cls (B, W), tokens (B, K, W'), broken (B,): 1 where an input could not be used.
Encode = Callable[[NDArray[np.int64]], tuple[Array, Array, Array]]
NAMES = ("cls", "tokens", "broken")
BATCHES_PER_SYNC = 16


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """Raw encoder output of R rows, memory-mapped, in the cache's dtype."""

    cls: Array  # (R, W)
    tokens: Array  # (R, K, W')
    broken: Array  # (R,), 1 = the input could not be used

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """The given rows in float32: (B, W), (B, K, W')."""
        return self.cls[rows].astype(np.float32), self.tokens[rows].astype(np.float32)


def cache_key(parts: Iterable[str | bytes]) -> str:
    """SHA-256 (hex) over the parts, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def cached_features(
    folder: Path,
    key: str,
    rows: int,
    encode: Encode,
    *,
    dtype: str = "float32",
    batch_size: int = 64,
    label: str = "features",
    progress: bool = True,
) -> CachedFeatures:
    """Open the features named ``key`` under ``folder``, computing first what is not there yet.

    Parameters
    ----------
    folder : holds one folder for each key.
    key : see :func:`cache_key`; the caller hashes all that the features depend on.
    rows : R, at least 1.
    encode : features of the given rows, float32.
    dtype : "float16" or "float32" on disk.
    batch_size : rows a call of ``encode``.
    label, progress : of the progress bar.
    """
    final = folder / key[:32]
    if not final.is_dir():
        partial = folder / f"{key[:32]}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        _fill(partial, rows, encode, np.dtype(dtype), batch_size, label, progress)
        partial.rename(final)
    return CachedFeatures(*(np.load(final / f"{name}.npy", mmap_mode="r") for name in NAMES))


def _fill(
    partial: Path, rows: int, encode: Encode, dtype: np.dtype, batch_size: int, label: str, progress: bool
) -> None:
    done = _done(partial)
    first = encode(np.arange(1))
    arrays = [
        _array(partial / f"{name}.npy", (rows, *a.shape[1:]), dtype, new=done == 0)
        for name, a in zip(NAMES, first, strict=True)
    ]
    with tqdm(total=rows, initial=done, desc=label, unit="row", disable=not progress) as bar:
        for i, start in enumerate(range(done, rows, batch_size)):
            stop = min(start + batch_size, rows)
            for array, values in zip(arrays, encode(np.arange(start, stop)), strict=True):
                array[start:stop] = values
            bar.update(stop - start)
            if i % BATCHES_PER_SYNC == BATCHES_PER_SYNC - 1 or stop == rows:
                _sync(partial, arrays, stop)


def _array(path: Path, shape: tuple[int, ...], dtype: np.dtype, *, new: bool) -> np.memmap:
    if new:
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")


def _done(partial: Path) -> int:
    try:
        return int(json.loads((partial / "done.json").read_text("utf-8"))["rows"])
    except (OSError, ValueError, KeyError):
        return 0


def _sync(partial: Path, arrays: list[np.memmap], done: int) -> None:
    for array in arrays:
        array.flush()
    temporary = partial / "done.json.new"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"rows": done}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(partial / "done.json")
