"""Every scan against the published loop on the same random features, in the published shapes.

Each scan is checked against the loop's scores before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.scan.published_inputs import Features
from benchmarks.scan.published_loop import published_scores, random_features, random_weights
from benchmarks.scan.rows import BaselineRow, Row
from benchmarks.service.engine_side import (
    TOLERANCES,
    check_ranks,
    compare_top_k,
    fold_entities,
    fold_mentions,
    load_matcher,
    make_kernels,
    nbytes,
)
from benchmarks.timing import repeat
from mimic_engine.model.fold import fold_constants
from mimic_engine.model.units import Matcher
from mimic_engine.scan.base import ScanKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import Array, EntityArrays, MentionArrays, Mode

TOP_K = 10
RANDOM_MODES: tuple[Mode, ...] = ("exact", "certified")  # random features have nothing to cluster


@dataclass(frozen=True, slots=True)
class RandomOptions:
    """What to measure: numbers of entities and mentions, which kernels, how many cores and seconds."""

    entities: tuple[int, ...]
    batches: tuple[int, ...]
    backends: tuple[str, ...]
    threads: int
    seconds: float  # spent on each scan, at least two runs
    seed: int


@dataclass(frozen=True, slots=True)
class RandomResult:
    """The rows of both sides, and bytes an entity of "baseline", "float32" and "float16" features."""

    baselines: list[BaselineRow]
    rows: list[Row]
    feature_bytes: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Case:
    """B mentions against N entities: both sides' input, the loop's scores and its time."""

    mentions: MentionArrays
    gold: np.ndarray  # (B,) int64
    reference: Array  # (B, N)
    baseline: BaselineRow


def measure_random(options: RandomOptions, folder: Path, say: Callable[[str], None]) -> RandomResult:
    """Run every combination.

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
    result = RandomResult([], [], {})
    for n in options.entities:
        entities = random_features(n, seed=options.seed + 1)
        folded = {dtype: fold_entities(matcher, entities, dtype) for dtype in TOLERANCES}
        result.feature_bytes["baseline"] = entities.values_per_row * 4.0
        result.feature_bytes.update({dtype: nbytes(a) / n for dtype, a in folded.items()})
        cases = [_case(options, weights, matcher, entities, b) for b in options.batches]
        del entities
        result.baselines.extend(case.baseline for case in cases)
        for case in cases:
            say(f"published loop n={n} b={case.baseline.b}: {case.baseline.ms:.1f} ms")
        for row in _scans(options, matcher, cases, folded, folder):
            result.rows.append(row)
            say(str(row))
    return result


def _case(
    options: RandomOptions, weights: dict[str, Tensor], matcher: Matcher, entities: Features, batch: int
) -> _Case:
    """Time the published loop on one batch."""
    torch.set_num_threads(options.threads)
    mentions = random_features(batch, seed=options.seed + 2)
    published_scores(weights, mentions.block(0, 1), entities.block(0, min(16, len(entities))))  # warm-up
    timed, scores = repeat(lambda: published_scores(weights, mentions, entities), options.seconds)
    gold = np.random.default_rng(options.seed).integers(0, len(entities), batch)  # (B,)
    baseline = BaselineRow.of(len(entities), batch, timed)
    return _Case(fold_mentions(matcher, mentions), gold, scores["total"].numpy(), baseline)


def _scans(
    options: RandomOptions,
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
                for mode in RANDOM_MODES:
                    yield _time_scan(options, kernels, dtype, entities, case, mode)


def _time_scan(
    options: RandomOptions, kernels: ScanKernels, dtype: str, entities: EntityArrays, case: _Case, mode: Mode
) -> Row:
    """Check one scan against the loop, then time it."""
    scan = Scan([entities], kernels, threads=options.threads)
    try:
        k = min(TOP_K, entities.rows)
        ranks = scan.ranks(case.mentions, case.gold)  # also the warm-up
        same_ranks = check_ranks(ranks, case.reference, case.gold, TOLERANCES[dtype])
        timed, found = repeat(lambda: scan.search(case.mentions, k, mode=mode), options.seconds)
    finally:
        scan.close()
    agreement = compare_top_k(found.rows, case.reference)
    agreement.check(TOLERANCES[dtype])
    return Row.of(
        mode,
        kernels.name,
        dtype,
        "random",
        case.baseline,
        timed,
        found,
        identical_top10=agreement.identical,
        identical_ranks=same_ranks,
        worst_gap=agreement.worst_gap,
    )
