"""The resize kernels: every value is the twin's, and the twin's are Pillow's."""

import numpy as np
import pytest
import torch

from mimic_engine.config import ImageConfig
from mimic_engine.errors import InvalidInputError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.kernels.resample import pack_pictures, resample
from mimic_engine.kernels.resample_ref import FILTERS, normalise_ref, resample_ref


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 127, 254, 255], np.uint8), (height, width, 3))


def resized(pictures, size, kind, table):
    packed = pack_pictures(pictures, size, kind)
    out = torch.full((len(pictures), 3, size, size), torch.nan)
    between = torch.full((packed.between_bytes,), 0xAB, dtype=torch.uint8)
    given = (torch.from_numpy(a) for a in (packed.pixels, packed.weights, packed.facts))
    resample(*given, torch.from_numpy(table), between, out, packed.rows, packed.columns)
    return out.numpy()


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", [13, 32])
def test_every_value_is_the_twins_whatever_travels_together(kind, size):
    table = np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)
    sizes = [(1, 1), (37, 23), (32, 32), (13, 40), (5, 61), (90, 3), (70, 40)]
    pictures = [noise(h, w, i) for i, (h, w) in enumerate(sizes)]
    found = resized(pictures, size, kind, table)
    for picture, pixels in zip(pictures, found, strict=True):
        expected = normalise_ref(resample_ref(picture, size, size, kind), table)
        np.testing.assert_array_equal(pixels, expected)


def test_equals_the_preprocessor_at_the_models_size():
    from PIL import Image

    preprocess = ImagePreprocessor(ImageConfig())
    picture = noise(61, 300)
    [found] = resized([picture], 224, "lanczos", preprocess.table)
    np.testing.assert_array_equal(found, preprocess.pixels(Image.fromarray(picture)))


def test_no_pictures_and_wrong_ones():
    assert resized([], 8, "lanczos", np.zeros((3, 256), np.float32)).shape == (0, 3, 8, 8)
    for wrong in (np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InvalidInputError, match="picture: "):
            pack_pictures([wrong], 8)
