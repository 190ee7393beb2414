"""Shapes that a graph is run at: least, usual and largest length of its free axes, one profile a bucket.

The buckets of rows and tokens are the runtime's
(:mod:`mimic_engine.encoding.buckets`). The scorer, with two free axes,
gets blocks of :data:`PAIRS` pairs, as the scan cuts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mimic_engine.encoding import buckets
from mimic_engine.encoding.buckets import LENGTH
from mimic_engine.encoding.manifest import GraphEntry, Shape
from mimic_engine.errors import InvalidInputError
from mimic_engine.export.graphs import BATCH, ROWS

PAIRS = 512  # mentions times entities of a block of the scan
USUAL = {BATCH: 8, ROWS: PAIRS // 8}  # rows at which a graph is timed

Span = tuple[int, int, int]  # least, usual, largest
Profile = Mapping[str, Span]  # free axis -> its lengths
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]  # input -> least, usual, largest


def profiles(entry: GraphEntry, longest: int, rows: Sequence[int] = buckets.ROWS) -> list[Profile]:
    """One profile for each bucket of the graph's free axes, smallest first; together they take every size.

    Parameters
    ----------
    entry : of the graph; says which axes are free.
    longest : tokens L of the model.
    rows : buckets of rows.

    Raises
    ------
    InvalidInputError
        If the buckets do not ascend from at least 1.
    """
    if not rows or rows[0] < 1 or list(rows) != sorted(set(rows)):
        raise InvalidInputError(f"profiles: {','.join(map(str, rows))!r} must be ascending numbers from 1")
    axes = {n for shape in entry.inputs.values() for n in shape if isinstance(n, str)}
    spans = [(low, high, high) for low, high in buckets.ranges(rows)]
    if {BATCH, ROWS} <= axes:
        return [
            {BATCH: span, ROWS: (1, max(1, PAIRS // span[2]), max(1, PAIRS // span[0]))} for span in spans
        ]
    first = BATCH if BATCH in axes else ROWS
    if LENGTH not in axes:
        return [{first: span} for span in spans]
    lengths = [(low, high, high) for low, high in buckets.ranges(buckets.length_buckets(longest))]
    lengths[0] = (min(2, lengths[0][1]), *lengths[0][1:])  # no text is shorter than its two special tokens
    return [{first: span, LENGTH: length} for span in spans for length in lengths]


def shapes(entry: GraphEntry, profile: Profile) -> Shapes:
    """Least, usual and largest shape of every input under a profile."""
    return {
        name: (_at(shape, profile, 0), _at(shape, profile, 1), _at(shape, profile, 2))
        for name, shape in entry.inputs.items()
    }


def _at(shape: Shape, profile: Profile, which: int) -> tuple[int, ...]:
    return tuple(profile[n][which] if isinstance(n, str) else n for n in shape)
