"""Build of an index from a knowledge base: streaming, resumable, published by one rename.

Two passes over the entities: the first checks and counts them
(:mod:`mimic_engine.index.validate`), the second encodes, folds and writes them into
``OUT.partial``. Then the codes of the coded mode are written, and what the caller
measures on the finished index is put into its manifest. A build that was killed
goes on where it was when the same call is made again. Memory does not grow with
the number of entities, but for the ids' hashes in the first pass; the names of one
segment are in memory at its end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mimic_engine._version import __version__
from mimic_engine.errors import DataError, IndexFormatError, InvalidInputError
from mimic_engine.files import publish_folder
from mimic_engine.index.codes.write import (
    Measure,
    forget_progress,
    has_token_queries,
    with_codes,
    write_codes,
)
from mimic_engine.index.manifest import (
    MAX_CENTROIDS,
    SEGMENTS,
    IndexManifest,
    is_index,
    segment_name,
    write_manifest,
)
from mimic_engine.index.progress import PROGRESS, BuildIdentity, Progress, build_lock, open_progress
from mimic_engine.index.schema import CheckedFold, EntityFeaturizer, checked_dtype
from mimic_engine.index.segment import SegmentWriter
from mimic_engine.index.snapshots import hold
from mimic_engine.index.store import Index
from mimic_engine.index.validate import EntityStream, Fingerprint, validate_entities
from mimic_engine.types import Entity, FoldConstants

_FLUSH_ROWS = 512
_FLUSH_SECONDS = 2.0
_MAX_SEGMENT_ROWS = 2**32 - 1  # rows of the id lookup are 32 bits wide


def build_index(
    featurizer: EntityFeaturizer,
    entities: EntityStream,
    out: str | Path,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    segment_rows: int = 65_536,
    progress: bool = True,
    overwrite: bool = False,
    options: Mapping[str, str] | None = None,
    extra_manifest: Mapping[str, Any] | None = None,
    centroids: int = 0,
    threads: int | None = None,
    measure: Measure | None = None,
) -> IndexManifest:
    """Build the index ``out`` and return its manifest.

    Parameters
    ----------
    featurizer : encodes and folds batches of entities
    entities : called once a pass (two passes); every call gives the same entities in the same order
    out : folder of the index; ``OUT.partial`` beside it holds the unfinished build
    dtype : "float16" or "float32", of the stored vectors; "int8" for the token queries (one scale
        a token), which are most of an index, and float16 for all others
    batch_size : entities folded at once
    segment_rows : entities in one immutable segment
    progress : show a progress bar on standard error
    overwrite : replace an index that is already at ``out``
    options : how the entities are encoded, beyond the model (precision, say); a build is only
        resumed with the same ones, and the manifest keeps them
    extra_manifest : JSON kept in the manifest; read when the last entity has been folded
    centroids : clusters of the token queries for the coded mode (fewer where the tokens do not
        support as many; none for a model without TGLU); 0 = no codes
    threads : cores for the clustering; all that the process may use by default
    measure : measures on the finished index, before it is published, what its manifest promises
        (see :mod:`mimic_engine.calibration.coded`)

    Raises
    ------
    DataError
        If the knowledge base is empty, has a duplicate or empty id, changes between
        the passes, or an entity folds to a value that cannot be stored.
    IndexFormatError
        If ``out`` exists, or ``OUT.partial`` is an unfinished build of something else.
    IndexLockedError
        If another process builds the same index, or changes the one that is to be replaced.
    InvalidInputError, ModelError
        If an option is outside its limits; if the arrays do not fit the model's constants.
    """
    out = Path(out).resolve()
    options = dict(options or {})
    extra = {} if extra_manifest is None else extra_manifest
    dtype = checked_dtype(dtype)
    _check_options(batch_size, segment_rows, extra, centroids)
    _check_int8(dtype, featurizer.constants)
    _check_target(out, overwrite)
    fingerprint = validate_entities(entities, progress=progress)
    identity = BuildIdentity(
        featurizer.model_hash,
        dtype,
        fingerprint.hexdigest(),
        fingerprint.count,
        segment_rows,
        json.dumps(options, sort_keys=True),
    )
    folder = out.with_name(out.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    with build_lock(folder):
        done = _Build(featurizer, entities, folder, identity, batch_size).run(show=progress)
        manifest = _manifest(featurizer, done, {**options, **extra})
        write_manifest(folder, manifest)
        if centroids or measure is not None:
            manifest = _finish(Index.open(folder, verify=False), centroids, threads, measure, progress)
            write_manifest(folder, manifest)
        _check_target(out, overwrite)
        with _hold_target(out):
            publish_folder(folder, out)
        (out / PROGRESS).unlink()
        if manifest.codes is not None:
            forget_progress(out, manifest.codes)
    return manifest


def _finish(
    index: Index, centroids: int, threads: int | None, measure: Measure | None, progress: bool
) -> IndexManifest:
    """Codes and what is measured with them; the manifest that lists both."""
    if centroids and has_token_queries(index):
        record = write_codes(index, segment_name(0), centroids, threads=threads, progress=progress)
        index = with_codes(index, record)
    return replace(index.manifest, agreement={} if measure is None else measure(index))


class _Build:
    """The second pass: fold what is not yet on disk, segment by segment."""

    def __init__(
        self,
        featurizer: EntityFeaturizer,
        entities: EntityStream,
        folder: Path,
        identity: BuildIdentity,
        batch_size: int,
    ) -> None:
        self._entities = entities
        self._folder = folder
        self._batch_size = batch_size
        self._progress = open_progress(folder, identity)
        self._fold = CheckedFold(featurizer, self._progress.layout)
        self._resume_row = self._progress.rows_done
        self._fingerprint = Fingerprint()
        self._flushed_at = time.monotonic()

    def run(self, *, show: bool) -> Progress:
        """Build all segments that are not complete; returns the final progress."""
        identity, finished = self._progress.identity, len(self._progress.segments)
        stream = self._checked_stream()
        bar = tqdm(
            total=identity.count, initial=self._resume_row, desc="index", unit=" entities", disable=not show
        )
        with bar:
            for number, start in enumerate(range(0, identity.count, identity.segment_rows)):
                stop = min(start + identity.segment_rows, identity.count)
                if number < finished:
                    _skip(stream, stop - start)
                else:
                    self._build_segment(segment_name(number), stream, start, stop, bar)
        if next(stream, None) is not None or self._fingerprint.hexdigest() != identity.fingerprint:
            raise DataError(
                "the knowledge base changed while the index was being built; "
                f"delete {self._folder} and build again"
            )
        return self._progress

    def _build_segment(
        self, name: str, stream: Iterator[Entity], start: int, stop: int, bar: tqdm[Any]
    ) -> None:
        dtype, folder = self._progress.identity.dtype, self._folder / SEGMENTS / name
        done = max(0, self._resume_row - start)
        with SegmentWriter(folder, stop - start, dtype, done=done, layout=self._fold.layout) as writer:
            row = start
            while row < stop:
                limit = self._resume_row if row < self._resume_row else stop
                batch = _take(stream, min(self._batch_size, limit - row))
                writer.add_entities(batch)
                if row >= self._resume_row:
                    arrays = self._fold(batch)
                    writer.add_arrays(row - start, batch, arrays, self._fold.layout)
                    self._flush_if_due(writer, row + len(batch))
                    bar.update(len(batch))
                row += len(batch)
            segment = writer.finish(name)
        self._progress = self._progress.advance(stop, self._fold.layout).finish_segment(segment)
        self._progress.save(self._folder)

    def _flush_if_due(self, writer: SegmentWriter, rows_done: int) -> None:
        waited = time.monotonic() - self._flushed_at
        if rows_done - self._progress.rows_done >= _FLUSH_ROWS or waited >= _FLUSH_SECONDS:
            writer.sync()
            self._progress = self._progress.advance(rows_done, self._fold.layout)
            self._progress.save(self._folder)
            self._flushed_at = time.monotonic()

    def _checked_stream(self) -> Iterator[Entity]:
        for entity in self._entities():
            self._fingerprint.add(entity)
            yield entity


def _hold_target(out: Path) -> AbstractContextManager[object]:
    """Keep writers off an index while it is replaced; :class:`IndexLockedError` if one is at work."""
    return hold(out) if out.exists() else nullcontext()


def _skip(stream: Iterator[Entity], n: int) -> None:
    for _ in islice(stream, n):
        pass


def _take(stream: Iterator[Entity], n: int) -> list[Entity]:
    taken = list(islice(stream, n))
    if len(taken) != n:
        raise DataError("the knowledge base became shorter while the index was being built; build again")
    return taken


def _manifest(featurizer: EntityFeaturizer, done: Progress, extra: Mapping[str, Any]) -> IndexManifest:
    return IndexManifest(
        model_hash=done.identity.model_hash,
        dtype=done.identity.dtype,
        count=done.identity.count,
        constants=featurizer.constants,
        fingerprint=done.identity.fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=f"mimic_engine {__version__}",
        segments=done.segments,
        next_segment=len(done.segments),
        deleted=None,
        generation=1,
        extra=json.loads(json.dumps(dict(extra), allow_nan=False)),
        codes=None,
        agreement={},
    )


def _check_options(batch_size: int, segment_rows: int, extra: Mapping[str, Any], centroids: int) -> None:
    if not 0 <= centroids <= MAX_CENTROIDS:
        raise InvalidInputError(f"centroids: {centroids} is not between 0 and {MAX_CENTROIDS}")
    if batch_size < 1:
        raise InvalidInputError(f"batch_size: {batch_size} is under 1")
    if not 1 <= segment_rows <= _MAX_SEGMENT_ROWS:
        raise InvalidInputError(f"segment_rows: {segment_rows} is not between 1 and {_MAX_SEGMENT_ROWS}")
    try:
        json.dumps(dict(extra), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"extra_manifest: not JSON: {error}") from error


def _check_int8(dtype: str, constants: FoldConstants) -> None:
    if dtype == "int8" and "tglu" not in constants.units:
        raise InvalidInputError(
            f"dtype: int8 is for the token queries of the unit tglu, which is not among {constants.units}"
        )


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise IndexFormatError(f"{out}: already exists; choose another folder, or overwrite it explicitly")
    if not is_index(out):
        raise IndexFormatError(
            f"{out}: exists and is not a readable index, so it is not overwritten; delete it yourself"
        )
