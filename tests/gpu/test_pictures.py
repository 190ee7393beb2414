"""Pictures on their way to the device: what waits, what is packed, and what is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mimic_engine.config import ImageConfig
from mimic_engine.errors import BackendError
from mimic_engine.gpu import pictures as module
from mimic_engine.gpu.layout import Layout
from mimic_engine.gpu.pictures import DevicePictures, HostPictures, open_pictures
from mimic_engine.images import ImagePreprocessor
from mimic_engine.kernels.resample_ref import normalise_ref, resample_ref

CPU = torch.device("cpu")
SIZE = 16


@pytest.fixture
def images():
    return ImagePreprocessor(ImageConfig(size=SIZE))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDE", 48)
    monkeypatch.setattr(module, "MAX_BYTES", 40 * 40 * 3)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(1, 1), (40, 40), (48, 3), (41, 40), (49, 1), (200, 300)]  # the last three are too large


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whatever_waits_is_worth_the_same_pixels(images, size):
    image = Image.fromarray(noise(*size))
    here, there = HostPictures(images), DevicePictures(images, CPU)
    expected = images.pixels(image)
    np.testing.assert_array_equal(here.normalised(here.prepare(image)), expected)
    waiting = there.prepare(image)
    assert waiting.dtype == np.uint8
    assert waiting.shape == ((*size, 3) if size in SIZES[:3] else (SIZE, SIZE, 3))
    np.testing.assert_array_equal(there.normalised(waiting), expected)
    np.testing.assert_array_equal(normalise_ref(resample_ref(waiting, SIZE, SIZE), images.table), expected)


@pytest.mark.parametrize("sizes", [[(40, 40)] * 4, [(48, 3), (1, 1), (33, 40)], [(5, 48)]])
def test_any_pictures_fit_the_arrays_and_the_rest_repeats_the_last(images, sizes):
    there = DevicePictures(images, CPU)
    inputs, work = there.arrays(4)
    host = Layout(inputs).views(np.full(Layout(inputs).size_bytes, 0xAB, np.uint8))
    waiting = [there.prepare(Image.fromarray(noise(*size))) for size in sizes]
    there.fill(host, waiting)
    facts = host["facts"]
    assert (facts[len(sizes) :] == facts[len(sizes) - 1]).all()
    for picture, own in zip(waiting, facts, strict=False):
        start = int(own[0, 0])
        np.testing.assert_array_equal(host["bytes"][start : start + picture.size], picture.ravel())
    between = max(int(own[0, 7] + 3 * own[0, 2] * own[0, 3]) for own in facts)
    assert between <= work["between"][0][0]
    assert work["pixels"][0] == (4, 3, SIZE, SIZE)


def test_pixels_of_the_host_repeat_the_last_too(images):
    here = HostPictures(images)
    inputs, work = here.arrays(3)
    host = Layout(inputs).views(np.zeros(Layout(inputs).size_bytes, np.uint8))
    waiting = [here.prepare(Image.fromarray(noise(9, 7, seed))) for seed in (0, 1)]
    here.fill(host, waiting)
    for row, picture in enumerate((0, 1, 1)):
        np.testing.assert_array_equal(host["pixels"][row], waiting[picture])
    assert not work and not here.stages({})


def test_a_pillow_that_resizes_otherwise_is_refused(images, monkeypatch):
    monkeypatch.setattr(module, "exact_here", lambda: False)
    with pytest.raises(BackendError, match="other pixels"):
        open_pictures("device", images, CPU)
    assert isinstance(open_pictures("host", images, CPU), HostPictures)
