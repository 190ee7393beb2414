"""Writing the codes of an index: cluster its token queries, then code its segments one by one.

A run that was killed goes on behind the last finished file. The same function
codes an index under construction and clusters one anew that is being read:
codes go to a folder of their own, and one atomic write of the manifest puts it
in the place of the old.

A change of the index writes the codes of the next snapshot: those of segments
that stay, copies for copied rows, new ones for new rows. Copied and not worked out
again: two centroids may be as near as makes no difference, and a change must not
touch the answers about other entities.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from mimic_engine.errors import IndexFormatError, InvalidInputError
from mimic_engine.files import decode, fsync_path, read_object, replace_file, write_atomic
from mimic_engine.index.arrays import ArrayFileWriter, ArraySpec, read_array_file, write_array_file
from mimic_engine.index.codes.cluster import SEED, cluster_tokens
from mimic_engine.index.codes.read import CodeArray, Codes, nearest, open_codes, token_queries
from mimic_engine.index.manifest import (
    ARRAYS,
    CENTROIDS,
    CODES,
    SEGMENTS,
    CodesRecord,
    FileRecord,
    IndexManifest,
    codes_dtype,
    codes_file,
    read_manifest,
    segment_name,
)
from mimic_engine.index.plan import SegmentPlan, copy_blocks
from mimic_engine.index.progress import PROGRESS
from mimic_engine.index.snapshots import KEEP_SNAPSHOTS, forget, hold, publish, successor
from mimic_engine.index.store import Index
from mimic_engine.types import Array, EntityArrays

Measure = Callable[[Index], Mapping[str, Any]]  # gives entries of the manifest's ``agreement``

_BLOCK_TOKENS = 1 << 14  # widened to float32 at once


@dataclass(frozen=True, slots=True)
class _Request:
    """Properties that must be the same for an unfinished run to be continued."""

    centroids: int
    seed: int
    generation: int  # of the segments that are coded


@dataclass(frozen=True, slots=True)
class _Run:
    """An unfinished run: what was asked, and what is done."""

    request: _Request
    record: CodesRecord


def write_codes(
    index: Index,
    folder: str,
    centroids: int,
    *,
    seed: int = SEED,
    threads: int | None = None,
    progress: bool = False,
) -> CodesRecord:
    """Write ``codes/FOLDER`` for all segments of an open index; the manifest is the caller's to write.

    Parameters
    ----------
    index : its segments have token queries
    folder : a name that the manifest does not use; goes on with what an unfinished run left there
    centroids, seed, threads : as in :func:`mimic_engine.index.codes.cluster.cluster_tokens`
    progress : show a progress bar on standard error
    """
    target = index.path / CODES / folder
    request = _Request(centroids, seed, index.manifest.generation)
    record = _resumed(target, request) or _clustered(index, target, request, threads)
    table: Array = read_array_file(target / CENTROIDS)["centroids"]
    with tqdm(total=index.row_count, desc="codes", unit=" entities", disable=not progress) as bar:
        for segment, arrays in zip(index.manifest.segments, index.segments, strict=True):
            if codes_file(segment.name) not in record.files:
                record = add_segment_codes(index.path, record, table, segment.name, arrays)
                _save(target, request, record)
            bar.update(segment.rows)
    return record


def add_segment_codes(
    index: Path, record: CodesRecord, centroids: Array, segment: str, arrays: EntityArrays
) -> CodesRecord:
    """Code one segment with centroids that are there, write the file, return the record that lists it.

    Parameters
    ----------
    index : the index folder
    record : of the codes to add to; its folder exists
    centroids : (C, D) float32, those of ``record``
    segment, arrays : name and stored arrays of the segment
    """
    return write_segment_codes(index, record, segment, arrays, code_blocks(arrays, centroids))


def code_blocks(arrays: EntityArrays, centroids: Array, start: int = 0) -> Iterator[CodeArray]:
    """The codes (n, L) of a segment's rows from ``start`` on, block by block."""
    for block in row_blocks(arrays, start):
        queries = token_queries(arrays, block)  # (n, L, D)
        yield nearest(queries.reshape(-1, queries.shape[-1]), centroids).reshape(queries.shape[:2])


def row_blocks(arrays: EntityArrays, start: int = 0) -> Iterator[slice]:
    """Rows from ``start`` on, so many at a time that their token queries can be widened at once."""
    assert arrays.tglu_query is not None
    rows, length, _ = arrays.tglu_query.shape
    size = max(1, _BLOCK_TOKENS // length)
    for first in range(start, rows, size):
        yield slice(first, min(first + size, rows))


def write_segment_codes(
    index: Path, record: CodesRecord, segment: str, arrays: EntityArrays, blocks: Iterable[CodeArray]
) -> CodesRecord:
    """Write the codes of one segment, that of ``arrays``; returns the record that lists the file."""
    assert arrays.tglu_query is not None
    rows, length, _ = arrays.tglu_query.shape
    file = index / CODES / record.folder / codes_file(segment)
    spec = ArraySpec("codes", np.dtype(record.dtype), (rows, length))
    with replace_file(file) as temporary, closing(ArrayFileWriter.create(temporary, [spec])) as writer:
        done = 0
        for codes in blocks:
            writer.write("codes", done, codes)
            done += len(codes)
    return replace(record, files={**record.files, file.name: FileRecord.of(file)})


def recode_index(
    path: str | Path,
    centroids: int,
    *,
    seed: int = SEED,
    threads: int | None = None,
    progress: bool = False,
    measure: Measure | None = None,
) -> IndexManifest:
    """Cluster the token queries of an index anew and swap its codes; returns the new manifest.

    Readers go on with the snapshot that they opened. What the old codes promised
    ("coded" under the manifest's ``agreement``) is dropped with them.

    Parameters
    ----------
    path : the index folder
    centroids, seed, threads : as in :func:`mimic_engine.index.codes.cluster.cluster_tokens`
    progress : show a progress bar on standard error
    measure : measures on the index with its new codes, before they are swapped in, what
        the manifest promises (see :mod:`mimic_engine.calibration.coded`)

    Raises
    ------
    IndexFormatError, IndexLockedError
        If the index is damaged; if another writer is changing it.
    InvalidInputError
        If an option is outside its limits, or the model has no token queries.
    """
    path = Path(path)
    read_manifest(path)
    with hold(path):
        index = Index.open(path)
        if not has_token_queries(index):
            raise InvalidInputError(f"{path}: no codes for a model without the unit tglu: nothing to code")
        before = index.manifest.codes
        folder = segment_name(0 if before is None else int(before.folder) + 1)
        record = write_codes(index, folder, centroids, seed=seed, threads=threads, progress=progress)
        index = with_codes(index, record)
        kept = {name: value for name, value in index.manifest.agreement.items() if name != "coded"}
        measured = {} if measure is None else measure(index)
        manifest = successor(index.manifest, agreement={**kept, **measured})
        publish(path, manifest)
        forget_progress(path, record)
        forget(path, KEEP_SNAPSHOTS)
    return manifest


def extend_codes(index: Index, plan: Sequence[SegmentPlan]) -> CodesRecord | None:
    """Write the codes of the segments that are new.

    Parameters
    ----------
    index : the old snapshot
    plan : the segments of the new one, whose files are written

    Returns
    -------
    The record for the manifest; None where the index has no codes.
    """
    record = index.manifest.codes
    if record is None or index.codes is None:
        return None
    staying = {CENTROIDS, *(codes_file(s.record.name) for s in plan)}
    record = replace(record, files={name: f for name, f in record.files.items() if name in staying})
    for segment in plan:
        if codes_file(segment.record.name) not in record.files:
            record = _code_segment(index, index.codes, record, segment)
    return record


def with_codes(index: Index, record: CodesRecord) -> Index:
    """The open index as it is with the codes of ``record``, whatever its manifest on disk says."""
    coded = copy(index)
    coded.manifest = replace(index.manifest, codes=record)
    coded.codes = open_codes(index.path, coded.manifest, index.segments)
    return coded


def has_token_queries(index: Index) -> bool:
    """Whether the model scores with TGLU, which is what codes are for."""
    return "tglu" in index.manifest.constants.units


def forget_progress(path: Path, record: CodesRecord) -> None:
    """Remove the note from which an unfinished run would go on; call it once the manifest lists the codes."""
    (path / CODES / record.folder / PROGRESS).unlink(missing_ok=True)


def _clustered(index: Index, target: Path, request: _Request, threads: int | None) -> CodesRecord:
    """Start anew: find the centroids and write them."""
    found = cluster_tokens(index.segments, request.centroids, seed=request.seed, threads=threads)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_array_file(target / CENTROIDS, {"centroids": found.centroids})
    for folder in (target, target.parent, index.path):
        fsync_path(folder)
    count = len(found.centroids)
    files = {CENTROIDS: FileRecord.of(target / CENTROIDS)}
    dtype = codes_dtype(count)
    record = CodesRecord(target.name, count, dtype, found.sample, found.error, found.norm, files, 1.0, 0)
    _save(target, request, record)
    return record


def _save(target: Path, request: _Request, record: CodesRecord) -> None:
    write_atomic(target / PROGRESS, msgspec.json.encode(_Run(request, record)))


def _resumed(target: Path, request: _Request) -> CodesRecord | None:
    """Record of an unfinished run with the same request; None if there is none to go on with."""
    path = target / PROGRESS
    try:
        run = decode(read_object(path, IndexFormatError), _Run, path, IndexFormatError)
        record, same = run.record, run.request == request and run.record.folder == target.name
        whole = all(FileRecord.of(target / name) == file for name, file in record.files.items())
    except (OSError, IndexFormatError):
        return None
    return record if same and whole and CENTROIDS in record.files else None


def _code_segment(index: Index, codes: Codes, record: CodesRecord, plan: SegmentPlan) -> CodesRecord:
    name, copied = plan.record.name, plan.copied_rows
    arrays = EntityArrays(**read_array_file(index.path / SEGMENTS / name / ARRAYS))
    copies = (codes.segments[segment][within] for segment, within in copy_blocks(index, copied))
    coded = code_blocks(arrays, codes.centroids, len(copied))
    record = write_segment_codes(index.path, record, name, arrays, chain(copies, coded))
    return _with_drift(record, codes, arrays, len(copied))


def _with_drift(record: CodesRecord, codes: Codes, arrays: EntityArrays, start: int) -> CodesRecord:
    """The record with the rows from ``start`` on counted in its mean drift."""
    total, count = record.drift * record.coded_later, record.coded_later
    for block in row_blocks(arrays, start):
        rows = block.stop - block.start
        weight = None if arrays.tglu_token_weight is None else arrays.tglu_token_weight[block]
        total += rows * codes.drift(token_queries(arrays, block), weight)
        count += rows
    return replace(record, drift=total / count, coded_later=count) if count else record
