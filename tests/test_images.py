"""Pixels equal those of Hugging Face's processors; limits hold before anything is decoded."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mimic_engine.config import ImageConfig
from mimic_engine.errors import ImageError, ImageTypeError, InvalidInputError, TooLargeError
from mimic_engine.images import ImageLimits, ImagePreprocessor, decode_image

HALF = (0.5, 0.5, 0.5)
EFFICIENTNET = ImageConfig(rescale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, tail: bytes = b"") -> bytes:
    """A PNG that ends after its header (8-bit RGB)."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + tail


JPEG = encode(Image.fromarray(noise(64, 48)), "JPEG", quality=90)


@pytest.mark.parametrize(
    ("config", "processor"),
    [
        (ImageConfig(), CLIPImageProcessorPil()),
        (ImageConfig(mean=HALF, std=HALF), ViTImageProcessorPil(image_mean=HALF, image_std=HALF)),
    ],
    ids=["clip", "vit"],
)
@pytest.mark.parametrize("size", [(640, 480), (31, 97), (1, 1), (224, 224), (1, 500)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_equal_hugging_face(config, processor, size, kind):
    data = encode(Image.fromarray(noise(*size)), kind)
    resized = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.LANCZOS)
    expected = processor(resized, return_tensors="np")["pixel_values"][0]
    pixels = ImagePreprocessor(config)(data)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 224, 224)
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)  # to the bit


def test_every_byte_value_equals_hugging_face():
    ramp = np.zeros((224, 224, 3), dtype=np.uint8)
    ramp[:] = (np.arange(224 * 224).reshape(224, 224) % 256)[..., None]
    expected = CLIPImageProcessorPil()(Image.fromarray(ramp), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ImagePreprocessor(ImageConfig())(encode(Image.fromarray(ramp))), expected)


def test_pixels_of_efficientnet_lite():
    data = encode(Image.fromarray(noise(300, 200)))
    resized = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.LANCZOS)
    expected = ((np.asarray(resized).astype(np.float32) - 127) / 128).transpose(2, 0, 1)
    np.testing.assert_array_equal(ImagePreprocessor(EFFICIENTNET)(data), expected)


def test_size_follows_the_config():
    images = ImagePreprocessor(ImageConfig(size=7))
    assert images(JPEG).shape == images.missing().shape == (3, 7, 7)
    assert not images.missing().any()
    assert images.missing().dtype == np.float32


def test_bytes_path_and_string_are_the_same(tmp_path):
    file = tmp_path / "ünïcode image.jpg"
    file.write_bytes(JPEG)
    images = ImagePreprocessor(ImageConfig())
    np.testing.assert_array_equal(images(file), images(JPEG))
    np.testing.assert_array_equal(images(str(file)), images(JPEG))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_modes_convert_plainly(mode):
    image = Image.fromarray(noise(20, 30)).convert(mode)
    decoded = decode_image(encode(image))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_converts_plainly():
    data = encode(Image.fromarray(noise(20, 30)).convert("CMYK"), "JPEG")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(expected))


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode):
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), (10, 20, 30, 255) if mode == "RGBA" else (40, 255))
    decoded = np.asarray(decode_image(encode(image)))
    np.testing.assert_array_equal(decoded[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(decoded[0, 1], [10, 20, 30] if mode == "RGBA" else [40, 40, 40])


def test_half_transparent_black_on_white_is_grey():
    decoded = np.asarray(decode_image(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))))
    assert decoded[0, 0].tolist() == [127, 127, 127]


def test_opaque_alpha_changes_nothing():
    rgb = Image.fromarray(noise(9, 5))
    rgba = rgb.copy()
    rgba.putalpha(255)
    np.testing.assert_array_equal(np.asarray(decode_image(encode(rgba))), np.asarray(rgb))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_with_transparency_lies_on_white(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    decoded = np.asarray(decode_image(encode(image, transparency=transparency)))
    assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_rgb_with_a_transparent_colour_lies_on_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = np.asarray(decode_image(encode(image, transparency=(9, 9, 9))))
    assert decoded[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (np.asarray(decode_image(data)) == [255, 0, 0]).all()


def test_exif_orientation_is_ignored():
    image = Image.fromarray(noise(20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    assert decode_image(encode(image, "JPEG", exif=exif)).size == (20, 10)


def test_other_formats_are_refused_by_name():
    image = Image.fromarray(noise(8, 8))
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(ImageTypeError, match=rf"^photo: format {kind} is not allowed.*JPEG, PNG, WEBP"):
            decode_image(encode(image, kind), field="photo")
    for garbage in (b"<svg xmlns='x'/>", b"%PDF-1.7", b"\0" * 100, b"x"):
        with pytest.raises(ImageTypeError, match="is not allowed") as caught:
            decode_image(garbage)
        assert caught.value.field == "image"


def test_formats_can_be_narrowed_and_widened():
    with pytest.raises(ImageTypeError, match="format JPEG is not allowed; allowed are PNG"):
        decode_image(JPEG, ImageLimits(formats=("PNG",)))
    gif = encode(Image.new("L", (3, 2), 7), "GIF")
    assert decode_image(gif, ImageLimits(formats=("GIF",))).size == (3, 2)


def test_limits_name_field_limit_and_value(tmp_path):
    with pytest.raises(TooLargeError, match=rf"^photo: {len(JPEG):,} bytes, the limit is 100$"):
        decode_image(JPEG, ImageLimits(max_bytes=100), field="photo")
    file = tmp_path / "x.jpg"
    file.write_bytes(JPEG)
    with pytest.raises(TooLargeError, match="the limit is 100"):
        decode_image(file, ImageLimits(max_bytes=100))
    with pytest.raises(TooLargeError, match="3,072 pixels, the limit is 3,071"):
        decode_image(JPEG, ImageLimits(max_pixels=3071))
    with pytest.raises(TooLargeError, match="64 pixels on a side, the limit is 63"):
        decode_image(JPEG, ImageLimits(max_side=63))
    exact = ImageLimits(max_bytes=len(JPEG), max_pixels=3072, max_side=64)
    assert decode_image(JPEG, exact).size == (64, 48)


@pytest.mark.parametrize("size", [(16000, 16000), (2**31 - 1, 2**31 - 1), (9999, 9999), (10_000_000, 1)])
def test_bombs_are_refused_from_the_header(size):
    """The files hold no pixels at all: refusing them cannot have decoded any."""
    with pytest.raises(TooLargeError, match="limit"):
        decode_image(png_header(*size, tail=b"\0\0\0\0IDAT\x35\xaf\x06\x1e"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_files_cut_short_are_damaged(kind):
    data = encode(Image.fromarray(noise(64, 48)), kind)
    for length in [*range(12, 200, 17), len(data) // 2, len(data) * 9 // 10]:
        with pytest.raises(ImageError) as caught:
            decode_image(data[:length], field="photo")
        assert not isinstance(caught.value, ImageTypeError)
        assert str(caught.value).startswith("photo: damaged")


def test_a_damaged_header_names_the_format():
    with pytest.raises(ImageError, match="damaged JPEG image"):
        decode_image(JPEG[:3])
    with pytest.raises(ImageError, match="damaged PNG image"):
        decode_image(png_header(5, 5)[:20])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_decode_or_are_named(data):
    image = data.draw(st.sampled_from([JPEG, encode(Image.fromarray(noise(12, 9, 4)))]))
    changed = bytearray(image)
    for position in data.draw(st.lists(st.integers(0, len(image) - 1), min_size=1, max_size=4)):
        changed[position] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(changed), ImageLimits(max_pixels=10_000)).mode == "RGB"
    except InvalidInputError as error:
        assert error.field == "image"


def test_nothing_to_read(tmp_path):
    with pytest.raises(ImageError, match=r"empty \(0 bytes\)"):
        decode_image(b"")
    with pytest.raises(ImageError, match=r"no\.jpg cannot be read"):
        decode_image(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="is not a file"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        decode_image("nul\0byte.jpg")
    with pytest.raises(InvalidInputError, match="must be bytes or a path, got int"):
        decode_image(3)


def test_aspect_ratio_is_ignored():
    wide = Image.new("RGB", (400, 4), (0, 0, 0))
    wide.paste((255, 255, 255), (200, 0, 400, 4))
    pixels = ImagePreprocessor(ImageConfig(size=8, mean=(0, 0, 0), std=(1, 1, 1)))(encode(wide))
    assert pixels[:, :, 0].max() == 0
    assert pixels[:, :, -1].min() == 1


def test_draft_is_not_used():
    """A large JPEG is decoded at full size before it is resized."""
    data = encode(Image.fromarray(noise(1600, 1200, seed=1)), "JPEG")
    assert decode_image(data).size == (1600, 1200)


def test_path_type_is_path_not_content(tmp_path: Path):
    file = tmp_path / "photo.png"  # the name does not decide the format
    file.write_bytes(JPEG)
    assert decode_image(file).size == (64, 48)
