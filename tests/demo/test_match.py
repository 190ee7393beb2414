"""Which articles become entities, and with which drawings."""

import dataclasses

import pytest

from mimic_engine.demo.match import (
    Tables,
    base_name,
    choose_articles,
    match_places,
    match_things,
    region_code,
    singulars,
    slug,
)

EMPTY = Tables(frozenset(), {}, {}, {}, (), frozenset(), (), {})
GEORGIA = {"label": "flag: Georgia", "hexcode": "1F1EC-1F1EA", "group": 9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Crane (machine)", "crane-machine"),
        ("São Tomé & Príncipe", "sao-tome-and-principe"),
        ("man’s shoe", "mans-shoe"),
        ("C", "c"),
        ("", ""),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_base_name_drops_only_a_final_disambiguation() -> None:
    assert base_name("Crane (machine)") == "Crane"
    assert base_name("Crane") == "Crane"
    assert base_name("Le (odd) name") == "Le (odd) name"


def test_singulars() -> None:
    assert "cherry" in singulars("cherries")
    assert "peach" in singulars("peaches")
    assert "grape" in singulars("grapes")
    assert "glasses" in singulars("glasses")


@pytest.mark.parametrize(
    ("hexcode", "code"),
    [
        ("1F1EC-1F1EA", "GE"),
        ("1F3F4-E0067-E0062-E0073-E0063-E0074-E007F", "GB-SCT"),
        ("1F34E", None),
        ("1F3F4", None),
    ],
)
def test_region_code(hexcode: str, code: str | None) -> None:
    assert region_code(hexcode) == code


def test_a_label_matches_only_one_article_of_its_name() -> None:
    titles = ["Grape", "Cricket", "Cricket (insect)", "Lime (fruit)", "Turkey"]
    found = match_things(titles, ["grapes", "cricket", "lime", "sled"], EMPTY)
    assert found == {"Grape": "grapes", "Lime (fruit)": "lime"}


def test_false_friends_never_match_and_hand_matches_win() -> None:
    tables = dataclasses.replace(
        EMPTY, false_friends=frozenset({"turkey"}), things={"Orange (fruit)": "tangerine", "Absent": "x"}
    )
    found = match_things(["Turkey", "Orange (fruit)"], ["turkey", "orange"], tables)
    assert found == {"Orange (fruit)": "tangerine"}


def test_places_match_by_flag_label_unless_a_hand_says_otherwise() -> None:
    chad = {"label": "flag: Chad", "hexcode": "1F1F9-1F1E9", "group": 9}
    tables = dataclasses.replace(EMPTY, places={"GE": "Georgia (country)"})
    titles = ["Georgia (country)", "Georgia (state)", "Chad"]
    assert match_places(titles, [GEORGIA, chad], EMPTY) == {"TD": "Chad"}
    assert match_places(titles, [GEORGIA, chad], tables) == {"GE": "Georgia (country)", "TD": "Chad"}


def test_a_rival_does_not_stand_in_the_way_of_its_namesake() -> None:
    tables = dataclasses.replace(EMPTY, rivals=("Georgia (novel)",))
    assert match_places(["Georgia", "Georgia (novel)"], [GEORGIA], tables) == {"GE": "Georgia"}


def test_chosen_articles_have_the_drawings_that_exist() -> None:
    emoji = [GEORGIA, {"label": "grapes", "hexcode": "1F347", "group": 4}]
    icons = {
        "noto": frozenset({"grapes"}),
        "twemoji": frozenset({"grapes", "flag-georgia"}),
        "fluent-emoji-flat": frozenset[str](),
        "openmoji": frozenset({"grapes", "flag-georgia"}),
        "flag": frozenset({"ge-4x3", "ge-1x1"}),
        "logos": frozenset({"acme"}),
        "simple-icons": frozenset({"acme"}),
    }
    tables = dataclasses.replace(
        EMPTY,
        brands={"Acme": ("logos:acme", "simple-icons:acme"), "Gone": (None, None)},
        rivals=("Acme (hill)",),
    )
    titles = ["Grape", "Georgia", "Acme", "Acme (hill)", "Unrelated"]
    chosen = {article.title: article for article in choose_articles(titles, emoji, icons, tables)}
    assert list(chosen) == ["Acme", "Acme (hill)", "Georgia", "Grape"]
    assert chosen["Grape"].drawings == {
        "entity": "noto:grapes",
        "train": "twemoji:grapes",
        "test": "openmoji:grapes",
    }
    assert chosen["Georgia"].drawings["entity"] == "flag:ge-4x3"
    assert chosen["Georgia"].drawings["dev"] == "flag:ge-1x1"
    assert "train" not in chosen["Acme"].drawings
    assert (chosen["Acme (hill)"].type, dict(chosen["Acme (hill)"].drawings)) == ("other", {})


def test_committed_tables_are_consistent() -> None:
    tables = Tables.load()
    titles = [*tables.things, *tables.places.values(), *tables.brands, *tables.rivals]
    assert len(titles) == len(set(titles))
    named = {
        "georgia",
        "amazon",
        "java",
        "c",
        "ireland",
        "guinea",
        "niger",
        "jordan",
        "turkey",
        "chad",
        "apple",
    }
    assert named <= {name.lower() for name in tables.ambiguous}
    assert all(icon is None or ":" in icon for pair in tables.brands.values() for icon in pair)
