"""The exact scan equals scoring everything at once, whatever the segments, threads and batch."""

import threading

import numpy as np
import pytest

from mimic_engine.config import MatcherConfig
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.scoring.scan import MENTIONS_PER_PASS, ExactScan
from mimic_engine.scoring.torch import TorchScorer
from mimic_engine.types import EntityArrays, MentionArrays

PAIRS_PER_BLOCK = NumpyScorer.pairs_per_block


def names(rows):
    return [f"entity-{r:05d}" for r in rows.tolist()]


@pytest.mark.parametrize("scorer", [NumpyScorer, TorchScorer])
@pytest.mark.parametrize(
    ("mentions", "sizes"),
    [(1, (1,)), (1, (PAIRS_PER_BLOCK, 1)), (3, (101, 1, 37)), (MENTIONS_PER_PASS + 1, (53,))],
)
def test_totals_search_and_ranks_equal_the_reference(make_folded, scorer, mentions, sizes):
    folded = make_folded(mentions, sum(sizes))
    expected = scores_ref(folded.mentions, folded.entities, folded.constants)
    scan = ExactScan(folded.segments(*sizes), scorer(folded.constants), threads=2, tie_key=names)
    np.testing.assert_allclose(scan.totals(folded.mentions), expected.total, rtol=0, atol=1e-4)
    k = min(7, sum(sizes))
    found = scan.search(folded.mentions, k)
    best = np.argsort(-expected.total, axis=1)[:, :k]
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


def test_a_mention_has_the_same_answer_in_any_batch(make_folded):
    folded = make_folded(40, 211)
    scan = ExactScan(folded.segments(200, 11), NumpyScorer(folded.constants), threads=2)
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
    scan = ExactScan(folded.segments(300, 1), NumpyScorer(folded.constants), tie_key=names)
    rows = np.array([300, 4, 7, 250, 130, *list(range(20, 120))])
    found = scan.search(folded.mentions, 3, rows=rows)
    total = scores_ref(folded.mentions, folded.entities, folded.constants).total[:, rows]
    np.testing.assert_array_equal(found.rows, rows[np.argsort(-total, axis=1)[:, :3]])
    scan.close()


def test_equal_entities_are_ordered_by_id(make_folded):
    folded = make_folded(2, 6)
    twins = EntityArrays(**{k: np.concatenate([a, a, a]) for k, a in folded.entities.items()})
    scan = ExactScan([twins], NumpyScorer(folded.constants), tie_key=lambda rows: [f"{99 - r}" for r in rows])
    rows = scan.search(folded.mentions, 3).rows
    assert (rows[:, 0] > rows[:, 1]).all()
    assert (rows[:, 1] > rows[:, 2]).all()
    assert (rows % 6 == rows[:, :1] % 6).all()
    scan.close()


def test_half_precision_segments_give_nearly_the_same_scores(make_folded):
    folded = make_folded(3, 150)
    exact = ExactScan(folded.segments(150), NumpyScorer(folded.constants))
    half = ExactScan(folded.segments(100, 50, half=True), NumpyScorer(folded.constants))
    difference = np.abs(exact.totals(folded.mentions) - half.totals(folded.mentions)).max()
    assert 0 < difference < 0.05
    exact.close()
    half.close()


@pytest.mark.parametrize("k", [0, -1, 10])
def test_k_outside_its_limits_is_an_error(make_folded, k):
    folded = make_folded(1, 9)
    scan = ExactScan(folded.segments(9), NumpyScorer(folded.constants))
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

    scan = ExactScan(folded.segments(4 * PAIRS_PER_BLOCK), Recording(folded.constants), threads=2)
    scan.totals(folded.mentions)
    assert len(seen) == 2
    scan.close()


def test_a_failing_scorer_fails_the_search(make_folded):
    folded = make_folded(1, 5)

    class Broken(NumpyScorer):
        def score(self, mentions, entities):
            raise RuntimeError("no scores today")

    scan = ExactScan(folded.segments(5), Broken(folded.constants))
    with pytest.raises(RuntimeError, match="no scores today"):
        scan.search(folded.mentions, 1)
    scan.close()


def test_an_ablated_model_is_scanned_too(make_folded):
    config = MatcherConfig(
        text_width=6, text_token_width=6, hidden=4, vision="concat", cmfu=False, mask_padding=True
    )
    folded = make_folded(2, 30, config)
    scan = ExactScan(folded.segments(30), NumpyScorer(folded.constants))
    assert set(scan.search(folded.mentions, 2).units) == {"tglu", "concat"}
    scan.close()


@pytest.mark.parametrize("sizes", [(1,), (5, 0, 3), (2 * PAIRS_PER_BLOCK + 1,)])
def test_half_precision_is_widened_exactly(make_folded, sizes):
    folded = make_folded(2, sum(sizes))
    segments = folded.segments(*sizes, half=True)
    wide = [EntityArrays(**{k: a.astype(np.float32) for k, a in s.items()}) for s in segments]
    half, full = (ExactScan(s, NumpyScorer(folded.constants), threads=2) for s in (segments, wide))
    np.testing.assert_array_equal(half.totals(folded.mentions), full.totals(folded.mentions))
    rows = np.random.default_rng(0).permutation(sum(sizes))
    for (name, a), (_, b) in zip(half.gather(rows).items(), full.gather(rows).items(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    half.close()
    full.close()


@pytest.mark.parametrize("rows", [1, 2, 7, 2 * PAIRS_PER_BLOCK + 1, 5 * PAIRS_PER_BLOCK])
@pytest.mark.parametrize("chosen", [False, True])
def test_blocks_fit_the_scorer_and_share_the_rows_evenly(make_folded, rows, chosen):
    folded = make_folded(2, rows)
    seen = []

    class Recording(NumpyScorer):
        def score(self, mentions, entities):
            seen.append(entities.rows)
            return super().score(mentions, entities)

    scan = ExactScan(folded.segments(rows), Recording(folded.constants), threads=2)
    scan.totals(folded.mentions, np.arange(rows) if chosen else None)
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
    scan = ExactScan(folded.segments(20), NumpyScorer(folded.constants))
    with pytest.raises(EngineError, match="mention 1 of the batch are not all finite"):
        scan.search(mentions, 2)
    scan.close()


def test_more_winners_than_a_block_holds_are_rescored_in_parts(make_folded):
    folded = make_folded(1, 3 * PAIRS_PER_BLOCK)
    scan = ExactScan(folded.segments(3 * PAIRS_PER_BLOCK), NumpyScorer(folded.constants))
    found = scan.search(folded.mentions, 2 * PAIRS_PER_BLOCK + 5)
    expected = scores_ref(folded.mentions, folded.entities, folded.constants).total[0]
    np.testing.assert_array_equal(found.rows[0], np.argsort(-expected)[: 2 * PAIRS_PER_BLOCK + 5])
    scan.close()


def test_no_threads_is_an_error(make_folded):
    folded = make_folded(1, 2)
    with pytest.raises(InvalidInputError, match="threads: must be at least 1, got 0"):
        ExactScan(folded.segments(2), NumpyScorer(folded.constants), threads=0)
