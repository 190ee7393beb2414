"""The faster JPEG decoder: the same pixels as Pillow, the same errors, or it is not used."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic_engine import images
from mimic_engine.errors import MimicError
from mimic_engine.images import decode_image

pytest.importorskip("simplejpeg")


def jpeg_bytes(size=(61, 43), mode="RGB", seed=0, **options):
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    small = Image.fromarray(values[:, :, 0] if channels == 1 else values, mode)
    out = io.BytesIO()
    small.resize(size).save(out, "JPEG", **options)
    return out.getvalue()


def outcome(data):
    """Pixels, or the error's text."""
    try:
        return np.asarray(decode_image(data))
    except MimicError as error:
        return type(error).__name__, str(error)


def assert_same(data, monkeypatch):
    with_it = outcome(data)
    with monkeypatch.context() as patch:
        patch.setattr(images, "fast_decoder", lambda: None)
        without = outcome(data)
    if isinstance(with_it, tuple):
        assert with_it == without
    else:
        np.testing.assert_array_equal(with_it, without)


def test_it_is_installed_and_used(monkeypatch):
    assert images.fast_decoder() is not None
    used = []
    decode = images.fast_decoder()
    monkeypatch.setattr(images, "fast_decoder", lambda: lambda data: used.append(1) or decode(data))
    decode_image(jpeg_bytes())
    decode_image(jpeg_bytes(mode="L"))
    assert len(used) == 2
    out = io.BytesIO()
    Image.new("RGB", (3, 2)).save(out, "PNG")
    decode_image(out.getvalue())
    assert len(used) == 2


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 16), (33, 47), (201, 3), (320, 240)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_pillows(monkeypatch, mode, size, subsampling, progressive):
    options = {} if mode == "L" else {"subsampling": subsampling}
    for quality in (5, 75, 100):
        assert_same(jpeg_bytes(size, mode, progressive=progressive, quality=quality, **options), monkeypatch)


def test_orientation_and_colour_profiles_are_ignored_alike(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = jpeg_bytes(exif=exif.tobytes(), icc_profile=b"x" * 40)
    assert_same(data, monkeypatch)
    assert decode_image(data).size == (61, 43)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 3),
    cut=st.none() | st.integers(1, 3_000),
    changes=st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 255)), max_size=4),
)
def test_damaged_files_end_alike(seed, cut, changes):
    data = bytearray(jpeg_bytes(seed=seed, quality=90))
    for position, value in changes:
        data[position % len(data)] = value
    with pytest.MonkeyPatch.context() as patch:
        assert_same(bytes(data[: cut and cut % len(data)]), patch)


def test_a_height_beyond_the_limit_ends_alike(monkeypatch):
    data = bytearray(jpeg_bytes())
    height = data.index(b"\xff\xc0") + 5  # of the frame header: marker, length, precision, then this
    data[height : height + 2] = (16_427).to_bytes(2, "big")
    assert outcome(bytes(data)) == ("TooLargeError", "image: 16,427 pixels on a side, the limit is 16,384")
    assert_same(bytes(data), monkeypatch)


def test_another_version_that_gives_other_pixels_is_not_used(monkeypatch, caplog):
    import simplejpeg

    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: real(*a, **k) ^ 1)
    images.fast_decoder.cache_clear()
    try:
        assert images.fast_decoder() is None
        assert "gives other pixels than Pillow" in caplog.text
    finally:
        monkeypatch.undo()
        images.fast_decoder.cache_clear()


def test_where_it_is_not_installed_pillow_decodes(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    images.fast_decoder.cache_clear()
    try:
        assert images.fast_decoder() is None
        assert decode_image(jpeg_bytes()).size == (61, 43)
    finally:
        monkeypatch.undo()
        images.fast_decoder.cache_clear()
