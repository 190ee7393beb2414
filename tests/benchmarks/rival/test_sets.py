"""Sets of the rival: which split is tested and which tunes, samples, and blanked descriptions."""

from pathlib import Path

import pytest

from benchmarks.rival.sets import TUNED, rival_set, sample, without_descriptions
from mimic_engine.data.images import ReadCounts
from mimic_engine.data.source import DataReport, Dataset
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention, Mention

ENTITIES = (Entity("a", "Rome", "a city", aliases=("Roma",)), Entity("b", "Paris"))


def data_set(**sizes):
    splits = {
        name: tuple(LabelledMention(Mention("Rome", ""), "a", f"{name}/{i}") for i in range(size))
        for name, size in sizes.items()
    }
    return Dataset(Path("made-up"), ENTITIES, splits, DataReport(ReadCounts(), {}))


def test_a_test_split_is_tested_and_dev_tunes():
    one = rival_set(data_set(train=3, dev=TUNED + 2, test=TUNED + 1), "WikiMEL", None)
    assert {name: len(m) for name, m in one.tested.items()} == {"test": TUNED + 1}
    assert (len(one.dev), len(one.own), one.own_split) == (TUNED, TUNED, "dev")


def test_without_a_test_split_dev_is_tested_and_train_tunes():
    one = rival_set(data_set(train=8, dev=6), "RichpediaMEL", 4)
    assert {name: len(m) for name, m in one.tested.items()} == {"dev": 4}
    assert (len(one.dev), one.own_split, [m.id for m in one.own]) == (
        4,
        "train",
        [f"train/{i}" for i in (0, 2, 4, 6)],
    )


def test_a_set_with_nothing_but_what_is_tested_tunes_nothing_of_its_own():
    one = rival_set(data_set(test=2), "shop", None)
    assert (one.dev, one.own, one.own_split) == ((), (), None)
    with pytest.raises(DataError, match="test or dev"):
        rival_set(data_set(train=2), "shop", None)


def test_descriptions_are_blanked_where_they_tell_the_answer_or_where_asked():
    assert [e.description for e in rival_set(data_set(dev=1), "WikiDiverse", None).entities] == ["", ""]
    assert rival_set(data_set(dev=1), "WikiDiverse", None, blank=False).entities == ENTITIES
    assert rival_set(data_set(dev=1), "WikiMEL", None).entities == ENTITIES
    assert rival_set(data_set(dev=1), "WikiMEL", None, blank=True).blanked
    assert without_descriptions(ENTITIES)[0] == Entity("a", "Rome", aliases=("Roma",))


def test_a_sample_is_from_all_over_the_split():
    mentions = data_set(dev=7).splits["dev"]
    assert [m.id for m in sample(mentions, 3)] == ["dev/0", "dev/2", "dev/4"]
    assert sample(mentions, 8) == sample(mentions, None) == mentions
