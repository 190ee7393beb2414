"""The coded search: its estimates equal the exact scores where they must, and its answer is what they lead to."""

from dataclasses import dataclass

import numpy as np
import pytest

from mimic_engine.config import MatcherConfig
from mimic_engine.errors import InvalidInputError

MASKED = MatcherConfig(text_width=11, text_token_width=13, hidden=8, mask_padding=True)


@dataclass(frozen=True)
class Book:
    centroids: np.ndarray
    segments: tuple[np.ndarray, ...]


def every_token_its_own(segments):
    """Codes without a loss: each token of each entity is a centroid."""
    centroids = np.concatenate([s.tglu_query.reshape(-1, s.tglu_query.shape[2]) for s in segments])  # (C, D)
    shapes = [s.tglu_query.shape[:2] for s in segments]
    ends = np.cumsum([rows * tokens for rows, tokens in shapes])
    codes = np.split(np.arange(len(centroids), dtype=np.uint16), ends[:-1])
    return Book(centroids, tuple(c.reshape(shape) for c, shape in zip(codes, shapes, strict=True)))


def nearest(book, centroids):
    """The same tokens coded by fewer centroids."""
    distance = ((book.centroids[:, None] - centroids) ** 2).sum(-1)
    codes = distance.argmin(1).astype(np.uint8)
    return Book(centroids, tuple(codes[s] for s in book.segments))


@pytest.mark.parametrize("config", [None, MASKED])
@pytest.mark.parametrize("sizes", [(1,), (53, 0, 38)])
def test_estimates_are_exact_where_every_token_is_a_centroid(make_folded, config, sizes):
    folded = make_folded(3, sum(sizes), config)
    segments = folded.segments(*sizes)
    scan = folded.scan(segments, threads=2, codes=every_token_its_own(segments))
    np.testing.assert_allclose(
        scan.estimates(folded.mentions), scan.totals(folded.mentions), rtol=0, atol=1e-4
    )
    scan.close()


def test_the_best_estimates_are_scored_exactly(make_folded):
    folded = make_folded(4, 307)
    segments = folded.segments(200, 107)
    book = nearest(
        every_token_its_own(segments), np.random.default_rng(0).standard_normal((5, 8)).astype("f")
    )
    scan = folded.scan(segments, threads=2, codes=book)
    assert scan.modes == ("exact", "certified", "coded")
    estimates, totals = scan.estimates(folded.mentions), scan.totals(folded.mentions)
    assert np.abs(estimates - totals).max() > 1e-2
    found = scan.search(folded.mentions, 3, mode="coded", rerank=20)
    for b in range(4):
        tried = np.argsort(-estimates[b], kind="stable")[:20]
        expected = tried[np.argsort(-totals[b, tried], kind="stable")][:3]
        assert found.rows[b].tolist() == expected.tolist()
        np.testing.assert_allclose(found.scores[b], totals[b, expected], rtol=0, atol=1e-4)
    assert found.modes == ("coded",) * 4
    assert found.scored.tolist() == [20] * 4
    everything = scan.search(folded.mentions, 3, mode="coded", rerank=307)
    np.testing.assert_array_equal(everything.rows, scan.search(folded.mentions, 3, mode="exact").rows)
    scan.close()


def test_more_results_than_rerank_are_found_and_dead_rows_are_not(make_folded):
    folded = make_folded(1, 90)
    segments = folded.segments(90)
    scan = folded.scan(segments, codes=every_token_its_own(segments))
    allowed = np.arange(90) % 3 > 0
    found = scan.search(folded.mentions, 50, mode="coded", rerank=2, allowed=allowed)
    np.testing.assert_array_equal(
        found.rows, scan.search(folded.mentions, 50, mode="exact", allowed=allowed).rows
    )
    assert found.scored.tolist() == [50]
    scan.close()


def test_estimates_without_codes_are_an_error(make_folded):
    folded = make_folded(1, 5)
    scan = folded.scan(folded.segments(5))
    with pytest.raises(InvalidInputError, match="needs an index with codes"):
        scan.estimates(folded.mentions)
    scan.close()
