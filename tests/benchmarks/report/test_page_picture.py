"""``docs/page.png``: what the README shows of the page, and the command that makes it."""

import os
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.report.page_picture import HEIGHT, PICTURE, WIDTH, _small, main


def test_the_picture_is_of_the_whole_window_and_small():
    with Image.open(PICTURE) as picture:
        assert (picture.format, picture.size) == ("PNG", (WIDTH, HEIGHT))
    assert PICTURE.stat().st_size < 200_000


def test_a_palette_keeps_what_is_seen():
    shot = BytesIO()
    Image.linear_gradient("L").convert("RGBA").save(shot, "PNG")
    with Image.open(BytesIO(_small(shot.getvalue()))) as picture:
        assert (picture.mode, picture.size) == ("P", (256, 256))
        assert picture.convert("L").getpixel((9, 200)) == 200


def test_without_a_browser_it_says_what_is_missing(monkeypatch, tmp_path, capsys):
    class Service:
        def __init__(self, command):
            self.address = command[command.index("--cache") + 1]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("benchmarks.report.page_picture.ServiceProcess", Service)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "page.png")]) == 2
    assert "chromium and chromedriver on PATH" in capsys.readouterr().err
    assert not (tmp_path / "page.png").exists()


@pytest.mark.slow
def test_the_page_is_taken_from_the_running_demo(tmp_path: Path):
    cache = os.environ.get("MIMIC_DEMO_CACHE")
    if not (cache and shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs MIMIC_DEMO_CACHE, and Chromium with chromedriver")
    out = tmp_path / "page.png"
    size = ("--width", "390", "--height", "300")
    assert main(["--cache", cache, "--example", "2", *size, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.size == (390, 300)
        assert len(picture.convert("RGB").getcolors(2**20)) > 20
