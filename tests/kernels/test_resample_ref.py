"""The NumPy twin of the resize: every pixel is Pillow's, up and down, odd sizes and thin pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic_engine.config import ImageConfig
from mimic_engine.images import ImagePreprocessor
from mimic_engine.kernels.resample_ref import FILTERS, axis_weights, exact_here, normalise_ref, resample_ref


def noise(height, width, seed=0):
    """Noise of few grey levels and full contrast, so that sums overshoot and are clipped."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 127, 254, 255], np.uint8), (height, width, 3))


def pillow(pixels, height, width, kind):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[kind.upper()]))


SIZES = [(1, 1), (1, 300), (301, 1), (2, 2), (31, 33), (224, 224), (223, 225), (224, 100), (97, 224), (640, 481),
         (900, 300), (225, 2), (1000, 640)]  # fmt: skip


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_pillow_at_the_models_size(kind, size):
    pixels = noise(*size)
    np.testing.assert_array_equal(resample_ref(pixels, 224, 224, kind), pillow(pixels, 224, 224, kind))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from(sorted(FILTERS)),
    st.integers(0, 5),
)
def test_equals_pillow_at_any_size(size, target, kind, seed):
    pixels = noise(*size, seed)
    np.testing.assert_array_equal(resample_ref(pixels, *target, kind), pillow(pixels, *target, kind))


@pytest.mark.parametrize("size", [(37, 23), (224, 224), (500, 333)])
def test_equals_the_preprocessor(size):
    config = ImageConfig()
    preprocess = ImagePreprocessor(config)
    pixels = noise(*size)
    found = normalise_ref(resample_ref(pixels, config.size, config.size), preprocess.table)
    np.testing.assert_array_equal(found, preprocess.pixels(Image.fromarray(pixels)))


def test_weights_sum_to_one_and_are_kept():
    for source, target in ((640, 224), (5, 224), (1, 3)):
        weights = axis_weights(source, target)
        assert weights is axis_weights(source, target)
        assert (weights.starts + weights.counts <= source).all() and (weights.counts >= 1).all()
        assert abs(weights.taps.sum(1) - (1 << 22)).max() <= weights.taps.shape[1]
        with pytest.raises(ValueError, match="read-only"):
            weights.taps[0] = 0


def test_a_twin_that_is_off_is_noticed(monkeypatch):
    assert exact_here()
    monkeypatch.setattr("mimic_engine.kernels.resample_ref.HALF", (1 << 21) + (1 << 18))
    exact_here.cache_clear()
    assert not exact_here()
    exact_here.cache_clear()
