"""Plan of the segments of the next snapshot: which rows of the old one stay, die, or are copied where.

Decides and reads; :mod:`mimic_engine.index.writer` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.index.manifest import SegmentRecord
from mimic_engine.index.store import Index
from mimic_engine.index.tombstones import Tombstones

MERGE_ROWS = 1024  # an upsert copies at most so many rows that were there before
_COPY_ROWS = 512


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """One segment of the next snapshot.

    Attributes
    ----------
    record : its record in the manifest
    rows : (n,) int64, numbers of its rows in the old snapshot; -1 for new entities, which come last
    alive : (n,) bool, the rows that are alive
    """

    record: SegmentRecord
    rows: NDArray[np.int64]
    alive: NDArray[np.bool_]

    @classmethod
    def new(cls, record: SegmentRecord, copied: NDArray[np.int64]) -> Self:
        """A new segment: ``copied`` rows of the old snapshot, then new entities."""
        added = np.full(record.rows - len(copied), -1, np.int64)
        return cls(record, np.concatenate([copied, added]), np.ones(record.rows, np.bool_))

    @property
    def copied_rows(self) -> NDArray[np.int64]:
        """Numbers of its rows that were in the old snapshot."""
        return self.rows[self.rows >= 0]

    @property
    def live_rows(self) -> NDArray[np.int64]:
        """Numbers of its live rows in the old snapshot."""
        return self.rows[self.alive]


def plan_of(index: Index, *, without: NDArray[np.int64] | None = None) -> list[SegmentPlan]:
    """The segments of a snapshot as they are, its rows ``without`` dead as well."""
    alive = np.ones(index.row_count, np.bool_) if index.alive is None else index.alive.copy()
    if without is not None:
        alive[without] = False
    rows = np.arange(index.row_count)
    where = [index.segment_rows(number) for number in range(len(index.segments))]
    return [SegmentPlan(r, rows[w], alive[w]) for r, w in zip(index.manifest.segments, where, strict=True)]


def tombstones_of(plan: Sequence[SegmentPlan]) -> Tombstones:
    """The dead rows of every segment that has any, by its name."""
    return {s.record.name: np.flatnonzero(~s.alive).astype(np.uint32) for s in plan if not s.alive.all()}


def same_tombstones(first: Tombstones, second: Tombstones) -> bool:
    """Whether two snapshots have the same dead rows."""
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


def split_small(plan: Sequence[SegmentPlan], new: int) -> tuple[Sequence[SegmentPlan], Sequence[SegmentPlan]]:
    """The segments that stay, and the small ones at the end that one of ``new`` rows takes over.

    It takes over what is no larger than itself so far: n entities that come one
    by one end in about log2(n) segments, each copied as often.
    """
    at, copied = len(plan), 0
    while at and (rows := len(plan[at - 1].live_rows)) <= new + copied and copied + rows <= MERGE_ROWS:
        at, copied = at - 1, copied + rows
    return plan[:at], plan[at:]


def compaction(plan: Sequence[SegmentPlan], segment_rows: int) -> Iterator[SegmentPlan | NDArray[np.int64]]:
    """Segments that are left as they are, and rows of new ones, in the order of the rows.

    What has no dead rows and is at least half full stays, and so does what has
    none and no neighbour to merge with.
    """
    for full, group in groupby(plan, lambda s: bool(s.alive.all()) and 2 * len(s.rows) >= segment_rows):
        members = list(group)
        if full or (len(members) == 1 and members[0].alive.all()):
            yield from members
        else:
            rows = np.concatenate([s.live_rows for s in members])
            yield from np.array_split(rows, -(-len(rows) // segment_rows))


def copy_blocks(index: Index, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Rising row numbers as (segment number, rows within it), a bounded number at a time."""
    for number in range(len(index.segments)):
        where = index.segment_rows(number)
        first, last = np.searchsorted(rows, (where.start, where.stop))
        within = rows[first:last] - where.start
        for start in range(0, len(within), _COPY_ROWS):
            yield number, within[start : start + _COPY_ROWS]
