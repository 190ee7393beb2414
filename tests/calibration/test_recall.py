"""Recall: shares from places, the smallest R, what is written and read, and when a promise is broken."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.calibration.recall import CHANCE, Recall, RecallRow, regressions
from mimic_engine.errors import IndexFormatError
from mimic_engine.files import decode


def recall(places, entities=5000, **options):
    options = {"centroids": 64, "source": "entities"} | options
    return Recall.of_places(np.array(places, np.int64), entities=entities, **options)


def found_within(mentions, missed, r=100):
    """Places of M mentions, of which ``missed`` have their second best at place r + 1, and some at r."""
    places = np.tile(np.array([1, 2]), (mentions, 1))
    places[-(mentions // 100 + 1) :, 1] = r
    places[:missed, 1] = r + 1
    return places


def test_shares_at_each_r():
    found = recall([[1, 2, 3], [1, 12, 3], [11, 2, 17], [4, 5, 6]], entities=40)
    assert [row.r for row in found.rows] == [10, 16, 17, 32, 40]
    assert found.r_999 == 17 and (found.mentions, found.k, found.entities) == (4, 3, 40)
    assert found.row(10) == RecallRow(10, 3 / 4, 9 / 12, 2 / 4)
    assert found.row(16) == RecallRow(16, 1.0, 11 / 12, 3 / 4)
    assert found.row(17) == RecallRow(17, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("entities", "ladder"),
    [
        (1, [1]),
        (9, [1, 9]),
        (10, [1, 10]),
        (17, [1, 10, 16, 17]),
        (4096, [1, 10, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]),
    ],
)
def test_the_ladder_ends_at_all_entities_or_4096(entities, ladder):
    assert [row.r for row in recall([[1]], entities).rows] == ladder
    assert recall([[1]], 10**9).rows[-1].r == 4096
    assert recall([[5000]], 10**9).rows[-1].r == 5000


places_lists = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(1, 300), min_size=k, max_size=k), min_size=1, max_size=60)
)


@given(places_lists)
def test_r_999_is_the_smallest_that_finds_999_in_1000(places):
    found = recall(places)
    whole = np.array(places).max(axis=1)
    share = {r: (whole <= r).mean() for r in range(301)}
    assert share[found.r_999] >= 0.999 > share[found.r_999 - 1]
    assert decode(json.loads(json.dumps(found.to_json())), Recall, "", IndexFormatError) == found
    for name in ("top1_identical", "top10_contained", "mentions_contained"):
        shares = [getattr(row, name) for row in found.rows]
        assert shares == sorted(shares)
    assert regressions(found, np.array(places)) == []


def test_one_mention_in_1000_may_be_missed():
    assert recall(found_within(1000, 1)).r_999 == 100
    assert recall(found_within(999, 1)).r_999 == 101
    assert recall(found_within(2000, 2)).r_999 == 100


def hypergeometric(missed_then, then, missed_now, now):
    """Share of random splits in which as many of all missed ones fall among ``now``."""
    rng = np.random.default_rng(0)
    missed = missed_then + missed_now
    drawn = rng.hypergeometric(missed, then + now - missed, now, size=200_000)
    return (drawn >= missed_now).mean()


@pytest.mark.parametrize(
    ("then", "now", "missed", "broken"),
    [
        (512, 512, 0, False),
        (512, 512, 5, False),
        (512, 512, 9, False),
        (512, 512, 10, True),
        (512, 512, 300, True),
        (512, 5169, 52, False),
        (512, 5169, 100, True),
        (13, 13, 4, False),
        (13, 13, 13, True),
        (5169, 512, 2, False),
        (5169, 512, 4, True),
        (1, 100_000, 90_000, False),
    ],
)
def test_a_promise_is_broken_by_more_than_chance(then, now, missed, broken):
    promise = recall(found_within(then, 0))
    assert promise.r_999 == 100
    said = regressions(promise, found_within(now, missed))
    assert len(said) == broken
    if then + now < 6000:
        chance = hypergeometric(0, then, missed, now)
        assert (chance < CHANCE) == broken or abs(chance - CHANCE) < 5e-4
    if broken:
        assert said[0].startswith("mentions_contained at R = 100: ") and f"of {now} mentions" in said[0]
        assert f"promised 100.0000% of {then}" in said[0]


def test_another_best_entity_breaks_the_promise_too():
    promise = recall(found_within(512, 0))
    places = found_within(512, 0)
    places[:20, 0] = 300
    assert [line.split()[0] for line in regressions(promise, places)] == [
        "top1_identical",
        "mentions_contained",
    ]


def test_what_is_printed():
    lines = str(recall([[1, 2], [3, 14]], entities=15, source="dev.jsonl")).splitlines()
    assert lines[0] == "2 mentions (dev.jsonl), 15 entities, 64 centroids"
    assert lines[2].split() == ["10", "100.0000%", "75.0000%", "50.0000%"]
    assert lines[-1] == "smallest R for 99.9%: 14"
