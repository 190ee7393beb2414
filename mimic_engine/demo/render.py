"""Drawings as images: an icon of an iconify set -> a 224-pixel PNG on white.

Needs ``resvg-py`` (the ``demo`` extra); an image that exists is not drawn again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.files import replace_file

SIZE = 224
MARGIN = 8  # pixels of white on every side
INK = "#111111"  # colour of the one-colour drawings


class IconSet:
    """One drawing style: the icons of an iconify ``icons.json``, by name or alias."""

    def __init__(self, style: str, data: Mapping[str, Any]) -> None:
        self.style = style
        self._data = data
        self._icons: Mapping[str, Mapping[str, Any]] = data["icons"]
        self._aliases: Mapping[str, Mapping[str, Any]] = data.get("aliases", {})

    @classmethod
    def open(cls, style: str, path: Path) -> IconSet:
        """Read ``icons.json``; DataError when it is not one."""
        try:
            return cls(style, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: icons of style {style!r} cannot be read: {error!r}") from error

    @property
    def names(self) -> frozenset[str]:
        """Every name an icon can be asked by."""
        return frozenset(self._icons) | frozenset(self._aliases)

    def svg(self, name: str) -> str:
        """The icon as a complete SVG document; DataError for an unknown name."""
        seen = name
        while seen in self._aliases:
            seen = self._aliases[seen]["parent"]
        if seen not in self._icons:
            raise DataError(f"style {self.style!r} has no icon {name!r}")
        icon = self._icons[seen]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", self._data.get("width", 16))
        height = icon.get("height", self._data.get("height", 16))
        body = icon["body"].replace("currentColor", INK)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


def render(svg: str) -> Image.Image:
    """An SVG document as an RGB image of 224 x 224 pixels, centred on white, aspect kept.

    Raises
    ------
    MissingDependencyError
        If resvg-py is not installed.
    ValueError
        If the document is not an SVG.
    """
    inner = SIZE - 2 * MARGIN
    drawing = _draw(svg, inner)
    if drawing.height > inner:
        drawing = _draw(svg, max(1, inner * inner // drawing.height))
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    canvas.alpha_composite(drawing, ((SIZE - drawing.width) // 2, (SIZE - drawing.height) // 2))
    return canvas.convert("RGB")


def _draw(svg: str, width: int) -> Image.Image:
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependencyError(
            "drawing the demo's images needs resvg-py: pip install 'mimic-engine[demo]'"
        ) from error
    # Fonts of the machine would make images differ from one machine to another.
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def image_path(folder: Path, drawing: str) -> Path:
    """Where the image of ``style:icon`` lies: ``folder/style/icon.png``."""
    style, name = drawing.split(":", 1)
    return folder / style / f"{name}.png"


def render_all(
    drawings: Iterable[str], sets: Mapping[str, IconSet], folder: Path, progress: bool = True
) -> None:
    """Draw every ``style:icon`` that the folder lacks; each file appears whole or not at all.

    Raises
    ------
    DataError
        If an icon does not exist or cannot be drawn; names the drawing.
    """
    missing = [d for d in sorted(set(drawings)) if not image_path(folder, d).exists()]
    for drawing in tqdm(missing, desc="images", unit="image", disable=not progress or not missing):
        style, name = drawing.split(":", 1)
        svg = sets[style].svg(name)
        try:
            image = render(svg)
        except ValueError as error:
            raise DataError(f"drawing {drawing!r} cannot be rendered: {error!r}") from error
        _save(image, image_path(folder, drawing))


def _save(image: Image.Image, path: Path) -> None:
    with replace_file(path) as temporary:
        image.save(temporary, format="PNG")
