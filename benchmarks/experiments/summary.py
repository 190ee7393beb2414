"""Means and spreads over seeds, and differences to a baseline. Plain numbers; no file is touched.

Runs that diverged are left out of every mean; ``n`` says how many are in.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiments.declaration import TwoByTwo
from benchmarks.experiments.results import Outcome

METRICS = ("hits@1", "hits@3", "hits@5", "hits@10", "hits@20", "mrr", "mr")
SPLITS = ("dev", "test")


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of n values; no deviation of a single one, no mean of none."""

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        mean = statistics.fmean(values) if values else None
        return cls(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))

    def to_json(self) -> dict[str, Any]:
        """``{"mean", "std", "n"}``."""
        return asdict(self)


Summary = Mapping[str, Mapping[str, Spread]]  # split -> metric -> spread


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Spread of each metric over the runs that are done."""
    return {
        split: {m: Spread.of(list(_values(outcomes, split, m).values())) for m in METRICS} for split in SPLITS
    }


def differences(
    outcomes: Sequence[Outcome], baseline: Sequence[Outcome], splits: Sequence[str] = SPLITS
) -> Summary:
    """Spread of the differences to the baseline's run of the same seed, of the named splits."""
    out = {}
    for split in splits:
        out[split] = {
            m: Spread.of(_paired(_values(outcomes, split, m), _values(baseline, split, m))) for m in METRICS
        }
    return out


def two_by_two(table: TwoByTwo, outcomes: Mapping[str, Sequence[Outcome]]) -> Mapping[str, Summary]:
    """What each of two changes adds alone and beside the other, and what both add.

    Differences between runs of the same seed: "first alone", "first beside the second", "second alone",
    "second beside the first", "both", "beyond the sum".
    """
    of = {name: outcomes.get(name, ()) for name in table.configurations}
    neither, first, second, both = (of[name] for name in table.configurations)
    return {
        "first alone": differences(first, neither),
        "first beside the second": differences(both, second),
        "second alone": differences(second, neither),
        "second beside the first": differences(both, first),
        "both": differences(both, neither),
        "beyond the sum": _beyond(neither, first, second, both),
    }


def summary_json(summary: Summary) -> dict[str, dict[str, Any]]:
    """A summary as a JSON object."""
    return {split: {m: s.to_json() for m, s in metrics.items()} for split, metrics in summary.items()}


def _beyond(
    neither: Sequence[Outcome], first: Sequence[Outcome], second: Sequence[Outcome], both: Sequence[Outcome]
) -> Summary:
    out = {}
    for split in SPLITS:
        out[split] = {
            m: Spread.of(_interaction(*(_values(part, split, m) for part in (neither, first, second, both))))
            for m in METRICS
        }
    return out


def _interaction(
    neither: Mapping[int, float],
    first: Mapping[int, float],
    second: Mapping[int, float],
    both: Mapping[int, float],
) -> list[float]:
    seeds = [s for s in both if s in first and s in second and s in neither]
    return [both[s] - first[s] - second[s] + neither[s] for s in seeds]


def _paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def _values(outcomes: Sequence[Outcome], split: str, metric: str) -> dict[int, float]:
    """The metric by seed, of runs that have it."""
    values = {}
    for outcome in outcomes:
        metrics = outcome.run.dev if split == "dev" else outcome.test
        if outcome.run.status == "done" and metrics:
            values[outcome.run.seed] = float(metrics[metric])
    return values
