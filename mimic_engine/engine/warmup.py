"""Warmth of an engine: what its first request costs against those that follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

STEADY_RUNS = 7


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Record of a warm-up, and what the first request after it took against the median of later ones."""

    seconds: float
    encoder_runs: int
    searches: int
    first_ms: float
    steady_ms: float

    @property
    def ratio(self) -> float:
        """First request to steady state; 1 where the warm-up left nothing to do."""
        return self.first_ms / self.steady_ms

    def to_json(self) -> dict[str, Any]:
        """All of it, and the ratio."""
        return asdict(self) | {"ratio": self.ratio}

    def __str__(self) -> str:
        return (
            f"warm after {self.seconds:.1f} s: {self.encoder_runs} encoder runs, {self.searches} searches; "
            f"first request {self.first_ms:.2f} ms, steady {self.steady_ms:.2f} ms, ratio {self.ratio:.2f}"
        )


def first_and_steady(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of the first run, and the median of the :data:`STEADY_RUNS` after it."""
    times = []
    for _ in range(1 + STEADY_RUNS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return times[0], sorted(times[1:])[STEADY_RUNS // 2]
