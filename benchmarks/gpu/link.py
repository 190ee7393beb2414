"""Whole requests on the device: token ids and pixels to ranked entities, every answer checked, then timed.

For each encoder backend that opens, each number of entities N, mode and batch:
latency from prepared mentions on the host to ranked rows on the host, the same
from text and JPEG, mentions a second with two batches under way, and where the
time goes, stage by stage. See ``link_cases`` for what is random. Beside them the
published loop (``baseline``) on the same device, scan alone, features on the host.

    python -m benchmarks.gpu.link --out benchmarks/results/link_gpu.json
    TRITON_INTERPRET=1 python -m benchmarks.gpu.link --dry-run      (tiny shapes on the CPU)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language

from benchmarks import RESULTS
from benchmarks.gpu.data import World
from benchmarks.gpu.interpreted import numpy_topk
from benchmarks.gpu.link_cases import CASES, Bench, Encoders, Opened, open_scan
from benchmarks.scan.published_loop import published_scores
from benchmarks.scan.published_model import Towers
from mimic_engine.errors import EngineError, MimicError
from mimic_engine.gpu.pipeline import SLOTS, CapturedPipeline, overlapped
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.provenance import write_result
from mimic_engine.types import MODES, Mode

RUNS = 5  # at least, of each timing
EXPECTED = {"one_mention_p50_ms_max": 3.0}  # N = 110,000; see kernels/NOTES.md


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    entities: tuple[int, ...] = (110_000, 1_000_000)
    batches: tuple[int, ...] = (1, 8, 32)
    modes: tuple[Mode, ...] = MODES
    cases: tuple[tuple[str, str], ...] = CASES
    towers: Towers = field(default_factory=Towers)
    centroids: int = 1024
    seconds: float = 0.5  # spent on each timing
    budget_s: float = 240.0
    baseline: tuple[int, int] | None = (20_818, 20)  # entities and mentions of the published loop
    seed: int = 0


DRY = Options((40,), (1, 2), ("exact", "certified"), CASES[:1], Towers(1, 64), 8, 0.0, 1e9, (20, 2))


@dataclass(frozen=True, slots=True)
class Row:
    """One batch timed. ``stages`` are milliseconds: "prepare", "start" and "finish" on the host, the others
    on the device, each launched apart.
    """

    backend: str
    precision: str
    device: str
    mode: str
    n: int
    batch: int
    p50_ms: float
    p99_ms: float
    request_p50_ms: float  # text and JPEG, one after the other, included
    per_s: float  # two batches under way
    stages: dict[str, float]
    graphs: int
    launched: tuple[str, ...]  # stages outside every graph
    scored_share: float
    dense_share: float  # mentions of a certified search that were scored densely
    folding_error: float
    ratio_to_published: float | None
    runs: int


def times_ms(work: Callable[[], object], budget_s: float) -> list[float]:
    """Milliseconds of at least :data:`RUNS` runs, until the budget is spent."""
    times: list[float] = []
    while len(times) < RUNS or sum(times) < 1e3 * budget_s:
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def row(
    bench: Bench, case: tuple[str, str], n: int, batch: int, mode: Mode, options: Options, device: str,
    published: float | None,
) -> Row:  # fmt: skip
    """Check a batch, then time it."""
    prepared, mentions = bench.prepared[:batch], bench.encoders.mentions[:batch]
    error = bench.check(batch, mode, case[1])
    found = bench.answer(prepared, mode)
    times = times_ms(lambda: bench.answer(prepared, mode), options.seconds)
    whole = times_ms(lambda: bench.answer([bench.prepare(m) for m in mentions], mode), options.seconds)
    p50, p99 = (float(np.quantile(times, q)) for q in (0.5, 0.99))
    captured = bench.pipeline.captured[bench.bucket(prepared, mode)]
    dense = float(np.mean([m == "exact" for m in found.modes])) if mode == "certified" else 0.0
    base = None if published is None else published * n * batch
    return Row(
        *case, device, mode, n, batch, p50, p99, float(np.median(whole)),
        per_s=saturation(bench, batch, mode, options.seconds),
        stages=stages(bench, batch, mode, options.seconds),
        graphs=captured.graphs, launched=captured.launched,
        scored_share=float((found.scored / n).mean()), dense_share=dense, folding_error=error,
        ratio_to_published=None if base is None else base / p50, runs=len(times),
    )  # fmt: skip


def saturation(bench: Bench, batch: int, mode: Mode, budget_s: float) -> float:
    """Mentions a second, the next batch started before the one before it is finished."""
    prepared = bench.prepared[:batch]
    begin, number = time.perf_counter(), 0

    def batches() -> Iterator[None]:
        count = 0
        while count < RUNS or time.perf_counter() - begin < budget_s:
            yield None
            count += 1

    for _ in overlapped(batches(), lambda _: bench.start(prepared, mode), bench.finish, SLOTS):
        number += batch
    return number / (time.perf_counter() - begin)


def stages(bench: Bench, batch: int, mode: Mode, budget_s: float) -> dict[str, float]:
    """Median milliseconds of every stage: on the host by its clock, on the device between events."""
    prepared, mentions = bench.prepared[:batch], bench.encoders.mentions[:batch]
    pipeline, device = bench.pipeline, bench.pipeline.device
    found = {"prepare": _median(lambda: [bench.prepare(m) for m in mentions])}
    starts, finishes = [], []
    for _ in range(RUNS):
        under_way, took = _timed(lambda: bench.start(prepared, mode))
        starts.append(took)
        finishes.append(_timed(lambda b=under_way: bench.finish(b))[1])  # type: ignore[misc]
    found |= {"start": float(np.median(starts)), "finish": float(np.median(finishes))}
    bucket = bench.bucket(prepared, mode)
    captured = CapturedPipeline(device, pipeline.plan.stages(bucket, pipeline.arrays(bucket)), apart=True)
    marks = _Marks(device)
    with device.current():
        captured.run()
        begin = time.perf_counter()
        for turn in range(RUNS * 100):
            marks.begin()
            captured.run(marks.mark)
            marks.end()
            if turn + 1 >= RUNS and time.perf_counter() - begin > budget_s:
                break
    return found | marks.medians()


class _Marks:
    """Times between stages: CUDA events, or the clock on the CPU."""

    def __init__(self, device: TorchDevice) -> None:
        self._cuda = device.device.type == "cuda"
        self._turn: list[tuple[str, Any]] = []
        self._times: dict[str, list[float]] = {}

    def begin(self) -> None:
        """Before the first stage."""
        self._turn = []
        self.mark("")

    def mark(self, name: str) -> None:
        """Behind a stage."""
        if not self._cuda:
            self._turn.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._turn.append((name, event))

    def end(self) -> None:
        """Behind the last: read the times."""
        if self._cuda:
            self._turn[-1][1].synchronize()
        for (_, a), (name, b) in zip(self._turn, self._turn[1:], strict=False):
            self._times.setdefault(name, []).append(a.elapsed_time(b) if self._cuda else 1e3 * (b - a))

    def medians(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return {name: float(np.median(times)) for name, times in self._times.items()}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, 1e3 * (time.perf_counter() - start)


def _median(work: Callable[[], object]) -> float:
    return float(np.median(times_ms(work, 0.0)))


def published_ms(world: World, sizes: tuple[int, int]) -> float:
    """Milliseconds of the published loop a pair, features on the host, best of three."""
    n, b = sizes
    host = world.entities(0, n).block(0, n, torch.device("cpu"))
    mentions = world.mentions(torch.arange(b) % n, 2).block(0, b, torch.device("cpu"))
    return min(_timed(lambda: published_scores(world.weights, mentions, host))[1] for _ in range(3)) / (n * b)


class Run:
    """All rows, and what could not be measured and why.

    Parameters
    ----------
    options : what to measure.
    device : where.
    folder : for what is exported.
    """

    def __init__(self, options: Options, device: torch.device, folder: Path) -> None:
        self.options, self.device = options, device
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}
        self._start = time.monotonic()
        self.world = World.make(device, options.seed)
        self.published = None if options.baseline is None else published_ms(self.world, options.baseline)
        self.encoders = Encoders(folder, self.world, options.towers, max(options.batches))
        self.opened: dict[tuple[str, str], Opened] = {}
        for case in options.cases:
            try:
                self.opened[case] = self.encoders.open(*case)
            except (MimicError, RuntimeError, ImportError) as error:  # torch raises RuntimeError
                self._skip(" ".join(case), str(error))

    def measure(self) -> None:
        """Every N, backend, mode and batch, until the time is used up."""
        options = self.options
        for n in options.entities:
            scan, given = open_scan(self.world, n, options.centroids, max(options.batches), options.seed)
            for case, opened in self.opened.items():
                make = partial(Bench.make, self.encoders, opened, scan, given)
                self._bench(f"{' '.join(case)} n={n}", make, case, n, options.modes)
            del scan, make
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _bench(
        self, label: str, make: Callable[[], Bench], case: tuple[str, str], n: int, modes: Sequence[Mode]
    ) -> None:
        try:
            bench = make()
        except (MimicError, RuntimeError) as error:
            self._skip(label, f"failed: {error}")
            return
        for mode in modes:
            for batch in self.options.batches:
                what = f"{label} {mode} b={batch}"
                if time.monotonic() - self._start > self.options.budget_s:
                    self._skip(what, "not begun, the time is used up")
                    continue
                try:
                    found = row(bench, case, n, batch, mode, self.options, _name(self.device), self.published)
                except (MimicError, RuntimeError) as error:
                    self._skip(what, f"WRONG or failed: {error}")
                    continue
                self.rows.append(found)
                print(f"{what}: {found.p50_ms:.3f} ms, {found.per_s:,.0f} mentions/s", flush=True)

    def _skip(self, what: str, why: str) -> None:
        self.skipped[what] = why
        print(f"{what}: {why}", flush=True)


def payload(
    rows: Sequence[Row], skipped: dict[str, str], options: Options, published: float | None
) -> dict[str, Any]:
    """The result file's content."""
    one = [r.p50_ms for r in rows if (r.n, r.batch, r.mode) == (110_000, 1, "certified")]
    return {
        "torch": torch.__version__,
        "encoders": {**asdict(options.towers), "weights": "random"},
        "features": "of the search: synthetic, as in scan_gpu; put in place of what the encoders gave",
        "published_ms_per_pair": published,
        "expected": EXPECTED,
        "outcome": {"one_mention_p50_ms": min(one, default=None)},
        "rows": [asdict(r) for r in rows],
        "skipped": skipped,
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 if something was wrong or failed, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.link", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, help="result file to write, such as " + str(RESULTS / "link_gpu.json")
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU, in the interpreter")
    parser.add_argument(
        "--budget", type=float, default=240.0, metavar="SECONDS", help="begin no row after this"
    )
    args = parser.parse_args(argv)
    try:
        if args.dry_run:
            triton.language.topk = numpy_topk
        elif not torch.cuda.is_available():
            raise EngineError("device: no CUDA device here; --dry-run exercises the benchmark without one")
        options = DRY if args.dry_run else Options(budget_s=args.budget)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(options, torch.device("cpu" if args.dry_run else "cuda"), Path(folder))
            run.measure()
            found = payload(run.rows, run.skipped, options, run.published)
        if args.out is not None:
            print(write_result(args.out, found))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any("failed" in reason for reason in found["skipped"].values()) or not found["rows"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
