"""The rival's search: faiss and the bonus give what the plain sum of the terms gives, ties included."""

import numpy as np
import pytest

from benchmarks.rival.search import (
    EntityVectors,
    FlatSearch,
    MentionVectors,
    Names,
    RivalWeights,
    ranks,
    terms,
)
from mimic_engine.types import Entity

SURFACES = ("Rome", "rome (city)", "Paris", "Nowhere", "")


def some_vectors(rng, count, width=5, images=7):
    """Entities of few different directions, so that many are equal; a third without an image."""

    def rows(size):
        kinds = rng.normal(size=(3, size)).astype(np.float32)
        kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
        return kinds[rng.integers(0, 3, count)]

    image = rows(images)
    image[rng.random(count) < 1 / 3] = 0
    return EntityVectors(rows(width), image)


def some_mentions(rng, count):
    one, other = some_vectors(rng, count), some_vectors(rng, count)
    return MentionVectors(one.text, other.text, one.image)


def some_names(rng, count):
    names = ("Rome", "ROME", "Paris", "Lyon", "!!")
    return Names(
        Entity(str(i), names[rng.integers(len(names))], aliases=("Paris",) if rng.random() < 0.2 else ())
        for i in range(count)
    )


@pytest.mark.parametrize("count", [1, 2, 13, 97])
@pytest.mark.parametrize(
    "weights", [RivalWeights(0.5, 0.3), RivalWeights(0.0, 0.0), RivalWeights(2.0, 4.0, 0.5)]
)
def test_the_search_gives_the_best_of_the_plain_sum(count, weights):
    rng = np.random.default_rng(count)
    entities, names = some_vectors(rng, count), some_names(rng, count)
    mentions = some_mentions(rng, len(SURFACES))
    exact = terms(mentions, SURFACES, entities, names).scores(weights)
    search = FlatSearch(entities, names, weights)
    for row, surface in enumerate(SURFACES):
        found, scores = search(mentions.block(row, row + 1), surface, 10)
        assert len(found) == min(10, count) == len(set(found.tolist()))
        np.testing.assert_allclose(scores, np.sort(exact[row])[::-1][:10], atol=1e-5)
        np.testing.assert_allclose(scores, exact[row, found], atol=1e-5)


def test_whoever_bears_the_name_is_found_however_far_off():
    entities = EntityVectors(np.array([[1, 0]] * 20 + [[-1, 0]], np.float32), np.zeros((21, 3), np.float32))
    names = Names([Entity(str(i), "other") for i in range(20)] + [Entity("20", "Rome")])
    text = np.array([[1, 0]], np.float32)
    mention = MentionVectors(text, text, np.zeros((1, 3), np.float32))
    rows, scores = FlatSearch(entities, names, RivalWeights(1.0, 3.0))(mention, "rome", 2)
    assert (rows[0], scores[0]) == (20, 2.0)
    assert (rows[1] in range(20), scores[1]) == (True, 1.0)


def test_the_image_term_is_nothing_where_either_side_has_none():
    text, image = np.eye(2, dtype=np.float32), np.array([[1, 0], [0, 0]], np.float32)
    found = terms(MentionVectors(text, text, image), ["", ""], EntityVectors(text, image), Names([]))
    np.testing.assert_array_equal(found.image, [[1, 0], [0, 0]])


def test_equal_scores_count_against_the_answer():
    scores = np.array([[0.5, 0.5, 0.4, 0.5 + 1e-8], [0.1, 0.2, 0.3, 0.4]], np.float32)
    assert ranks(scores, np.array([0, 3])).tolist() == [3, 1]
    assert ranks(scores, np.array([2, 0])).tolist() == [4, 4]


def test_names_are_found_by_normal_form_and_alias():
    names = Names([Entity("a", "Jordan (country)"), Entity("b", "Michael", aliases=("JORDAN", "jordan"))])
    assert names.rows("Jordan").tolist() == [0, 1]
    assert names.rows("Michael").tolist() == [1]
    assert names.rows("nobody").tolist() == names.rows("").tolist() == []


def test_the_size_is_that_of_the_vectors():
    entities = some_vectors(np.random.default_rng(0), 13)
    assert FlatSearch(entities, Names([]), RivalWeights(1.0, 1.0)).size_bytes == 13 * (5 + 7) * 4
