"""Snapshots of an index by generation: a new one published, those kept listed and read, old ones forgotten.

A snapshot is a manifest and the files it names, none of which ever changes.
``manifest.json`` is the newest. Before it is replaced it is copied to
``snapshots/``, so what lies there was published once. Whoever opened a snapshot
keeps it when it is forgotten: removed files stay readable while they are mapped.
Publishing and forgetting are for whoever has :func:`hold` of the folder.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimic_engine._version import __version__
from mimic_engine.errors import IndexFormatError
from mimic_engine.files import FolderLock, fsync_path, remove_leftovers, write_atomic
from mimic_engine.index.manifest import (
    CODES,
    DELETED,
    MANIFEST,
    SEGMENTS,
    IndexManifest,
    read_manifest,
    read_manifest_file,
    write_manifest,
)

SNAPSHOTS = "snapshots"
KEEP_SNAPSHOTS = 8
_ARCHIVED_NAME = re.compile(r"([0-9]{8,18})\.json")


def hold(folder: Path) -> FolderLock:
    """Keep all other writers off an index; raises :class:`IndexLockedError` if one is at work."""
    return FolderLock(folder, "another writer is changing this index")


def successor(manifest: IndexManifest, **changes: Any) -> IndexManifest:
    """The manifest of the next generation: fields changed, and who made it when."""
    return replace(
        manifest,
        **changes,
        generation=manifest.generation + 1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=f"mimic_engine {__version__}",
    )


def publish(folder: Path, manifest: IndexManifest) -> None:
    """Make ``manifest`` the newest snapshot, in one step, and keep the one before it.

    Every file that it names must be on the disk already. After an error the
    newest snapshot is the old or the new one, whole.
    """
    archived = folder / SNAPSHOTS / _archived_name(read_manifest(folder).generation)
    write_atomic(archived, (folder / MANIFEST).read_bytes())
    fsync_path(folder)
    write_manifest(folder, manifest)


def read_snapshot(folder: Path, generation: int | None = None) -> IndexManifest:
    """The manifest of one generation; of the newest by default.

    Raises
    ------
    IndexFormatError
        If the manifest is damaged, or the generation is not kept; names those that are.
    """
    newest = read_manifest(folder)
    if generation is None or generation == newest.generation:
        return newest
    try:
        return _read_archived(folder / SNAPSHOTS / _archived_name(generation), generation)
    except FileNotFoundError:
        kept = [*_archived(folder), newest.generation]
        raise IndexFormatError(f"{folder}: snapshot {generation} is not kept; there are {kept}") from None


def list_snapshots(folder: Path) -> tuple[IndexManifest, ...]:
    """The manifests of all generations that are kept, oldest first; errors as in :func:`read_snapshot`."""
    kept = {}
    for generation, path in _archived(folder).items():
        try:
            kept[generation] = _read_archived(path, generation)
        except FileNotFoundError:  # forgotten since it was listed
            continue
    newest = read_manifest(folder)  # last: nothing published in between is missed
    kept[newest.generation] = newest
    return tuple(kept[generation] for generation in sorted(kept))


def forget(folder: Path, keep: int) -> None:
    """Keep the newest ``keep`` snapshots, at least 1; remove the others and the files that only they name."""
    newest = read_manifest(folder).generation
    archived = {g: path for g, path in _archived(folder).items() if g < newest}
    old = sorted(archived)[: max(0, len(archived) - (keep - 1))]
    for generation in old:
        archived[generation].unlink()
    if old:
        fsync_path(folder / SNAPSHOTS)  # first: a snapshot that is listed has all its files
    remove_unnamed(folder)


def remove_unnamed(folder: Path) -> None:
    """Remove what no snapshot names: leftovers of a change that was cut off, files of forgotten snapshots."""
    kept = list_snapshots(folder)
    named = {folder / name for manifest in kept for name, _ in manifest.files()}
    for managed in (folder / SEGMENTS, folder / DELETED, folder / CODES):
        for path in sorted(managed.rglob("*"), reverse=True):  # what a folder holds comes before the folder
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in named:
                path.unlink()
    copy_of_newest = folder / SNAPSHOTS / _archived_name(kept[-1].generation)
    copy_of_newest.unlink(missing_ok=True)
    remove_leftovers(folder)
    remove_leftovers(folder / SNAPSHOTS)


def _archived(folder: Path) -> dict[int, Path]:
    """Files of the archived manifests by generation, oldest first."""
    archive = folder / SNAPSHOTS
    if not archive.is_dir():
        return {}
    matches = [(match, path) for path in archive.iterdir() if (match := _ARCHIVED_NAME.fullmatch(path.name))]
    return dict(sorted((int(match[1]), path) for match, path in matches))


def _archived_name(generation: int) -> str:
    return f"{generation:08d}.json"


def _read_archived(path: Path, generation: int) -> IndexManifest:
    manifest = read_manifest_file(path)
    if manifest.generation != generation:
        raise IndexFormatError(f"{path}: holds generation {manifest.generation}")
    return manifest
