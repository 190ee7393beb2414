"""Random folded arrays of a small model: mentions, entities in uneven segments, constants."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

HALF = ("text_cls", "tglu_query", "tglu_cls", "vdlu_query", "vdlu_key", "cmfu", "concat")


@dataclass(frozen=True)
class Folded:
    mentions: MentionArrays
    entities: EntityArrays
    constants: FoldConstants

    def segments(self, *sizes: int, half: bool = False) -> tuple[EntityArrays, ...]:
        cuts = np.cumsum([0, *sizes])
        assert cuts[-1] == self.entities.rows
        arrays = self.entities
        if half:
            arrays = EntityArrays(**{k: a.astype(np.float16) if k in HALF else a for k, a in arrays.items()})
        return tuple(arrays.block(a, b) for a, b in itertools.pairwise(cuts))

    def scan(self, segments, scorer=NumpyScorer, **options) -> Scan:
        return Scan(segments, BlockKernels(scorer(self.constants), self.constants), **options)

    def compiled_scan(self, segments, **options) -> Scan:
        return Scan(segments, CpuKernels(self.constants), **options)


@pytest.fixture
def make_folded(make_matcher, make_features):
    def make(mentions: int, entities: int, config: MatcherConfig | None = None, seed: int = 0) -> Folded:
        config = config or MatcherConfig(text_width=11, text_token_width=13, hidden=8)
        matcher = make_matcher(config, seed, dtype=torch.float32)
        men = make_features(config, mentions, seed=seed, dtype=torch.float32)
        ent = make_features(config, entities, seed=seed + 1, dtype=torch.float32)
        with torch.no_grad():
            folded = [fold(matcher)(*f) for fold, f in ((FoldMention, men), (FoldEntity, ent))]
        arrays = [{k: v.numpy() for k, v in f.items()} for f in folded]
        return Folded(MentionArrays(**arrays[0]), EntityArrays(**arrays[1]), fold_constants(matcher))

    return make
