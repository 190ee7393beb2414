"""Names and priors in the scan: every mode's answer is that of adding them to all scores."""

import numpy as np
import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.terms import NameScores, ScoreTerms
from tests.scan.arrays import Pairs, Shape

SHAPE = Shape(5, 700, 17, 9, 32, 24, storage="float16", mask=True, spread=0.7)
COMPILED = pytest.param(
    "compiled", marks=pytest.mark.skipif(not CpuKernels.available(), reason="no compiled kernels")
)


@pytest.fixture(scope="module")
def pairs():
    return Pairs(SHAPE)


def kernels(kind, constants):
    return CpuKernels(constants) if kind == "compiled" else BlockKernels(NumpyScorer(constants), constants)


def names_of(size, count=40, seed=0):
    """Name scores of five mentions: a few rows each, the last mention none; one lifts the worst entity."""
    rng = np.random.default_rng(seed)
    found = []
    for b in range(5):
        rows = np.sort(rng.choice(SHAPE.entities, count if b < 4 else 0, replace=False))
        scores = rng.random(len(rows)).astype(np.float32) * np.float32(size)
        found.append(NameScores(rows.astype(np.int64), scores))
    return found


def dense(names, prior):
    """The terms of all pairs, (B, N) each."""
    name = np.zeros((len(names), SHAPE.entities), np.float32)
    for b, one in enumerate(names):
        name[b, one.rows] = one.scores
    return name, np.broadcast_to(prior, name.shape)


PRIOR = np.random.default_rng(7).normal(0, 0.5, SHAPE.entities).astype(np.float32)


@pytest.mark.parametrize("kind", ["blocks", COMPILED])
@pytest.mark.parametrize("mode", ["exact", "certified"])
@pytest.mark.parametrize("size", [0.3, 50.0])
@pytest.mark.parametrize("masked", [False, True])
def test_an_answer_is_that_of_adding_the_terms_to_all_scores(pairs, kind, mode, size, masked):
    names, k = names_of(size), 7
    allowed = np.arange(SHAPE.entities) % 3 > 0 if masked else None
    scan = Scan([pairs.entities], kernels(kind, pairs.constants), threads=2, terms=ScoreTerms(PRIOR, size))
    found = scan.search(pairs.mentions, k, mode=mode, allowed=allowed, names=names)
    name, prior = dense(names, PRIOR)
    alone = scan.totals(pairs.mentions)
    totals = (alone + name) + prior
    if masked:
        totals[:, ~allowed] = -np.inf
    best = np.argsort(-totals, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.rows, best)
    close = {"rtol": 0, "atol": 1e-4 if kind == "blocks" else 0}
    np.testing.assert_allclose(found.scores, np.take_along_axis(totals, best, 1), **close)
    np.testing.assert_array_equal(found.units["name"], np.take_along_axis(name, best, 1))
    np.testing.assert_array_equal(found.units["prior"], np.take_along_axis(prior, best, 1))
    gold = best[:, -1]
    np.testing.assert_array_equal(
        scan.ranks(pairs.mentions, gold, allowed=allowed, names=names), np.full(5, k)
    )
    scan.close()


@pytest.mark.skipif(not CpuKernels.available(), reason="no compiled kernels")
def test_certified_has_the_bits_of_exact_in_any_batch_and_scores_few(pairs):
    names = names_of(3.0)
    scan = Scan([pairs.entities], CpuKernels(pairs.constants), threads=2, terms=ScoreTerms(PRIOR, 3.0))
    exact = scan.search(pairs.mentions, 7, mode="exact", names=names)
    certified = scan.search(pairs.mentions, 7, names=names)
    alone = [scan.search(pairs.mentions.block(b, b + 1), 7, names=[names[b]]) for b in range(5)]
    for b in range(5):
        for found, row in ((certified, b), (alone[b], 0)):
            np.testing.assert_array_equal(found.rows[row], exact.rows[b])
            np.testing.assert_array_equal(found.scores[row], exact.scores[b])
            for unit in exact.units:
                np.testing.assert_array_equal(found.units[unit][row], exact.units[unit][b])
    assert (certified.scored < SHAPE.entities // 2).any()
    scan.close()


@pytest.mark.parametrize("kind", ["blocks", COMPILED])
def test_a_name_lifts_the_entity_with_the_worst_score(pairs, kind):
    scan = Scan([pairs.entities], kernels(kind, pairs.constants), threads=1, terms=ScoreTerms(None, 100.0))
    worst = scan.totals(pairs.mentions).argmin(1)
    names = [NameScores(np.array([row], np.int64), np.array([100.0], np.float32)) for row in worst]
    found = scan.search(pairs.mentions, 3, names=names)
    np.testing.assert_array_equal(found.rows[:, 0], worst)
    assert list(found.units) == ["tglu", "vdlu", "cmfu", "name"]
    scan.close()


@pytest.mark.parametrize("kind", ["blocks", COMPILED])
def test_without_names_the_score_is_the_models_alone(pairs, kind):
    with_terms = Scan([pairs.entities], kernels(kind, pairs.constants), terms=ScoreTerms(PRIOR, 9.0))
    without = Scan([pairs.entities], kernels(kind, pairs.constants))
    ours, theirs = (scan.search(pairs.mentions, 5) for scan in (with_terms, without))
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    assert list(ours.units) == ["tglu", "vdlu", "cmfu"]
    rows = np.array([3, 1, 600])
    given = with_terms.search(pairs.mentions, 3, rows=rows, names=names_of(5.0))
    assert set(given.units) == {"tglu", "vdlu", "cmfu", "name", "prior"}
    with_terms.close()
    without.close()


def test_equal_totals_are_ordered_by_id(pairs):
    # Sums of zeros are the same bits in any order, which NumPy does not promise of other equal rows.
    alike = pairs.entities.take([0] * 6)
    twins = type(alike)(**{name: np.zeros_like(array) for name, array in alike.items()})
    ids = ["f", "e", "d", "c", "b", "a"]
    scan = Scan(
        [twins],
        BlockKernels(NumpyScorer(pairs.constants), pairs.constants),
        tie_key=lambda rows: [ids[r] for r in rows],
    )
    two = NameScores(np.array([1, 4]), np.ones(2, np.float32))
    found = scan.search(pairs.mentions.block(0, 1), 6, names=[two])
    assert [ids[r] for r in found.rows[0]] == ["b", "e", "a", "c", "d", "f"]
    scan.close()


def test_names_of_other_mentions_are_refused(pairs):
    scan = Scan([pairs.entities], BlockKernels(NumpyScorer(pairs.constants), pairs.constants))
    with pytest.raises(InvalidInputError, match="names: 2 for 5 mentions"):
        scan.search(pairs.mentions, 3, names=names_of(1.0)[:2])
    scan.close()
