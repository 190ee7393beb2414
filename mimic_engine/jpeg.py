"""The faster JPEG decoder, ``simplejpeg``: used where it is installed and gives exactly Pillow's pixels.

Both are libjpeg-turbo inside, each with a version of its own; whether two versions agree is tried on a few
pictures when the decoder is opened, and not assumed.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)
JpegDecoder = Callable[[bytes], Pixels]

MODES = ("RGB", "L")  # Pillow's, of pictures that the decoder may be given

logger = logging.getLogger(__name__)


@functools.cache
def fast_decoder() -> JpegDecoder | None:
    """Open the faster decoder; None where it is not installed or its pixels differ.

    It raises ``ValueError`` and its kin for pictures that it cannot read; Pillow has the last word on those.
    """
    try:
        import simplejpeg
    except ImportError:
        return None

    def decode(data: bytes) -> Pixels:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))

    if not all(_same(decode, data) for data in _samples()):
        logger.warning("simplejpeg gives other pixels than Pillow and is not used")
        return None
    return decode


def _same(decode: JpegDecoder, data: bytes) -> bool:
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return np.array_equal(decode(data), expected)


def _samples() -> Iterator[bytes]:
    """Small pictures, in every way of subsampling, with odd sides."""
    rng = np.random.default_rng(0)
    for mode, channels in (("RGB", 3), ("L", 1)):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                values = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
                small = Image.fromarray(values if channels == 3 else values[:, :, 0])
                out = io.BytesIO()
                options = {"subsampling": subsampling} if mode == "RGB" else {}
                small.resize((61, 43)).save(out, "JPEG", quality=90, progressive=progressive, **options)
                yield out.getvalue()
