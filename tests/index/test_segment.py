"""Eight bits a value: within half a scale of the vector, whatever the vector."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mimic_engine.index.segment import quantise_rows

SMALLEST = float(np.finfo(np.float32).tiny)


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 7)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32).map(
            lambda x: 0.0 if abs(x) < 128 * SMALLEST else x
        ),
    )
)
def test_every_value_is_within_half_a_scale(vectors):
    values, scale = quantise_rows(vectors)
    assert (values.dtype, values.shape) == (np.int8, vectors.shape)
    assert (scale.dtype, scale.shape) == (np.float32, vectors.shape[:-1])
    assert (np.abs(values.astype(int)) <= 127).all()
    out = values * scale[..., None]
    assert out.dtype == np.float32
    assert (np.abs(out.astype(np.float64) - vectors) <= 0.50001 * scale.astype(np.float64)[..., None]).all()
    np.testing.assert_array_equal((values == 0).all(-1), (vectors == 0).all(-1))


@pytest.mark.parametrize("value", [1e-45, 1e-42, 1e-38])
def test_vectors_too_small_for_a_scale_stay_finite(value):
    vectors = np.array([[value, -value, 0]], np.float32)
    values, scale = quantise_rows(vectors)
    assert np.isfinite(scale).all()
    assert (np.abs(values * scale[:, None] - vectors) <= 1e-38).all()


def test_the_largest_value_of_a_row_uses_all_levels():
    values, scale = quantise_rows(np.array([[0.5, -1.0, 0.25], [0, 0, 0]], np.float32))
    assert values.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scale.tolist() == [np.float32(1 / 127), 0]
