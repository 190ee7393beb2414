"""Names in the loss, in the hard negatives and in the validation: those of the readable definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mimic_engine.names.features import name_features
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.terms import NO_NAMES
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.names import WEIGHTS, among, name_scorer
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.sampler import mine_negatives
from mimic_engine.train.trainer import Trainer
from mimic_engine.types import Entity, Mention

Options = Callable[..., TrainConfig]
ENTITIES = [
    Entity("a", "Alec Baldwin"),
    Entity("b", "Stephen Baldwin", aliases=("Steve B.",)),
    Entity("c", "Ann Pearce"),
    Entity("d", "Steve"),
]


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")


def test_scores_are_the_weighed_features_of_name_and_aliases() -> None:
    score = name_scorer(ENTITIES)
    lookup = NameLookup([FormArrays.of([(e.name, *e.aliases) for e in ENTITIES])], [len(ENTITIES)])
    mentions = [Mention("Baldwin", "Alec was there."), Mention("steve b", ""), Mention("nobody", "")]
    columns = np.array([3, 1, 0])
    got = among([score(m) for m in mentions], columns)
    for b, mention in enumerate(mentions):
        for c, row in enumerate(columns):
            entity = ENTITIES[row]
            forms = (entity.name, *entity.aliases)
            features = name_features(mention.mention, mention.sentence, forms, lookup.idf)
            assert got[b, c] == pytest.approx(np.dot(WEIGHTS, features), abs=1e-5)
    assert got[0, 2] > got[0, 1] > 0 == got[2].abs().max()  # "Alec" stands beside "Baldwin"


def test_the_loss_has_names_beside_the_model_alone(options: Options) -> None:
    trainer = _trainer(options(names_in_loss=True))
    plain = _trainer(options())
    batch = trainer.sampler.batches(0)[0]
    losses = [t.batch_loss.backward(batch, 1.0, 0) for t in (trainer, plain)]
    assert losses[0].keys() - losses[1].keys() == {"loss_names"}
    for name in losses[1].keys() - {"loss"}:
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5)
    encode, split = trainer._encode, trainer._train
    with torch.no_grad():
        total = trainer.model(
            encode(split.records[batch.mentions]), encode(encode.corpus.entities[batch.entities])
        ).total
    assert split.names is not None
    names = among([split.names[m] for m in batch.mentions], batch.entities)
    assert names.abs().max() > 1
    wanted = cross_entropy(total + names, torch.from_numpy(batch.target))
    assert losses[0]["loss_names"] == pytest.approx(float(wanted), rel=1e-4)


def test_a_mention_without_its_text_has_no_name(options: Options) -> None:
    trainer = _trainer(options(names_in_loss=True, drop_texts=1.0, drop_images=0.0))
    batch = trainer.sampler.batches(0)[0]
    _, no_text = trainer.batch_loss.left_out(trainer._train.records[batch.mentions], 0)
    assert no_text.any() and not no_text.all()
    scores = trainer.batch_loss._name_scores(batch, np.arange(len(batch.mentions)), no_text)
    assert scores is not None
    assert (scores[no_text] == 0).all() and (scores[~no_text] != 0).any()


def test_hard_negatives_and_validation_rank_with_names(options: Options) -> None:
    trainer = _trainer(options(names_in_loss=True))
    encode, split = trainer._encode, trainer._train
    trainer.model.eval()
    with torch.no_grad():
        total = trainer.model(encode(split.records), encode(encode.corpus.entities)).total
    assert split.names is not None
    scores = (total + among(split.names, np.arange(len(encode.corpus.names)))).numpy()
    scores[np.arange(len(split.gold)), split.gold] = -np.inf
    mined = mine_negatives(encode, split, 3, 7)
    kept = np.take_along_axis(scores, mined, 1)
    np.testing.assert_allclose(kept, -np.sort(-scores, 1)[:, :3], rtol=1e-4, atol=1e-4)

    dev = trainer._dev
    trainer._dev = replace(dev, names=[NO_NAMES] * len(dev.gold))
    without = trainer.validate()
    trainer._dev = dev
    assert trainer.validate() != without
