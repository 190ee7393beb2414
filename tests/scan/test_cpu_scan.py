"""The scan over the compiled kernels: every mode's answer is that of scoring everything by the reference."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import EntityArrays, MentionArrays
from tests.scan.arrays import Pairs, Shape

pytestmark = pytest.mark.skipif(
    not CpuKernels.available(), reason="no compiled kernels here: python hatch_build.py makes them"
)
SIZES = (401, 0, 1, 298)
SHAPE = Shape(5, sum(SIZES), 17, 9, 32, 24, storage="float16", mask=True, spread=0.7)


@dataclass(frozen=True)
class Book:
    centroids: np.ndarray
    segments: tuple[np.ndarray, ...]


@pytest.fixture(scope="module")
def pairs():
    return Pairs(SHAPE)


@pytest.fixture
def scan(pairs):
    cuts = np.cumsum([0, *SIZES])
    segments = [pairs.entities.block(a, b) for a, b in itertools.pairwise(cuts)]
    tokens = pairs.entities.tglu_query.reshape(-1, SHAPE.width).astype(np.float32)
    codes = np.arange(len(tokens), dtype=np.uint16).reshape(-1, SHAPE.entity_tokens)
    book = Book(tokens, tuple(codes[a:b] for a, b in itertools.pairwise(cuts)))
    scan = Scan(segments, CpuKernels(pairs.constants), threads=2, codes=book)
    yield scan
    scan.close()


def only(mentions, rows):
    return MentionArrays(**{name: array[rows] for name, array in mentions.items()})


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
@pytest.mark.parametrize("k", [1, 10])
def test_every_mode_finds_the_best(pairs, scan, mode, k):
    expected = pairs.reference()
    best = np.argsort(-expected.total, axis=1, kind="stable")[:, :k]
    found = scan.search(pairs.mentions, k, mode=mode)
    np.testing.assert_array_equal(found.rows, best)
    np.testing.assert_allclose(found.scores, np.take_along_axis(expected.total, best, 1), rtol=0, atol=1e-4)
    for name, unit in expected.units.items():
        np.testing.assert_allclose(found.units[name], np.take_along_axis(unit, best, 1), rtol=0, atol=1e-4)


def test_the_certified_answer_has_the_bits_of_the_exact_one_in_any_batch(pairs, scan):
    exact = scan.search(pairs.mentions, 7, mode="exact")
    order = np.array([3, 0, 4, 1, 2])
    for rows in (np.arange(5), order, np.array([2])):
        certified = scan.search(only(pairs.mentions, rows), 7, mode="certified")
        np.testing.assert_array_equal(certified.rows, exact.rows[rows])
        np.testing.assert_array_equal(certified.scores, exact.scores[rows])
        for name, unit in certified.units.items():
            np.testing.assert_array_equal(unit, exact.units[name][rows])


SEARCHES = {
    "exact": lambda scan, m: scan.search(m, 3, mode="exact"),
    "certified": lambda scan, m: scan.search(m, 3),
    "certified, all scored in the end": lambda scan, m: scan.search(m, 300),
    "coded": lambda scan, m: scan.search(m, 3, mode="coded"),
    "chosen rows": lambda scan, m: scan.search(m, 3, rows=np.arange(0, 700, 7)),
    "ranks": lambda scan, m: scan.ranks(m, np.array([0, 99, 400, 500, 699])),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_each_mention_is_packed_once(pairs, scan, monkeypatch, search):
    packed = []
    prepare = CpuKernels.prepare

    def counting(kernels, mentions, *centroids):
        packed.append(mentions.rows)
        return prepare(kernels, mentions, *centroids)

    monkeypatch.setattr(CpuKernels, "prepare", counting)
    search(scan, pairs.mentions)
    assert packed == [5]


def test_equal_entities_tie(pairs):
    twins = EntityArrays(**{n: np.concatenate([a[:40]] * 3) for n, a in pairs.entities.items()})
    scan = Scan([twins], CpuKernels(pairs.constants), threads=1)
    rows = scan.search(pairs.mentions, 3, mode="certified").rows
    assert (rows == rows[:, :1] + [0, 40, 80]).all()
    scan.close()


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_need_few_scores_and_count_every_tie(pairs, monkeypatch, masked):
    twins = EntityArrays(**{n: np.concatenate([a, a[:40]]) for n, a in pairs.entities.items()})
    allowed = np.arange(twins.rows) % 3 > 0 if masked else None
    scan = Scan([twins], CpuKernels(pairs.constants), threads=2)
    totals = scan.totals(pairs.mentions)
    if allowed is not None:
        totals[:, ~allowed] = -np.inf
    positions = [0, 1, 3, 40, 400]  # of the gold entity of each mention, when sorted from the best
    descending = np.argsort(-totals, axis=1, kind="stable")
    gold = np.take_along_axis(descending, np.array(positions)[:, None], 1)[:, 0]
    own = totals[np.arange(len(gold)), gold]
    expected = (totals >= own[:, None]).sum(1)
    dense = []
    monkeypatch.setattr(scan, "_dense_ranks", _counted(scan._dense_ranks, dense))
    np.testing.assert_array_equal(scan.ranks(pairs.mentions, gold, allowed=allowed), expected)
    assert sum(dense) < len(gold)  # the last of all needs them all, the first do not
    scan.close()


def _counted(ranks, counts):
    def counting(mentions, terms, gold, allowed):
        counts.append(len(gold))
        return ranks(mentions, terms, gold, allowed)

    return counting
