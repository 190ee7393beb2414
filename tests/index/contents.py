"""What an index holds, as the tests of its changes compare it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mimic_engine.index.snapshots import list_snapshots
from mimic_engine.index.store import Index


def live(index: Index) -> np.ndarray:
    return np.arange(index.row_count) if index.alive is None else np.flatnonzero(index.alive)


def content(index: Index) -> dict[str, str]:
    """Name by id of every live entity, through both lookups."""
    ids = index.ids(live(index))
    assert len(set(ids)) == len(ids) == len(index)
    assert index.rows(ids).tolist() == live(index).tolist()
    return dict(zip(ids, index.names(live(index)), strict=True))


def stored_bytes(index: Index) -> dict[str, bytes]:
    """All folded bytes of every live entity, by id."""
    out = {}
    for number, arrays in enumerate(index.segments):
        start = index.segment_rows(number).start
        for row in range(arrays.rows):
            if index.alive is None or index.alive[start + row]:
                out[index.ids([start + row])[0]] = b"".join(a[row].tobytes() for _, a in arrays.items())
    return out


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def named(path: Path) -> set[str]:
    """Every file that the index should hold."""
    kept = list_snapshots(path)
    archived = {f"snapshots/{m.generation:08d}.json" for m in kept[:-1]}
    return {"manifest.json", *archived, *(name for m in kept for name, _ in m.files())}


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
