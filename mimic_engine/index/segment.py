"""A segment under construction: its files, flushed in order, and its token queries in 8 bits.

An index of dtype int8 keeps the token queries, which are most of it, as whole
multiples of a scale for each token; all other vectors are stored as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import DataError
from mimic_engine.files import fsync_path
from mimic_engine.index.arrays import ArrayFileWriter, ArraySpec, write_array_file
from mimic_engine.index.entities import EntityTableWriter, hash_ids, write_lookup
from mimic_engine.index.manifest import (
    ARRAYS,
    ENTITIES,
    IDS,
    NAMES,
    SEGMENT_FILES,
    FileRecord,
    SegmentRecord,
)
from mimic_engine.index.schema import QUERY, SCALE, Trailing, stored_dtype, stored_shapes
from mimic_engine.names.forms import FormArrays
from mimic_engine.types import Array, Entity, EntityArrays

_LEVELS = 127  # of an 8-bit value, on either side of 0; -128 is not used


class SegmentWriter:
    """Writes ``rows`` entities: metadata from the first row on, arrays from row ``done`` on.

    ``layout`` is that of the folded arrays.

    A continued segment gets its metadata anew (cheap, and the same bytes); its
    arrays file is continued where the last flush ended.
    """

    def __init__(self, folder: Path, rows: int, dtype: str, *, done: int, layout: Trailing) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._rows, self._dtype = folder, rows, dtype
        self._ids: list[NDArray[np.uint64]] = []
        self._names: list[tuple[str, ...]] = []  # name and aliases of every row
        self._folders_synced = False
        self._arrays = ArrayFileWriter.reopen(folder / ARRAYS, self._specs(layout)) if done else None
        self._table = EntityTableWriter(folder / ENTITIES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._table.close()
        finally:
            if self._arrays is not None:
                self._arrays.close()

    def add_entities(self, entities: Sequence[Entity]) -> None:
        """Append metadata, ids and names."""
        self._table.write(entities)
        self._names += [(e.name, *e.aliases) for e in entities]
        self._ids.append(hash_ids([e.id for e in entities]))

    def add_arrays(
        self, row: int, entities: Sequence[Entity], arrays: EntityArrays, layout: Trailing
    ) -> None:
        """Write the folded arrays of ``entities``, whose first is row ``row`` of the segment.

        Raises
        ------
        DataError
            If a value is not finite, or does not fit in the stored dtype; names entity and array.
        """
        if self._arrays is None:
            self._arrays = self._create(layout)
        for name, value in arrays.items():
            for stored, rows in _stored(name, value, stored_dtype(name, self._dtype), entities).items():
                self._arrays.write(stored, row, rows)

    def add_stored(self, row: int, arrays: EntityArrays, layout: Trailing) -> None:
        """Copy arrays as another segment of the same index stores them, from row ``row`` on."""
        if self._arrays is None:
            self._arrays = self._create(layout)
        for name, value in arrays.items():
            self._arrays.write(name, row, value)

    def sync(self) -> None:
        """Put the arrays written so far on the disk."""
        if self._arrays is not None:
            self._arrays.sync()
        if not self._folders_synced:
            self._sync_folders()

    def finish(self, name: str) -> SegmentRecord:
        """Complete and flush all files; returns the segment's record with checksums."""
        if self._arrays is not None:
            self._arrays.sync()
        self._table.finish()
        write_lookup(self._folder / IDS, np.concatenate(self._ids))
        write_array_file(self._folder / NAMES, FormArrays.of(self._names).items())
        self._sync_folders()
        paths = {file: self._folder / file for file in SEGMENT_FILES}
        files = {file: FileRecord.of(path) for file, path in paths.items()}
        return SegmentRecord(name, self._rows, files)

    def _sync_folders(self) -> None:
        for folder in (self._folder, *self._folder.parents[:2]):  # the segment, all segments, the index
            fsync_path(folder)
        self._folders_synced = True

    def _create(self, layout: Trailing) -> ArrayFileWriter:
        return ArrayFileWriter.create(self._folder / ARRAYS, self._specs(layout))

    def _specs(self, layout: Trailing) -> list[ArraySpec]:
        return [
            ArraySpec(name, stored_dtype(name, self._dtype), (self._rows, *shape))
            for name, shape in stored_shapes(layout, self._dtype).items()
        ]


def quantise_rows(vectors: Array) -> tuple[NDArray[np.int8], Array]:
    """Round every row to whole multiples of its own scale, the row's largest magnitude / 127.

    Parameters
    ----------
    vectors : (..., D) float32, finite

    Returns
    -------
    values, scale : (..., D) int8 from -127 to 127, and (...) float32; ``values * scale`` is
        within half a scale of ``vectors``. A row of zeros has scale 0.
    """
    scale = np.abs(vectors).max(axis=-1, initial=0) / np.float32(_LEVELS)  # (...)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]  # (..., 1)
    values = np.clip(np.rint(vectors / divisor), -_LEVELS, _LEVELS)  # (..., D)
    return values.astype(np.int8), scale.astype(np.float32, copy=False)


def _stored(
    name: str, rows: NDArray[np.float32], dtype: np.dtype[Any], entities: Sequence[Entity]
) -> dict[str, NDArray[Any]]:
    """A folded array, (n, ...), as it is stored: in ``dtype``, an int8 one with its scales beside it."""
    if dtype == np.int8:
        _check_range(name, rows, np.dtype(np.float32), entities)  # of the scales
        values, scale = quantise_rows(rows)
        return {QUERY: values, SCALE: scale}
    _check_range(name, rows, dtype, entities)
    return {name: rows.astype(dtype)}


def _check_range(
    name: str, rows: NDArray[np.float32], dtype: np.dtype[Any], entities: Sequence[Entity]
) -> None:
    """Check that ``rows`` (n, ...) lose nothing but precision in ``dtype``."""
    limit = float(np.finfo(dtype).max)
    peak = np.abs(rows).max(initial=0)
    if not peak <= limit:  # NaN compares false
        peaks = np.abs(rows.reshape(len(rows), -1)).max(axis=1)  # (n,)
        at = int(np.flatnonzero(~(peaks <= limit))[0])
        hint = "; build with dtype float32" if np.isfinite(peaks[at]) else ""
        raise DataError(
            f"entity {entities[at].id!r}: folded array {name} holds {peaks[at]}, "
            f"the limit of {dtype.name} is {limit}{hint}"
        )
