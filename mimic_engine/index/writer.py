"""Changes of an index: upsert, delete, compact. Each is a new snapshot, whole or not at all.

A change writes new files beside the old ones, flushes them, and then publishes a
manifest that names them (:mod:`mimic_engine.index.snapshots`): the one moment at
which it becomes visible, after which it survives. A process killed before it
leaves files that nothing names, and the next writer removes them.

Stored rows are only ever copied, so a change leaves the scores of all other
entities as they are, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mimic_engine.errors import (
    DataError,
    IndexFormatError,
    IndexWriteError,
    InvalidInputError,
)
from mimic_engine.index.codes.write import extend_codes
from mimic_engine.index.entities import drop_images, keep_image
from mimic_engine.index.manifest import SEGMENTS, SegmentRecord, segment_name
from mimic_engine.index.plan import (
    SegmentPlan,
    compaction,
    copy_blocks,
    plan_of,
    same_tombstones,
    split_small,
    tombstones_of,
)
from mimic_engine.index.schema import CheckedFold, EntityFeaturizer, folded_shapes, trailing_shapes
from mimic_engine.index.segment import SegmentWriter
from mimic_engine.index.snapshots import (
    KEEP_SNAPSHOTS,
    forget,
    hold,
    publish,
    read_snapshot,
    remove_unnamed,
    successor,
)
from mimic_engine.index.store import Index
from mimic_engine.index.tombstones import write_tombstones
from mimic_engine.index.validate import Fingerprint
from mimic_engine.types import Entity, EntityArrays

SEGMENT_ROWS = 65_536

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the generation that has it, entities added, replaced, deleted, and there now."""

    generation: int
    added: int
    replaced: int
    deleted: int
    entities: int


class IndexWriter:
    """Changes an index; the only one that does, from its creation until it is closed.

    For one thread. Readers are not disturbed: they keep the snapshot that they opened.

    Parameters
    ----------
    index : an open snapshot of the folder; the writer goes on from the newest
    featurizer : the model that folded the index; only :meth:`upsert` needs it
    keep_snapshots : snapshots that stay on disk after a change, the newest included
    batch_size : entities folded at once
    keep_images : keep an entity's first image, if given as bytes (:mod:`mimic_engine.index.entities`)

    Raises
    ------
    IndexLockedError
        If another writer, of this process or another, is changing the index.
    IndexFormatError, IndexMismatchError
        If the newest snapshot is damaged; if the featurizer is of another model.
    InvalidInputError
        If a number is under 1.

    Examples
    --------
    >>> with IndexWriter(Index.open("index/"), featurizer) as writer:  # doctest: +SKIP
    ...     writer.upsert([Entity("Q810", "Jordan", "country in Western Asia")])
    ...     linkable = writer.index
    Change(generation=2, added=1, replaced=0, deleted=0, entities=132465)
    """

    def __init__(
        self,
        index: Index,
        featurizer: EntityFeaturizer | None = None,
        *,
        keep_snapshots: int = KEEP_SNAPSHOTS,
        batch_size: int = 32,
        keep_images: bool = False,
    ) -> None:
        for name, value in (("keep_snapshots", keep_snapshots), ("batch_size", batch_size)):
            if value < 1:
                raise InvalidInputError(f"{name}: {value} is under 1", field=name)
        layout = folded_shapes(trailing_shapes(index.segments[0]))
        self._fold = None if featurizer is None else CheckedFold(featurizer, layout)
        self._keep, self._batch_size, self._keep_images = keep_snapshots, batch_size, keep_images
        self._lock = hold(index.path)
        try:
            self._index = index.snapshot()
            if featurizer is not None:
                self._index.check_model(featurizer.model_hash)
            self._tidy(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other writers at the index."""
        self._lock.release()

    @property
    def index(self) -> Index:
        """The newest snapshot."""
        return self._index

    def upsert(self, entities: Iterable[Entity]) -> Change:
        """Add entities, and replace those whose ids are there; when this returns, the change is on the disk.

        The new rows make a segment of their own, which takes over small ones
        before it, so that their number stays small however the entities come.

        Raises
        ------
        DataError
            If an id is empty or occurs twice, a field cannot be stored, or an entity folds to
            a value that cannot; names record or entity.
        IndexWriteError
            If the files cannot be written (the disk is full, say).
        InvalidInputError, ModelError
            If there is no featurizer; if its arrays do not fit the index.

        After an error the index is as it was.
        """
        batch = list(entities)
        _check_entities(batch)
        if (fold := self._fold) is None:
            raise InvalidInputError("featurizer: an upsert needs the model that folded the index")
        if not batch:
            return self._unchanged()
        with self._changing() as index:
            old = index.find([e.id for e in batch])
            kept, small = split_small(plan_of(index, without=old[old >= 0]), len(batch))
            rows = np.concatenate([np.empty(0, np.int64), *(s.live_rows for s in small)])
            folded = ((piece, fold(piece)) for piece in _batches(batch, self._batch_size))
            record = self._write(index.manifest.next_segment, rows, len(batch), folded)
            self._keep_bytes(batch)
            self._publish([*kept, SegmentPlan.new(record, rows)], index.manifest.next_segment + 1)
        replaced = int((old >= 0).sum())
        return replace(self._unchanged(), added=len(batch) - replaced, replaced=replaced)

    def delete(self, ids: Iterable[str]) -> Change:
        """Delete entities; when this returns, the change is on the disk.

        Raises
        ------
        UnknownEntityError
            If the index does not hold one of the ids; none is deleted then.
        InvalidInputError
            If no entity would be left.
        IndexWriteError
            As in :meth:`upsert`.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return self._unchanged()
        with self._changing() as index:
            rows = index.rows(wanted)
            if len(rows) == len(index):
                raise InvalidInputError(
                    f"ids: these are all {len(index)} entities of {index.path}; an index needs at least 1",
                    field="ids",
                )
            self._publish(plan_of(index, without=rows), index.manifest.next_segment)
        return replace(self._unchanged(), deleted=len(wanted))

    def compact(self, *, segment_rows: int = SEGMENT_ROWS) -> Change:
        """Drop dead rows, merge small segments, forget older snapshots and images that nobody has.

        Live rows keep their order and their bits, so every answer is the same
        as before. A segment without dead rows that is at least half full is left
        as it is; where all are, there is no new snapshot.

        Parameters
        ----------
        segment_rows : entities in one segment, at most

        Raises
        ------
        InvalidInputError, IndexWriteError
            If ``segment_rows`` is under 1; as in :meth:`upsert`.
        """
        if segment_rows < 1:
            raise InvalidInputError(f"segment_rows: {segment_rows} is under 1", field="segment_rows")
        with self._changing() as index:
            plan, number = list[SegmentPlan](), index.manifest.next_segment
            for kept in compaction(plan_of(index), segment_rows):
                if isinstance(kept, SegmentPlan):
                    plan.append(kept)
                else:
                    plan.append(SegmentPlan.new(self._write(number, kept), kept))
                    number += 1
            if number != index.manifest.next_segment:
                self._publish(plan, number)
        self._tidy(1)
        self._drop_images()
        return self._unchanged()

    def forget(self, keep: int) -> None:
        """Remove all but the newest ``keep`` snapshots from the disk; who has one open keeps it.

        Raises
        ------
        InvalidInputError
            If ``keep`` is under 1.
        IndexFormatError, IndexWriteError
            If a kept snapshot is damaged; if files cannot be removed.
        """
        if keep < 1:
            raise InvalidInputError(f"keep: {keep} is under 1", field="keep")
        try:
            forget(self._index.path, keep)
        except OSError as error:
            raise IndexWriteError(f"{self._index.path}: snapshots cannot be removed: {error}") from error

    @contextmanager
    def _changing(self) -> Iterator[Index]:
        """The newest snapshot, to be changed; after an error what was written is removed."""
        if not self._lock.held:
            raise IndexWriteError(f"{self._index.path}: this writer is closed")
        self._index = self._index.snapshot()
        before = self._index.manifest.generation
        try:
            yield self._index
        except BaseException as error:
            self._tidy(None)
            if isinstance(error, OSError | pa.ArrowException):
                raise self._write_error(before, error) from error
            raise
        self._index = self._index.snapshot(verify=False)
        self._tidy(self._keep)

    def _write_error(self, before: int, error: BaseException) -> IndexWriteError:
        path = self._index.path
        if read_snapshot(path).generation == before:
            return IndexWriteError(f"{path}: the change was not made, the index is as it was: {error}")
        return IndexWriteError(f"{path}: the change is made, but may not survive a power cut: {error}")

    def _keep_bytes(self, entities: Sequence[Entity]) -> None:
        """Keep the image that is shown of each entity; compaction drops those of a change that failed."""
        for entity in entities if self._keep_images else ():
            if entity.images and isinstance(entity.images[0], bytes):
                keep_image(self._index.path, entity.images[0])

    def _tidy(self, keep: int | None) -> None:
        """Remove what no snapshot needs; what cannot be removed does no harm: logged, and tried again."""
        path = self._index.path
        try:
            remove_unnamed(path) if keep is None else forget(path, keep)
        except (OSError, IndexFormatError) as error:
            logger.warning("%s: files that are not needed could not be removed: %s", path, error)

    def _drop_images(self) -> None:
        path = self._index.path
        try:
            drop_images(path, self._index.image_names())
        except OSError as error:
            logger.warning("%s: images that nobody has could not be removed: %s", path, error)

    def _unchanged(self) -> Change:
        return Change(self._index.manifest.generation, 0, 0, 0, len(self._index))

    def _write(
        self,
        number: int,
        rows: NDArray[np.int64],
        new: int = 0,
        folded: Iterable[tuple[Sequence[Entity], EntityArrays]] = (),
    ) -> SegmentRecord:
        """Write one segment: copies of rows of the old snapshot, rising, and then ``new`` folded entities."""
        index, name = self._index, segment_name(number)
        layout = folded_shapes(trailing_shapes(index.segments[0]))
        folder, dtype = index.path / SEGMENTS / name, index.manifest.dtype
        done, total = 0, len(rows) + new
        with SegmentWriter(folder, total, dtype, done=0, layout=layout) as writer:
            for segment, within in copy_blocks(index, rows):
                start = index.segment_rows(segment).start
                writer.add_entities([index.entity(row) for row in (start + within).tolist()])
                writer.add_stored(done, index.segments[segment].take(within), layout)
                done += len(within)
            for piece, arrays in folded:
                writer.add_entities(piece)
                writer.add_arrays(done, piece, arrays, layout)
                done += len(piece)
            return writer.finish(name)

    def _publish(self, plan: Sequence[SegmentPlan], next_segment: int) -> None:
        """Publish the snapshot of these segments; those without a live row drop out."""
        index, old = self._index, self._index.manifest
        plan = [s for s in plan if s.alive.any()]
        tombstones, deleted = tombstones_of(plan), old.deleted
        if not same_tombstones(tombstones, index.tombstones):
            deleted = write_tombstones(index.path, old.generation + 1, tombstones)
        manifest = successor(
            old,
            count=sum(int(s.alive.sum()) for s in plan),
            segments=tuple(s.record for s in plan),
            next_segment=next_segment,
            deleted=deleted,
            codes=extend_codes(index, plan),
        )
        publish(index.path, manifest)


def _check_entities(entities: Sequence[Entity]) -> None:
    fingerprint, seen = Fingerprint(), dict[str, int]()
    for record, entity in enumerate(entities, 1):
        fingerprint.add(entity)  # checks it
        if (first := seen.setdefault(entity.id, record)) != record:
            raise DataError(f"entities: id {entity.id!r} occurs twice, in records {first} and {record}")


def _batches(entities: Sequence[Entity], size: int) -> Iterator[Sequence[Entity]]:
    for start in range(0, len(entities), size):
        yield entities[start : start + size]
