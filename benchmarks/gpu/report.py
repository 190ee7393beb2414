"""The scan on a GPU: every kernel checked, then timed, against the device's ceilings and the published loop.

Parts run one after the other, each on its own: what fails is reported in the
result and the rest still runs; a part is not begun when the time is used up.

    ceilings   copy bandwidth and bf16 matrix rate
    checks     every kernel against its twin, fresh random input
    baseline   the published loop on the same device, features on the host and resident
    tiles      the few tiles of each kernel timed, at N = 110,000
    scans      modes x N x B: the answer checked, then timed (CUDA graph where it captures)

    python -m benchmarks.gpu.report --out benchmarks/results/scan_gpu.json
    TRITON_INTERPRET=1 python -m benchmarks.gpu.report --dry-run     (tiny shapes on the CPU)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import triton.language

from benchmarks.gpu.checks import run_checks
from benchmarks.gpu.data import World
from benchmarks.gpu.interpreted import numpy_topk
from benchmarks.gpu.run import DRY, Options, Report, Row, device_ms, say
from benchmarks.gpu.scans import measure_scans
from benchmarks.scan.published_loop import published_scores
from mimic_engine.errors import EngineError, MimicError
from mimic_engine.provenance import write_result

# Expected before the first run; see kernels/NOTES.md.
EXPECTED = {"exact_over_roofline_max": 2.0, "shortcut_over_exact_at_1e6_min": 5.0}


def measure_ceilings(report: Report) -> None:
    """Bytes read and written a second by a large copy; bf16 operations a second by a large product."""
    options, device = report.options, report.device
    source = torch.randn(options.copy_bytes // 8, device=device)
    target = torch.empty_like(source)
    ms = device_ms(device, lambda: target.copy_(source), options.seconds)
    report.ceilings["copy_bytes_per_s"] = 2 * source.numel() * 4 / (ms / 1e3)
    source = target = torch.empty(0)  # gives the memory back
    a, b = (torch.randn(options.matrix, options.matrix, device=device).bfloat16() for _ in range(2))
    ms = device_ms(device, lambda: a @ b, options.seconds)
    report.ceilings["bf16_flop_per_s"] = 2 * options.matrix**3 / (ms / 1e3)
    say(f"copy {report.ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"bf16 {report.ceilings['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s")  # fmt: skip


def check_kernels(report: Report, world: World) -> None:
    """Every kernel against its twin."""
    for check in run_checks(world, report.options.check_sizes, report.options.seed + 17):
        if isinstance(check, Exception):
            report.problem(f"check: {check}")
            continue
        report.checks.append(check)
        verdict = "ok" if check.passed else "WRONG"
        say(
            f"{verdict} {check.kernel} {check.dtype} n={check.n} b={check.b}: "
            f"{check.error:.2e} (limit {check.limit:.0e})"
        )
        if not check.passed:
            report.problem(f"check: {check.kernel} {check.dtype} n={check.n} b={check.b}: {check.error:.2e}")


def measure_baseline(report: Report, world: World) -> None:
    """The published loop on this device: features on the host, as published, and resident."""
    options = report.options
    for n, b in options.baseline:
        host = world.entities(0, n).block(0, n, torch.device("cpu"))
        mentions = world.mentions(torch.arange(b) % n, options.seed + 2)
        few = mentions.block(0, b, torch.device("cpu"))
        for where in ("host", "resident"):
            features = host if where == "host" else host.block(0, n, report.device)
            times = []
            for _ in range(1 if report.device.type != "cuda" else 3):
                begin = time.perf_counter()
                published_scores(world.weights, few, features)
                times.append(1e3 * (time.perf_counter() - begin))
            ms = min(times)
            report.baselines.append(
                {"n": n, "b": b, "features": where, "ms": ms, "pairs_per_s": 1e3 * n * b / ms}
            )
            say(f"published loop, features {where}: n={n} b={b}: {ms:.1f} ms")
            del features


def outcome(rows: Sequence[Row]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`; None where nothing was measured."""
    exact = [r.ms / r.roofline_ms for r in rows if r.mode == "exact" and r.roofline_ms]
    found: dict[str, Any] = {"exact_over_roofline": max(exact, default=None)}
    for mode in ("certified", "coded"):
        pairs = [
            e.ms / r.ms for r in rows for e in rows
            if (r.mode, e.mode, r.n) == (mode, "exact", 1_000_000)
            and (r.n, r.b, r.dtype) == (e.n, e.b, e.dtype)
        ]  # fmt: skip
        found[f"{mode}_over_exact_at_1e6"] = min(pairs, default=None)
    return found


def run(options: Options, device: torch.device, *, dry: bool) -> Report:
    """All parts; the report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted"
    report = Report(options, device, name)
    world = World.make(device, options.seed)
    report.part("ceilings", lambda: measure_ceilings(report))
    report.part("checks", lambda: check_kernels(report, world))
    if not report.sound:
        report.problem("timings: left out, a kernel is wrong")
        return report
    report.part("baseline", lambda: measure_baseline(report, world))
    for n in options.entities:
        for dtype in options.dtypes if dry or n != 20_818 else options.dtypes[:1]:
            report.part(f"scans {dtype} n={n}", lambda n=n, d=dtype: measure_scans(report, world, n, d))  # type: ignore[misc]
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return report


def payload(report: Report) -> dict[str, Any]:
    """The result file's content."""
    return {
        "device": report.name,
        "torch": torch.__version__,
        "features": "synthetic: token vectors around a vocabulary of 2,000, mentions copies with noise",
        "ceilings": report.ceilings,
        "expected": EXPECTED,
        "outcome": outcome(report.rows),
        "tiles": report.tiles,
        "checks": [asdict(c) | {"error": min(c.error, 1e30), "passed": c.passed} for c in report.checks],
        "baseline": report.baselines,
        "rows": [asdict(r) for r in report.rows],
        "problems": report.problems,
        "seconds": time.monotonic() - report.start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 if something failed, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU, in the interpreter")
    parser.add_argument(
        "--budget", type=float, default=540.0, metavar="SECONDS", help="begin no part after this"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        options = replace(DRY if args.dry_run else Options(), seed=args.seed)
        if args.dry_run:
            triton.language.topk = numpy_topk
        if not args.dry_run:
            options = replace(options, budget_s=args.budget)
            if not torch.cuda.is_available():
                raise EngineError("device: no CUDA device here; --dry-run exercises the report without one")
        report = run(options, torch.device("cpu" if args.dry_run else args.device), dry=args.dry_run)
        if args.out is not None:
            print(write_result(args.out, payload(report)))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(report.checks)} checks, {len(report.rows)} rows, {len(report.problems)} problems")
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
