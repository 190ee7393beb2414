"""Tuning: the best point of the grid, and the first one where several do equally well."""

import numpy as np

from benchmarks.rival.encoded import EncodedEntities
from benchmarks.rival.search import EntityVectors, MentionVectors, Names, RivalWeights
from benchmarks.rival.tuning import GRID, VARIANTS, best
from mimic_engine.types import Entity, LabelledMention, Mention

POINTS = (RivalWeights(1.0, 0.0), RivalWeights(0.5, 0.0), RivalWeights(0.0, 1.0))


def test_first_ranks_count_before_reciprocal_ones_and_of_equals_the_first():
    assert best(np.array([[1, 9], [2, 2], [2, 2]]), POINTS) == POINTS[0]
    assert best(np.array([[1, 9], [1, 3], [1, 3]]), POINTS) == POINTS[1]
    assert best(np.array([[1], [1], [1]]), POINTS) == POINTS[0]


def test_a_name_that_tells_is_weighed_and_an_image_that_misleads_is_not():
    entities = EncodedEntities(
        EntityVectors(np.array([[0.8, 0.6], [0.9, 0.435]], np.float32), np.eye(2, dtype=np.float32)),
        Names([Entity("a", "Rome"), Entity("b", "Paris")]),
        {"a": 0, "b": 1},
    )
    text = np.array([[1, 0], [0.87, 0.49]], np.float32)
    mentions = MentionVectors(text, text, np.eye(2, dtype=np.float32)[::-1])
    labelled = [LabelledMention(Mention("Rome", ""), "a"), LabelledMention(Mention("Paris", ""), "b")]
    found = best(entities.ranks(labelled, mentions, GRID))
    assert found.name > found.image


def test_the_grid_begins_with_all_terms_alike_and_holds_the_text_alone():
    assert GRID[0] == RivalWeights(1.0, 1.0)
    assert RivalWeights(0.0, 0.0) in GRID
    assert len(set(GRID)) == len(GRID)


def test_a_variant_without_surfaces_has_all_points_without_them():
    points = GRID[VARIANTS["sentence"]]
    assert set(points) == {w for w in GRID if w.surface == 0}
    assert GRID[VARIANTS["sentence_and_surface"]] == GRID
