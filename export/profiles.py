"""Shapes that a graph is run at: bounds and usual length of its free axes, by bucket.

The runtime sends at most 32 rows at once to an encoder or fold, and the scan
scores blocks of about 128 pairs. A builder that optimises for given shapes
takes one profile a bucket; :mod:`mimic_engine.export.comparison` times each
graph at :data:`USUAL`.
"""

from __future__ import annotations

from dataclasses import dataclass

BATCH_BUCKETS = (1, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Profile:
    """Least, usual and largest length of each free axis."""

    batch: tuple[int, int, int]  # mentions, or rows of an encoder
    rows: tuple[int, int, int]  # entities


def profiles(pairs: int = 128) -> tuple[Profile, ...]:
    """One profile for each bucket, smallest first; together they take every batch from 1 to 32.

    Parameters
    ----------
    pairs : mentions times entities of a usual block of the scan.
    """
    lows = (1, *(high + 1 for high in BATCH_BUCKETS[:-1]))
    return tuple(
        Profile((low, high, high), (1, max(1, pairs // high), 2 * pairs))
        for low, high in zip(lows, BATCH_BUCKETS, strict=True)
    )


USUAL = profiles()[2]  # a batch of 8 mentions
