"""The exact scan on the CPU against the published loop: same features, same threads, same run.

Random features in the published shapes; every scan is checked against the
loop's scores. Both sides get the same threads and the same time for repeated
runs, at least two; ``ms`` is the least of them and ``median_ms`` their median
(a short scan fits in more runs than the loop, so where the machine is noisy
the ratio of the medians is the fairer one).

    python -m benchmarks.scan_cpu --out benchmarks/results/scan_cpu.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.baseline import published_scores, random_features, random_weights
from benchmarks.engine_side import (
    BACKENDS,
    TOLERANCES,
    check_ranks,
    compare_top_k,
    fold_entities,
    fold_mentions,
    load_matcher,
    make_kernels,
    nbytes,
)
from benchmarks.published_inputs import Features
from mimic_engine.encoding.graph import available_threads
from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.model.fold import fold_constants
from mimic_engine.model.matcher import Matcher
from mimic_engine.record import write_result
from mimic_engine.scoring.base import ScanKernels
from mimic_engine.scoring.scan import Scan
from mimic_engine.types import Array, EntityArrays, MentionArrays

# Set before the first run of this benchmark; compared at the worst row of the ONNX scorer.
EXPECTED = {"ratio_at_b1_min": 40.0, "ratio_at_b20_min": 20.0, "float16_feature_bytes_ratio_max": 0.1}
TOP_K = 10
SGEMM_SIZE = 2048

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What to measure."""

    entities: tuple[int, ...] = (2_000, 20_000)
    batches: tuple[int, ...] = (1, 8, 20)
    backends: tuple[str, ...] = BACKENDS
    threads: int = 1
    seconds: float = 3.0  # spent on each scan, at least two runs
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("entities", "batches"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise InvalidInputError(f"{name}: needs numbers of at least 1, got {values}")
        if self.threads < 1:
            raise InvalidInputError(f"threads: must be at least 1, got {self.threads}")
        if unknown := sorted(set(self.backends) - set(BACKENDS)):
            raise InvalidInputError(f"backends: {unknown} are not among {', '.join(BACKENDS)}")


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One timed batch of the published loop."""

    n: int
    b: int
    pairs_per_s: float
    ms: float
    median_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class Row:
    """One timed scan; ``worst_gap`` is in units of the score, where the top 10 differ."""

    mode: str
    backend: str
    dtype: str
    n: int
    b: int
    pairs_per_s: float
    ms: float
    median_ms: float
    runs: int
    ratio_to_baseline: float
    ratio_of_medians: float
    identical_top10: float
    identical_ranks: float
    worst_gap: float


@dataclass(frozen=True, slots=True)
class _Case:
    """B mentions against N entities: both sides' input, the loop's scores and its time."""

    mentions: MentionArrays
    gold: np.ndarray  # (B,) int64
    reference: Array  # (B, N)
    baseline: BaselineRow


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


def measure(options: ScanOptions, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every combination; the payload of a result file.

    Parameters
    ----------
    options : what to measure.
    folder : for the exported scorer graph.
    say : told each line of progress.

    Raises
    ------
    EngineError
        If a scan disagrees with the published loop beyond rounding.
    """
    weights = random_weights(seed=options.seed)
    matcher = load_matcher(weights)
    gflops = sgemm_gflops(options.threads)
    say(f"sgemm on {options.threads} threads: {gflops:.0f} GFLOP/s")
    features: dict[str, float] = {}
    baselines: list[BaselineRow] = []
    rows: list[Row] = []
    for n in options.entities:
        entities = random_features(n, seed=options.seed + 1)
        folded = {dtype: fold_entities(matcher, entities, dtype) for dtype in TOLERANCES}
        features = {"baseline": entities.values_per_row * 4.0} | {d: nbytes(a) / n for d, a in folded.items()}
        cases = [_case(options, weights, matcher, entities, b) for b in options.batches]
        del entities
        baselines += [case.baseline for case in cases]
        for case in cases:
            say(f"baseline n={n} b={case.baseline.b}: {case.baseline.ms:.1f} ms")
        for row in _scans(options, matcher, cases, folded, folder):
            rows.append(row)
            say(
                f"{row.backend} {row.dtype} n={row.n} b={row.b}: {row.ms:.2f} ms, "
                f"{row.pairs_per_s:,.0f} pairs/s, {row.ratio_to_baseline:.1f} times the baseline"
            )
    return {
        "threads": options.threads,
        "sgemm_gflops": gflops,
        "expected": EXPECTED,
        "outcome": outcome(rows, features),
        "feature_bytes_per_entity": features,
        "baseline": [asdict(row) for row in baselines],
        "rows": [asdict(row) for row in rows],
    }


def _case(
    options: ScanOptions, weights: dict[str, Tensor], matcher: Matcher, entities: Features, batch: int
) -> _Case:
    """Time the published loop on one batch."""
    torch.set_num_threads(options.threads)
    mentions = random_features(batch, seed=options.seed + 2)
    published_scores(weights, mentions.block(0, 1), entities.block(0, min(16, len(entities))))  # warm-up
    timed, scores = repeat(lambda: published_scores(weights, mentions, entities), options.seconds)
    pairs = batch * len(entities)
    gold = np.random.default_rng(options.seed).integers(0, len(entities), batch)  # (B,)
    baseline = BaselineRow(
        n=len(entities),
        b=batch,
        pairs_per_s=1e3 * pairs / timed.least_ms,
        ms=timed.least_ms,
        median_ms=timed.median_ms,
        runs=len(timed.seconds),
    )
    return _Case(fold_mentions(matcher, mentions), gold, scores["total"].numpy(), baseline)


def _scans(
    options: ScanOptions,
    matcher: Matcher,
    cases: Sequence[_Case],
    folded: dict[str, EntityArrays],
    folder: Path,
) -> Iterator[Row]:
    for backend in options.backends:
        kernels = make_kernels(backend, fold_constants(matcher), cases[0].mentions, folded["float32"], folder)
        torch.set_num_threads(1)  # the scan spreads blocks over threads itself
        for dtype, entities in folded.items():
            for case in cases:
                yield _time_scan(options, kernels, dtype, entities, case)


def _time_scan(
    options: ScanOptions, kernels: ScanKernels, dtype: str, entities: EntityArrays, case: _Case
) -> Row:
    """Check one scan against the loop, then time it."""
    scan = Scan([entities], kernels, threads=options.threads)
    try:
        k = min(TOP_K, entities.rows)
        ranks = scan.ranks(case.mentions, case.gold)  # also the warm-up
        same_ranks = check_ranks(ranks, case.reference, case.gold, TOLERANCES[dtype])
        timed, found = repeat(lambda: scan.search(case.mentions, k, mode="exact"), options.seconds)
    finally:
        scan.close()
    agreement = compare_top_k(found.rows, case.reference)
    agreement.check(TOLERANCES[dtype])
    base = case.baseline
    return Row(
        mode="exact",
        backend=kernels.name,
        dtype=dtype,
        n=base.n,
        b=base.b,
        pairs_per_s=1e3 * base.n * base.b / timed.least_ms,
        ms=timed.least_ms,
        median_ms=timed.median_ms,
        runs=len(timed.seconds),
        ratio_to_baseline=base.ms / timed.least_ms,
        ratio_of_medians=base.median_ms / timed.median_ms,
        identical_top10=agreement.identical,
        identical_ranks=same_ranks,
        worst_gap=agreement.worst_gap,
    )


def outcome(rows: Sequence[Row], feature_bytes: dict[str, float]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`, by the ONNX scorer's worst row over half-precision features.

    A value is None, and so is its verdict, where nothing was measured at that batch.
    """
    found: dict[str, Any] = {}
    for b in (1, 20):
        ratios = [r.ratio_to_baseline for r in rows if (r.backend, r.dtype, r.b) == ("onnx", "float16", b)]
        worst = min(ratios, default=None)
        found[f"ratio_at_b{b}"] = worst
        found[f"ratio_at_b{b}_met"] = None if worst is None else worst >= EXPECTED[f"ratio_at_b{b}_min"]
    share = feature_bytes["float16"] / feature_bytes["baseline"]
    found["float16_feature_bytes_ratio"] = share
    found["float16_feature_bytes_ratio_met"] = share <= EXPECTED["float16_feature_bytes_ratio_max"]
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan_cpu", description=__doc__.partition("\n")[0]
    )
    default = ScanOptions()
    parser.add_argument("--out", type=Path, required=True, help="result file to write")
    parser.add_argument(
        "--n",
        type=_numbers,
        default=default.entities,
        metavar="N,...",
        help="numbers of entities %(default)s",
    )
    parser.add_argument(
        "--b", type=_numbers, default=default.batches, metavar="B,...", help="mentions a batch %(default)s"
    )
    parser.add_argument(
        "--backends", type=lambda text: tuple(text.split(",")), default=default.backends, metavar="NAME,..."
    )
    parser.add_argument(
        "--threads", type=int, default=available_threads(), help="cores for both sides (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=default.seconds, help="spent on each scan (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        options = ScanOptions(args.n, args.b, args.backends, args.threads, args.seconds, args.seed)
        with tempfile.TemporaryDirectory() as folder:
            payload = measure(options, Path(folder), lambda line: print(line, flush=True))
        print(write_result(args.out, payload))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
