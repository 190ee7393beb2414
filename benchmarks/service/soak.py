"""Steady load for long while the index changes: ``python -m benchmarks.service.soak`` writes ``soak.json``.

Counts what goes wrong and watches the memory of the service. Every answer is checked; entities that the run
adds are left out of the comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.durability.changes import BESIDE, Changer, admin_options
from benchmarks.service.load import serial_rate
from benchmarks.service.open_loop import Caller, Question, Sample, offer, percentile, session
from benchmarks.service.process import ServiceProcess
from benchmarks.service.workload import Scene, add_arguments, leave_cores
from mimic_engine.provenance import write_result

CHUNK_S = 10.0
EDGE = 5  # memory is compared between the second and the last of so many parts of the run
SHARE = 0.5  # of the rate of one client that waits for each answer


async def soak(
    service: ServiceProcess, questions: Sequence[Question], *, seconds: float, rate_per_s: float | None
) -> dict[str, Any]:
    """Load the service for ``seconds``.

    Raises
    ------
    EngineError
        If an answer is wrong, or a change is refused or not seen.
    """
    async with session() as client, asyncio.TaskGroup() as group:
        caller = Caller(client, f"{service.address}/v1/link", beside=BESIDE)
        rate = rate_per_s or SHARE * await serial_rate(caller, questions)
        changer, over = Changer(client, service.address), asyncio.Event()
        await changer.look()
        changing = group.create_task(changer.run(over))
        rows, problems = await _load(service, caller, questions, seconds, rate)
        over.set()
        await changing
    memory = [row["memory_bytes"] for row in rows]
    part = max(1, len(memory) // EDGE)
    first, last = statistics.median(memory[part : 2 * part] or memory), statistics.median(memory[-part:])
    return {
        "rate_per_s": rate,
        "seconds": rows[-1]["at_s"],
        "requests": sum(row["requests"] for row in rows),
        "rejected": sum(row["rejected"] for row in rows),
        "errors": len(problems),
        "problems": problems[:10],
        "changes": changer.counts.to_json(),
        "memory_first_bytes": first,
        "memory_last_bytes": last,
        "memory_growth_share": last / first - 1,
        "p99_ms": percentile([row["p99_ms"] for row in rows if row["p99_ms"] is not None], 50),
        "rows": rows,
    }


async def _load(
    service: ServiceProcess, caller: Caller, questions: Sequence[Question], seconds: float, rate: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one chunk each, and what went wrong."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    started = time.perf_counter()
    chunks = math.ceil(seconds / CHUNK_S)
    asked = 0
    for _ in range(chunks):
        turn = asked % len(questions)
        samples = await offer(caller, [*questions[turn:], *questions[:turn]], rate, seconds / chunks)
        asked += len(samples)
        problems += [f"{s.status} {s.problem}" for s in samples if s.status not in (200, 429)]
        rows.append(_row(samples, time.perf_counter() - started, service.memory_bytes))
        print(rows[-1], flush=True)
    return rows, problems


def _row(samples: Sequence[Sample], at_s: float, memory_bytes: int) -> dict[str, Any]:
    accepted = [s.latency_ms for s in samples if s.status == 200]
    return {
        "at_s": at_s,
        "requests": len(samples),
        "rejected": sum(s.status == 429 for s in samples),
        "p99_ms": percentile(accepted, 99),
        "memory_bytes": memory_bytes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long (%(default)s)")
    parser.add_argument(
        "--rate", type=float, help="requests a second; half of what one client gets by default"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    add_arguments(parser)
    args = parser.parse_args(argv)
    scene = Scene.open(args)
    questions = scene.questions(args.threads)
    leave_cores(args)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(admin_options())
        scene = stack.enter_context(scene.copied())  # the run changes the index
        service = stack.enter_context(ServiceProcess([*scene.command(args), *options]))
        result = asyncio.run(soak(service, questions, seconds=60 * args.minutes, rate_per_s=args.rate))
    write_result(args.out, {"input": args.input, "questions": len(questions), **result})
    return int(result["errors"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
