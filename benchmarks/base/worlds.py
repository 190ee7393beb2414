"""A data set as a model meets it: its entities folded in memory, its mentions ranked, with names and without.

The mentions to fit weights to ("dev") are at most ``FITTED``; what is tested is the test split, or dev where
there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.names.accuracy import ALIKE, rank_by_name
from benchmarks.rival.sets import sample
from mimic_engine.calibration.candidates import ranked_mentions
from mimic_engine.calibration.weights import RankedMention, ScoreWeights
from mimic_engine.data.source import Dataset
from mimic_engine.engine.weighed_names import WeighedNames
from mimic_engine.model.units import Mimic
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.scan import Scan
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.ranking import entity_scan
from mimic_engine.train.run import build_encode, build_run_corpus, fill_caches
from mimic_engine.types import LabelledMention, MentionArrays

FITTED = 1000
BATCH = 64

Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class World:
    """A data set, what of it is fitted to and what is tested, and its names."""

    name: str
    dataset: Dataset
    split: str  # that is tested
    dev: Sequence[LabelledMention]
    tested: Sequence[LabelledMention]
    lookup: NameLookup

    @classmethod
    def of(cls, name: str, dataset: Dataset, limit: int = 0) -> World:
        """The world of a data set; tested are at most ``limit`` mentions, all by default."""
        split = "test" if dataset.splits.get("test") else "dev"
        forms = FormArrays.of([(e.name, *e.aliases) for e in dataset.entities])
        tested = dataset.splits[split]
        return cls(
            name,
            dataset,
            split,
            sample(dataset.splits["dev"], FITTED),
            sample(tested, limit or None),
            NameLookup([forms], [len(dataset.entities)]),
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """A world under one model."""

    world: World
    scan: Scan
    encode: RecordEncoder

    def ranked(self) -> list[RankedMention]:
        """Candidates of the dev mentions, to fit weights to."""
        found: list[RankedMention] = []
        for mentions, gold, arrays in self._batches("dev"):
            own = [m.mention for m in mentions]
            found += ranked_mentions(self.scan, self.world.lookup, None, own, arrays, gold.tolist())
        return found

    def ranks(self, weights: ScoreWeights | None) -> Ranks:
        """Ranks (M,) of the answers of the tested mentions among all entities, ties against the answer.

        Without weights the model alone counts.
        """
        names = None if weights is None else WeighedNames(self.world.lookup, weights)
        found = []
        for mentions, gold, arrays in self._batches("tested"):
            scores = None if names is None else [names.scores(m.mention) for m in mentions]
            found.append(self.scan.ranks(arrays, gold, names=scores))
        return np.concatenate(found)

    def _batches(self, split: str) -> Iterator[tuple[Sequence[LabelledMention], Ranks, MentionArrays]]:
        mentions, own = getattr(self.world, split), self.encode.corpus.splits[split]
        for start in range(0, len(mentions), BATCH):
            rows = slice(start, start + BATCH)
            yield mentions[rows], own.gold[rows], fold_mentions(self.encode, own.records[rows], BATCH)


@contextmanager
def judged(world: World, model: Mimic, config: TrainConfig) -> Iterator[Judged]:
    """A world under a model that was trained with these options; its entities are folded meanwhile."""
    config = replace(config, names_in_loss=False)
    splits = {"dev": tuple(world.dev), "tested": tuple(world.tested)}
    corpus = build_run_corpus(config, replace(world.dataset, splits=splits), ("dev", "tested"))
    encode = build_encode(config, model.eval(), corpus)
    fill_caches(config, encode)
    with entity_scan(encode, BATCH) as scan:
        yield Judged(world, scan, encode)


def ranks_by_name(world: World) -> Ranks:
    """Ranks (M,) by names alone, the features weighed 1 each; ties, and sharing nothing, count against."""
    names = WeighedNames(world.lookup, ALIKE)
    row = {entity.id: i for i, entity in enumerate(world.dataset.entities)}
    found = []
    for labelled in world.tested:
        scores = names.scores(labelled.mention)
        found.append(rank_by_name(scores, row[labelled.answer], len(row)))
    return np.array(found, np.int64)
