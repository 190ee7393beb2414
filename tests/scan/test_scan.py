"""The scan equals scoring everything at once, whatever the mode, segments, threads and batch."""

import threading

import numpy as np
import pytest

from mimic_engine.config import MatcherConfig
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.kernels.reference import NumpyScorer, scores_ref
from mimic_engine.scan.passes import MENTIONS_PER_PASS
from mimic_engine.scan.torch import TorchScorer
from mimic_engine.types import EntityArrays, MentionArrays

PAIRS_PER_BLOCK = NumpyScorer.pairs_per_block


def names(rows):
    return [f"entity-{r:05d}" for r in rows.tolist()]


@pytest.mark.parametrize("mode", ["exact", "certified"])
@pytest.mark.parametrize("scorer", [NumpyScorer, TorchScorer])
@pytest.mark.parametrize(
    ("mentions", "sizes"),
    [(1, (1,)), (1, (PAIRS_PER_BLOCK, 1)), (3, (101, 1, 37)), (MENTIONS_PER_PASS + 1, (53,))],
)
def test_totals_search_and_ranks_equal_the_reference(make_folded, mode, scorer, mentions, sizes):
    folded = make_folded(mentions, sum(sizes))
    expected = scores_ref(folded.mentions, folded.entities, folded.constants)
    scan = folded.scan(folded.segments(*sizes), scorer, threads=2, tie_key=names)
    np.testing.assert_allclose(scan.totals(folded.mentions), expected.total, rtol=0, atol=1e-4)
    k = min(7, sum(sizes))
    found = scan.search(folded.mentions, k, mode=mode)
    best = np.argsort(-expected.total, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.rows, best)
    np.testing.assert_allclose(found.scores, np.take_along_axis(expected.total, best, 1), rtol=0, atol=1e-4)
    for name, unit in expected.units.items():
        np.testing.assert_allclose(found.units[name], np.take_along_axis(unit, best, 1), rtol=0, atol=1e-4)
    gold = np.arange(mentions) % sum(sizes)
    own = expected.total[np.arange(mentions), gold]
    np.testing.assert_array_equal(
        scan.ranks(folded.mentions, gold), (expected.total > own[:, None]).sum(1) + 1
    )
    scan.close()


@pytest.mark.parametrize("mentions", [1, 20])
def test_the_default_does_the_work_of_exact_where_a_bound_would_cost_more(make_folded, mentions):
    folded = make_folded(mentions, 2000)
    pairs = []

    class Counting(NumpyScorer):
        def score(self, mentions, entities):
            pairs.append(mentions.rows * entities.rows)
            return super().score(mentions, entities)

    scan = folded.scan(folded.segments(1500, 500), Counting, threads=2)
    exact = scan.search(folded.mentions, 10, mode="exact")
    work = sum(pairs)
    pairs.clear()
    default = scan.search(folded.mentions, 10)
    assert work == sum(pairs) > 2000 * mentions
    assert default.modes == ("exact",) * mentions and (default.scored == 2000).all()
    np.testing.assert_array_equal(default.rows, exact.rows)
    np.testing.assert_array_equal(default.scores, exact.scores)
    scan.close()


def test_a_mention_has_the_same_answer_in_any_batch(make_folded):
    folded = make_folded(40, 211)
    scan = folded.scan(folded.segments(200, 11), threads=2)
    together = scan.search(folded.mentions, 5)
    shuffle = np.random.default_rng(0).permutation(40)
    shuffled = scan.search(MentionArrays(**{k: a[shuffle] for k, a in folded.mentions.items()}), 5)
    np.testing.assert_array_equal(shuffled.rows, together.rows[shuffle])
    for b in (0, 17, 39):
        alone = scan.search(MentionArrays(**{k: a[b : b + 1] for k, a in folded.mentions.items()}), 5)
        np.testing.assert_array_equal(alone.rows[0], together.rows[b])
        np.testing.assert_array_equal(alone.scores[0], together.scores[b])
    scan.close()


def test_candidates_restrict_the_search(make_folded):
    folded = make_folded(2, 301)
    scan = folded.scan(folded.segments(300, 1), tie_key=names)
    rows = np.array([300, 4, 7, 250, 130, *list(range(20, 120))])
    found = scan.search(folded.mentions, 3, rows=rows)
    total = scores_ref(folded.mentions, folded.entities, folded.constants).total[:, rows]
    np.testing.assert_array_equal(found.rows, rows[np.argsort(-total, axis=1, kind="stable")[:, :3]])
    scan.close()


def test_equal_entities_are_ordered_by_id(make_folded):
    folded = make_folded(2, 6)
    twins = EntityArrays(**{k: np.concatenate([a, a, a]) for k, a in folded.entities.items()})
    scan = folded.scan([twins], tie_key=lambda rows: [f"{99 - r}" for r in rows])
    rows = scan.search(folded.mentions, 3).rows
    assert (rows[:, 0] > rows[:, 1]).all()
    assert (rows[:, 1] > rows[:, 2]).all()
    assert (rows % 6 == rows[:, :1] % 6).all()
    scan.close()


def test_half_precision_segments_give_nearly_the_same_scores(make_folded):
    folded = make_folded(3, 150)
    exact = folded.scan(folded.segments(150))
    half = folded.scan(folded.segments(100, 50, half=True))
    difference = np.abs(exact.totals(folded.mentions) - half.totals(folded.mentions)).max()
    assert 0 < difference < 0.05
    exact.close()
    half.close()


def test_rows_that_are_not_allowed_are_never_answered(make_folded):
    folded = make_folded(3, 301)
    allowed = np.random.default_rng(0).random(301) < 0.3
    total = scores_ref(folded.mentions, folded.entities, folded.constants).total
    best = np.argsort(-np.where(allowed, total, -np.inf), axis=1, kind="stable")
    scan = folded.scan(folded.segments(100, 201), threads=2, tie_key=names)
    for mode in ("exact", "certified"):
        found = scan.search(folded.mentions, 20, mode=mode, allowed=allowed)
        np.testing.assert_array_equal(found.rows, best[:, :20])
        assert (found.scored <= allowed.sum()).all()
    everything = scan.search(folded.mentions, int(allowed.sum()), allowed=allowed)
    np.testing.assert_array_equal(everything.rows, best[:, : allowed.sum()])
    some = np.arange(0, 301, 2)
    found = scan.search(folded.mentions, 5, rows=some, allowed=allowed)
    kept = np.isin(np.arange(301), some) & allowed
    np.testing.assert_array_equal(
        found.rows, np.argsort(-np.where(kept, total, -np.inf), axis=1, kind="stable")[:, :5]
    )
    gold = np.flatnonzero(allowed)[:3]
    own = total[np.arange(3), gold]
    expected = (allowed & (total >= own[:, None])).sum(1)
    np.testing.assert_array_equal(scan.ranks(folded.mentions, gold, allowed=allowed), expected)
    with pytest.raises(InvalidInputError, match=rf"not between 1 and the {allowed.sum()} candidates"):
        scan.search(folded.mentions, int(allowed.sum()) + 1, allowed=allowed)
    scan.close()


def test_an_unknown_mode_and_a_coded_scan_without_codes_are_errors(make_folded):
    folded = make_folded(1, 9)
    scan = folded.scan(folded.segments(9))
    assert scan.modes == ("exact", "certified")
    with pytest.raises(InvalidInputError, match="mode: 'approximate' is not one of exact, certified, coded"):
        scan.search(folded.mentions, 1, mode="approximate")
    with pytest.raises(InvalidInputError, match="mode: 'coded' needs an index with codes"):
        scan.search(folded.mentions, 1, mode="coded")
    scan.close()


@pytest.mark.parametrize("k", [0, -1, 10])
def test_k_outside_its_limits_is_an_error(make_folded, k):
    folded = make_folded(1, 9)
    scan = folded.scan(folded.segments(9))
    with pytest.raises(InvalidInputError, match=f"top_k: {k} is not between 1 and the 9 candidates"):
        scan.search(folded.mentions, k)
    scan.close()


def test_blocks_are_spread_over_the_threads(make_folded):
    folded = make_folded(1, 4 * PAIRS_PER_BLOCK)
    seen, both = set(), threading.Barrier(2, timeout=10)

    class Recording(NumpyScorer):
        def score(self, mentions, entities):
            if threading.get_ident() not in seen:
                seen.add(threading.get_ident())
                both.wait()
            return super().score(mentions, entities)

    scan = folded.scan(folded.segments(4 * PAIRS_PER_BLOCK), Recording, threads=2)
    scan.totals(folded.mentions)
    assert len(seen) == 2
    scan.close()


def test_a_failing_scorer_fails_the_search(make_folded):
    folded = make_folded(1, 5)

    class Broken(NumpyScorer):
        def score(self, mentions, entities):
            raise RuntimeError("no scores today")

    scan = folded.scan(folded.segments(5), Broken)
    with pytest.raises(RuntimeError, match="no scores today"):
        scan.search(folded.mentions, 1)
    scan.close()


def test_an_ablated_model_is_scanned_too(make_folded):
    config = MatcherConfig(
        text_width=6, text_token_width=6, hidden=4, vision="concat", cmfu=False, mask_padding=True
    )
    folded = make_folded(2, 30, config)
    scan = folded.scan(folded.segments(30))
    assert set(scan.search(folded.mentions, 2).units) == {"tglu", "concat"}
    scan.close()


@pytest.mark.parametrize("sizes", [(1,), (5, 0, 3), (2 * PAIRS_PER_BLOCK + 1,)])
def test_half_precision_is_widened_exactly(make_folded, sizes):
    folded = make_folded(2, sum(sizes))
    segments = folded.segments(*sizes, half=True)
    wide = [EntityArrays(**{k: a.astype(np.float32) for k, a in s.items()}) for s in segments]
    half, full = (folded.scan(s, threads=2) for s in (segments, wide))
    np.testing.assert_array_equal(half.totals(folded.mentions), full.totals(folded.mentions))
    everything = np.random.default_rng(0).permutation(sum(sizes))
    a, b = (scan.search(folded.mentions, sum(sizes), rows=everything) for scan in (half, full))
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.scores, b.scores)
    half.close()
    full.close()


@pytest.mark.parametrize("rows", [1, 2, 7, 2 * PAIRS_PER_BLOCK + 1, 5 * PAIRS_PER_BLOCK])
def test_blocks_fit_the_scorer_and_share_the_rows_evenly(make_folded, rows):
    folded = make_folded(2, rows)
    seen = []

    class Recording(NumpyScorer):
        def score(self, mentions, entities):
            seen.append(entities.rows)
            return super().score(mentions, entities)

    scan = folded.scan(folded.segments(rows), Recording, threads=2)
    scan.totals(folded.mentions)
    assert sum(seen) == rows
    assert max(seen) <= PAIRS_PER_BLOCK // 2
    assert len(seen) % 2 == 0 or rows == 1
    assert max(seen) - min(seen) < len(seen)
    scan.close()


def test_scores_that_are_not_finite_are_an_error(make_folded):
    folded = make_folded(3, 20)
    broken = folded.mentions.cmfu.copy()
    broken[1, 0] = np.nan
    mentions = MentionArrays(**(dict(folded.mentions.items()) | {"cmfu": broken}))
    scan = folded.scan(folded.segments(20))
    with pytest.raises(EngineError, match="not all of them are finite"):
        scan.search(mentions, 2)
    scan.close()


def test_more_winners_than_a_block_holds_are_rescored_in_parts(make_folded):
    folded = make_folded(1, 3 * PAIRS_PER_BLOCK)
    scan = folded.scan(folded.segments(3 * PAIRS_PER_BLOCK))
    found = scan.search(folded.mentions, 2 * PAIRS_PER_BLOCK + 5)
    expected = scores_ref(folded.mentions, folded.entities, folded.constants).total[0]
    np.testing.assert_array_equal(
        found.rows[0], np.argsort(-expected, kind="stable")[: 2 * PAIRS_PER_BLOCK + 5]
    )
    scan.close()


def test_no_threads_is_an_error(make_folded):
    folded = make_folded(1, 2)
    with pytest.raises(InvalidInputError, match="threads: must be at least 1, got 0"):
        folded.scan(folded.segments(2), threads=0)
