"""Recall of the coded mode: the shares of exact answers that an index promises, and whether they hold.

Known of the coded mode: for each mention the exact best k, and for each of
those how many entities the estimate puts at or before it. Re-scoring the best R
by estimate finds every one whose place is within R. Measuring the places is in
:mod:`mimic_engine.calibration.coded`.

Rule of :func:`regressions`: at the promised R, the share of mentions with
the same best entity and the share whose whole best k is found are compared with
the promise by Fisher's exact test, one-sided. A share that is lower than chance
would make it once in 1,000 times, were both measurements of one and the same
share, is a promise broken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, comb
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import Natural, Share, decode
from mimic_engine.index.manifest import IndexManifest

CODED = "coded"  # name of the coded mode's measurement in the manifest's ``agreement``
PROMISED_SHARE = 0.999
CHANCE = 0.001

_LADDER = (10, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class RecallRow:
    """Shares of mentions (0 to 1) when the best ``r`` by estimate are scored exactly.

    Attributes
    ----------
    r : entities scored exactly
    top1_identical : the best entity is the exact one
    top10_contained : of the exact best k of all mentions, those that are found
    mentions_contained : the whole exact best k is found
    """

    r: Natural
    top1_identical: Share
    top10_contained: Share
    mentions_contained: Share


@dataclass(frozen=True, slots=True)
class Recall:
    """One measurement: by which mentions, over how many entities, and the shares at a ladder of R.

    Attributes
    ----------
    centroids, entities, mentions : numbers of each
    source : where the mentions come from; "entities" are names and descriptions of the index itself
    k : how many of the best entities must be found (10, or all where there are fewer)
    rows : the ladder, rising in R; holds ``r_999``
    r_999 : smallest R that finds the whole best k of 99.9 % of the mentions
    """

    centroids: Natural
    entities: Natural
    mentions: Natural
    source: str
    k: Natural
    rows: tuple[RecallRow, ...]
    r_999: Natural

    def __post_init__(self) -> None:
        if self.mentions < 1 or self.k < 1 or self.r_999 not in [row.r for row in self.rows]:
            raise ValueError(f"mentions {self.mentions}, k {self.k}, or no row of r_999 {self.r_999}")

    @classmethod
    def of_places(cls, places: NDArray[np.int64], *, centroids: int, entities: int, source: str) -> Self:
        """The recall that ``places`` (M, k) of :func:`measure_places` show."""
        mentions, k = places.shape
        needed = np.sort(places.max(axis=1))  # (M,): the R that finds everything
        r_999 = int(needed[ceil(PROMISED_SHARE * mentions) - 1])
        ladder = sorted({r_999, *(min(r, entities) for r in _LADDER)})
        rows = tuple(_row(places, r) for r in ladder)
        return cls(centroids, entities, mentions, source, k, rows, r_999)

    def row(self, r: int) -> RecallRow:
        """The row of this R of the ladder."""
        return next(row for row in self.rows if row.r == r)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the manifest."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        what = (
            f"{self.mentions} mentions ({self.source}), {self.entities} entities, {self.centroids} centroids"
        )
        lines = [what, f"{'R':>6}  top 1 identical  top {self.k} contained  whole top {self.k}"]
        lines += [
            f"{r.r:>6}  {r.top1_identical:15.4%}  {r.top10_contained:16.4%}  {r.mentions_contained:12.4%}"
            for r in self.rows
        ]
        return "\n".join([*lines, f"smallest R for {PROMISED_SHARE:.1%}: {self.r_999}"])


def promised(manifest: IndexManifest) -> Recall | None:
    """The recall that an index promises of the coded mode; None where nothing was measured.

    Raises
    ------
    IndexFormatError
        If the manifest's record of it is not one that this version reads.
    """
    data = manifest.agreement.get(CODED)
    where = f"agreement.{CODED} of the manifest"
    return None if data is None else decode(data, Recall, where, IndexFormatError)


def regressions(promise: Recall, places: NDArray[np.int64]) -> list[str]:
    """Promised shares that ``places`` (M, k) of today break, in words; see the module's rule."""
    then, now = promise.row(promise.r_999), _row(places, promise.r_999)
    worse = []
    for name in ("top1_identical", "mentions_contained"):
        was, share = getattr(then, name), getattr(now, name)
        chance = _chance_of_less(was, promise.mentions, share, len(places))
        if chance < CHANCE:
            worse.append(
                f"{name} at R = {promise.r_999}: {share:.4%} of {len(places)} mentions, promised {was:.4%} "
                f"of {promise.mentions}; chance makes so great a difference with probability {chance:.1g}"
            )
    return worse


def _row(places: NDArray[np.int64], r: int) -> RecallRow:
    within = places <= r  # (M, k)
    shares = (within[:, 0].mean(), within.mean(), within.all(axis=1).mean())
    return RecallRow(r, *(float(share) for share in shares))


def _chance_of_less(promised: float, then: int, share: float, now: int) -> float:
    """Chance that ``now`` mentions show no more than ``share``, given what both groups missed."""
    missed_now = now - round(share * now)
    missed = then - round(promised * then) + missed_now
    ways = sum(comb(now, i) * comb(then, missed - i) for i in range(missed_now, min(missed, now) + 1))
    return ways / comb(then + now, missed)
