"""What names cost: certified searches with and without them, in turns in one process, every answer checked.

The rows of a real index, as they are and repeated with noise (:mod:`benchmarks.scan.tiled`); a repeated row
has the name of its entity, so that more rows share a name than would in a real index of that size. Time with
names includes the lookup of every mention, on one thread. Weights are fitted to dev mentions of the data set.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scan.tiled import gathered, tile
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.calibration.candidates import ranked_mentions
from mimic_engine.calibration.weights import fit_weights
from mimic_engine.data.source import open_dataset
from mimic_engine.engine.weighed_names import WeighedNames, score_terms
from mimic_engine.errors import EngineError
from mimic_engine.index.store import Index
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import Mention, MentionArrays

TOP_K = 10
FITTED = 300  # dev mentions
EXPECTED = {"ratio_max": 1.1}  # at AT entities: a lookup is some 0.3 ms of a search of 15, and adding is less
AT = 110_000
SIZES = (20_818, AT)
BATCHES = (1, 20)
ROUNDS = 40  # searches of each kind


def measure(model: Path, index: Index, data: Path, threads: int | None) -> Iterator[dict[str, Any]]:
    """One row a size and batch, of an index of the data set in ``data``, which has dev mentions.

    Raises
    ------
    EngineError
        If a certified answer is not the exact one.
    """
    featurizer = open_featurizer(model, threads=threads)
    index.check_model(featurizer.model_hash)
    kernels = open_kernels("auto", model, featurizer.constants)
    dev = open_dataset(data, splits=("dev",)).splits["dev"]
    mentions = [m.mention for m in dev[: max(BATCHES) * ROUNDS]]
    arrays = featurizer.mentions(mentions)
    base = Scan(index.segments, kernels, threads=threads)
    fitted = dev[-FITTED:]
    gold = index.rows([m.answer for m in fitted]).tolist()
    surfaces = [m.mention for m in fitted]
    ranked = ranked_mentions(base, index.name_lookup, None, surfaces, featurizer.mentions(surfaces), gold)
    weights = fit_weights(ranked)
    base.close()
    forms = [(index.entity(row).name,) for row in range(index.row_count)]
    for n in SIZES:
        entities = tile(gathered(index.segments), n, 0)
        lookup = NameLookup([FormArrays.of(forms[i % len(forms)] for i in range(n))], [n])
        terms = score_terms(weights, np.full(n, np.nan))
        scan = Scan([entities], kernels, threads=threads, terms=terms)
        for batch in BATCHES:
            yield _row(scan, WeighedNames(lookup, weights), mentions, arrays, batch)
        scan.close()


def _row(
    scan: Scan,
    names: WeighedNames,
    mentions: Sequence[Mention],
    arrays: MentionArrays,
    batch: int,
) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"with": [], "without": [], "lookup": []}
    shares = []
    for turn in range(ROUNDS):
        chosen = slice(turn * batch, (turn + 1) * batch)
        own = arrays.block(chosen.start, chosen.stop)

        def look_up(chosen: slice = chosen) -> list[NameScores]:
            return [names.scores(m) for m in mentions[chosen]]

        def with_names(own: MentionArrays = own, look_up: Callable[[], list[NameScores]] = look_up) -> TopK:
            return scan.search(own, TOP_K, names=look_up())

        def without(own: MentionArrays = own) -> TopK:
            return scan.search(own, TOP_K)

        found = with_names()
        without()
        if turn < 3:
            _check(found, scan.search(own, TOP_K, mode="exact", names=look_up()))
        for kind, call in (("with", with_names), ("without", without), ("lookup", look_up)):
            spent[kind].append(_ms(call))
        shares.append(float(np.mean(found.scored)) / len(scan))
    ms = {f"{kind}_ms": statistics.median(times) for kind, times in spent.items()}
    ratio = statistics.median(a / b for a, b in zip(spent["with"], spent["without"], strict=True))
    return {"n": len(scan), "b": batch, "ratio": ratio, **ms, "survivor_share": statistics.mean(shares)}


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _check(certified: TopK, exact: TopK) -> None:
    if not ((certified.rows == exact.rows) & (certified.scores == exact.scores)).all():
        raise EngineError("certified: with names an answer is not the exact one")


def outcome(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`; None where it was not measured."""
    ratio = max((r["ratio"] for r in rows if r["n"] == AT), default=None)
    return {"ratio": ratio, "ratio_met": None if ratio is None else ratio <= EXPECTED["ratio_max"]}
