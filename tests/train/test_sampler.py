"""Batches: every mention once, no false negatives, confusable names together, fixed by seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.errors import DataError
from mimic_engine.train.sampler import Batch, BatchSampler, NameIndex

NAMES = [
    f"{first} {last}" for first in ("ada", "ben", "cleo", "dov") for last in ("x1", "x2", "x3", "x4", "x5")
]


def _gold(mentions: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(NAMES), mentions)


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(getattr(x, f), getattr(y, f))
        for x, y in zip(a, b, strict=True)
        for f in ("mentions", "entities", "target")
    )


@settings(max_examples=40, deadline=None)
@given(
    mentions=st.integers(2, 97),
    size=st.integers(2, 20),
    hard=st.sampled_from([0.0, 0.3, 1.0]),
    extra=st.sampled_from([0, 4]),
    seed=st.integers(0, 99),
)
def test_an_epoch_has_every_mention_once_and_gold_columns_are_right(
    mentions: int, size: int, hard: float, extra: int, seed: int
) -> None:
    gold = _gold(mentions, seed)
    sampler = BatchSampler(gold, NAMES, size, hard_share=hard, extra_negatives=extra, seed=seed)
    batches = sampler.batches(3)
    assert len(batches) == len(sampler)
    seen = np.concatenate([b.mentions for b in batches])
    assert len(np.unique(seen)) == len(seen) == mentions - (mentions % size == 1)
    for b in batches:
        assert 2 <= len(b.mentions) <= size
        assert np.array_equal(b.entities[b.target], gold[b.mentions])
        assert len(np.unique(b.entities)) == len(b.entities)  # no entity is a negative of its own mention
        assert len(b.entities) <= len(np.unique(gold[b.mentions])) + extra


def test_ignore_gives_each_mention_its_own_column() -> None:
    gold = np.zeros(6, np.int64)
    [batch] = BatchSampler(gold, NAMES, 6, same_entity="ignore").batches(0)
    assert np.array_equal(batch.entities, gold)
    assert np.array_equal(batch.target, np.arange(6))


def test_epochs_differ_and_the_same_epoch_does_not() -> None:
    sampler = BatchSampler(_gold(50, 0), NAMES, 8, hard_share=0.5, extra_negatives=2, seed=1)
    again = BatchSampler(_gold(50, 0), NAMES, 8, hard_share=0.5, extra_negatives=2, seed=1)
    assert _same(sampler.batches(2), again.batches(2))
    assert not _same(sampler.batches(2), sampler.batches(3))
    other = BatchSampler(_gold(50, 0), NAMES, 8, hard_share=0.5, extra_negatives=2, seed=2)
    assert not _same(sampler.batches(2), other.batches(2))


def _sharing_pairs(batches: list[Batch], names: list[str]) -> float:
    """Mean number of other entities in a batch that share a name token with an entity of it."""
    counts = []
    for b in batches:
        tokens = [set(names[e].split()) for e in b.entities]
        counts += [sum(bool(t & u) for u in tokens) - 1 for t in tokens]
    return float(np.mean(counts))


def test_hard_batches_and_extra_negatives_bring_confusable_names_together() -> None:
    rng = np.random.default_rng(0)
    names = [f"f{rng.integers(60)} l{i}" for i in range(600)]
    gold = rng.permutation(600)
    plain, half, full = (
        _sharing_pairs(BatchSampler(gold, names, 20, hard_share=h).batches(0), names) for h in (0.0, 0.5, 1.0)
    )
    assert plain < 0.6
    assert half > 2 * plain
    assert full > half
    with_extra = BatchSampler(gold, names, 20, extra_negatives=10).batches(0)
    for b in with_extra:
        assert len(b.entities) == 30
        first = {names[e].split()[0] for e in b.entities[:20]}
        assert all(names[e].split()[0] in first for e in b.entities[20:])


def test_names_without_a_shared_token_have_no_group() -> None:
    index = NameIndex(["Ann Lee", "ann Smith", "Bob", ""])
    assert sorted(index.rows) == ["ann"]
    rng = np.random.default_rng(0)
    assert [index.choose(i, rng) for i in range(4)] == ["ann", "ann", None, None]


def test_too_few_mentions_are_refused() -> None:
    with pytest.raises(DataError, match="1 mentions are fewer than 2"):
        BatchSampler(np.array([0]), NAMES, 4)
