"""The cone bound holds for every pair: random, adversarial, flat, tiny, and without a cone at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.kernels.cone_bound_ref import MIN_MARGIN, bounds_ref, cone_norm_bound, cone_of, cones_of
from mimic_engine.kernels.reference import g2l_ref, scores_ref
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

D = 12


def centred(x):
    return x - x.mean(-1, keepdims=True)


def direction_share(value, u, weights):
    """u.z / |z| of z = sum w v for each row of weights."""
    z = weights @ value
    norm = np.linalg.norm(z, axis=-1)
    return (z @ u.T) / np.where(norm > 0, norm, 1)[:, None]


def mention_values(rng, tokens, common):
    """Value rows around a common direction; the larger ``common``, the narrower the cone."""
    return centred(rng.standard_normal((tokens, D)) + common * rng.standard_normal(D))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("common", [0.0, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("sweeps", [1, 2])
def test_no_weights_exceed_the_bound(dtype, tokens, common, sweeps):
    rng = np.random.default_rng(tokens)
    value, u = mention_values(rng, tokens, common), centred(rng.standard_normal((50, D)))
    cone = cone_of(value)
    bound = cone_norm_bound(cone, u.astype(dtype), sweeps)
    weights = np.concatenate([rng.dirichlet(np.full(tokens, a), 400) for a in (0.02, 1.0)] + [np.eye(tokens)])
    assert (direction_share(value, u, weights) <= bound).all()
    assert (bound <= np.linalg.norm(u, axis=1) * (1 + 1e-4)).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_worst_weights_do_not_exceed_the_bound(data):
    """Against the projection on the cone itself, which some weights reach."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens = data.draw(st.integers(1, 9))
    scale = 10.0 ** data.draw(st.integers(-6, 6))
    value = mention_values(rng, tokens, data.draw(st.sampled_from([0.0, 0.2, 1.0, 5.0])))
    if data.draw(st.booleans()):
        value[rng.integers(tokens)] = value[0] * (1 + 1e-6)  # all but the same row twice
    if data.draw(st.booleans()):
        value[rng.integers(tokens)] = 0
    value *= 10.0 ** rng.integers(-3, 4, (tokens, 1))
    u = centred(scale * rng.standard_normal((20, D)))
    if value.any():
        u[0] = value[np.abs(value).sum(1).argmax()] * scale  # an entity that points along a token
    bound = cone_norm_bound(cone_of(value), u.astype(np.float32)).astype(np.float64)
    for n in range(len(u)):
        weights = worst_weights(value, u[n])
        assert direction_share(value, u[n : n + 1], weights[None])[0, 0] <= bound[n]


def worst_weights(value, u, steps=400):
    """Non-negative weights by projected gradient: close to the projection of u on the cone."""
    gram, target = value @ value.T, value @ u
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    gram, target = gram / np.outer(scale, scale), target / scale
    x = np.zeros(len(value))
    for _ in range(steps):
        x = np.maximum(0, x + (target - gram @ x) / len(value))
    return x / scale


def test_one_sweep_is_tight_where_the_cone_is_narrow():
    rng = np.random.default_rng(3)
    value, u = mention_values(rng, 40, 3.0), centred(rng.standard_normal((200, D)))
    bound = cone_norm_bound(cone_of(value), u)
    reached = np.array(
        [direction_share(value, row[None], worst_weights(value, row)[None])[0, 0] for row in u]
    )
    norm = np.linalg.norm(u, axis=1)
    assert ((bound - np.maximum(reached, 0)) / norm).mean() < 0.1
    assert (bound / norm).mean() < 0.7  # what Cauchy-Schwarz alone would leave at 1


def test_opposite_rows_have_no_cone_and_the_norm_is_the_bound():
    row = centred(np.random.default_rng(0).standard_normal((1, D)))
    cone = cone_of(np.concatenate([row, -row]))
    assert cone.axis_products is None
    u = centred(np.ones((1, D)) * np.arange(D))
    np.testing.assert_allclose(cone_norm_bound(cone, u), np.linalg.norm(u), rtol=1e-10)


def test_a_mention_of_zeros_has_the_norm_as_its_bound():
    u = np.ones((2, D), np.float32)
    np.testing.assert_allclose(cone_norm_bound(cone_of(np.zeros((3, D))), u), np.sqrt(D), rtol=1e-4)


def test_padding_that_nothing_attends_to_is_no_part_of_the_cone():
    rng = np.random.default_rng(1)
    value = mention_values(rng, 6, 2.0)
    padded = np.concatenate([value, -value[:2]])  # with these the cone would be the whole space
    mask = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    u = centred(rng.standard_normal((9, D)))
    np.testing.assert_allclose(
        cone_norm_bound(cone_of(padded, mask), u), cone_norm_bound(cone_of(value), u), rtol=1e-12
    )


def test_the_axis_leaves_the_margin_it_promises():
    for common in (0.3, 1.0, 10.0):
        cone = cone_of(mention_values(np.random.default_rng(2), 40, common))
        if cone.axis_products is not None:
            assert cone.axis_products.min() >= MIN_MARGIN
    assert cone.axis_products is not None


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_entity_that_is_not_finite_has_no_finite_bound(broken):
    rng = np.random.default_rng(1)
    u = centred(rng.standard_normal((3, D))).astype(np.float32)
    u[1, 4] = broken
    with np.errstate(all="ignore"):
        bound = cone_norm_bound(cone_of(mention_values(rng, 5, 2.0)), u)
    assert np.isfinite(bound).tolist() == [True, False, True]


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("common", [0.0, 2.0])
@pytest.mark.parametrize("sharpness", [0.1, 30.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_totals_are_below_their_bounds(tokens, common, sharpness, dtype):
    rng = np.random.default_rng(7)
    b, n, constants = 3, 101, FoldConstants(D, ("tglu",))
    mention = MentionArrays(
        text_cls=rng.standard_normal((b, 5)).astype(dtype),
        tglu_key=(sharpness * rng.standard_normal((b, tokens, D))).astype(dtype),
        tglu_value=np.stack([mention_values(rng, tokens, common) for _ in range(b)]).astype(dtype),
    )
    entity = EntityArrays(
        text_cls=rng.standard_normal((n, 5)).astype(dtype),
        tglu_query=rng.standard_normal((n, tokens, D)).astype(dtype),
        tglu_cls=centred(rng.standard_normal((n, D))).astype(dtype),
        tglu_bias=rng.standard_normal(n).astype(dtype),
    )
    bounds = bounds_ref(cones_of(mention), mention, entity, constants)
    totals = scores_ref(mention, entity, constants).total
    assert (bounds >= totals).all()
    assert bounds.dtype == dtype
    assert np.isfinite(g2l_ref(mention, entity, constants)).all()
