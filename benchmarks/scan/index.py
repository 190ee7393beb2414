"""Every scan on a real index and its real mentions, and on the same made larger.

The exact mode is checked against the exported scorer graph, the certified mode
must give the exact answer for every mention, and the coded mode says how often
it does. The published loop is timed in the same process on features of the
index's shapes; its time does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.scan.published_inputs import Widths
from benchmarks.scan.published_loop import published_scores, random_features, random_weights
from benchmarks.scan.rows import BaselineRow, FeatureKind, Row
from benchmarks.scan.tiled import TiledCodes, gathered, tile
from benchmarks.service.engine_side import TOLERANCES
from benchmarks.timing import repeat
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.data.source import open_dataset
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.index.store import Index
from mimic_engine.scan.passes import CodeBook
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.types import EntityArrays, KernelChoice, MentionArrays, Mode

TOP_K = 10


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What to measure: the model, its index, the data set whose mentions are asked, and sizes.

    ``exact_pairs`` and ``baseline_pairs`` bound the pairs of a timed exact scan
    and published loop; larger exact scans are left out, larger loops scaled from
    the nearest batch that was timed (the first loop runs whatever its size).
    """

    model: Path
    index: Path
    data: Path
    split: str
    entities: tuple[int, ...]
    batches: tuple[int, ...]
    scorer: KernelChoice
    threads: int
    seconds: float
    exact_pairs: int
    baseline_pairs: int
    seed: int


def measure_index(options: IndexOptions, say: Callable[[str], None]) -> tuple[list[BaselineRow], list[Row]]:
    """Run every combination; rows of the published loop and of the scans.

    Raises
    ------
    EngineError
        If the exact mode disagrees with the exported graph beyond rounding, or the certified with the exact.
    """
    index = Index.open(options.index)
    featurizer = open_featurizer(options.model, threads=options.threads)
    index.check_model(featurizer.model_hash)
    mentions = _mentions(options, featurizer, max(options.batches))
    entities = gathered(index.segments)
    baselines: list[BaselineRow] = []
    rows: list[Row] = []
    _check_exact(options, featurizer, entities, mentions)
    for n in options.entities:
        arrays, codes = _at_size(index, entities, n, options.seed)
        bases = [_baseline(options, arrays, b, baselines) for b in options.batches]
        scan = Scan(
            [arrays],
            open_kernels(options.scorer, options.model, featurizer.constants),
            threads=options.threads,
            codes=codes,
        )
        for base in bases:
            say(f"published loop n={n} b={base.b}: {base.ms:,.1f} ms{' (scaled)' if base.scaled else ''}")
            for row in _scans(options, scan, index, mentions.block(0, base.b), base):
                rows.append(row)
                say(str(row))
        scan.close()
    return baselines, rows


def _mentions(options: IndexOptions, featurizer: Featurizer, count: int) -> MentionArrays:
    """The first mentions of the split, folded."""
    labelled = open_dataset(options.data, splits=(options.split,)).splits[options.split]
    if len(labelled) < count:
        raise InvalidInputError(f"{options.data}: {len(labelled)} mentions in {options.split}, need {count}")
    return featurizer.mentions([m.mention for m in labelled[:count]])


def _check_exact(
    options: IndexOptions, featurizer: Featurizer, entities: EntityArrays, mentions: MentionArrays
) -> None:
    """Hold the exact scores against those of the exported graph."""
    scans = [
        Scan([entities], open_kernels(s, options.model, featurizer.constants), threads=options.threads)
        for s in (options.scorer, "onnx")
    ]
    few = mentions.block(0, min(8, mentions.rows))
    own, graph = (scan.totals(few) for scan in scans)
    for scan in scans:
        scan.close()
    gap = float(np.abs(own - graph).max())
    if not gap <= TOLERANCES["float32"]:
        raise EngineError(
            f"exact scores: {gap:.2e} from those of the exported graph, limit {TOLERANCES['float32']:.0e}"
        )


def _at_size(index: Index, entities: EntityArrays, n: int, seed: int) -> tuple[EntityArrays, CodeBook | None]:
    arrays = tile(entities, n, seed)
    if index.codes is None or arrays.tglu_query is None:
        return arrays, None
    known = np.concatenate([np.asarray(c) for c in index.codes.segments])[:n]
    more = [
        index.codes.assign(arrays.tglu_query[i : i + 4096].astype(np.float32))
        for i in range(len(known), n, 4096)
    ]
    return arrays, TiledCodes(index.codes.centroids, [np.concatenate([known, *more])])


def _baseline(
    options: IndexOptions, arrays: EntityArrays, batch: int, done: list[BaselineRow]
) -> BaselineRow:
    """The published loop for these pairs: timed, or its time a pair at the nearest batch that was timed."""
    n = arrays.rows
    if n * batch > options.baseline_pairs and done:
        nearest = min(done, key=lambda r: (abs(np.log(r.b / batch)), -r.n))
        return nearest.for_pairs(n, batch)
    assert arrays.text_cls is not None and arrays.tglu_query is not None
    text, width = arrays.text_cls.shape[1], arrays.tglu_query.shape[2]
    widths = Widths(text, text, width, width, width, width, width)
    weights, entities = random_weights(widths), random_features(n, widths, seed=options.seed)
    mentions = random_features(batch, widths, seed=options.seed + 1)
    torch.set_num_threads(options.threads)
    published_scores(weights, mentions.block(0, 1), entities.block(0, 16))  # warm-up
    timed, _ = repeat(lambda: published_scores(weights, mentions, entities), 0)
    done.append(BaselineRow.of(n, batch, timed))
    return done[-1]


def _scans(
    options: IndexOptions, scan: Scan, index: Index, mentions: MentionArrays, base: BaselineRow
) -> Iterator[Row]:
    """Time the modes at one size; the first search of each is also its warm-up and is checked."""
    k, dtype = min(TOP_K, base.n), index.manifest.dtype
    kind: FeatureKind = "real" if base.n <= len(index) else "tiled"
    exact: TopK | None = None
    for mode in scan.modes:
        if mode == "exact" and base.n * base.b > options.exact_pairs:
            continue

        def search(mode: Mode = mode) -> TopK:
            return scan.search(mentions, k, mode=mode)

        search()
        timed, found = repeat(search, options.seconds)
        same = None if exact is None else float((found.rows == exact.rows).all(1).mean())
        exact = found if mode == "exact" else exact
        if mode == "certified" and same is not None and same != 1:
            raise EngineError(f"certified: the exact answer for {same:.2%} of the mentions only")
        row = Row.of(mode, scan.scorer_name, dtype, kind, base, timed, found, identical_top10=same)
        yield row if mode != "coded" or exact is None else _with_agreement(row, found, exact)


def _with_agreement(row: Row, found: TopK, exact: TopK) -> Row:
    contained = [np.isin(e, f).mean() for e, f in zip(exact.rows, found.rows, strict=True)]
    return replace(
        row,
        agreement_top1=float((found.rows[:, 0] == exact.rows[:, 0]).mean()),
        top10_contained=float(np.mean(contained)),
    )
