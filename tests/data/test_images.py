"""Missing pictures are counted; broken ones stop the run or are counted and listed."""

import io

import numpy as np
import pytest
from PIL import Image

from mimic_engine.config import ImageConfig
from mimic_engine.data.images import BrokenImage, BrokenImages, ReadCounts
from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.images import ImageLimits, ImagePreprocessor


@pytest.fixture
def images():
    return ImagePreprocessor(ImageConfig(size=8), ImageLimits(max_pixels=100))


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("policy", ["error", "as-missing"])
def test_good_and_absent_pictures(images, policy, tmp_path):
    file = tmp_path / "good.png"
    file.write_bytes(png(5, 5))
    broken = BrokenImages(policy)
    np.testing.assert_array_equal(broken.load(images, file, "entity 'Q1'"), images(file))
    np.testing.assert_array_equal(broken.load(images, png(5, 5), "entity 'Q1'"), images(file))
    assert broken.load(images, None, "entity 'Q2'") is None
    assert broken.found == []


@pytest.mark.parametrize(
    "content", [png(5, 5)[:40], b"GIF89a", b"", png(11, 10)], ids=["cut", "gif", "empty", "large"]
)
def test_broken_pictures(images, content, tmp_path):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"broken image .*bad\.png: image of entity 'Q1'.*as-missing"):
        BrokenImages("error").load(images, file, "entity 'Q1'")
    broken = BrokenImages("as-missing")
    assert broken.load(images, file, "entity 'Q1'") is None
    assert broken.load(images, content, "mention '7'") is None
    first, second = broken.found
    assert isinstance(first, BrokenImage)
    assert (first.owner, first.source) == ("entity 'Q1'", str(file))
    assert (second.owner, second.source) == ("mention '7'", f"{len(content)} bytes")
    assert first.reason.startswith("image of entity 'Q1'")


def test_a_file_that_vanished_is_broken(images, tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        BrokenImages().load(images, tmp_path / "gone.png", "entity 'Q1'")


def test_unknown_policy():
    with pytest.raises(InvalidInputError, match="'ignore' is not one of") as caught:
        BrokenImages("ignore")
    assert caught.value.field == "broken_images"


def test_counts_of_files(tmp_path):
    there, gone = tmp_path / "there.png", tmp_path / "gone.png"
    there.touch()
    counts = ReadCounts()
    assert counts.add([gone, there]) == (there,)
    assert counts.add([gone]) == ()
    assert counts.add([tmp_path]) == ()  # a folder is no picture
    assert counts.add([]) == ()
    assert counts == ReadCounts(records=4, with_image=1, missing_images=3)
