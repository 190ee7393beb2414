"""Progress of an unfinished build: ``progress.json`` in its folder.

Written only after the rows it speaks of are on disk, so a build killed at any
moment goes on from the last record.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import FolderLock, Natural, read_versioned, remove_leftovers, write_versioned
from mimic_engine.index.manifest import SEGMENTS, SegmentRecord
from mimic_engine.index.schema import DType, Trailing

PROGRESS = "progress.json"
_FORMAT = "mimic-index-build"
_VERSION = 2


@dataclass(frozen=True, slots=True)
class BuildIdentity:
    """Identity of a build: all that must be the same for it to be continued."""

    model_hash: str
    dtype: DType
    fingerprint: str
    count: Natural
    segment_rows: Natural
    options: str  # how the entities are encoded, as JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows whose arrays are on disk, the arrays' shapes, and the finished segments."""

    identity: BuildIdentity
    rows_done: Natural
    layout: Trailing
    segments: tuple[SegmentRecord, ...]

    def __post_init__(self) -> None:
        finished = sum(s.rows for s in self.segments)
        if not finished <= self.rows_done <= min(finished + self.identity.segment_rows, self.identity.count):
            raise ValueError(f"rows_done {self.rows_done} does not fit {finished} rows in finished segments")

    def advance(self, rows_done: int, layout: Trailing) -> Progress:
        """The progress after more rows are on disk."""
        return replace(self, rows_done=rows_done, layout=layout)

    def finish_segment(self, segment: SegmentRecord) -> Progress:
        """The progress after the current segment is complete."""
        return replace(self, segments=(*self.segments, segment))

    def save(self, folder: Path) -> None:
        """Write ``progress.json`` atomically and flushed."""
        write_versioned(folder / PROGRESS, self, format=_FORMAT, version=_VERSION, indent=None)


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
        progress = Progress(identity, 0, {}, ())
        progress.save(folder)
        return progress
    progress = _load(folder)
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
    _check_segments(folder, progress.segments)
    return progress


def build_lock(folder: Path) -> FolderLock:
    """Hold the folder of an unfinished build; raises :class:`IndexLockedError` if another process has it."""
    return FolderLock(folder, "another process is building in this folder")


def _load(folder: Path) -> Progress:
    try:
        return read_versioned(
            folder / PROGRESS, Progress, format=_FORMAT, version=_VERSION, error=IndexFormatError
        )
    except (FileNotFoundError, IndexFormatError) as error:
        raise IndexFormatError(
            f"{folder}: not an unfinished build that can be continued ({error}); "
            "delete this folder to start anew"
        ) from error


def _check_segments(folder: Path, segments: tuple[SegmentRecord, ...]) -> None:
    for segment in segments:
        for name, record in segment.files.items():
            path = folder / SEGMENTS / segment.name / name
            size_bytes = path.stat().st_size if path.is_file() else None
            if size_bytes != record.bytes:
                raise IndexFormatError(
                    f"{path}: {size_bytes} bytes, expected {record.bytes}; the unfinished build is damaged: "
                    f"delete {folder} to start anew"
                )
