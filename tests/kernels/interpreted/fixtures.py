"""Folded arrays of any shape, and a top-k that the interpreter can afford."""

import pytest
import torch

from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.types import EntityArrays, MentionArrays
from tests.kernels.interpreted.folded import SMALL, Folded


@pytest.fixture
def make_folded(make_matcher, make_features):
    def make(mentions, entities, config=SMALL, *, tokens=7, entity_tokens=None, seed=0) -> Folded:
        matcher = make_matcher(config, seed, dtype=torch.float32)
        men = make_features(config, mentions, tokens=tokens, seed=seed, dtype=torch.float32)
        ent = make_features(
            config, entities, tokens=entity_tokens or tokens, seed=seed + 1, dtype=torch.float32
        )
        with torch.no_grad():
            folded = [fold(matcher)(*f) for fold, f in ((FoldMention, men), (FoldEntity, ent))]
        arrays = [{k: v.numpy() for k, v in f.items()} for f in folded]
        return Folded(MentionArrays(**arrays[0]), EntityArrays(**arrays[1]), fold_constants(matcher))

    return make


@pytest.fixture
def sorted_topk(monkeypatch):
    """``tl.topk`` by NumPy."""
    import triton.language as tl

    from benchmarks.gpu.interpreted import numpy_topk

    monkeypatch.setattr(tl, "topk", numpy_topk)
