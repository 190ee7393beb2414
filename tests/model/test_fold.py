"""Folded scores equal unfolded ones: float64 to 1e-9, float32 by the tolerance rule."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.types import EntityArrays, MentionArrays

WIDTHS = {"text_width": 11, "text_token_width": 13, "hidden": 8}
CONFIGS = [
    MatcherConfig(**WIDTHS),
    MatcherConfig(**WIDTHS, mask_padding=True),
    MatcherConfig(**WIDTHS, vision="concat"),
    MatcherConfig(**WIDTHS, vision="off", cmfu=False),
    MatcherConfig(**WIDTHS, tglu=False, cmfu=False),
    MatcherConfig(**WIDTHS, tglu=False, vision="off"),
]


def folded(matcher, mention, entity):
    with torch.no_grad():
        men, ent = FoldMention(matcher)(*mention), FoldEntity(matcher)(*entity)
    return men, ent, fold_constants(matcher)


def numpy_scores(men, ent, constants):
    return scores_ref(
        MentionArrays(**{k: v.numpy() for k, v in men.items()}),
        EntityArrays(**{k: v.numpy() for k, v in ent.items()}),
        constants,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.sampled_from(CONFIGS),
    mentions=st.integers(1, 5),
    entities=st.integers(1, 7),
    tokens=st.integers(1, 9),
    patches=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_folded_equals_unfolded(
    make_matcher, make_features, config, mentions, entities, tokens, patches, seed
):
    matcher = make_matcher(config, seed)
    mention = make_features(config, mentions, tokens=tokens, patches=patches, seed=seed)
    entity = make_features(config, entities, tokens=tokens, patches=patches, seed=seed + 1)
    with torch.no_grad():
        expected = matcher(mention, entity)
    men, ent, constants = folded(matcher, mention, entity)
    by_numpy = numpy_scores(men, ent, constants)
    by_torch = FoldedScorer(constants)(men, ent)
    assert expected.total.shape == (mentions, entities)
    assert set(by_numpy.units) == set(expected.units) == set(config.units)
    np.testing.assert_allclose(by_numpy.total, expected.total.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(by_torch.total.numpy(), expected.total.numpy(), rtol=0, atol=1e-9)
    for name, scores in expected.units.items():
        np.testing.assert_allclose(by_numpy.units[name], scores.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS[:3], ids=["plain", "masked", "concat"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 41)])
def test_float32_error_is_within_twice_that_of_the_unfolded_model(make_matcher, make_features, config, shape):
    exact_matcher = make_matcher(config)
    mention, entity = (make_features(config, rows, tokens=40, seed=rows) for rows in shape)
    with torch.no_grad():
        exact = exact_matcher(mention, entity).total.numpy()
        matcher = exact_matcher.float()
        mention, entity = (
            type(f)(*(t.float() if t.is_floating_point() else t for t in f)) for f in (mention, entity)
        )
        unfolded = matcher(mention, entity).total.numpy()
    result = numpy_scores(*folded(matcher, mention, entity))
    assert result.total.dtype == np.float32
    allowed = 2 * np.abs(unfolded - exact).max() + 1e-5
    assert np.abs(result.total - exact).max() <= allowed


def test_masked_padding_does_not_change_the_scores(make_matcher, make_features):
    config = CONFIGS[1]
    matcher = make_matcher(config)
    mention, entity = make_features(config, 2, tokens=9), make_features(config, 3, tokens=9, seed=5)
    mask = torch.zeros_like(entity.text_mask)
    mask[:, :4] = 1
    cut = entity._replace(text_tokens=entity.text_tokens[:, :4], text_mask=mask[:, :4])
    with torch.no_grad():
        long = matcher(mention, entity._replace(text_mask=mask)).total
        short = matcher(mention, cut).total
    torch.testing.assert_close(long, short, rtol=0, atol=1e-12)


def test_half_precision_entities_are_widened(make_matcher, make_features):
    config = CONFIGS[0]
    matcher = make_matcher(config, dtype=torch.float32)
    mention, entity = (make_features(config, r, seed=r, dtype=torch.float32) for r in (2, 6))
    men, ent, constants = folded(matcher, mention, entity)
    full = numpy_scores(men, ent, constants)
    half = {k: v.half() if v.ndim > 1 and not k.endswith("scalars") else v for k, v in ent.items()}
    stored = numpy_scores(men, half, constants)
    assert stored.total.dtype == np.float32
    assert 0 < np.abs(stored.total - full.total).max() < 0.05
