"""The index folder and its manifest.

::

    INDEX/manifest.json                     what is described here
    INDEX/segments/00000/arrays.safetensors the folded arrays (``EntityArrays``)
    INDEX/segments/00000/ids.safetensors    hash of every id, sorted, and its row
    INDEX/segments/00000/entities.arrow     id, name, description, type, images, aliases, popularity
    INDEX/segments/00000/names.safetensors  normal forms of names and aliases, their words and trigrams
                                            (``FormArrays``)
    INDEX/codes/00000/centroids.safetensors centroids of all entity token queries, for the coded mode
    INDEX/codes/00000/00000.safetensors     the centroid nearest to every token of segment 00000
    INDEX/deleted/00000002.safetensors      tombstones: rows that are dead since a change, by segment
    INDEX/snapshots/00000001.json           the manifest as it was before a change

Segments hold the rows in order. The manifest lists all files with size and
sha256, carries its own sha256, and a generation number that grows with every
change. No file but the manifest is ever written again: a change writes new
files and then replaces the manifest, so the manifest is the index, and an older
one is a snapshot of it (:mod:`mimic_engine.index.snapshots`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import (
    Natural,
    NonNegative,
    Sha256,
    Text,
    decode,
    read_header,
    read_object,
    sha256_of,
    write_atomic,
)
from mimic_engine.index.schema import DType
from mimic_engine.types import FoldConstants

FORMAT = "mimic-index"
VERSION = 4
MANIFEST = "manifest.json"
SEGMENTS, CODES, DELETED = "segments", "codes", "deleted"
ARRAYS, IDS, ENTITIES, NAMES = (
    "arrays.safetensors",
    "ids.safetensors",
    "entities.arrow",
    "names.safetensors",
)
SEGMENT_FILES = (ARRAYS, IDS, ENTITIES, NAMES)
CENTROIDS = "centroids.safetensors"
MAX_CENTROIDS = 65_536  # a code is 16 bits wide at most
_REBUILD = "rebuild the index: mimic-engine index build --model MODEL --kb FILE --out INDEX --overwrite"
_UNITS = ("tglu", "vdlu", "concat", "cmfu")
_SEGMENT_NAME = re.compile(r"[0-9]{5,9}")
_TOMBSTONES_NAME = re.compile(r"[0-9]{8,18}\.safetensors")


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """Manifest of one snapshot of an index.

    Attributes
    ----------
    model_hash : hash of the model that folded the entities; another model is refused
    dtype : "float16", "float32" or "int8", of the vectors (see :mod:`mimic_engine.index.schema`)
    count : entities: rows of all segments, without the dead ones
    constants : what the scores need beyond the arrays
    fingerprint : hash over the knowledge base the index was built from, before any change
    created : ISO 8601 time of publication of this generation, UTC
    generator : program and version that wrote this generation
    next_segment : number of the next new segment; numbers are not used twice
    deleted : the tombstones, where there are any
    generation : 1, and 1 more with every change
    extra : free-form JSON of whoever built the index (image counts, say)
    codes : centroids and codes for the coded mode, where there are any
    agreement : JSON by what was measured; how far each shortcut's answers are the exact ones
        ("coded": see :mod:`mimic_engine.calibration.coded`)
    """

    model_hash: Text
    dtype: DType
    count: Natural
    constants: FoldConstants
    fingerprint: Text
    created: Text
    generator: Text
    segments: tuple[SegmentRecord, ...]
    next_segment: Natural
    deleted: TombstoneRecord | None
    generation: Natural
    extra: Mapping[str, Any]
    codes: CodesRecord | None
    agreement: Mapping[str, Any]

    def __post_init__(self) -> None:
        names = [s.name for s in self.segments]
        if len(set(names)) != len(names):
            raise ValueError(f"a segment is listed twice: {names}")
        if self.next_segment <= max((int(name) for name in names), default=-1):
            raise ValueError(f"next_segment {self.next_segment} is not above those of the segments {names}")
        dead = 0 if self.deleted is None else self.deleted.rows
        if self.count != self.rows - dead:
            raise ValueError(
                f"count {self.count} is not the sum of the segments' rows {[s.rows for s in self.segments]} "
                f"without {dead} deleted ones"
            )
        if self.codes is not None:
            self.codes.check_segments(self.segments)
        if self.constants.width < 1:
            raise ValueError(f"constants.width {self.constants.width} is not a number >= 1")
        if not self.constants.units or not set(self.constants.units) <= set(_UNITS):
            raise ValueError(f"constants.units {self.constants.units} are not names out of {_UNITS}")

    @property
    def rows(self) -> int:
        """Rows N of all segments, dead ones included."""
        return sum(s.rows for s in self.segments)

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Path in the index folder, and record, of every file that belongs to this snapshot."""
        for segment in self.segments:
            for name, record in segment.files.items():
                yield f"{SEGMENTS}/{segment.name}/{name}", record
        if self.deleted is not None:
            yield f"{DELETED}/{self.deleted.name}", self.deleted.file
        if self.codes is not None:
            for name, record in self.codes.files.items():
                yield f"{CODES}/{self.codes.folder}/{name}", record

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file, without its checksum."""
        return {**msgspec.to_builtins(self), "format": FORMAT, "version": VERSION}


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One immutable segment: its folder name, its rows, its files by name."""

    name: str
    rows: Natural
    files: Mapping[str, FileRecord]

    def __post_init__(self) -> None:
        if not _SEGMENT_NAME.fullmatch(self.name):
            raise ValueError(f"segment name {self.name!r} is not a number of five to nine digits")
        if set(self.files) != set(SEGMENT_FILES):
            raise ValueError(f"segment {self.name} files: {sorted(self.files)}, expected {SEGMENT_FILES}")


@dataclass(frozen=True, slots=True)
class TombstoneRecord:
    """The file of tombstones: its name, the number of rows it lists, its size and checksum."""

    name: str
    rows: Natural
    file: FileRecord

    def __post_init__(self) -> None:
        if not _TOMBSTONES_NAME.fullmatch(self.name) or not self.rows:
            raise ValueError(f"{self.name!r} with {self.rows} rows is not NUMBER.safetensors with at least 1")


@dataclass(frozen=True, slots=True)
class CodesRecord:
    """The centroids and codes of an index.

    Attributes
    ----------
    folder : its name under ``codes``
    centroids : C, how many there are
    dtype : "uint8" or "uint16", of the codes
    sample : token queries that the centroids were found with
    error : their mean distance from the nearest centroid
    norm : their mean length
    files : the centroids' file, and one of codes for every segment
    drift : mean distance of tokens coded later, as a multiple of ``error``; 1.0 where there are none
    coded_later : entities coded since the centroids were found
    """

    folder: str
    centroids: int
    dtype: Literal["uint8", "uint16"]
    sample: Natural
    error: NonNegative
    norm: NonNegative
    files: Mapping[str, FileRecord]
    drift: NonNegative
    coded_later: Natural

    def __post_init__(self) -> None:
        if not _SEGMENT_NAME.fullmatch(self.folder):
            raise ValueError(f"codes folder {self.folder!r} is not a number of five to nine digits")
        if not 1 <= self.centroids <= MAX_CENTROIDS:
            raise ValueError(f"centroids {self.centroids} is not between 1 and {MAX_CENTROIDS}")
        if self.dtype != (needed := codes_dtype(self.centroids)):
            raise ValueError(f"codes dtype {self.dtype!r}; {self.centroids} centroids need {needed}")

    def check_segments(self, segments: tuple[SegmentRecord, ...]) -> None:
        """Raise ``ValueError`` unless ``files`` are the centroids and the codes of these segments."""
        expected = {CENTROIDS, *(codes_file(s.name) for s in segments)}
        if set(self.files) != expected:
            raise ValueError(f"codes files {sorted(self.files)}, expected {sorted(expected)}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and checksum of one file."""

    sha256: Sha256
    bytes: Natural

    @classmethod
    def of(cls, path: Path) -> Self:
        """The record of a file as it is."""
        return cls(sha256_of(path), path.stat().st_size)


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Write ``manifest.json`` with its checksum, atomically and flushed."""
    content = manifest.to_json()
    content["sha256"] = _checksum(content)
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1, allow_nan=False))


def read_manifest(folder: Path) -> IndexManifest:
    """Read and check ``manifest.json``.

    Raises
    ------
    IndexFormatError
        If the folder or the file is missing, not an index, changed since it was
        written, or of another version; then it names the command that builds it anew.
    """
    if not folder.is_dir():
        raise IndexFormatError(f"{folder}: no such index folder")
    try:
        return read_manifest_file(folder / MANIFEST)
    except FileNotFoundError:
        raise IndexFormatError(f"{folder}: not an index: {MANIFEST} is missing") from None


def read_manifest_file(path: Path) -> IndexManifest:
    """Read and check a manifest under any name; ``FileNotFoundError`` where there is none."""
    content = read_header(path, format=FORMAT, version=VERSION, error=IndexFormatError, remedy=_REBUILD)
    claimed = content.pop("sha256", None)
    if claimed != _checksum({**content, "format": FORMAT, "version": VERSION}):
        raise IndexFormatError(f"{path}: damaged: the content does not have the sha256 it states")
    return decode(content, IndexManifest, path, IndexFormatError)


def is_index(folder: Path) -> bool:
    """Whether the folder holds the whole manifest of an index, of any version; no other file is looked at."""
    try:
        content = read_object(folder / MANIFEST, IndexFormatError)
    except (FileNotFoundError, IndexFormatError):
        return False
    return content.get("format") == FORMAT and content.pop("sha256", None) == _checksum(content)


def segment_name(number: int) -> str:
    """Folder name of the segment, or of the codes, with this number."""
    return f"{number:05d}"


def tombstones_name(generation: int) -> str:
    """Name of the file of tombstones that the change to this generation wrote."""
    return f"{generation:08d}.safetensors"


def codes_file(segment: str) -> str:
    """Name of the file that holds the codes of the segment of this name."""
    return f"{segment}.safetensors"


def codes_dtype(centroids: int) -> Literal["uint8", "uint16"]:
    """The narrowest element type that holds the numbers of so many centroids."""
    return "uint8" if centroids <= 256 else "uint16"


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
