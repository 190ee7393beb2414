"""Open-loop load: requests leave at a constant rate, answered or not, and every answer is checked.

A latency counts from the moment at which its request was meant to leave, so that a service that stalls
cannot hide the requests it would have received meanwhile. Nothing here starts or knows a service but by its
address; what is asked comes from :mod:`benchmarks.service.workload`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import numpy as np

from mimic_engine.errors import EngineError

TOLERANCE = 1e-4  # of a score, relative: float32 sums in batches of other sizes
ANSWER_S = 120.0  # no answer after so long is a failure
HEADERS = {"content-type": "application/json"}
_TIMING = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True, slots=True)
class Question:
    """A body of ``POST /v1/link`` for the best ``top_k``, and the ids and scores of the right answer.

    ``answer`` holds the runner-up too, where there is one, so that a tie at the end can be told.
    """

    body: bytes
    top_k: int
    answer: tuple[tuple[str, float], ...]

    def check(self, candidates: Sequence[Mapping[str, Any]], beside: str = "\0") -> None:
        """Compare an answer; entities change places only where their scores tie within the tolerance.

        ``beside`` begins the ids of entities that were added since; they are left out.

        Raises
        ------
        EngineError
            If an entity or a score is another one.
        """
        right, places = dict(self.answer), iter(self.answer)
        for candidate in candidates:
            id_, score = candidate["id"], candidate["score"]
            if id_.startswith(beside):
                continue
            place_id, place = next(places, ("nothing", math.nan))
            limit = TOLERANCE * max(1.0, abs(place))
            if not abs(score - place) <= limit or not abs(right.get(id_, math.inf) - place) <= limit:
                raise EngineError(f"wrong answer: {id_} {score}, expected {place_id} {place}")
        if len(candidates) != self.top_k:
            raise EngineError(f"wrong answer: {len(candidates)} candidates, expected {self.top_k}")


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request; ``status`` is 0 where no answer came. Times from its intended start."""

    intended_s: float
    late_ms: float  # by which the generator itself was late
    latency_ms: float
    status: int
    parts_ms: Mapping[str, float] = field(default_factory=dict)  # of Server-Timing
    problem: str = ""

    @property
    def done_s(self) -> float:
        """When the answer had come, from the start of the run."""
        return self.intended_s + self.latency_ms / 1e3


@dataclass(frozen=True, slots=True)
class Row:
    """A run at one rate, summed up: requests and answers a second, milliseconds, shares in [0, 1]."""

    rate_per_s: float
    seconds: float
    sent: int
    accepted: int
    rejected: int
    expired: int
    throughput_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    queue_share: float | None
    device_p99_ms: float | None
    rejected_p99_ms: float | None
    rejected_service_p99_ms: float | None  # of that, what the service says it took
    generator_late_p99_ms: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


class Caller:
    """Asks a service over as many connections as it takes."""

    def __init__(self, session: aiohttp.ClientSession, address: str, *, beside: str = "\0") -> None:
        self._session, self._address, self._beside = session, address, beside

    async def ask(self, question: Question, intended: float, started: float) -> Sample:
        """Send one request and check its answer; times are those of :func:`time.perf_counter`."""
        sent = time.perf_counter()
        late_ms = (sent - intended) * 1e3
        begun = intended - started
        try:
            async with self._session.post(self._address, data=question.body, headers=HEADERS) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            waited_ms = (time.perf_counter() - intended) * 1e3
            return Sample(begun, late_ms, waited_ms, 0, problem=f"{type(error).__name__}: {error}")
        latency_ms = (time.perf_counter() - intended) * 1e3
        if response.status == 200:
            question.check(json.loads(content)["candidates"], self._beside)
        parts = {n: float(v) for n, v in _TIMING.findall(response.headers.get("server-timing", ""))}
        problem = "" if response.status == 200 else content.decode(errors="replace")[:300]
        return Sample(begun, late_ms, latency_ms, response.status, parts, problem)


def session() -> aiohttp.ClientSession:
    """A client without a limit of connections, so that it never queues by itself."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=ANSWER_S)
    )


async def offer(
    caller: Caller, questions: Sequence[Question], rate_per_s: float, seconds: float
) -> list[Sample]:
    """Send ``rate_per_s`` requests a second for ``seconds``, evenly spaced; wait for all answers.

    Raises
    ------
    EngineError
        If an answer is wrong.
    """
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for i in range(max(1, round(rate_per_s * seconds))):
            intended = started + i / rate_per_s
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            tasks.append(group.create_task(caller.ask(questions[i % len(questions)], intended, started)))
    return [task.result() for task in tasks]


def summarise(samples: Sequence[Sample], rate_per_s: float, seconds: float, settle_s: float = 0.0) -> Row:
    """Sum up a run, without what was meant to leave in its first ``settle_s``.

    Throughput counts the answers that came between the end of that time and the end of the run.

    Raises
    ------
    EngineError
        If a request got neither an answer, nor 429, nor 504; says which.
    """
    counted = [s for s in samples if s.intended_s >= settle_s]
    failed = [s for s in counted if s.status not in (200, 429, 504)]
    if failed:
        raise EngineError(
            f"{len(failed)} requests failed, one of them: {failed[0].status} {failed[0].problem}"
        )
    accepted = [s for s in counted if s.status == 200]
    within = sum(s.status == 200 and settle_s <= s.done_s <= seconds for s in samples)
    total = sum(s.parts_ms.get("total", 0.0) for s in accepted)
    queued = sum(s.parts_ms.get("queue", 0.0) for s in accepted)
    latencies = [s.latency_ms for s in accepted]
    rejected = [s for s in counted if s.status == 429]
    return Row(
        rate_per_s=rate_per_s,
        seconds=seconds - settle_s,
        sent=len(counted),
        accepted=len(accepted),
        rejected=len(rejected),
        expired=len(counted) - len(accepted) - len(rejected),
        throughput_per_s=within / (seconds - settle_s),
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        queue_share=queued / total if total else None,
        device_p99_ms=percentile([s.parts_ms.get("device", 0.0) for s in accepted], 99),
        rejected_p99_ms=percentile([s.latency_ms for s in rejected], 99),
        rejected_service_p99_ms=percentile([s.parts_ms.get("total", 0.0) for s in rejected], 99),
        generator_late_p99_ms=percentile([s.late_ms for s in counted], 99) or 0.0,
    )


def percentile(values: Sequence[float], q: float) -> float | None:
    """The ``q``-th percentile, or None of nothing."""
    return float(np.percentile(values, q)) if values else None
