"""Treatments of images: each turns an RGB image into a worse one.

Images are first brought to the size that the model sees, so that a treatment is as strong for a large
photograph as for a small one. Everything random follows from a seed and the image's own pixels: the
same image is always treated in the same way. Pillow and NumPy only.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

WEAK_BLUR = 1 / 56  # of a side: 4 of 224 pixels
STRONG_BLUR = 1 / 14  # 16 of 224
NOISE = 64.0  # standard deviation, of 255
JPEG_QUALITY = 5
GREY = (128, 128, 128)

Treatment = Callable[[Image.Image, np.random.Generator], Image.Image]


def weak_blur(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Gaussian blur; its radius (standard deviation) is 1/56 of the image's width."""
    return image.filter(ImageFilter.GaussianBlur(WEAK_BLUR * image.width))


def strong_blur(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Gaussian blur of four times the radius."""
    return image.filter(ImageFilter.GaussianBlur(STRONG_BLUR * image.width))


def noise(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise on every value, cut to 0 to 255."""
    values = np.asarray(image, np.float64)  # (S, S, 3)
    noisy = values + draw.normal(0, NOISE, values.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Compressed as a JPEG of quality 5 and opened again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Image.open(file, formats=("JPEG",)).convert("RGB")


def half_hidden(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """One half grey: left, top, right or bottom, drawn for each image."""
    w, h = image.size
    boxes = ((0, 0, w // 2, h), (0, 0, w, h // 2), (w - w // 2, 0, w, h), (0, h - h // 2, w, h))
    hidden = image.copy()
    hidden.paste(GREY, boxes[int(draw.integers(len(boxes)))])
    return hidden


TREATMENTS: Mapping[str, Treatment] = MappingProxyType(
    {
        "weak blur": weak_blur,
        "strong blur": strong_blur,
        "noise": noise,
        "JPEG at quality 5": jpeg,
        "half hidden": half_hidden,
    }
)


def apply(treatment: Treatment, image: Image.Image, size: int, seed: int) -> bytes:
    """Treat an image.

    Parameters
    ----------
    treatment : one of :data:`TREATMENTS`, say.
    image : RGB, of any size.
    size : side S of the square that the model sees.
    seed : of the random draws, together with the image's pixels.

    Returns
    -------
    bytes
        S x S pixels as an uncompressed PNG file, which preprocessing leaves as they are.
    """
    square = image.resize((size, size), Image.Resampling.LANCZOS)
    digest = hashlib.sha256(square.tobytes()).digest()
    draw = np.random.default_rng([seed, *np.frombuffer(digest, np.uint32)])
    file = io.BytesIO()
    treatment(square, draw).save(file, "PNG", compress_level=0)
    return file.getvalue()
