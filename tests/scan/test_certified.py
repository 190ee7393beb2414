"""The certified search gives the exact answer, scores no more than it must, and never says certified wrongly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.config import MatcherConfig
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scan.certified import BoundedSearch
from mimic_engine.types import EntityArrays
from tests.scan.compiled import compiled

WIDE = MatcherConfig(text_width=24, text_token_width=24, hidden=32)


def refine(bounds, totals, k):
    search = BoundedSearch(np.asarray(bounds, np.float32), k)
    totals = np.asarray(totals, np.float32)
    while len(rows := search.next_rows()):
        search.add(rows, totals[rows])
    return search


@given(st.data())
def test_the_best_are_found_whatever_the_bounds(data):
    n = data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, n))
    totals = np.array(
        data.draw(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n))
    )
    slack = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 9.0]), min_size=n, max_size=n)))
    search = refine(totals + slack, totals, k)
    if search.dense:
        return
    kth = np.sort(totals)[-k]
    assert search.best().tolist() == np.flatnonzero(totals >= kth).tolist()
    assert search.scored <= n


def test_tight_bounds_leave_few_rows_to_score():
    totals = np.random.default_rng(0).standard_normal(10_000)
    search = refine(totals + 0.01, totals, 10)
    assert not search.dense
    assert search.best().tolist() == np.sort(np.argsort(-totals, kind="stable")[:10]).tolist()
    assert search.scored < 40


def test_useless_bounds_are_given_up():
    totals = np.random.default_rng(0).standard_normal(10_000)
    search = refine(np.full(10_000, 50.0), totals, 10)
    assert search.dense
    assert search.scored < 100


@compiled
@pytest.mark.parametrize("k", [1, 10, 500])
def test_the_scan_answers_as_exact_for_less_work(make_folded, k):
    folded = make_folded(5, 3000, WIDE)
    scan = folded.compiled_scan(folded.segments(2000, 1000), threads=2)
    exact = scan.search(folded.mentions, k, mode="exact")
    certified = scan.search(folded.mentions, k, mode="certified")
    np.testing.assert_array_equal(certified.rows, exact.rows)
    np.testing.assert_array_equal(certified.scores, exact.scores)
    for name, unit in exact.units.items():
        np.testing.assert_array_equal(certified.units[name], unit)
    assert exact.modes == ("exact",) * 5 and (exact.scored == 3000).all()
    by_bound = np.array([m == "certified" for m in certified.modes])
    assert by_bound.any() == (k <= 10)  # for half a thousand of 3,000 too many survive
    assert (certified.scored[by_bound] <= max(750, 2 * k)).all()
    assert (certified.scored[~by_bound] == 3000).all()
    scan.close()


@compiled
def test_copies_of_the_best_entity_are_all_found_and_ordered_by_id(make_folded):
    folded = make_folded(2, 400, WIDE)
    total = scores_ref(folded.mentions, folded.entities, folded.constants).total
    best = int(total[0].argmax())
    rows = np.concatenate([np.arange(400), np.full(60, best)])
    twins = EntityArrays(**{name: a[rows] for name, a in folded.entities.items()})
    scan = folded.compiled_scan([twins], tie_key=lambda rows: [f"{999 - r}" for r in rows])
    found = scan.search(folded.mentions, 61)
    np.testing.assert_array_equal(found.rows, scan.search(folded.mentions, 61, mode="exact").rows)
    assert found.rows[0].tolist() == [*range(459, 399, -1), best]
    scan.close()


@compiled
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("field", ["tglu_query", "tglu_cls"])
def test_an_entity_that_is_not_finite_is_an_error(make_folded, k, field):
    folded = make_folded(2, 40, WIDE)
    getattr(folded.entities, field)[7] = np.nan
    scan = folded.compiled_scan(folded.segments(40))
    with np.errstate(all="ignore"), pytest.raises(EngineError, match="not all of them are finite"):
        scan.search(folded.mentions, k)
    scan.close()


@compiled
def test_a_mention_that_is_not_finite_is_an_error(make_folded):
    folded = make_folded(2, 40, WIDE)
    folded.mentions.tglu_value[1, 0] = np.nan
    scan = folded.compiled_scan(folded.segments(40))
    with np.errstate(all="ignore"), pytest.raises(EngineError, match="not all of them are finite"):
        scan.search(folded.mentions, 1)
    scan.close()


def test_no_mentions_are_an_error(make_folded):
    folded = make_folded(1, 4, WIDE)
    scan = folded.scan(folded.segments(4))
    with pytest.raises(InvalidInputError, match="mentions: none to search for"):
        scan.search(folded.mentions.block(0, 0), 1)
    scan.close()
