"""A world under a model: ranks are those of a count one by one, and sets are joined by entity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.base.recipe import joined
from benchmarks.base.rows import figures, left_out_row
from benchmarks.base.trees import TreeFeatures, ranks_by_trees
from benchmarks.base.worlds import World, judged, ranks_by_name
from mimic_engine.calibration.weights import ScoreWeights
from mimic_engine.data.images import ReadCounts
from mimic_engine.data.source import DataReport, Dataset, open_dataset
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import build_trainer
from mimic_engine.types import Entity, LabelledMention, Mention
from tests.tiny_training import data, encoders, one_thread, options  # noqa: F401 - fixtures

Options = Callable[..., TrainConfig]


def made(entities: list[Entity], mentions: dict[str, list[LabelledMention]]) -> Dataset:
    report = DataReport(ReadCounts(), {})
    return Dataset(None, tuple(entities), {s: tuple(m) for s, m in mentions.items()}, report)  # type: ignore[arg-type]


def labelled(mention: str, sentence: str, answer: str) -> LabelledMention:
    return LabelledMention(Mention(mention, sentence), answer)


PEOPLE = [
    Entity("a", "Alec Baldwin", "actor in films"),
    Entity("b", "Stephen Baldwin", "sailor on ships"),
    Entity("c", "Ann Pearce", ""),
]
MENTIONS = [
    labelled("Baldwin", "Stephen and his ships", "b"),
    labelled("Alec Baldwin", "in many films", "a"),
    labelled("nobody", "a sentence", "c"),
]


def test_sets_are_joined_by_entity_with_the_first_description() -> None:
    one = made([replace(PEOPLE[0], description=""), PEOPLE[1]], {"train": MENTIONS[:1], "dev": []})
    two = made([PEOPLE[0], PEOPLE[2]], {"train": MENTIONS[1:], "dev": MENTIONS[:2], "test": MENTIONS})
    both = joined([one, two])
    assert [(e.id, e.description) for e in both.entities] == [
        ("a", "actor in films"),
        ("b", "sailor on ships"),
        ("c", ""),
    ]
    assert list(both.splits["train"]) == MENTIONS and list(both.splits["dev"]) == MENTIONS[:2]
    assert both.splits.keys() == {"train", "dev"}


def test_ranks_by_name_count_ties_and_sharing_nothing_against_the_answer() -> None:
    world = World.of("made", made(PEOPLE, {"dev": MENTIONS}))
    assert world.split == "dev"
    assert ranks_by_name(world).tolist() == [1, 1, 3]  # "Stephen" beside "Baldwin"; nobody shares nothing
    alike = [PEOPLE[0], Entity("d", "Evan Baldwin")]
    plain = made(alike, {"dev": [labelled("Baldwin", "nothing else", "a")]})
    assert ranks_by_name(World.of("made", plain)).tolist() == [2]


def test_trees_see_the_words_of_the_description() -> None:
    world = World.of("made", made(PEOPLE, {"dev": MENTIONS}))
    numbers, rows = TreeFeatures(world).of(MENTIONS[0])
    by_row = dict(zip(rows.tolist(), numbers, strict=True))
    assert by_row[1][5] > by_row[0][5] == 0  # "ships" is in the sailor's description alone
    names = [f"{f} {s}" for f in ("ann", "bob", "eve", "joe") for s in ("stone", "falk")]
    crafts = ["painter", "sailor"]
    entities = [Entity(n, n, f"a {crafts[i % 2]} {i}") for i, n in enumerate(names)]
    mentions = [labelled(n.split()[0], f"the {crafts[i % 2]} came", n) for i, n in enumerate(names)]
    many = World.of("many", made(entities, {"dev": mentions * 20}))
    assert (ranks_by_trees(many, [many]) == 1).all()  # the name alone leaves two, the craft decides


def test_ranks_of_a_model_are_those_of_a_count_one_by_one(options: Options) -> None:  # noqa: F811
    config = options()
    world = World.of("tiny", open_dataset(config.data))
    config.out.mkdir()
    trainer = build_trainer(config, world.dataset, "cpu")
    trainer.fit()
    model = trainer.model.eval()
    weights = ScoreWeights(words=3.0, exact=1.0)
    with judged(world, model, config) as one:
        alone, weighed = one.ranks(None), one.ranks(weights)
        split = one.encode.corpus.splits["tested"]
        with torch.no_grad():
            scores = model(one.encode(split.records), one.encode(one.encode.corpus.entities)).total.numpy()
        row = left_out_row(one, [one.ranked(), one.ranked()])
    names = np.zeros_like(scores)
    for b, m in enumerate(world.tested):
        features = world.lookup.features(m.mention.mention, m.mention.sentence)
        names[b] = features.at(np.arange(scores.shape[1])) @ np.array(weights.names, np.float32)
    for ranks, totals in ((alone, scores), (weighed, scores + names)):
        gold = np.take_along_axis(totals, split.gold[:, None], 1)
        least, most = (totals > gold + 1e-4).sum(1) + 1, (totals > gold - 1e-4).sum(1)
        assert ((least <= ranks) & (ranks <= most)).all()
    assert row["without_names"] == figures(alone, scores.shape[1])
    assert row["mentions"] == len(world.tested) and row["split"] == world.split


@pytest.mark.parametrize("flag", ["--limit=-1"])
def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path, flag: str) -> None:
    from benchmarks.base.__main__ import main

    said = ["--data", str(tmp_path), "--runs", str(tmp_path), "--out", str(tmp_path / "o.json"), flag]
    assert main(said) == 1
    assert capsys.readouterr().err == "error: --limit: -1 is below 0\n"
