"""Names of the files of an index, and the records that its manifest keeps of them.

Where the files lie is in :mod:`mimic_engine.index.format`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

SEGMENTS = "segments"
ARRAYS, IDS, ENTITIES = "arrays.safetensors", "ids.safetensors", "entities.arrow"
SEGMENT_FILES = (ARRAYS, IDS, ENTITIES)
CODES, CENTROIDS = "codes", "centroids.safetensors"
MAX_CENTROIDS = 65_536  # a code is 16 bits wide at most
DELETED = "deleted"
_SEGMENT_NAME = re.compile(r"[0-9]{5,9}")
_DELETED_NAME = re.compile(r"[0-9]{8,18}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def segment_name(number: int) -> str:
    """Folder name of the segment, or of the codes, with this number."""
    return f"{number:05d}"


def codes_file(segment: str) -> str:
    """Name of the file that holds the codes of the segment of this name."""
    return f"{segment}.safetensors"


def codes_dtype(centroids: int) -> str:
    """The narrowest element type that holds the numbers of so many centroids."""
    return "uint8" if centroids <= 256 else "uint16"


def deleted_name(generation: int) -> str:
    """Name of the file of dead rows that the change to this generation wrote."""
    return f"{generation:08d}.safetensors"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and checksum of one file."""

    sha256: str
    bytes: int

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read one file's record; raises ``ValueError``."""
        check_keys(data, ("sha256", "bytes"), "file")
        if not (isinstance(data["sha256"], str) and _SHA256.fullmatch(data["sha256"])):
            raise ValueError(f"sha256 {data['sha256']!r} is not 64 hex digits")
        return cls(data["sha256"], natural(data, "bytes"))


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One immutable segment: its folder name, its rows, its files by name."""

    name: str
    rows: int
    files: Mapping[str, FileRecord]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that :meth:`from_json` reads."""
        files = {name: asdict(record) for name, record in self.files.items()}
        return {"name": self.name, "rows": self.rows, "files": files}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read one segment's record; raises ``ValueError``."""
        check_keys(data, ("name", "rows", "files"), "segment")
        name = text(data, "name")
        if not _SEGMENT_NAME.fullmatch(name):
            raise ValueError(f"segment name {name!r} is not a number of five to nine digits")
        check_keys(data["files"], SEGMENT_FILES, f"segment {name} files")
        files = {file: FileRecord.from_json(data["files"][file]) for file in SEGMENT_FILES}
        return cls(name, natural(data, "rows"), files)


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
    drift : mean distance of tokens coded later, as a multiple of ``error``; 1.0 where there are none
    coded_later : entities coded since the centroids were found
    files : the centroids' file, and one of codes for every segment
    """

    folder: str
    centroids: int
    dtype: str
    sample: int
    error: float
    norm: float
    files: Mapping[str, FileRecord]
    drift: float = 1.0
    coded_later: int = 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object that :meth:`from_json` reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"files": {name: asdict(record) for name, record in self.files.items()}}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read the record of an index's codes; raises ``ValueError``."""
        check_keys(data, tuple(f.name for f in fields(cls)), "codes")
        folder, count = text(data, "folder"), natural(data, "centroids")
        if not _SEGMENT_NAME.fullmatch(folder):
            raise ValueError(f"codes folder {folder!r} is not a number of five to nine digits")
        if not 1 <= count <= MAX_CENTROIDS:
            raise ValueError(f"centroids {count} is not between 1 and {MAX_CENTROIDS}")
        if data["dtype"] != codes_dtype(count):
            raise ValueError(f"codes dtype {data['dtype']!r}; {count} centroids need {codes_dtype(count)}")
        if not isinstance(data["files"], dict):
            raise ValueError("codes files is not an object")
        files = {str(name): FileRecord.from_json(record) for name, record in data["files"].items()}
        error, norm, drift = (measure(data, name) for name in ("error", "norm", "drift"))
        sample, later = natural(data, "sample"), natural(data, "coded_later")
        return cls(folder, count, data["dtype"], sample, error, norm, files, drift, later)

    def check_segments(self, segments: tuple[SegmentRecord, ...]) -> None:
        """Raise ``ValueError`` unless ``files`` are the centroids and the codes of these segments."""
        expected = {CENTROIDS, *(codes_file(s.name) for s in segments)}
        if set(self.files) != expected:
            raise ValueError(f"codes files {sorted(self.files)}, expected {sorted(expected)}")


@dataclass(frozen=True, slots=True)
class DeletedRecord:
    """The file of dead rows: its name, the number of rows it lists, its size and checksum."""

    name: str
    rows: int
    file: FileRecord

    def to_json(self) -> dict[str, Any]:
        """The JSON object that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read the record of the dead rows; raises ``ValueError``."""
        check_keys(data, tuple(f.name for f in fields(cls)), "deleted")
        name, rows = text(data, "name"), natural(data, "rows")
        if not _DELETED_NAME.fullmatch(name) or not rows:
            raise ValueError(f"deleted: {name!r} with {rows} rows is not NUMBER.safetensors with at least 1")
        return cls(name, rows, FileRecord.from_json(data["file"]))


def check_keys(data: Any, keys: tuple[str, ...], what: str) -> None:
    """Raise ``ValueError`` unless ``data`` is an object with exactly these keys."""
    if not isinstance(data, dict) or set(data) != set(keys):
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{what}: keys {found}, expected {sorted(keys)}")


def natural(data: Mapping[str, Any], name: str) -> int:
    """A field that must be a whole number >= 0; raises ``ValueError``."""
    value = data[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} {value!r} is not a number >= 0")
    return value


def measure(data: Mapping[str, Any], name: str) -> float:
    """A field that must be a finite number >= 0; raises ``ValueError``."""
    value = data[name]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} {value!r} is not a finite number >= 0")
    return float(value)


def text(data: Mapping[str, Any], name: str) -> str:
    """A field that must be a text, not empty; raises ``ValueError``."""
    value = data[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} {value!r} is not a text")
    return value
