"""The coded estimate: exact where every token is a centroid, and what its definition says where not."""

import numpy as np
import pytest

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.coded_tglu_ref import coded_context_ref, estimates_ref, tables_ref
from mimic_engine.kernels.reference import scores_ref

PLAIN = MatcherConfig(text_width=11, text_token_width=13, hidden=8)
MASKED = MatcherConfig(text_width=11, text_token_width=13, hidden=8, mask_padding=True)
TGLU_ALONE = MatcherConfig(text_width=11, text_token_width=13, hidden=7, vision="off", cmfu=False)


def own_centroids(entities):
    """Every query vector a centroid, in a shuffled order, and the codes that say so."""
    n, length, width = entities.tglu_query.shape
    order = np.random.default_rng(3).permutation(n * length)
    return entities.tglu_query.reshape(-1, width)[order], np.argsort(order).reshape(n, length)


@pytest.mark.parametrize("config", [PLAIN, MASKED, TGLU_ALONE])
@pytest.mark.parametrize(("mentions", "entities"), [(1, 1), (1, 13), (5, 1), (3, 17)])
def test_the_estimate_is_exact_where_every_token_is_its_own_centroid(make_folded, config, mentions, entities):
    folded = make_folded(mentions, entities, config)
    centroids, codes = own_centroids(folded.entities)
    found = estimates_ref(folded.mentions, folded.entities, codes, centroids, folded.constants)
    exact = scores_ref(folded.mentions, folded.entities, folded.constants)
    assert found.total.shape == (mentions, entities) and found.total.dtype == np.float32
    np.testing.assert_allclose(found.total, exact.total, rtol=1e-5, atol=1e-5)
    assert set(found.units) == set(exact.units)


@pytest.mark.parametrize("config", [PLAIN, MASKED])
def test_the_estimate_is_the_score_of_entities_whose_tokens_are_the_centroids(make_folded, config):
    """Moving every token to its centroid and scoring exactly is the same thing."""
    folded = make_folded(4, 19, config)
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(5, 8)).astype(np.float32)
    codes = rng.integers(0, 5, folded.entities.tglu_query.shape[:2]).astype(np.uint8)
    moved = type(folded.entities)(**(dict(folded.entities.items()) | {"tglu_query": centroids[codes]}))
    found = estimates_ref(folded.mentions, folded.entities, codes, centroids, folded.constants)
    exact = scores_ref(folded.mentions, moved, folded.constants)
    np.testing.assert_allclose(found.total, exact.total, rtol=1e-5, atol=1e-5)
    true = scores_ref(folded.mentions, folded.entities, folded.constants)
    for name in ("vdlu", "cmfu"):
        np.testing.assert_array_equal(found.units[name], true.units[name])
    assert np.abs(found.units["tglu"] - true.units["tglu"]).max() > 1e-3


def test_masked_mention_tokens_are_not_attended_to(make_folded):
    folded = make_folded(3, 2, MASKED)
    mask, value = folded.mentions.tglu_key_mask, folded.mentions.tglu_value.copy()
    assert (mask == 0).any()
    centroids = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    before = tables_ref(folded.mentions, centroids)
    value[mask == 0] = 1e6
    changed = type(folded.mentions)(**(dict(folded.mentions.items()) | {"tglu_value": value}))
    np.testing.assert_array_equal(tables_ref(changed, centroids), before)
    assert before.shape == (3, 6, 8)


def test_a_context_is_the_weighted_mean_of_table_rows():
    tables = np.arange(12, dtype=np.float64).reshape(1, 3, 4)
    codes = np.array([[0, 2], [1, 1]], dtype=np.uint16)
    np.testing.assert_array_equal(coded_context_ref(tables, codes, None), [[[4, 5, 6, 7], [4, 5, 6, 7]]])
    weighted = coded_context_ref(tables, codes, np.array([[0.25, 0.75], [1, 0]]))
    np.testing.assert_array_equal(weighted, [[[6, 7, 8, 9], [4, 5, 6, 7]]])
