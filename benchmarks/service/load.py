"""Latency against rate, up to saturation: ``python -m benchmarks.service.load`` writes ``load.json``.

Each row is an open loop at one rate (:mod:`benchmarks.service.open_loop`) against a service in a process of
its own. The rates grow until the service falls behind, and a little further.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.service.open_loop import Caller, Question, Row, offer, session, summarise
from benchmarks.service.process import ServiceProcess
from benchmarks.service.workload import Scene, add_arguments, leave_cores
from mimic_engine.provenance import write_result

FIRST_SHARE = 0.25  # of the rate of one client that waits for each answer
BEHIND = 0.95  # of what is sent: fewer answers meanwhile are saturation
BEYOND = 2  # rates after the first saturated one
SERIAL = 12  # requests that the first rate is taken from


async def serial_rate(caller: Caller, questions: Sequence[Question]) -> float:
    """Requests a second of one client that waits for each answer."""
    times = []
    for question in questions[:SERIAL]:
        now = time.perf_counter()
        times.append((await caller.ask(question, now, now)).latency_ms / 1e3)
    return 1 / statistics.median(times)


async def run_at(
    caller: Caller, questions: Sequence[Question], rate_per_s: float, seconds: float, settle_s: float
) -> Row:
    """One row: ``seconds`` at one rate, after ``settle_s`` that do not count."""
    samples = await offer(caller, questions, rate_per_s, settle_s + seconds)
    return summarise(samples, rate_per_s, settle_s + seconds, settle_s)


def saturated(row: Row) -> bool:
    """Whether the service falls behind at this rate."""
    answered = row.throughput_per_s * row.seconds
    return answered + 1 < BEHIND * row.sent or bool(row.rejected or row.expired)


async def sweep(
    address: str,
    questions: Sequence[Question],
    *,
    seconds: float,
    settle_s: float,
    factor: float,
    beyond: int = BEYOND,
) -> list[Row]:
    """Rows of growing rate, until ``beyond`` rates after the first saturated one."""
    rows: list[Row] = []
    async with session() as client:
        caller = Caller(client, f"{address}/v1/link")
        rate = FIRST_SHARE * await serial_rate(caller, questions)
        while sum(map(saturated, rows)) <= beyond:
            rows.append(await run_at(caller, questions, rate, seconds, settle_s))
            print(line(rows[-1]), flush=True)
            rate *= factor
    return rows


def line(row: Row) -> str:
    """A row as one line of text."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.1f}"

    return (
        f"{row.rate_per_s:8.1f}/s: {row.throughput_per_s:8.1f} answers/s, {row.rejected} rejected, "
        f"{row.expired} expired; "
        f"p50 {number(row.p50_ms)}, p95 {number(row.p95_ms)}, p99 {number(row.p99_ms)} ms"
    )


def peak(rows: Sequence[Row]) -> float:
    """The best throughput, answers a second."""
    return max(row.throughput_per_s for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="that count at each rate (%(default)s)")
    parser.add_argument("--settle", type=float, default=3, help="seconds before them (%(default)s)")
    parser.add_argument("--factor", type=float, default=1.3, help="from rate to rate (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "load.json")
    add_arguments(parser)
    args = parser.parse_args(argv)
    scene = Scene.open(args)
    questions = scene.questions(args.threads)
    leave_cores(args)
    with ServiceProcess(scene.command(args)) as service:
        rows = asyncio.run(
            sweep(service.address, questions, seconds=args.seconds, settle_s=args.settle, factor=args.factor)
        )
    payload = {"input": args.input, "questions": len(questions), "peak_per_s": peak(rows)}
    write_result(args.out, {**payload, "rows": [row.to_json() for row in rows]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
