"""Repeated runs of a call, and the machine's own speed in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

SGEMM_SIZE = 2048

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed:
    """Times of repeated runs of one call."""

    seconds: tuple[float, ...]

    @property
    def least_ms(self) -> float:
        """The shortest run, in milliseconds."""
        return 1e3 * min(self.seconds)

    @property
    def median_ms(self) -> float:
        """The median run, in milliseconds."""
        return 1e3 * statistics.median(self.seconds)


def repeat(
    call: Callable[[], T], budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[Timed, T]:
    """Run at least twice and until ``budget_s`` is spent; the times, and the last result."""
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < budget_s:
        start = clock()
        result = call()
        seconds.append(clock() - start)
    return Timed(tuple(seconds)), result


def sgemm_gflops(threads: int) -> float:
    """Single-precision matrix product of this machine on ``threads`` cores, best of several, in GFLOP/s."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, SGEMM_SIZE, SGEMM_SIZE)
    timed, _ = repeat(lambda: a @ b, budget_s=2.0)
    return 2 * SGEMM_SIZE**3 / (timed.least_ms / 1e3) / 1e9
