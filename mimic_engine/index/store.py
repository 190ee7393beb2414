"""An open index: folded arrays as memory maps, entities by row and by id. No model and no scores here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError, IndexMismatchError, InvalidInputError, UnknownEntityError
from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.codes.read import open_codes
from mimic_engine.index.entities import IdLookup, hash_ids, image_path, read_entity_table
from mimic_engine.index.manifest import ARRAYS, ENTITIES, IDS, NAMES, SEGMENTS, IndexManifest, SegmentRecord
from mimic_engine.index.name_search import NameMatch, find_names
from mimic_engine.index.schema import check_stored, trailing_shapes
from mimic_engine.index.snapshots import list_snapshots, read_snapshot
from mimic_engine.index.tombstones import Tombstones, read_tombstones
from mimic_engine.index.verify import IndexReport, check_files
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.types import Entity, EntityArrays

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Segment:
    """The open files of one segment."""

    record: SegmentRecord
    arrays: EntityArrays
    lookup: IdLookup
    table: pa.Table
    names: FormArrays


@dataclass(frozen=True, slots=True)
class NameCounts:
    """Counts over the living entities of an index.

    ``forms`` are the different normal forms of each entity's name and aliases, added up.
    """

    entities_with_aliases: int
    aliases: int
    forms: int
    entities_with_popularity: int


class Index:
    """One snapshot of an index folder; it never changes. Safe to share between threads.

    Changes make new snapshots, see :class:`~mimic_engine.index.writer.IndexWriter`;
    :meth:`snapshot` opens the newest.

    >>> index = Index.open("index/")                       # doctest: +SKIP
    >>> index.names(index.rows(["Q30", "Q1428"]))          # doctest: +SKIP
    ['United States of America', 'Georgia']

    Attributes
    ----------
    path : the index folder
    manifest : what it says about itself
    segments : folded arrays of every segment, rows in order; read-only maps of the files
    codes : centroids and codes of every segment for the coded mode; None where there are none
    alive : (N,) bool, False for the rows of deleted and replaced entities; None where there are none
    tombstones : the dead rows of every segment that has any, by its name
    """

    def __init__(
        self, path: Path, manifest: IndexManifest, segments: Sequence[_Segment], tombstones: Tombstones
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.segments = tuple(s.arrays for s in segments)
        self.tombstones = tombstones
        self._segments = tuple(segments)
        self._starts = [0, *accumulate(s.rows for s in manifest.segments)]
        self.alive = self._alive() if tombstones else None
        self.codes = open_codes(path, manifest, self.segments)
        entities = pa.concat_tables([s.table for s in segments])
        self._columns = {name: entities.column(name) for name in entities.schema.names}

    @classmethod
    def open(cls, path: str | PathLike[str], *, verify: bool = True, generation: int | None = None) -> Self:
        """Map the files of an index.

        Parameters
        ----------
        path : the index folder
        verify : check the sha256 of every file and every text (reads all of them);
            False checks sizes, headers and shapes only, for files that were checked before
        generation : of the snapshot to open, out of those that are kept; the newest by default

        Raises
        ------
        IndexFormatError
            If the folder is missing, empty, damaged, or of another version; names file and fault.
        """
        return cls._open(Path(path), generation, verify, None)

    def __len__(self) -> int:
        """Entities that are alive."""
        return self.manifest.count

    @property
    def row_count(self) -> int:
        """Rows N, dead ones included."""
        return self._starts[-1]

    def check_model(self, model_hash: str) -> None:
        """Raise :class:`IndexMismatchError` unless the index was built with the model of this hash."""
        if model_hash != self.manifest.model_hash:
            raise IndexMismatchError(
                f"{self.path}: built with model {self.manifest.model_hash}, but the model opened is "
                f"{model_hash}; open that model, or rebuild the index: "
                f"mimic-engine index build --model MODEL --kb FILE --out {self.path} --overwrite"
            )

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers (n,) of entity ids; never a dead row.

        Raises
        ------
        UnknownEntityError
            If the index does not hold one of them; names it.
        """
        rows = self.find(ids)
        if (rows < 0).any():
            raise UnknownEntityError(
                f"entity id {ids[int(np.argmin(rows))]!r} is not in the index ({len(self)} entities)"
            )
        return rows

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers (n,) of entity ids, -1 for those that the index does not hold."""
        rows = np.full(len(ids), -1, np.int64)
        hashes = hash_ids(ids)
        for start, segment in zip(self._starts, self._segments, strict=False):
            for i, candidates in enumerate(segment.lookup.candidates(hashes)):
                for row in (start + candidates.astype(np.int64)).tolist():
                    alive = self.alive is None or self.alive[row]
                    if rows[i] < 0 and alive and self._text("id", row) == ids[i]:
                        rows[i] = row
        return rows

    def segment_rows(self, number: int) -> slice:
        """Rows of the segment of this number, counted from 0 in the order of ``segments``."""
        return slice(self._starts[number], self._starts[number + 1])

    def select(
        self, ids: Sequence[str] | None = None, types: Sequence[str] | None = None
    ) -> NDArray[np.int64] | None:
        """Row numbers of the entities that have one of the ids and one of the types; None means all.

        With ids the rows stand in their order, else they ascend.

        Raises
        ------
        UnknownEntityError
            If the index does not hold one of the ids; names it.
        InvalidInputError
            If an id is given twice, no entity has one of the types, or none is left.
        """
        if ids is not None and len(set(ids)) != len(ids):
            twice = next(i for n, i in enumerate(ids) if i in ids[:n])
            raise InvalidInputError(f"candidates: {twice!r} is given twice", field="candidates")
        rows = None if ids is None else self.rows(ids)
        if types is None:
            return rows
        of_types = self._rows_of_types(types)
        if rows is not None:
            of_types = rows[np.isin(rows, of_types)]
        if not len(of_types):
            raise InvalidInputError("types: none of the candidates has one of them", field="types")
        return of_types

    def _rows_of_types(self, types: Sequence[str]) -> NDArray[np.int64]:
        for kind in types:
            if kind not in self._by_type:
                raise InvalidInputError(f"types: no entity of the index has type {kind!r}", field="types")
        rows = [self._by_type[kind] for kind in dict.fromkeys(types)]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    @cached_property
    def _by_type(self) -> dict[str, NDArray[np.int64]]:
        """Rows of every type that some entity has, ascending; deleted ones left out."""
        column = self._columns["type"].combine_chunks().dictionary_encode()
        codes = column.indices.to_numpy()  # (N,)
        if self.alive is not None:
            codes = np.where(self.alive, codes, -1)  # (N,)
        rows = {kind: np.flatnonzero(codes == i) for i, kind in enumerate(column.dictionary.to_pylist())}
        return {str(kind): alive for kind, alive in rows.items() if len(alive)}

    def entity(self, row: int) -> Entity:
        """Metadata of one row; ``images`` are texts (path, URL, or ``sha256:HEX`` of bytes)."""
        images = tuple(self._columns["images"][self._checked(row)].as_py())
        aliases = tuple(self._columns["aliases"][row].as_py())
        id_, name, description, kind = (self._text(c, row) for c in ("id", "name", "description", "type"))
        popularity = self._columns["popularity"][row].as_py()
        return Entity(id_, name, description, images, kind, aliases, popularity)

    def image(self, row: int) -> Path | None:
        """File of the first image of one row; None where there is none, or it is not on this machine."""
        images = self.entity(row).images
        return image_path(self.path, str(images[0])) if images else None

    def image_names(self) -> set[str]:
        """Names of all images of the entities, dead rows included."""
        return set(pc.list_flatten(self._columns["images"]).to_pylist())

    def ids(self, rows: Rows) -> list[str]:
        """Entity ids of n rows."""
        return [self._text("id", int(row)) for row in rows]

    def names(self, rows: Rows) -> list[str]:
        """Entity names of n rows."""
        return [self._text("name", int(row)) for row in rows]

    @cached_property
    def popularity(self) -> NDArray[np.float64]:
        """Popularity (N,) of every row, from 0 on; NaN where it is not known."""
        popularity: NDArray[np.float64] = self._columns["popularity"].to_numpy()
        return popularity

    @cached_property
    def name_lookup(self) -> NameLookup:
        """Lookup of living entities by the words and trigrams of their names and aliases."""
        return NameLookup([s.names for s in self._segments], [s.rows for s in self.segments], self.alive)

    def count_names(self) -> NameCounts:
        """Count what is known of the living entities' names."""
        aliases = pc.list_value_length(self._columns["aliases"]).to_numpy()  # (N,)
        known = ~np.isnan(self.popularity)  # (N,)
        if self.alive is not None:
            aliases, known = aliases[self.alive], known[self.alive]
        with_aliases = int(np.count_nonzero(aliases))
        return NameCounts(with_aliases, int(aliases.sum()), self.name_lookup.forms, int(known.sum()))

    def find_names(self, text: str, limit: int) -> list[NameMatch]:
        """The living entities that are called like a text, at most ``limit``, each once.

        First those with a name or alias that begins with it, by the first such form, those called exactly so
        before all others, then by popularity; then those whose names share words or trigrams with it, the
        most alike first (:mod:`mimic_engine.index.name_search`).

        Raises
        ------
        InvalidInputError
            If ``limit`` is under 1, or the text has nothing to read.
        """
        return find_names(self.name_lookup, self.popularity, self.entity, text, limit)

    def verify(self) -> IndexReport:
        """Read every file again and compare size and sha256 with the manifest."""
        return check_files(self.path, self.manifest.files(), checksums=True)

    def snapshot(self, *, verify: bool = True) -> Self:
        """The newest snapshot of the folder: this one if nothing has changed.

        Segments that this one has too are not read again. Arguments and errors as in :meth:`open`.
        """
        return self._open(self.path, None, verify, self)

    def snapshots(self) -> tuple[IndexManifest, ...]:
        """The manifests of the snapshots that are kept, oldest first."""
        return list_snapshots(self.path)

    @classmethod
    def _open(cls, path: Path, generation: int | None, verify: bool, known: Self | None) -> Self:
        """Open a snapshot, anew should its files be removed by a writer between manifest and map."""
        while True:
            manifest = read_snapshot(path, generation)
            if known is not None and known.manifest == manifest:
                return known
            try:
                return cls._map(path, manifest, verify, {} if known is None else known._by_name())
            except IndexFormatError:
                if read_snapshot(path, generation) == manifest:
                    raise

    @classmethod
    def _map(cls, path: Path, manifest: IndexManifest, verify: bool, known: Mapping[str, _Segment]) -> Self:
        if not manifest.count:
            raise IndexFormatError(f"{path}: the index is empty; it needs at least 1 entity")
        shared = {s.name: known[s.name] for s in manifest.segments if _is_same(known.get(s.name), s)}
        files = [(name, record) for name, record in manifest.files() if _segment_of(name) not in shared]
        for problem in check_files(path, files, checksums=verify).problems:
            raise IndexFormatError(f"{path / problem.name}: damaged: {problem.problem}")
        segments = [shared.get(s.name) or _open_segment(path, s, manifest, verify) for s in manifest.segments]
        for segment in segments[1:]:
            if trailing_shapes(segment.arrays) != trailing_shapes(segments[0].arrays):
                raise IndexFormatError(f"{path}: the shapes differ between the segments")
        return cls(path, manifest, segments, read_tombstones(path, manifest))

    def _by_name(self) -> dict[str, _Segment]:
        return {s.record.name: s for s in self._segments}

    def _alive(self) -> NDArray[np.bool_]:
        alive = np.ones(self.row_count, np.bool_)
        for start, segment in zip(self._starts, self._segments, strict=False):
            alive[start + self.tombstones.get(segment.record.name, np.empty(0, np.uint32))] = False
        alive.flags.writeable = False
        return alive

    def _text(self, column: str, row: int) -> str:
        return str(self._columns[column][self._checked(row)].as_py())

    def _checked(self, row: int) -> int:
        if not 0 <= row < self.row_count:
            raise IndexError(f"row {row} is not between 0 and {self.row_count - 1}")
        return row


def _open_segment(path: Path, record: SegmentRecord, manifest: IndexManifest, verify: bool) -> _Segment:
    folder = path / SEGMENTS / record.name
    arrays = read_array_file(folder / ARRAYS)
    try:
        check_stored(arrays, record.rows, manifest.dtype, manifest.constants)
    except ValueError as error:
        raise IndexFormatError(f"{folder / ARRAYS}: {error}") from error
    table = read_entity_table(folder / ENTITIES, verify=verify)
    if table.num_rows != record.rows:
        raise IndexFormatError(f"{folder / ENTITIES}: {table.num_rows} rows, expected {record.rows}")
    lookup = IdLookup(folder / IDS, record.rows, verify=verify)
    return _Segment(record, EntityArrays(**arrays), lookup, table, _read_names(folder, record.rows, verify))


def _read_names(folder: Path, rows: int, verify: bool) -> FormArrays:
    try:
        return FormArrays.read(read_array_file(folder / NAMES), rows, verify=verify)
    except ValueError as error:
        raise IndexFormatError(f"{folder / NAMES}: {error}") from error


def _is_same(known: _Segment | None, record: SegmentRecord) -> bool:
    return known is not None and known.record == record


def _segment_of(file: str) -> str | None:
    """Name of the segment that a file of the index belongs to."""
    folder, name, *_ = file.split("/")
    return name if folder == SEGMENTS else None
