"""Features of frozen encoders, computed once and kept on disk as memory-mapped arrays.

A cache folder is named by a hash of what all its features depend on: weights
and configuration of the encoder, preprocessing, dtype. Its rows are named by
hashes of the single inputs, so that data sets which share texts or images
share their features. Rows are added at the end; a row counts when its name is
written, which is after its features are on the disk: an interrupted fill goes
on where it was. One process adds at a time, the others wait.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.errors import DataError
from mimic_engine.files import Natural, fsync_file, wait_for_folder, write_atomic
from mimic_engine.types import Array

# Rows (B,) -> cls (B, W), tokens (B, K, W'), broken (B,): 1 where an input could not be used.
Encode = Callable[[NDArray[np.int64]], tuple[Array, Array, Array]]
ARRAYS = ("cls", "tokens", "broken")
NAMES, SHAPES = "names", "shapes.json"
NAME_BYTES = 32
BATCHES_PER_SYNC = 16


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """Raw encoder output of R rows, memory-mapped, in the cache's dtype."""

    arrays: tuple[Array, Array, Array]  # of all S rows of the cache: (S, W), (S, K, W'), (S,)
    where: NDArray[np.int64]  # (R,), rows of the cache

    @property
    def broken(self) -> Array:
        """1 for each row whose input could not be used, (R,)."""
        return self.arrays[2][self.where]

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """The given rows in float32: (B, W), (B, K, W')."""
        cls, tokens, _ = self.arrays
        chosen = self.where[rows]
        return cls[chosen].astype(np.float32), tokens[chosen].astype(np.float32)


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
    names: Sequence[str],
    encode: Encode,
    *,
    dtype: str = "float32",
    batch_size: int = 64,
    label: str = "features",
    progress: bool = True,
) -> CachedFeatures:
    """Open features under ``folder``, computing first what is not there yet.

    Parameters
    ----------
    folder : holds one folder for each key.
    key : see :func:`cache_key`; the caller hashes all that the features of every row depend on.
    names : R keys, at least one: what each row's features depend on beyond that.
    encode : features of the given rows, float32.
    dtype : "float16" or "float32" on disk; part of what ``key`` hashes.
    batch_size : rows a call of ``encode``.
    label, progress : of the progress bar.

    Raises
    ------
    DataError
        If what is there is damaged; names the folder.
    """
    store = folder / key[:32]
    row_names = [bytes.fromhex(name) for name in names]
    with wait_for_folder(store):
        known = _known(store)
        first = {name: row for row, name in reversed(list(enumerate(row_names))) if name not in known}
        new = np.array(sorted(first.values()), np.int64)
        if len(new):
            _add(store, len(known), new, row_names, encode, np.dtype(dtype), batch_size, label, progress)
            known |= {row_names[row]: len(known) + i for i, row in enumerate(new)}
    where = np.array([known[name] for name in row_names], np.int64)
    return CachedFeatures(_mapped(store, np.dtype(dtype), len(known)), where)


def _add(
    store: Path,
    past: int,
    new: NDArray[np.int64],
    names: Sequence[bytes],
    encode: Encode,
    dtype: np.dtype,
    batch_size: int,
    label: str,
    progress: bool,
) -> None:
    """Append the features of the ``new`` rows to the ``past`` ones that the folder holds."""
    if past == 0:
        shapes = [list(a.shape[1:]) for a in encode(new[:1])]
        write_atomic(store / SHAPES, json.dumps(shapes))
    sizes = [math.prod(shape) * dtype.itemsize for shape in _shapes(store)]
    stride = batch_size * BATCHES_PER_SYNC
    with (
        _appending(store, [*(size * past for size in sizes), NAME_BYTES * past]) as (*arrays, ends),
        tqdm(total=len(new), desc=label, unit="row", disable=not progress) as bar,
    ):
        for start in range(0, len(new), stride):
            part = new[start : start + stride]
            for rows in np.split(part, range(batch_size, len(part), batch_size)):
                for file, values in zip(arrays, encode(rows), strict=True):
                    file.write(np.ascontiguousarray(values, dtype).tobytes())
                bar.update(len(rows))
            for file in arrays:
                fsync_file(file)
            ends.write(b"".join(names[row] for row in part))
            fsync_file(ends)


@contextmanager
def _appending(store: Path, lengths: Sequence[int]) -> Iterator[list[BinaryIO]]:
    """The array files and the names, each cut to its length and open at its end."""
    with ExitStack() as stack:
        files: list[BinaryIO] = []
        for name, length in zip((*ARRAYS, NAMES), lengths, strict=True):
            file = stack.enter_context((store / name).open("ab"))
            if file.tell() < length:
                raise DataError(
                    f"{store / name}: holds {file.tell()} bytes of {length}: the cached features are "
                    "damaged; delete the folder"
                )
            file.truncate(length)
            files.append(file)
        yield files


def _known(store: Path) -> dict[bytes, int]:
    """Row of every name; a name that was cut short by a kill does not count."""
    path = store / NAMES
    content = path.read_bytes() if path.exists() else b""
    ends = range(NAME_BYTES, len(content) + 1, NAME_BYTES)
    return {content[end - NAME_BYTES : end]: row for row, end in enumerate(ends)}


def _shapes(store: Path) -> list[list[int]]:
    """Shape of a row of each array."""
    try:
        return msgspec.json.decode((store / SHAPES).read_bytes(), type=list[list[Natural]])
    except (OSError, ValueError) as error:
        raise DataError(f"{store}: the cached features are damaged; delete the folder: {error}") from error


def _mapped(store: Path, dtype: np.dtype, rows: int) -> tuple[Array, Array, Array]:
    try:
        cls, tokens, broken = (
            np.memmap(store / name, dtype, "r", shape=(rows, *shape))
            for name, shape in zip(ARRAYS, _shapes(store), strict=True)
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{store}: the cached features are damaged; delete the folder: {error}") from error
    return cls, tokens, broken
