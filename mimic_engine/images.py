"""Encoded images to pixels, the same for training, index building and the service.

The header is checked (format, sides, pixels) before any pixel is decoded. Then,
as the published code does: RGB, resized to a square with LANCZOS whatever the
aspect ratio, normalised as the encoder's processor does. Decided here:

- Transparent pixels are laid on white (the published code drops the alpha channel).
- EXIF orientation is ignored, as in the published code.
- Of an animation, the first frame is used.
- 16-bit grey is cut to its high byte, as Pillow does for 16-bit colour.
- ``Image.draft`` (scaled JPEG decoding) is never used: it changes pixels.
- JPEG is decoded by ``simplejpeg`` where that is installed and gives exactly Pillow's pixels. Both are
  libjpeg-turbo inside, each with a version of its own; whether two versions agree is tried on a few
  images when the decoder is opened, and not assumed.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimic_engine.config import ImageConfig
from mimic_engine.errors import ImageError, ImageTypeError, InvalidInputError, TooLargeError
from mimic_engine.types import ImageSource

Pixels = NDArray[np.uint8]  # (H, W, 3)
JpegDecoder = Callable[[bytes], Pixels]

logger = logging.getLogger(__name__)
WHITE = (255, 255, 255)
JPEG_MODES = ("RGB", "L")  # Pillow's, of images that the faster decoder may be given
# First bytes of a file -> format; tells a damaged file of an allowed format from another format.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftyp", "AVIF or HEIF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of an image, checked before it is decoded."""

    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")  # Pillow's names


DEFAULT_LIMITS = ImageLimits()


def read_encoded(
    source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, field: str = "image"
) -> tuple[bytes, str]:
    """Encoded bytes of an image and their media type; the header is checked, no pixel is decoded.

    Parameters and errors as in :func:`decode_image`, but for damage behind the header, which is not seen.
    """
    data = _read(source, limits, field)
    with _open(data, limits, field) as image:
        _check_size(image, limits, field)
        return data, Image.MIME[str(image.format)]


def decode_image(
    source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, field: str = "image"
) -> Image.Image:
    """Decode an image to RGB.

    Parameters
    ----------
    source : encoded bytes, or the path of a file.
    limits : checked before decoding.
    field : how error messages name the image.

    Raises
    ------
    TooLargeError
        If bytes, pixels or a side exceed the limits.
    ImageTypeError
        If the format is not allowed.
    ImageError
        If the file cannot be read, or is damaged or cut short.
    """
    data = _read(source, limits, field)
    image = _open(data, limits, field)
    _check_size(image, limits, field)
    if image.format == "JPEG" and image.mode in JPEG_MODES and (fast := _decode_fast(data)):
        return fast
    try:
        image.load()
        return _to_rgb(image, field)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise nearly anything (OSError, SyntaxError, struct.error, ...)
        raise ImageError(f"{field}: damaged {image.format} image ({error})", field=field) from error


class ImagePreprocessor:
    """Preprocessing of images: encoded bytes to normalised pixels.

    Every byte value is mapped by one table a channel, bit-equal to rescaling
    and normalising in float32 as Hugging Face's image processors do.

    Parameters
    ----------
    config : size and normalisation.
    limits : what may be decoded.
    """

    def __init__(self, config: ImageConfig, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.config = config
        self.limits = limits
        self.table = _normalisation_table(config)  # (3, 256)

    def __call__(self, source: ImageSource, *, field: str = "image") -> NDArray[np.float32]:
        """Pixels (3, S, S) float32 of an image; errors as in :func:`decode_image`."""
        return self.pixels(decode_image(source, self.limits, field=field))

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Pixels (3, S, S) float32 of an RGB image that is decoded already."""
        values = np.asarray(self.resized(image))  # (S, S, 3) uint8
        return np.stack([self.table[c][values[:, :, c]] for c in range(3)])  # (3, S, S)

    def resized(self, image: Image.Image) -> Image.Image:
        """The image at the model's size, whatever its aspect ratio."""
        return image.resize((self.config.size, self.config.size), Image.Resampling.LANCZOS)

    def missing(self) -> NDArray[np.float32]:
        """The all-zero pixels (3, S, S) that stand for a missing image."""
        return np.zeros((3, self.config.size, self.config.size), dtype=np.float32)


def _normalisation_table(config: ImageConfig) -> NDArray[np.float32]:
    """``(x * rescale - mean) / std`` of every byte value and channel, float32 (3, 256)."""
    rescaled = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)  # (256,)
    mean = np.array(config.mean, dtype=np.float32)[:, None]  # (3, 1)
    std = np.array(config.std, dtype=np.float32)[:, None]  # (3, 1)
    return (rescaled - mean) / std  # (3, 256)


def _read(source: ImageSource, limits: ImageLimits, field: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | Path):
        data = _read_file(Path(source), limits, field)
    else:
        raise InvalidInputError(f"{field}: must be bytes or a path, got {type(source).__name__}", field=field)
    if len(data) > limits.max_bytes:
        raise _too_large(field, "bytes", len(data), limits.max_bytes)
    if not data:
        raise ImageError(f"{field}: is empty (0 bytes)", field=field)
    return data


def _read_file(path: Path, limits: ImageLimits, field: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{field}: {path} is not a file", field=field)
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise _too_large(field, "bytes", size, limits.max_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise ImageError(f"{field}: {path} cannot be read ({error})", field=field) from error


def _open(data: bytes, limits: ImageLimits, field: str) -> Image.Image:
    """Read the header only, with the allowed formats only."""
    try:
        return Image.open(io.BytesIO(data), formats=limits.formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(
            f"{field}: more pixels than the limit of {limits.max_pixels:,} ({error})", field=field
        ) from error
    except UnidentifiedImageError as error:
        kind = _sniff(data)
        if kind in limits.formats:
            raise ImageError(
                f"{field}: damaged {kind} image (its header cannot be read)", field=field
            ) from error
        raise ImageTypeError(
            f"{field}: format {kind or 'unknown'} is not allowed; allowed are {', '.join(limits.formats)}",
            field=field,
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # header parsers raise nearly anything on hostile bytes
        raise ImageError(f"{field}: damaged {_sniff(data)} image ({error})", field=field) from error


def _sniff(data: bytes) -> str | None:
    for offset, signature, kind in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return kind
    return None


def _check_size(image: Image.Image, limits: ImageLimits, field: str) -> None:
    width, height = image.size
    if max(width, height) > limits.max_side:
        raise _too_large(field, "pixels on a side", max(width, height), limits.max_side)
    if width * height > limits.max_pixels:
        raise _too_large(field, "pixels", width * height, limits.max_pixels)


def _too_large(field: str, unit: str, value: int, limit: int) -> TooLargeError:
    return TooLargeError(f"{field}: {value:,} {unit}, the limit is {limit:,}", field=field)


def _to_rgb(image: Image.Image, field: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)  # (H, W)
        return Image.fromarray(high).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"{field}: pixels of mode {image.mode} (32 bits) are not supported", field=field)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    on_white = Image.new("RGB", rgba.size, WHITE)
    on_white.paste(rgba, mask=rgba)
    return on_white


def _decode_fast(data: bytes) -> Image.Image | None:
    """The image by the faster decoder; None where there is none, or it cannot: then Pillow says why."""
    decode = fast_decoder()
    if decode is None:
        return None
    try:
        return Image.fromarray(decode(data))
    except MemoryError:
        raise
    except Exception:
        return None


@functools.cache
def fast_decoder() -> JpegDecoder | None:
    """Open the faster decoder; None where it is not installed or its pixels differ.

    It raises ``ValueError`` and its kin for images that it cannot read; Pillow has the last word on those.
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
    """Small images, in every way of subsampling, with odd sides."""
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
