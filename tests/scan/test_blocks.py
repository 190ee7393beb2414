"""Widening: bit for bit what NumPy's conversion gives, for every finite half-precision number."""

import numpy as np
import pytest

from mimic_engine.scan.blocks import widen_into


def test_every_finite_number_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert len(finite) == 2**16 - 2 * 2**10  # all but two exponents full of infinities and NaNs
    out = np.full(len(finite), np.nan, np.float32)
    widen_into(finite, out)
    np.testing.assert_array_equal(out.view(np.int32), finite.astype(np.float32).view(np.int32))  # -0 too


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 3), (7, 5), (3, 11, 13)])
def test_any_shape_and_rows_of_a_larger_buffer(shape):
    half = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    buffer = np.full((shape[0] + 2, *shape[1:]), 7, np.float32)
    widen_into(half, buffer[: shape[0]])
    np.testing.assert_array_equal(buffer[: shape[0]], half.astype(np.float32))
    assert (buffer[shape[0] :] == 7).all()


def test_arrays_that_may_not_be_written_are_read():
    half = np.array([1.5, -0.25, 6e-8], np.float16)
    half.flags.writeable = False
    out = np.empty(3, np.float32)
    widen_into(half, out)
    np.testing.assert_array_equal(out, half.astype(np.float32))
