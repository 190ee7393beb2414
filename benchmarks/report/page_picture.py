"""Picture of the demo's page with an answer on it, as a browser shows it: ``docs/page.png``.

    python -m benchmarks.report.page_picture

Starts ``python -m mimic_engine.serve --demo``, asks one of its examples, waits for the answer and for the
pictures of the ranked entities, and keeps what stands in the window. Needs Chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks import RESULTS
from benchmarks.service.process import ServiceProcess
from mimic_engine.demo import default_cache
from mimic_engine.errors import MimicError, MissingDependencyError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PICTURE = RESULTS.parents[1] / "docs" / "page.png"
EXAMPLE = 4  # the Apple beside an apple
WIDTH, HEIGHT = 1280, 800
COLOURS = 256  # the page has few
WAIT_S = 60.0
_FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run"),
    *("force-prefers-reduced-motion", "disable-background-networking"),
)

# The first example is asked as soon as the page is open.
_THERE = "return document.querySelectorAll('.choice').length > 0 && !document.getElementById('timing').hidden"
_ASK = """
document.getElementById("status").textContent = "";
document.querySelectorAll(".choice")[arguments[0]].click();
"""
_ANSWERED = """
const faces = [...document.querySelectorAll("#ranking:not(.stale) .face img")];
const said = document.getElementById("status").textContent;
const mention = document.getElementById("mention").value;
return said.startsWith(mention + ":")
  && faces.length > 0 && faces.every((face) => face.complete && face.naturalWidth > 0);
"""


def capture(address: str, example: int, width: int, height: int) -> bytes:
    """PNG of a window of so many pixels with the page at ``address`` and the answer to an example, from 1."""
    with _browser() as browser:
        # headless Chromium takes no window under 500 pixels wide
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(address)
        _wait(browser, _THERE)
        browser.execute_script(_ASK, example - 1)
        _wait(browser, _ANSWERED)
        return _small(browser.get_screenshot_as_png())


@contextmanager
def _browser() -> Iterator[Chrome]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError as error:
        raise MissingDependencyError(
            "the picture needs selenium: pip install 'mimic-engine[test]'"
        ) from error
    if chromium is None or driver is None:
        raise MissingDependencyError("the picture needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
        try:
            yield browser
        finally:
            browser.quit()


def _wait(browser: Chrome, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_S, 0.05).until(lambda driver: driver.execute_script(condition))


def _small(png: bytes) -> bytes:
    """The same picture with a palette."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as shot:
        shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.page_picture", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    parser.add_argument("--example", type=int, default=EXAMPLE, help="number of the example (%(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the window, pixels (%(default)s)")
    parser.add_argument("--height", type=int, default=HEIGHT, help="of the window, pixels (%(default)s)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="PNG to write (docs/page.png)")
    args = parser.parse_args(argv)
    command = [
        sys.executable,
        "-m",
        "mimic_engine.serve",
        "--demo",
        "--port",
        "0",
        "--cache",
        str(args.cache),
    ]
    try:
        with ServiceProcess(command) as service:
            args.out.write_bytes(capture(service.address, args.example, args.width, args.height))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
