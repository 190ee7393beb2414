"""Every scan over folded features against the published loop over raw ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.scan.published_inputs import random_features
from benchmarks.service.engine_side import TOLERANCES, check_ranks, compare_top_k, fold_mentions, nbytes
from mimic_engine.backends.scan import open_kernels
from mimic_engine.model.fold import fold_constants
from mimic_engine.model.units import Matcher
from mimic_engine.scan.scan import Scan
from mimic_engine.types import MODES, KernelChoice, Mode

if TYPE_CHECKING:
    from benchmarks.conftest import BenchModel, Note, Scene

TOP_K = 10


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("kernels", ["auto", "onnx"])
def test_scan(
    benchmark: Any,
    compare: Note,
    scene: Scene,
    batch: int,
    dtype: str,
    kernels: KernelChoice,
    mode: Mode,
    model: BenchModel,
    matcher: Matcher,
    threads: int,
) -> None:
    raw = random_features(batch, seed=2)
    reference, baseline_s = scene.baseline(raw)
    mentions, entities = fold_mentions(matcher, raw), scene.folded[dtype]
    opened = open_kernels(kernels, model.folder, fold_constants(matcher))
    scan = Scan([entities], opened, threads=threads)
    gold = np.random.default_rng(3).integers(0, entities.rows, batch)
    same_ranks = check_ranks(scan.ranks(mentions, gold), reference, gold, TOLERANCES[dtype])
    found = benchmark(scan.search, mentions, TOP_K, mode=mode)
    scan.close()
    agreement = compare_top_k(found.rows, reference)
    agreement.check(TOLERANCES[dtype])
    if dtype == "float32":
        assert agreement.identical == 1
    benchmark.extra_info |= {"scorer": opened.name, "survivor_share": float(found.scored.mean() / len(scan))}
    benchmark.extra_info |= {"identical_top10": agreement.identical, "identical_ranks": same_ranks}
    raw_bytes = 4 * scene.raw.values_per_row * entities.rows
    benchmark.extra_info["feature_bytes_ratio"] = nbytes(entities) / raw_bytes
    compare(baseline_s=baseline_s, pairs=batch * entities.rows)
