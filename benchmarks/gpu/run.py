"""One run of the GPU report: what is measured, what was found, and how a part that fails is written down."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.checks import Check


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    entities: tuple[int, ...] = (20_818, 110_000, 1_000_000)
    batches: tuple[int, ...] = (1, 8, 20, 64)
    check_sizes: tuple[tuple[int, int], ...] = ((257, 5), (1031, 1), (16, 9))
    centroids: int = 1024
    seconds: float = 0.4  # spent on each timing
    budget_s: float = 540.0
    copy_bytes: int = 4 << 30
    matrix: int = 8192
    baseline: tuple[tuple[int, int], ...] = ((20_818, 1), (20_818, 20), (110_000, 20))
    dtypes: tuple[str, ...] = ("float16", "int8")
    seed: int = 0


DRY = Options(
    entities=(40,), batches=(1, 2), check_sizes=((17, 2),), centroids=8, seconds=0.0, budget_s=1e9,
    copy_bytes=1 << 20, matrix=64, baseline=((20, 2),), dtypes=("float16",),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One timed scan: ``ms`` on the device, ``search_ms`` from host arrays to ranked rows on the host."""

    mode: str
    backend: str
    dtype: str
    n: int
    b: int
    ms: float
    search_ms: float
    captured: bool
    pairs_per_s: float
    ratio_to_baseline: float | None
    roofline_ms: float | None
    identical_top10: float
    survivor_share: float
    dense_share: float
    agreement_top1: float | None
    top10_contained: float | None
    device: str


@dataclass
class Report:
    """What has been found so far, and what went wrong."""

    options: Options
    device: torch.device
    name: str
    start: float = field(default_factory=time.monotonic)
    ceilings: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tiles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # times by kernel and batch

    def part(self, name: str, run: Callable[[], None]) -> None:
        """Run one part; a failure is written down and the next part runs."""
        left = self.options.budget_s - (time.monotonic() - self.start)
        if left <= 0:
            self.problem(f"{name}: not begun, the time is used up")
            return
        begin = time.monotonic()
        try:
            run()
        except Exception as error:  # degrade part by part
            traceback.print_exc()
            self.problem(f"{name}: {type(error).__name__}: {str(error)[:500]}")
        say(f"-- {name}: {time.monotonic() - begin:.1f} s")

    def problem(self, text: str) -> None:
        """Write down and say what went wrong."""
        self.problems.append(text)
        say(f"PROBLEM {text}")

    @property
    def sound(self) -> bool:
        """Whether every check that ran has passed."""
        return all(check.passed for check in self.checks)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def device_ms(device: torch.device, run: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds of one call on the device, between events; on the CPU by its clock."""
    run()
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize(device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)
