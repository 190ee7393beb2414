"""The index folder and its manifest.

::

    INDEX/manifest.json                     what is described here
    INDEX/segments/00000/arrays.safetensors the folded arrays (``EntityArrays``)
    INDEX/segments/00000/ids.safetensors    hash of every id, sorted, and its row
    INDEX/segments/00000/entities.arrow     id, name, description, type, images
    INDEX/codes/00000/centroids.safetensors centroids of all entity token queries, for the coded mode
    INDEX/codes/00000/00000.safetensors     the centroid nearest to every token of segment 00000
    INDEX/deleted/00000002.safetensors      rows that are dead since a change, by segment
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
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import parse_json, write_atomic
from mimic_engine.index.schema import DTYPES
from mimic_engine.types import FoldConstants

FORMAT = "mimic-index"
VERSION = 3
MANIFEST = "manifest.json"
_UNITS = ("tglu", "vdlu", "concat", "cmfu")
_MANIFEST_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What an index says about itself.

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
    deleted : dead rows, where there are any
    generation : grows by 1 with every change
    extra : free-form JSON of whoever built the index (image counts, say)
    codes : centroids and codes for the coded mode, where there are any
    agreement : JSON by what was measured; how far each shortcut's answers are the exact ones
        ("coded": see :mod:`mimic_engine.calibration.coded`)
    """

    model_hash: str
    dtype: str
    count: int
    constants: FoldConstants
    fingerprint: str
    created: str
    generator: str
    segments: tuple[SegmentRecord, ...]
    next_segment: int
    deleted: DeletedRecord | None = None
    generation: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    codes: CodesRecord | None = None
    agreement: Mapping[str, Any] = field(default_factory=dict)

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
        """The JSON object that :meth:`from_json` reads, without the checksum."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {
            "format": FORMAT,
            "version": VERSION,
            "constants": self.constants.to_json(),
            "segments": [s.to_json() for s in self.segments],
            "deleted": None if self.deleted is None else self.deleted.to_json(),
            "extra": dict(self.extra),
            "codes": None if self.codes is None else self.codes.to_json(),
            "agreement": dict(self.agreement),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read and check a manifest's JSON; raises ``ValueError`` naming the field."""
        check_keys(data, ("format", "version", *(f.name for f in fields(cls))), "manifest")
        if not isinstance(data["segments"], list) or not isinstance(data["extra"], dict):
            raise ValueError("segments is not a list, or extra not an object")
        segments = tuple(SegmentRecord.from_json(s) for s in data["segments"])
        names = [s.name for s in segments]
        if len(set(names)) != len(names):
            raise ValueError(f"a segment is listed twice: {names}")
        next_segment = natural(data, "next_segment")
        if next_segment <= max((int(name) for name in names), default=-1):
            raise ValueError(f"next_segment {next_segment} is not above those of the segments {names}")
        deleted = None if data["deleted"] is None else DeletedRecord.from_json(data["deleted"])
        count, dead = natural(data, "count"), 0 if deleted is None else deleted.rows
        if count != sum(s.rows for s in segments) - dead:
            raise ValueError(
                f"count {count} is not the sum of the segments' rows {[s.rows for s in segments]} "
                f"without {dead} deleted ones"
            )
        codes = None if data["codes"] is None else CodesRecord.from_json(data["codes"])
        if codes is not None:
            codes.check_segments(segments)
        if not isinstance(data["agreement"], dict):
            raise ValueError("agreement is not an object")
        if data["dtype"] not in DTYPES:
            raise ValueError(f"dtype {data['dtype']!r} is not one of {DTYPES}")
        strings = {
            name: text(data, name) for name in ("model_hash", "dtype", "fingerprint", "created", "generator")
        }
        return cls(
            **strings,
            count=count,
            constants=_constants(data["constants"]),
            segments=segments,
            next_segment=next_segment,
            deleted=deleted,
            generation=natural(data, "generation"),
            extra=data["extra"],
            codes=codes,
            agreement=data["agreement"],
        )


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Write ``manifest.json`` with its checksum, atomically and flushed."""
    payload = manifest.to_json()
    payload["sha256"] = _checksum(payload)
    write_atomic(folder / MANIFEST, json.dumps(payload, indent=1, allow_nan=False).encode())


def read_manifest(folder: Path) -> IndexManifest:
    """Read and check ``manifest.json``.

    Raises
    ------
    IndexFormatError
        If the folder or the file is missing, not an index, of another version,
        or changed since it was written.
    """
    if not folder.is_dir():
        raise IndexFormatError(f"{folder}: no such index folder")
    try:
        return read_manifest_file(folder / MANIFEST)
    except FileNotFoundError:
        raise IndexFormatError(f"{folder}: not an index: {MANIFEST} is missing") from None


def read_manifest_file(path: Path) -> IndexManifest:
    """Read and check a manifest under any name; ``FileNotFoundError`` where there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MANIFEST_LIMIT_BYTES + 1)
        if len(raw) > _MANIFEST_LIMIT_BYTES:
            raise ValueError(f"more than {_MANIFEST_LIMIT_BYTES} bytes")
        return _parse(raw)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{path}: {error}") from error


def is_index(folder: Path) -> bool:
    """Whether the folder holds an index that this version can read (its arrays are not looked at)."""
    try:
        read_manifest(folder)
    except IndexFormatError:
        return False
    return True


def _parse(raw: bytes) -> IndexManifest:
    data = parse_json(raw)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"not the manifest of an index (format is not {FORMAT!r})")
    if data.get("version") != VERSION:
        raise ValueError(
            f"index format version {data.get('version')!r}; this program reads version {VERSION}"
        )
    claimed = data.pop("sha256", None)
    if claimed != _checksum(data):
        raise ValueError("damaged: the content does not have the sha256 it states")
    return IndexManifest.from_json(data)


def _checksum(payload: Mapping[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _constants(data: Any) -> FoldConstants:
    known = tuple(f.name for f in fields(FoldConstants))
    check_keys(data, known, "constants")
    units, width = data["units"], data["width"]
    if type(width) is not int or width < 1:
        raise ValueError(f"constants.width {width!r} is not a number >= 1")
    if not isinstance(units, list) or not units or not all(u in _UNITS for u in units):
        raise ValueError(f"constants.units {units!r} is not a list of names out of {_UNITS}")
    pairs = [data["gate_bias"], data["bias_norm"]]
    numbers = [data["layer_norm_eps"], *(v for pair in pairs if isinstance(pair, list) for v in pair)]
    if len(numbers) != 5 or not all(isinstance(v, int | float) for v in numbers):
        raise ValueError("constants.layer_norm_eps, gate_bias, bias_norm are not a number and two pairs")
    return FoldConstants.from_json(data)


# Names of the files of an index, and the records that its manifest keeps of them. Where the files lie
# is in :mod:`mimic_engine.index.manifest`.

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
