"""Verification of an index: each file of its manifest there, of the right size, with the right sha256."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mimic_engine.files import sha256_of
from mimic_engine.index.manifest import FileRecord, read_manifest


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file: its path in the index folder, its size in bytes, and what is wrong with it, if anything."""

    name: str
    bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class IndexReport:
    """All files of an index."""

    path: Path
    files: tuple[FileReport, ...]

    @property
    def problems(self) -> tuple[FileReport, ...]:
        """The files that are not as the manifest says."""
        return tuple(f for f in self.files if f.problem)

    @property
    def ok(self) -> bool:
        """Whether every file is as the manifest says."""
        return not self.problems


def verify_index(path: str | Path) -> IndexReport:
    """Check every file of an index, checksums included; needs no model and opens no array.

    Raises
    ------
    IndexFormatError
        If the manifest itself is missing or damaged.
    """
    path = Path(path)
    return check_files(path, read_manifest(path).files(), checksums=True)


def check_files(path: Path, files: Iterable[tuple[str, FileRecord]], *, checksums: bool) -> IndexReport:
    """Check presence and size of files by their path in the index and, with ``checksums``, their sha256."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reports = pool.map(lambda item: _check(path, *item, checksums=checksums), files)
        return IndexReport(path, tuple(reports))


def _check(folder: Path, name: str, record: FileRecord, *, checksums: bool) -> FileReport:
    try:
        size_bytes = (folder / name).stat().st_size
        if size_bytes != record.bytes:
            return FileReport(name, size_bytes, f"{size_bytes} bytes, the manifest says {record.bytes}")
        if checksums and (digest := sha256_of(folder / name)) != record.sha256:
            return FileReport(name, size_bytes, f"sha256 {digest}, the manifest says {record.sha256}")
    except FileNotFoundError:
        return FileReport(name, 0, "file is missing")
    except OSError as error:
        return FileReport(name, 0, f"cannot be read: {error}")
    return FileReport(name, size_bytes, None)
