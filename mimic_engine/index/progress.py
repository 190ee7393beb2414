"""What an unfinished build has done so far: ``progress.json`` in its folder.

Written only after the rows it speaks of are on disk, so a build killed at any
moment goes on from the last record.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import FolderLock, parse_json, remove_leftovers, write_atomic
from mimic_engine.index.manifest import SEGMENTS, SegmentRecord
from mimic_engine.index.schema import Trailing

PROGRESS = "progress.json"
_FORMAT = "mimic-index-build"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class BuildIdentity:
    """What must be the same for a build to be continued."""

    model_hash: str
    dtype: str
    fingerprint: str
    count: int
    segment_rows: int
    options: str  # how the entities are encoded, as JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows whose arrays are on disk, the arrays' shapes, and the finished segments."""

    identity: BuildIdentity
    rows_done: int = 0
    layout: Trailing = field(default_factory=dict)
    segments: tuple[SegmentRecord, ...] = ()

    def advance(self, rows_done: int, layout: Trailing) -> Progress:
        """The progress after more rows are on disk."""
        return replace(self, rows_done=rows_done, layout=layout)

    def finish_segment(self, segment: SegmentRecord) -> Progress:
        """The progress after the current segment is complete."""
        return replace(self, segments=(*self.segments, segment))

    def save(self, folder: Path) -> None:
        """Write ``progress.json`` atomically and flushed."""
        payload = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": asdict(self.identity),
            "rows_done": self.rows_done,
            "layout": self.layout,
            "segments": [s.to_json() for s in self.segments],
        }
        write_atomic(folder / PROGRESS, json.dumps(payload).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``progress.json``; raises :class:`IndexFormatError` naming the folder to delete."""
        try:
            return cls._parse(parse_json((folder / PROGRESS).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexFormatError(
                f"{folder}: not an unfinished build that can be continued "
                f"({PROGRESS}: {type(error).__name__}: {error}); delete this folder to start anew"
            ) from error

    @classmethod
    def _parse(cls, data: dict[str, Any]) -> Self:
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        layout = {str(name): tuple(int(n) for n in shape) for name, shape in data["layout"].items()}
        segments = tuple(SegmentRecord.from_json(s) for s in data["segments"])
        identity, rows_done = BuildIdentity(**data["identity"]), int(data["rows_done"])
        finished = sum(s.rows for s in segments)
        if not finished <= rows_done <= min(finished + identity.segment_rows, identity.count):
            raise ValueError(f"rows_done {rows_done} does not fit {finished} rows in finished segments")
        return cls(identity, rows_done, layout, segments)


def open_progress(folder: Path, identity: BuildIdentity) -> Progress:
    """The progress of the unfinished build in ``folder``, or a fresh one if it holds nothing yet.

    Raises
    ------
    IndexFormatError
        If the folder belongs to a build of another model, dtype, knowledge base
        or segment size, or to no build at all; names what differs and the folder to delete.
    """
    remove_leftovers(folder, PROGRESS)
    if not any(folder.iterdir()):
        progress = Progress(identity)
        progress.save(folder)
        return progress
    progress = Progress.load(folder)
    differs = [
        f"{f.name} {getattr(progress.identity, f.name)!r} is now {getattr(identity, f.name)!r}"
        for f in fields(BuildIdentity)
        if getattr(progress.identity, f.name) != getattr(identity, f.name)
    ]
    if differs:
        raise IndexFormatError(
            f"{folder}: an unfinished build with other input lies here: {'; '.join(differs)}; "
            "continue it with the same input, or delete this folder to start anew"
        )
    _check_finished(folder, progress.segments)
    return progress


def _check_finished(folder: Path, segments: tuple[SegmentRecord, ...]) -> None:
    for segment in segments:
        for name, record in segment.files.items():
            path = folder / SEGMENTS / segment.name / name
            size_bytes = path.stat().st_size if path.is_file() else None
            if size_bytes != record.bytes:
                raise IndexFormatError(
                    f"{path}: {size_bytes} bytes, expected {record.bytes}; the unfinished build is damaged: "
                    f"delete {folder} to start anew"
                )


def build_lock(folder: Path) -> FolderLock:
    """Hold the folder of an unfinished build; raises :class:`IndexLockedError` if another process has it."""
    return FolderLock(folder, "another process is building in this folder")
