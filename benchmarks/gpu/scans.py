"""The scans of the GPU report: modes x N x B, each answer checked, then timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.data import World, cluster, fold_entities, fold_mentions
from benchmarks.gpu.run import Report, Row, device_ms, say
from benchmarks.gpu.tiles import measure_tiles
from mimic_engine.errors import EngineError
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.scan.scan import TopK
from mimic_engine.types import EntityArrays, MentionArrays, Mode

TOP_K = 10
TOKENS, WIDTH = 40, 96
TOLERANCE = 2e-2  # two half-precision totals of up to 40 may be told the wrong way round within this


def measure_scans(report: Report, world: World, n: int, dtype: str) -> None:
    """All modes and batches over N entities of one storage type."""
    options = report.options
    entities = fold_entities(world, n, dtype)
    book = cluster(world, entities, options.centroids)
    scan = CudaScan((entities,), world.constants, device=str(report.device), codes=book)
    size = sum(a.nbytes for _, a in entities.items())
    say(f"n={n} {dtype}: {size / n:.0f} bytes an entity, {size / 2**30:.2f} GiB")
    if n == options.entities[min(1, len(options.entities) - 1)] and dtype == "float16":
        report.part("tiles", lambda: measure_tiles(report, scan, world))
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
