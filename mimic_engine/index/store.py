"""An open index: folded arrays as memory maps, entities by row and by id. No model and no scores here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError, IndexMismatchError, UnknownEntityError
from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.codes import Codes, open_codes
from mimic_engine.index.entities import IdLookup, hash_ids, read_entity_table
from mimic_engine.index.format import (
    ARRAYS,
    ENTITIES,
    IDS,
    SEGMENTS,
    IndexManifest,
    SegmentRecord,
    read_manifest,
)
from mimic_engine.index.layout import check_stored, trailing_shapes
from mimic_engine.index.verify import IndexReport, check_files
from mimic_engine.types import Entity, EntityArrays

if TYPE_CHECKING:
    from os import PathLike

Rows = Sequence[int] | NDArray[np.int64]


class Index:
    """A read-only snapshot of an index folder. Safe to share between threads.

    >>> index = Index.open("index/")                       # doctest: +SKIP
    >>> index.names(index.rows(["Q30", "Q1428"]))          # doctest: +SKIP
    ['United States of America', 'Georgia']

    Attributes
    ----------
    path : the index folder
    manifest : what it says about itself
    segments : folded arrays of every segment, rows in order; read-only maps of the files
    codes : centroids and codes of every segment for the coded mode; None where there are none
    """

    def __init__(
        self,
        path: Path,
        manifest: IndexManifest,
        segments: tuple[EntityArrays, ...],
        lookups: tuple[IdLookup, ...],
        entities: pa.Table,
        codes: Codes | None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.segments = segments
        self.codes = codes
        self._lookups = lookups
        self._starts = [0, *accumulate(s.rows for s in manifest.segments)][:-1]
        self._columns = {name: entities.column(name) for name in entities.schema.names}

    @classmethod
    def open(cls, path: str | PathLike[str], *, verify: bool = True) -> Self:
        """Map the files of an index.

        Parameters
        ----------
        path : the index folder
        verify : check the sha256 of every file and every text (reads all of them);
            False checks sizes, headers and shapes only, for files that were checked before

        Raises
        ------
        IndexFormatError
            If the folder is missing, empty, damaged, or of another version; names file and fault.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if not manifest.count:
            raise IndexFormatError(f"{path}: the index is empty; it needs at least 1 entity")
        for problem in check_files(path, manifest, checksums=verify).problems:
            raise IndexFormatError(f"{path / problem.name}: damaged: {problem.problem}")
        segments = tuple(_open_arrays(path, s, manifest) for s in manifest.segments)
        _check_same_shapes(path, segments)
        folders = [path / SEGMENTS / s.name for s in manifest.segments]
        tables = [read_entity_table(f / ENTITIES, verify=verify) for f in folders]
        for folder, table, record in zip(folders, tables, manifest.segments, strict=True):
            if table.num_rows != record.rows:
                raise IndexFormatError(f"{folder / ENTITIES}: {table.num_rows} rows, expected {record.rows}")
        lookups = tuple(
            IdLookup(f / IDS, s.rows, verify=verify) for f, s in zip(folders, manifest.segments, strict=True)
        )
        codes = open_codes(path, manifest, segments)
        return cls(path, manifest, segments, lookups, pa.concat_tables(tables), codes)

    def __len__(self) -> int:
        return self.manifest.count

    def check_model(self, model_hash: str) -> None:
        """Raise :class:`IndexMismatchError` unless the index was built with the model of this hash."""
        if model_hash != self.manifest.model_hash:
            raise IndexMismatchError(
                f"{self.path}: built with model {self.manifest.model_hash}, but the model opened is "
                f"{model_hash}; open that model, or rebuild the index: "
                f"mimic-engine index build --model MODEL --kb FILE --out {self.path}"
            )

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers (n,) of entity ids.

        Raises
        ------
        UnknownEntityError
            If the index does not hold one of them; names it.
        """
        rows = [-1] * len(ids)
        hashes = hash_ids(ids)
        for start, lookup in zip(self._starts, self._lookups, strict=True):
            for i, candidates in enumerate(lookup.candidates(hashes)):
                for row in candidates.tolist():
                    if rows[i] < 0 and self._text("id", start + row) == ids[i]:
                        rows[i] = start + row
        if -1 in rows:
            raise UnknownEntityError(
                f"entity id {ids[rows.index(-1)]!r} is not in the index {self.path} ({len(self)} entities)"
            )
        return np.array(rows, dtype=np.int64)

    def entity(self, row: int) -> Entity:
        """Metadata of one row; ``images`` are texts (path, URL, or ``sha256:HEX`` of bytes)."""
        images = tuple(self._columns["images"][self._checked(row)].as_py())
        id_, name, description, kind = (self._text(c, row) for c in ("id", "name", "description", "type"))
        return Entity(id_, name, description, images, kind)

    def ids(self, rows: Rows) -> list[str]:
        """Entity ids of n rows."""
        return [self._text("id", int(row)) for row in rows]

    def names(self, rows: Rows) -> list[str]:
        """Entity names of n rows."""
        return [self._text("name", int(row)) for row in rows]

    def verify(self) -> IndexReport:
        """Read every file again and compare size and sha256 with the manifest."""
        return check_files(self.path, self.manifest, checksums=True)

    def _text(self, column: str, row: int) -> str:
        return str(self._columns[column][self._checked(row)].as_py())

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is not between 0 and {len(self) - 1}")
        return row


def _open_arrays(path: Path, segment: SegmentRecord, manifest: IndexManifest) -> EntityArrays:
    file = path / SEGMENTS / segment.name / ARRAYS
    arrays = read_array_file(file)
    try:
        check_stored(arrays, segment.rows, manifest.dtype, manifest.constants)
    except ValueError as error:
        raise IndexFormatError(f"{file}: {error}") from error
    return EntityArrays(**arrays)


def _check_same_shapes(path: Path, segments: Sequence[EntityArrays]) -> None:
    for arrays in segments[1:]:
        if trailing_shapes(arrays) != trailing_shapes(segments[0]):
            raise IndexFormatError(f"{path}: the shapes differ between the segments")
