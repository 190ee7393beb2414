"""Sentences, the rules that accept or reject a mention, and the split by sentence."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.demo.match import DrawnArticle, Tables
from mimic_engine.demo.mentions import (
    MentionFinder,
    find_all,
    split_of,
    split_sentences,
    stands_alone,
    surfaces,
)

EMPTY = Tables(frozenset(), {}, {}, {}, (), frozenset(), (), {})
PERU = DrawnArticle("Peru", "country")
GUINEA = DrawnArticle("Guinea", "country")
BEAR = DrawnArticle("Bear", "thing")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("   ", []),
        ("One.", ["One."]),
        ("One. Two! Three? 4 is four.", ["One.", "Two!", "Three?", "4 is four."]),
        ("J. R. Smith met Dr. Jones. They left.", ["J. R. Smith met Dr. Jones.", "They left."]),
        ("He lives in St. Louis. Fine.", ["He lives in St. Louis.", "Fine."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("No break before lower. case", ["No break before lower. case"]),
    ],
)
def test_split_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(alphabet="ab AB.!? \"'()\n1é", max_size=60))
@settings(max_examples=60)
def test_splitting_loses_nothing_but_white_space(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(s == s.strip() and s for s in sentences)


@pytest.mark.parametrize(
    ("sentence", "name", "alone"),
    [
        ("It borders Italy to the north.", "Italy", True),
        ("In Italy it rains.", "Italy", True),
        ("The United States is large.", "United States", True),
        ("Italy", "Italy", True),
        ("Rome, Italy, is old.", "Italy", True),
        ("The Kingdom of Italy fell.", "Italy", False),
        ("It lies in West Italy.", "Italy", False),
        ("The Italy Company failed.", "Italy", False),
        ("The Italy–France border is long.", "Italy", False),
        ("The France–Italy border is long.", "Italy", False),
        ("In ancient Italy it rained.", "Italy", False),
        ("Bank of the Italy", "Italy", False),
    ],
)
def test_stands_alone(sentence: str, name: str, alone: bool) -> None:
    start = sentence.index(name)
    assert stands_alone(sentence, start, start + len(name)) is alone


def test_surfaces_of_brands_places_and_things() -> None:
    assert "Acme" in surfaces(DrawnArticle("Acme, Inc.", "brand"))
    assert "Gambia" in surfaces(DrawnArticle("The Gambia", "country"))
    assert {"Bear", "bear", "bears"} <= surfaces(BEAR)
    assert "bear" not in surfaces(DrawnArticle("Bear", "brand"))


def cross(
    sentence: str, *articles: DrawnArticle, titles: tuple[str, ...] = (), tables: Tables = EMPTY
) -> list[str]:
    finder = MentionFinder(articles, titles, tables)
    return [found.title for found in finder.find_cross("Elsewhere", [sentence])]


def test_cross_mentions_name_countries_and_brands_only() -> None:
    assert cross("A bear lives in Peru.", PERU, BEAR) == ["Peru"]


def test_the_own_article_gives_no_cross_mention_and_others_one_each() -> None:
    finder = MentionFinder([PERU], [], EMPTY)
    sentences = ["It is in Peru.", "Peru is old."]
    assert list(finder.find_cross("Peru", sentences)) == []
    assert [f.index for f in finder.find_cross("Lima", sentences)] == [0]


@pytest.mark.parametrize("title", ["Papua New Guinea", "Gulf of Guinea", "Guinea pig"])
def test_longer_names_hide_shorter_ones(title: str) -> None:
    assert cross(f"He saw the {title} there.", GUINEA, titles=(title,)) == []
    assert cross(f"He saw the {title} there, and guests from Guinea.", GUINEA, titles=(title,)) == ["Guinea"]


def test_a_word_is_not_found_inside_another() -> None:
    assert cross("The Peruvian flag; Guinea-Bissau; Perus.", PERU, GUINEA) == []


def test_ambiguous_names_give_no_mention_in_any_case() -> None:
    tables = dataclasses.replace(EMPTY, ambiguous=frozenset({"Guinea", "bear"}))
    assert cross("He went to Guinea.", GUINEA, tables=tables) == []
    finder = MentionFinder([BEAR], [], tables)
    assert list(finder.find_self("Bear", ["A bear is large.", "Bears eat, and a bear sleeps."])) == []


def test_a_name_shared_by_two_entities_is_ambiguous() -> None:
    crane, bird = DrawnArticle("Crane (machine)", "thing"), DrawnArticle("Crane (bird)", "other")
    finder = MentionFinder([crane, bird], [], EMPTY)
    assert list(finder.find_self("Crane (machine)", ["First.", "A crane lifts."])) == []
    finder = MentionFinder([crane], [], EMPTY)
    assert [f.surface for f in finder.find_self("Crane (machine)", ["First.", "A crane lifts."])] == ["crane"]


def test_self_mentions_leave_out_the_first_sentence_and_longer_names() -> None:
    finder = MentionFinder([BEAR, DrawnArticle("Polar bear", "thing")], ["Bear", "Polar bear"], EMPTY)
    sentences = ["A bear is large.", "The polar bear is white.", "Most bears sleep."]
    found = list(finder.find_self("Bear", sentences))
    assert [(f.index, f.surface, f.kind) for f in found] == [(2, "bears", "self")]
    assert sentences[2][found[0].start : found[0].end] == "bears"


def test_find_all_is_in_the_order_of_titles_and_repeats() -> None:
    wiki = {t: {"extract": x} for t, x in {"Zoo": "It is in Peru.", "Arch": "Peru has one."}.items()}
    wiki["Peru"] = {"extract": "Peru is a country. Most of Peru is high."}
    found = find_all([PERU], wiki, EMPTY)
    assert [(f.article, f.kind) for f in found] == [("Arch", "cross"), ("Peru", "self"), ("Zoo", "cross")]
    assert found == find_all([PERU], dict(reversed(wiki.items())), EMPTY)


def test_split_depends_on_the_sentence_alone_and_has_the_stated_shares() -> None:
    splits = [split_of(f"Sentence number {i}.") for i in range(4000)]
    assert splits == [split_of(f"Sentence number {i}.") for i in range(4000)]
    shares = {name: splits.count(name) / 4000 for name in ("train", "dev", "test")}
    assert shares["train"] == pytest.approx(0.7, abs=0.03)
    assert shares["dev"] == pytest.approx(0.1, abs=0.03)
    assert shares["test"] == pytest.approx(0.2, abs=0.03)
