"""Dead rows on disk, of deleted and replaced entities: by segment, their numbers within it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import fsync_path, sha256_of
from mimic_engine.index.arrays import read_array_file, write_array_file
from mimic_engine.index.manifest import DELETED, DeletedRecord, FileRecord, IndexManifest, deleted_name

DeadRows = Mapping[str, NDArray[np.uint32]]  # segment name -> row numbers within it, rising


def write_deleted(folder: Path, generation: int, dead: DeadRows) -> DeletedRecord | None:
    """Write and flush the dead rows of a new generation; None, and no file, where there are none."""
    if not dead:
        return None
    name = deleted_name(generation)
    path = folder / DELETED / name
    path.parent.mkdir(exist_ok=True)
    write_array_file(path, {segment: rows.astype("<u4", copy=False) for segment, rows in dead.items()})
    fsync_path(path.parent)
    fsync_path(folder)
    count = sum(len(rows) for rows in dead.values())
    return DeletedRecord(name, count, FileRecord(sha256_of(path), path.stat().st_size))


def read_deleted(folder: Path, manifest: IndexManifest) -> DeadRows:
    """The dead rows of a snapshot.

    Raises
    ------
    IndexFormatError
        If the file is damaged, or lists other than rows of the snapshot's segments, each once.
    """
    if manifest.deleted is None:
        return {}
    path = folder / DELETED / manifest.deleted.name
    dead, rows = read_array_file(path), {s.name: s.rows for s in manifest.segments}
    for name, numbers in dead.items():
        if name not in rows:
            raise IndexFormatError(f"{path}: segment {name!r} is not one of {sorted(rows)}")
        if numbers.dtype.str != "<u4" or numbers.ndim != 1 or not len(numbers):
            raise IndexFormatError(f"{path}: segment {name}: {numbers.shape} {numbers.dtype}, expected rows")
        if np.any(numbers[1:] <= numbers[:-1]) or int(numbers[-1]) >= rows[name]:
            raise IndexFormatError(f"{path}: segment {name}: not rising row numbers under {rows[name]}")
    if (found := sum(len(numbers) for numbers in dead.values())) != manifest.deleted.rows:
        raise IndexFormatError(f"{path}: {found} rows, the manifest says {manifest.deleted.rows}")
    return dead
