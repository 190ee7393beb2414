"""The rows of ``scan_cpu.json``: one timed scan or one timed batch of the published loop each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from benchmarks.timing import Timed
from mimic_engine.scan.scan import TopK

FeatureKind = Literal["random", "real", "tiled"]


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One timed batch of the published loop; ``scaled`` where its time is that of fewer pairs, multiplied."""

    n: int
    b: int
    pairs_per_s: float
    ms: float
    median_ms: float
    runs: int
    scaled: bool = False

    @classmethod
    def of(cls, n: int, b: int, timed: Timed) -> Self:
        """The row of one measurement."""
        return cls(n, b, 1e3 * n * b / timed.least_ms, timed.least_ms, timed.median_ms, len(timed.seconds))

    def for_pairs(self, n: int, b: int) -> Self:
        """The same time a pair for another number of pairs; the row itself for its own."""
        if (n, b) == (self.n, self.b):
            return self
        times = n * b / (self.n * self.b)
        return replace(self, n=n, b=b, ms=times * self.ms, median_ms=times * self.median_ms, scaled=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One timed scan.

    ``identical_top10`` compares with what the row's answer must equal: the
    published loop on random features, the exact mode on an index (None where
    that was not run). ``worst_gap``
    is in units of the score, where the top 10 differ. ``survivor_share`` is the
    mean share of entities scored exactly, ``dense_share`` that of mentions which
    mode "certified" finished by scoring all. The last two are mode "coded"'s:
    mentions with the exact best entity, and exact top-10 entities found.
    """

    mode: str
    backend: str
    dtype: str
    features: FeatureKind
    n: int
    b: int
    pairs_per_s: float
    ms: float
    median_ms: float
    runs: int
    ratio_to_baseline: float
    ratio_of_medians: float
    baseline_scaled: bool
    identical_top10: float | None
    identical_ranks: float | None
    worst_gap: float | None
    survivor_share: float
    survivor_share_max: float
    dense_share: float
    agreement_top1: float | None = None
    top10_contained: float | None = None

    @classmethod
    def of(
        cls,
        mode: str,
        backend: str,
        dtype: str,
        features: FeatureKind,
        base: BaselineRow,
        timed: Timed,
        found: TopK,
        *,
        identical_top10: float | None,
        identical_ranks: float | None = None,
        worst_gap: float | None = None,
    ) -> Self:
        """The row of one measurement against the baseline for the same pairs."""
        shares = found.scored / base.n  # (B,)
        return cls(
            mode,
            backend,
            dtype,
            features,
            base.n,
            base.b,
            pairs_per_s=1e3 * base.n * base.b / timed.least_ms,
            ms=timed.least_ms,
            median_ms=timed.median_ms,
            runs=len(timed.seconds),
            ratio_to_baseline=base.ms / timed.least_ms,
            ratio_of_medians=base.median_ms / timed.median_ms,
            baseline_scaled=base.scaled,
            identical_top10=identical_top10,
            identical_ranks=identical_ranks,
            worst_gap=worst_gap,
            survivor_share=float(shares.mean()),
            survivor_share_max=float(shares.max()),
            dense_share=float(np.mean([m == "exact" for m in found.modes])) if mode == "certified" else 0.0,
        )

    def __str__(self) -> str:
        same = "not compared" if self.identical_top10 is None else f"{self.identical_top10:.1%}"
        return (
            f"{self.mode} {self.backend} {self.dtype} {self.features} n={self.n} b={self.b}: "
            f"{self.ms:.2f} ms, {self.pairs_per_s:,.0f} pairs/s, {self.ratio_to_baseline:.1f} times the "
            f"published loop, {self.survivor_share:.2%} scored, same top 10: {same}"
        )
