"""The scan on a GPU: every kernel checked, then timed, against the device's ceilings and the published loop.

Parts run one after the other, each on its own: what fails is reported in the
result and the rest still runs; a part is not begun when the time is used up.

    ceilings   copy bandwidth and bf16 matrix rate
    checks     every kernel against its twin, fresh random input
    tuning     the few tiles of each kernel, at N = 110,000
    scans      modes x N x B: the answer checked, then timed (CUDA graph where it captures)
    baseline   the published loop on the same device, features on the host and resident

    python -m benchmarks.gpu_report --out benchmarks/results/scan_gpu.json
    TRITON_INTERPRET=1 python -m benchmarks.gpu_report --dry-run     (tiny shapes on the CPU)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language
from torch import Tensor

from benchmarks.baseline import published_scores
from benchmarks.gpu_checks import Check, run_checks
from benchmarks.gpu_data import World, cluster, fold_entities, fold_mentions
from benchmarks.interpreted import numpy_topk
from mimic_engine.errors import EngineError, MimicError
from mimic_engine.kernels.tuning import Tiles, tuned
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.record import write_result
from mimic_engine.scoring.cuda import CudaScan
from mimic_engine.scoring.scan import TopK
from mimic_engine.types import EntityArrays, MentionArrays, Mode

TOP_K = 10
TOKENS, WIDTH = 40, 96
# Expected before the first run; see kernels/NOTES.md.
EXPECTED = {"exact_over_roofline_max": 2.0, "shortcut_over_exact_at_1e6_min": 5.0}
TOLERANCE = 2e-2  # two half-precision totals of up to 40 may be told the wrong way round within this


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
    tiles: Path | None = None


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
    tiles: Tiles = field(default_factory=Tiles)

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


def tune(report: Report, scan: CudaScan, world: World) -> None:
    """Measure the candidates of each kernel on a live scan; keep the winners for what follows."""
    options = report.options
    entities = len(scan)
    gold = torch.arange(max(options.batches)) % entities
    mentions = fold_mentions(world, gold, options.seed + 1)
    prepared = {
        ("attention_one", "exact"): scan.prepare(_first(mentions, 1), "exact"),
        ("attention_many", "exact"): scan.prepare(mentions, "exact"),
        ("gated", "exact"): scan.prepare(mentions, "exact"),
        ("cone", "certified"): scan.prepare(mentions, "certified"),
        ("coded", "coded"): scan.prepare(mentions, "coded"),
    }
    [chunk] = list(scan.index.chunks(entities, queries=True))
    passes = {"exact": scan.passes.totals, "certified": scan.passes.bounds, "coded": scan.passes.estimates}

    def measure(name: str, mode: str) -> Callable[[Any], float]:
        def run(tile: Any) -> float:
            scan.passes.tiles = replace(Tiles(), **{name: tile})
            return device_ms(
                report.device, lambda: passes[mode](prepared[name, mode], chunk), options.seconds / 4
            )

        return run

    assert options.tiles is not None
    key = f"{report.name} torch {torch.__version__} tokens {TOKENS} width {WIDTH}"
    report.tiles = tuned(options.tiles, key, {name: measure(name, mode) for name, mode in prepared}, say)
    scan.passes.tiles = report.tiles


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


def measure_scans(report: Report, world: World, n: int, dtype: str) -> None:
    """All modes and batches over N entities of one storage type."""
    options = report.options
    entities = fold_entities(world, n, dtype)
    book = cluster(world, entities, options.centroids)
    scan = CudaScan((entities,), world.constants, device=str(report.device), codes=book, tiles=report.tiles)
    size = sum(a.nbytes for _, a in entities.items())
    say(f"n={n} {dtype}: {size / n:.0f} bytes an entity, {size / 2**30:.2f} GiB")
    if n == options.entities[min(1, len(options.entities) - 1)] and dtype == "float16":
        report.part("tuning", lambda: tune(report, scan, world))
    gold = torch.randint(0, n, (max(options.batches),), generator=torch.Generator().manual_seed(options.seed))
    every = fold_mentions(world, gold, options.seed + 3)
    for b in options.batches:
        mentions = _first(every, b)
        reference = _reference(report, world, entities, mentions) if b * n <= 4_000_000 else None
        exact = scan.search(mentions, TOP_K, mode="exact")
        for mode in ("exact", "certified", "coded"):
            report.part(
                f"{mode} {dtype} n={n} b={b}",
                lambda mode=mode, b=b, m=mentions, r=reference, e=exact: report.rows.append(  # type: ignore[misc]
                    _row(report, scan, mode, dtype, n, b, m, r, e, size)
                ),
            )


def _row(
    report: Report,
    scan: CudaScan,
    mode: Mode,
    dtype: str,
    n: int,
    b: int,
    mentions: MentionArrays,
    reference: Tensor | None,
    exact: TopK,
    size: int,
) -> Row:
    """Check one mode's answer, then time it."""
    found = scan.search(mentions, TOP_K, mode=mode)
    if mode == "exact" and reference is not None and dtype == "float16":
        _check_answer(found, reference)
    same = float((found.rows == exact.rows).all(1).mean())
    if mode == "certified" and same < 1 and np.abs(found.scores - exact.scores).max() > TOLERANCE / 10:
        raise EngineError(f"certified differs from exact for {1 - same:.1%} of the mentions")
    ms, captured = _launch_ms(report, scan, mode, mentions)
    search_ms = _host_ms(lambda: scan.search(mentions, TOP_K, mode=mode), report.options.seconds)
    base = _baseline_ms(report, n, b)
    coded = mode == "coded"
    row = Row(
        mode, "triton", dtype, n, b, ms, search_ms, captured,
        pairs_per_s=1e3 * n * b / ms,
        ratio_to_baseline=None if base is None else base / search_ms,
        roofline_ms=_roofline_ms(report, mode, n, b, size),
        identical_top10=same,
        survivor_share=float((found.scored / n).mean()),
        dense_share=float(np.mean([m == "exact" for m in found.modes])) if mode == "certified" else 0.0,
        agreement_top1=float((found.rows[:, 0] == exact.rows[:, 0]).mean()) if coded else None,
        top10_contained=_contained(found, exact) if coded else None,
        device=report.name,
    )  # fmt: skip
    roofline = "" if row.roofline_ms is None else f", roofline {row.roofline_ms:.3f}"
    say(
        f"{mode} {dtype} n={n} b={b}: {ms:.3f} ms{'' if captured else ' (not captured)'}{roofline}, "
        f"search {search_ms:.3f} ms, "
        f"{row.pairs_per_s:,.0f} pairs/s, {row.survivor_share:.2%} scored, same top 10 {same:.1%}"
    )
    return row


def _launch_ms(report: Report, scan: CudaScan, mode: Mode, mentions: MentionArrays) -> tuple[float, bool]:
    """Device time of a search's launches, mentions prepared; and whether a CUDA graph was replayed."""
    prepared, seconds = scan.prepare(mentions, mode), report.options.seconds

    def launch() -> None:
        scan.launch(prepared, TOP_K, mode)

    plain = device_ms(report.device, launch, seconds)
    if report.device.type != "cuda":
        return plain, False
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        return device_ms(report.device, graph.replay, seconds), True
    except Exception as error:  # the plain time stands
        report.problem(f"graph {mode}: {type(error).__name__}: {str(error)[:200]}")
        torch.cuda.synchronize(report.device)
        return plain, False


def _host_ms(run: Callable[[], Any], seconds: float) -> float:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _roofline_ms(report: Report, mode: Mode, n: int, b: int, size: int) -> float | None:
    """The larger of bytes over copy bandwidth and operations over bf16 rate, each entity read once."""
    if not report.ceilings:
        return None
    query = n * TOKENS * WIDTH * (1 if size / n < 7_500 else 2)
    cheap_values = 512 + 7 * WIDTH  # text, six vectors of the vision unit, CMFU: inner products a pair
    work = {
        "exact": 2 * TOKENS * TOKENS * WIDTH,
        "certified": 2 * TOKENS * WIDTH + 2 * 5 * TOKENS * TOKENS,
        "coded": 2 * TOKENS * WIDTH,
    }[mode]
    read = {"exact": size, "certified": size - query, "coded": size - query + 2 * TOKENS * n}[mode]
    operations = n * b * (work + 2 * (cheap_values + 4 * WIDTH))
    return 1e3 * max(
        read / report.ceilings["copy_bytes_per_s"], operations / report.ceilings["bf16_flop_per_s"]
    )


@torch.no_grad()
def _reference(report: Report, world: World, entities: EntityArrays, mentions: MentionArrays) -> Tensor:
    """Totals (B, N) by the PyTorch formulas in float32 over the stored entities."""
    scorer = FoldedScorer(world.constants).to(report.device)
    mention = {name: torch.from_numpy(a).to(report.device) for name, a in mentions.items()}
    parts = []
    for start in range(0, entities.rows, 4096):
        block = entities.block(start, min(start + 4096, entities.rows))
        entity = {name: torch.from_numpy(np.array(a)).to(report.device).float() for name, a in block.items()}
        if "tglu_query_scale" in entity:
            entity["tglu_query"] *= entity.pop("tglu_query_scale")[..., None]
        parts.append(scorer(mention, entity).total)
    return torch.cat(parts, 1)


def _check_answer(found: TopK, reference: Tensor) -> None:
    """The scan's top 10 are the reference's, or lie within rounding of them."""
    best = reference.topk(min(TOP_K, reference.shape[1]), dim=1).values.cpu().numpy()
    own = reference.gather(1, torch.from_numpy(found.rows).to(reference.device)).cpu().numpy()
    gap = float(np.abs(best - own).max())
    if not gap <= TOLERANCE:
        raise EngineError(
            f"top 10: places differ by {gap:.2e} in the reference's scores, the limit is {TOLERANCE}"
        )


def _baseline_ms(report: Report, n: int, b: int) -> float | None:
    """The published loop's time, features on the host, for as many pairs; of the nearest batch measured."""
    own = [r for r in report.baselines if r["features"] == "host"]
    if not own:
        return None
    nearest = min(own, key=lambda r: (abs(r["b"] - b), abs(r["n"] - n)))
    return float(nearest["ms"] * n * b / (nearest["n"] * nearest["b"]))


def _contained(found: TopK, exact: TopK) -> float:
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact.rows, found.rows, strict=True)]))


def _first(mentions: MentionArrays, b: int) -> MentionArrays:
    return MentionArrays(**{name: a[:b] for name, a in mentions.items()})


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
        "tiles": report.tiles.to_json(),
        "checks": [asdict(c) | {"error": min(c.error, 1e30), "passed": c.passed} for c in report.checks],
        "baseline": report.baselines,
        "rows": [asdict(r) for r in report.rows],
        "problems": report.problems,
        "seconds": time.monotonic() - report.start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 if something failed, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU, in the interpreter")
    tiles = Path(tempfile.gettempdir()) / "mimic_engine_tiles.json"
    parser.add_argument("--tiles", type=Path, default=tiles, help="file that keeps tuned tiles (%(default)s)")
    parser.add_argument(
        "--budget", type=float, default=540.0, metavar="SECONDS", help="begin no part after this"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        options = replace(DRY if args.dry_run else Options(), seed=args.seed, tiles=args.tiles)
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
