"""A service at three times its capacity: ``python -m benchmarks.service.overload`` writes ``overload.json``.

First the peak is found by a sweep as in :mod:`benchmarks.service.load`; then the service is offered a
multiple of it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.service.load import line, peak, run_at, sweep
from benchmarks.service.open_loop import Caller, Question, session
from benchmarks.service.process import ServiceProcess
from benchmarks.service.workload import Scene, add_arguments, leave_cores
from mimic_engine.errors import EngineError
from mimic_engine.provenance import write_result

TIMES = 3.0


async def measure(
    service: ServiceProcess, questions: Sequence[Question], *, seconds: float, settle_s: float, factor: float
) -> dict[str, Any]:
    """Find the peak, overload, and compare.

    Raises
    ------
    EngineError
        If nothing was accepted or nothing rejected: then it was no overload.
    """
    rows = await sweep(
        service.address, questions, seconds=seconds, settle_s=settle_s, factor=factor, beyond=1
    )
    best, before = peak(rows), service.memory_bytes
    async with session() as client:
        caller = Caller(client, f"{service.address}/v1/link")
        row = await run_at(caller, questions, TIMES * best, seconds, settle_s)
    print(line(row), flush=True)
    if not (row.accepted and row.rejected):
        raise EngineError(f"{row.accepted} accepted and {row.rejected} rejected: this is no overload")
    return {
        "times": TIMES,
        "peak_per_s": best,
        "throughput_share": row.throughput_per_s / best,
        "accepted_p99_ms": row.p99_ms,
        "rejected_p99_ms": row.rejected_p99_ms,
        "rejected_service_p99_ms": row.rejected_service_p99_ms,
        "service_p99_ms": row.device_p99_ms,
        "memory_before_bytes": before,
        "memory_after_bytes": service.memory_bytes,
        "row": row.to_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="that count at each rate (%(default)s)")
    parser.add_argument("--settle", type=float, default=5, help="seconds before them (%(default)s)")
    parser.add_argument("--factor", type=float, default=1.4, help="from rate to rate (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "overload.json")
    add_arguments(parser)
    args = parser.parse_args(argv)
    scene = Scene.open(args)
    questions = scene.questions(args.threads)
    leave_cores(args)
    with ServiceProcess(scene.command(args)) as service:
        result = asyncio.run(
            measure(service, questions, seconds=args.seconds, settle_s=args.settle, factor=args.factor)
        )
    write_result(args.out, {"input": args.input, "questions": len(questions), **result})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
