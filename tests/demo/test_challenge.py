"""The committed challenge table, and finding its sentences."""

import dataclasses
import json
from importlib import resources

import pytest

from mimic_engine.demo.challenge import ChallengeItem, load_items, locate, sentence_hash
from mimic_engine.errors import DataError

WIKI = {"Cider": {"extract": "Cider is a drink. It is made of apples. It is old."}}
ITEM = ChallengeItem("challenge/x", "Cider", 1, 14, 20, sentence_hash("It is made of apples."), "Apple")


def test_locate_gives_sentence_and_surface() -> None:
    found = locate(ITEM, WIKI)
    assert (found.surface, found.sentence, found.title) == ("apples", "It is made of apples.", "Apple")


def test_changed_text_is_refused_with_both_hashes() -> None:
    wiki = {"Cider": {"extract": "Cider is a drink. It is made of pears."}}
    with pytest.raises(DataError, match=ITEM.sha256) as caught:
        locate(ITEM, wiki)
    assert sentence_hash("It is made of pears.") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"article": "Perry"}, "no article 'Perry'"), ({"sentence": 3}, "has 3 sentences, wanted index 3")],
)
def test_missing_article_or_sentence_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        locate(dataclasses.replace(ITEM, **changes), WIKI)  # type: ignore[arg-type]


def test_committed_table_is_large_distinct_and_holds_no_text() -> None:
    items = load_items()
    assert len(items) >= 100
    assert len({i.id for i in items}) == len(items)
    assert len({(i.article, i.sentence, i.start) for i in items}) == len(items)
    for item in items:
        assert 0 <= item.start < item.end
        assert len(item.sha256) == 16
        assert item.end - item.start < 40
        assert not (item.article == item.answer and item.sentence == 0)  # that sentence is in the description
    raw = json.loads(resources.files("mimic_engine.demo").joinpath("challenge.json").read_text("utf-8"))
    assert {key for item in raw for key in item} == {f.name for f in dataclasses.fields(ChallengeItem)}
