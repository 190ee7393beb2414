"""Mined negatives are the best wrong entities of the readable matcher, and batches draw from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.sampler import BatchSampler, mine_negatives, without_gold
from mimic_engine.train.trainer import Trainer

Options = Callable[..., TrainConfig]


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")


@pytest.mark.parametrize("depth", [1, 5, 17, 40])
def test_they_are_the_best_wrong_entities_of_the_matcher(options: Options, depth: int) -> None:
    trainer = _trainer(options(epochs=2))
    trainer.fit()
    encode, split = trainer._encode, trainer._train
    mined = mine_negatives(encode, split, depth, 7)
    assert mined.shape == (36, min(depth, 17))
    with torch.no_grad():
        scores = trainer.model(
            encode(split.records), encode(encode.corpus.entities)
        ).total.numpy()  # (36, 18)
    scores[np.arange(36), split.gold] = -np.inf
    kept = np.take_along_axis(scores, mined, 1)
    assert np.isfinite(kept).all()
    np.testing.assert_allclose(kept, -np.sort(-scores, 1)[:, : mined.shape[1]], rtol=1e-4, atol=1e-4)
    assert all(len(set(row)) == len(row) for row in mined.tolist())


def test_the_gold_entity_is_dropped_or_else_the_last() -> None:
    ranked = np.array([[3, 1, 2], [1, 2, 3], [4, 5, 6]])
    assert without_gold(ranked, np.array([3, 3, 0])).tolist() == [[1, 2], [1, 2], [4, 5]]


@pytest.mark.parametrize(("count", "depth"), [(1, 3), (5, 3), (400, 3), (4, 0)])
def test_batches_draw_from_their_own_mentions_and_never_double_a_column(count: int, depth: int) -> None:
    rng = np.random.default_rng(count)
    gold = rng.integers(0, 50, 60)
    mined = np.stack([rng.choice(np.setdiff1d(np.arange(50), g), depth, replace=False) for g in gold])
    sampler = BatchSampler(gold, ["x y"] * 50, 7, extra_negatives=2, mined_negatives=count)
    plain, batches = sampler.batches(1), sampler.batches(1, mined)
    drawn = []
    for batch in batches:
        own = np.unique(gold[batch.mentions])
        assert np.array_equal(batch.entities[batch.target], gold[batch.mentions])
        assert len(np.unique(batch.entities)) == len(batch.entities)
        more = batch.entities[len(own) + 2 :]
        possible = np.setdiff1d(mined[batch.mentions], batch.entities[: len(own) + 2])
        assert np.isin(more, possible).all()
        assert len(more) == min(count, len(possible))
        drawn.append(more)
    assert len(plain) == len(batches)
    again = sampler.batches(1, mined)
    assert all(np.array_equal(a.entities, b.entities) for a, b in zip(batches, again, strict=True))
    assert (sum(map(len, drawn)) > 0) == (depth > 0)


def test_a_round_takes_one_of_each_mention_before_any_gives_two() -> None:
    gold = np.arange(6)
    mined = np.arange(6, 30).reshape(6, 4)  # no two mentions share one
    [batch] = BatchSampler(gold, ["x"] * 30, 6, mined_negatives=6).batches(0, mined)
    assert sorted((batch.entities[6:] - 6) // 4) == list(range(6))


def test_mining_begins_and_is_repeated_when_the_options_say(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(options(epochs=6, mined_negatives=2, mine_from=1, mine_every=2, patience=9))
    mined_at, columns = [], []
    step = trainer.step

    def noting(batches: list) -> dict[str, float]:
        columns.append(
            (trainer.progress.epoch, len(batches[0].entities) - len(set(batches[0].target.tolist())))
        )
        return step(batches)

    def mine(*args: object, **options: object) -> np.ndarray:
        mined_at.append(trainer.progress.epoch)
        return mine_negatives(*args, **options)

    trainer.step = noting
    monkeypatch.setattr("mimic_engine.train.trainer.mine_negatives", mine)
    trainer.fit()
    assert mined_at == [1, 3, 5]
    assert all(extra == (2 if epoch >= 1 else 0) for epoch, extra in columns)
