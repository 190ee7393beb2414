"""Tombstones on disk: the rows of deleted and replaced entities, by segment, by their numbers within it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import fsync_path
from mimic_engine.index.arrays import read_array_file, write_array_file
from mimic_engine.index.manifest import DELETED, FileRecord, IndexManifest, TombstoneRecord, tombstones_name

Tombstones = Mapping[str, NDArray[np.uint32]]  # segment name -> row numbers within it, rising


def write_tombstones(folder: Path, generation: int, tombstones: Tombstones) -> TombstoneRecord | None:
    """Write and flush the tombstones of a new generation; None, and no file, where there are none."""
    if not tombstones:
        return None
    path = folder / DELETED / tombstones_name(generation)
    path.parent.mkdir(exist_ok=True)
    write_array_file(path, {segment: rows.astype("<u4", copy=False) for segment, rows in tombstones.items()})
    fsync_path(path.parent)
    fsync_path(folder)
    return TombstoneRecord(path.name, sum(len(rows) for rows in tombstones.values()), FileRecord.of(path))


def read_tombstones(folder: Path, manifest: IndexManifest) -> Tombstones:
    """The tombstones of a snapshot.

    Raises
    ------
    IndexFormatError
        If the file is damaged, or lists other than rows of the snapshot's segments, each once.
    """
    if manifest.deleted is None:
        return {}
    path = folder / DELETED / manifest.deleted.name
    tombstones, rows = read_array_file(path), {s.name: s.rows for s in manifest.segments}
    for name, numbers in tombstones.items():
        if name not in rows:
            raise IndexFormatError(f"{path}: segment {name!r} is not one of {sorted(rows)}")
        if numbers.dtype.str != "<u4" or numbers.ndim != 1 or not len(numbers):
            raise IndexFormatError(f"{path}: segment {name}: {numbers.shape} {numbers.dtype}, expected rows")
        if np.any(numbers[1:] <= numbers[:-1]) or int(numbers[-1]) >= rows[name]:
            raise IndexFormatError(f"{path}: segment {name}: not rising row numbers under {rows[name]}")
    if (listed := sum(len(numbers) for numbers in tombstones.values())) != manifest.deleted.rows:
        raise IndexFormatError(f"{path}: {listed} rows, the manifest says {manifest.deleted.rows}")
    return tombstones
