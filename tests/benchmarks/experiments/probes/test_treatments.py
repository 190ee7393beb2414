"""Images made worse, always in the same way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.experiments.probes.treatments import (
    GREY,
    NOISE,
    TREATMENTS,
    apply,
    half_hidden,
    strong_blur,
    weak_blur,
)
from mimic_engine.config import ImageConfig
from mimic_engine.images import ImagePreprocessor

SIZE = 48


def _image(seed=0, size=(70, 53)):
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def _values(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def _square(image):
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)).astype(float)


@pytest.mark.parametrize("name", TREATMENTS)
@pytest.mark.parametrize("size", [(70, 53), (1, 1), (48, 48), (7, 301)])
def test_a_treatment_is_deterministic_and_gives_the_models_size(name, size):
    treated = [apply(TREATMENTS[name], _image(size=size), SIZE, seed=1) for _ in range(2)]
    assert treated[0] == treated[1]
    assert _values(treated[0]).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", TREATMENTS)
def test_a_treatment_changes_the_image_and_leaves_the_original(name):
    image = _image()
    before = image.tobytes()
    after = _values(apply(TREATMENTS[name], image, SIZE, seed=1))
    assert np.abs(after - _square(image)).mean() > 2
    assert image.tobytes() == before


def test_preprocessing_takes_the_treated_pixels_as_they_are():
    data = apply(lambda image, _: image, _image(), SIZE, seed=0)
    images = ImagePreprocessor(ImageConfig(size=SIZE))
    np.testing.assert_array_equal(images(data), images.pixels(_image()))


def test_the_strong_blur_takes_more_away():
    square = Image.fromarray(_square(_image()).astype(np.uint8))
    draw = np.random.default_rng(0)
    spreads = [
        np.asarray(p).astype(float).std()
        for p in (square, weak_blur(square, draw), strong_blur(square, draw))
    ]
    assert spreads[0] > spreads[1] > spreads[2]


def test_noise_has_the_strength_that_it_states_and_differs_between_images():
    grey = Image.new("RGB", (SIZE, SIZE), GREY)
    other = Image.new("RGB", (SIZE, SIZE), (128, 128, 129))
    first, second = (_values(apply(TREATMENTS["noise"], p, SIZE, seed=0)) for p in (grey, other))
    assert (first - 128).std() == pytest.approx(NOISE, rel=0.1)  # a little less: it is cut at 0 and 255
    assert np.abs(first - second).mean() > 20
    assert apply(TREATMENTS["noise"], grey, SIZE, seed=1) != apply(TREATMENTS["noise"], grey, SIZE, seed=0)


@pytest.mark.parametrize("size", [48, 49])
def test_exactly_half_is_hidden_and_every_side_comes(size):
    white = Image.new("RGB", (size, size), (255, 255, 255))
    seen = set()
    for seed in range(40):
        hidden = (np.asarray(half_hidden(white, np.random.default_rng(seed))) == 128).all(-1)
        assert hidden.sum() == size * (size // 2)
        seen.add(tuple(np.argwhere(hidden).mean(0)))
    assert len(seen) == 4
