"""What names add to a model that has not seen the data set: weights from the dev mentions of the other sets.

Of every data set (WikiMEL, RichpediaMEL, WikiDiverse) an index is built once. A
set is ranked by the model alone, by names and model, and by names alone (the features weighed 1 each),
ties against the answer. Weights, temperature and nil score come from dev mentions of the other two sets, so
nothing of the tested set was seen but its names. Where a test split is there it is tested, else dev. On it
every certified answer is held against the exact one, ids, order and bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.calibration.candidates import ranked_mentions
from mimic_engine.calibration.weights import (
    RANKED,
    Probability,
    RankedMention,
    ScoreWeights,
    calibration_error,
    fit_probability,
    fit_weights,
)
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import entity_stream, open_dataset
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.engine.weighed_names import WeighedNames, score_terms
from mimic_engine.errors import EngineError
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.metrics import ranking_metrics
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import LabelledMention

SETS = ("WikiMEL", "RichpediaMEL", "WikiDiverse")
BATCH = 64
TOP_K = 10
EXPECTED = {
    "with_names_min": 0.85,  # WikiMEL test, the demo's model
    "above_names_alone": True,  # on every set
    "calibration_error_max": 0.1,  # weights and temperature are of other kinds of mentions
}
ALIKE = ScoreWeights(exact=1.0, words=1.0, chars=1.0, context=1.0)


@dataclass(frozen=True, slots=True)
class World:
    """One data set, folded by one model."""

    name: str
    featurizer: Featurizer
    index: Index
    scan: Scan
    dev: Sequence[LabelledMention]
    tested: Sequence[LabelledMention]
    split: str

    def batches(self, mentions: Sequence[LabelledMention]) -> Iterator[Sequence[LabelledMention]]:
        """The mentions, some at a time."""
        for start in tqdm(range(0, len(mentions), BATCH), desc=self.name, unit="batch", leave=False):
            yield mentions[start : start + BATCH]

    def gold(self, mentions: Sequence[LabelledMention]) -> NDArray[np.int64]:
        """Rows of the answers."""
        return self.index.rows([m.answer for m in mentions])


def measure(
    models: Mapping[str, Path], data: Path, cache: Path, limit: int, threads: int | None
) -> Iterator[dict[str, Any]]:
    """One row a model and data set.

    Parameters
    ----------
    models : exported models by what the rows call them.
    data : folder that holds the folders of ``SETS``.
    cache : folder for the indices.
    limit : dev mentions of a set that weights are fitted to.
    threads : cores; all by default.

    Raises
    ------
    EngineError
        If a certified answer is not the exact one.
    """
    for label, model in models.items():
        featurizer = open_featurizer(model, threads=threads)
        worlds = [open_world(name, featurizer, model, data, cache, limit, threads) for name in SETS]
        ranked = {world.name: ranked_of(world) for world in worlds}
        for world in worlds:
            others = [m for name, own in ranked.items() if name != world.name for m in own]
            weights = fit_weights(others)
            row = _test(world, weights, fit_probability(others, weights))
            yield {"model": label, "set": world.name, "split": world.split} | row
        for world in worlds:
            world.scan.close()


def open_world(
    name: str,
    featurizer: Featurizer,
    model: Path,
    data: Path,
    cache: Path,
    limit: int,
    threads: int | None,
) -> World:
    """A data set with its index, and as many of its dev mentions; the rest as of :func:`measure`."""
    index = open_index(name, featurizer, data, cache)
    has_test = any((data / name).glob("*_test.json"))
    splits = open_dataset(data / name, splits=("dev", "test") if has_test else ("dev",)).splits
    scan = Scan(
        index.segments, open_kernels("auto", model, featurizer.constants), threads=threads, tie_key=index.ids
    )
    dev = splits["dev"]
    some = [dev[i * len(dev) // limit] for i in range(limit)] if limit < len(dev) else list(dev)
    split = "test" if has_test else "dev"
    return World(name, featurizer, index, scan, some, splits[split], split)


def open_index(name: str, featurizer: Featurizer, data: Path, cache: Path) -> Index:
    """The index of a data set by a model, built if it is not in the cache."""
    folder = cache / f"{name}-{featurizer.model_hash[:12]}"
    if not folder.is_dir():
        source = KnowledgeBaseFeaturizer(featurizer, BrokenImages("error"))
        build_index(source, entity_stream(data / name), folder, centroids=0)
    return Index.open(folder)


def ranked_of(world: World) -> list[RankedMention]:
    """Candidates of the dev mentions."""
    found: list[RankedMention] = []
    for batch in world.batches(world.dev):
        mentions = [m.mention for m in batch]
        arrays, gold = world.featurizer.mentions(mentions), world.gold(batch).tolist()
        found += ranked_mentions(world.scan, world.index.name_lookup, None, mentions, arrays, gold)
    return found


def _test(world: World, weights: ScoreWeights, probability: Probability) -> dict[str, Any]:
    names, alike = (WeighedNames(world.index.name_lookup, w) for w in (weights, ALIKE))
    terms = score_terms(weights, np.full(len(world.scan), np.nan))
    scan = world.scan.over(world.index.segments, world.index.ids, terms=terms)
    found: dict[str, list[NDArray[np.int64]]] = {"with_names": [], "without_names": [], "names_alone": []}
    sure, right = [], []
    for batch in world.batches(world.tested):
        arrays, gold = world.featurizer.mentions([m.mention for m in batch]), world.gold(batch)
        scores = [names.scores(m.mention) for m in batch]
        found["with_names"].append(scan.ranks(arrays, gold, names=scores))
        found["without_names"].append(scan.ranks(arrays, gold))
        by_name = [
            rank_by_name(alike.scores(m.mention), g, len(scan)) for m, g in zip(batch, gold, strict=True)
        ]
        found["names_alone"].append(np.array(by_name))
        best = scan.search(arrays, TOP_K, names=scores)
        _check(best, scan.search(arrays, TOP_K, mode="exact", names=scores))
        sure += [float(probability.of(row[:RANKED].astype(np.float64))[0][0]) for row in best.scores]
        right += (best.rows[:, 0] == gold).tolist()
    scan.close()
    return {
        "entities": len(world.index),
        "mentions": len(world.tested),
        "weights": asdict(weights),
        "probability": asdict(probability),
        **{kind: ranking_metrics(np.concatenate(r), len(scan)).to_json() for kind, r in found.items()},
        "calibration_error": calibration_error(sure, right),
        "certified_as_exact": len(world.tested),
    }


def rank_by_name(names: NameScores, gold: int, entities: int) -> int:
    """Rank of a row by its name score alone; ties count against it, and so does sharing nothing."""
    own = names.at(np.array([gold]))[0]
    return int(np.count_nonzero(names.scores >= own)) if own > 0 else entities


def _check(certified: TopK, exact: TopK) -> None:
    same = (certified.rows == exact.rows) & (certified.scores == exact.scores)
    if not same.all():
        raise EngineError("certified: with names an answer is not the exact one")


def outcome(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What became of :data:`EXPECTED`; None where it was not measured."""
    wikimel = [r["with_names"]["hits@1"] for r in rows if (r["model"], r["set"]) == ("demo", "WikiMEL")]
    least = min(wikimel, default=None)
    error = max((r["calibration_error"] for r in rows), default=None)
    gain = min((r["with_names"]["hits@1"] - r["names_alone"]["hits@1"] for r in rows), default=None)
    return {
        "with_names": least,
        "with_names_met": None if least is None else least >= EXPECTED["with_names_min"],
        "least_above_names_alone": gain,
        "above_names_alone_met": None if gain is None else gain > 0,
        "calibration_error": error,
        "calibration_error_met": None if error is None else error <= EXPECTED["calibration_error_max"],
    }
