"""Drawings as pictures."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from mimic_engine.demo.render import INK, MARGIN, SIZE, IconSet, image_path, render, render_all
from mimic_engine.errors import DataError, MissingDependencyError

SQUARE = '<path fill="#ff0000" d="M0 0h16v16H0z"/>'
WHITE = (255, 255, 255)
RED = (255, 0, 0)


@pytest.fixture
def icons() -> IconSet:
    data = {
        "icons": {
            "red": {"body": SQUARE},
            "ink": {"body": '<path fill="currentColor" d="M0 0h16v16H0z"/>'},
            "tall": {"body": '<path fill="#ff0000" d="M0 0h4v16H0z"/>', "width": 4, "height": 16},
            "wide": {"body": '<path fill="#ff0000" d="M0 0h16v4H0z"/>', "height": 4},
            "broken": {"body": "<path"},
        },
        "aliases": {"rouge": {"parent": "rot"}, "rot": {"parent": "red"}},
    }
    return IconSet("made", data)


@pytest.mark.parametrize(("name", "box"), [("red", (208, 208)), ("tall", (52, 208)), ("wide", (208, 52))])
def test_render_centres_on_white_and_keeps_the_aspect(
    icons: IconSet, name: str, box: tuple[int, int]
) -> None:
    picture = render(icons.svg(name))
    assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
    assert picture.getpixel((0, 0)) == WHITE
    assert picture.getpixel((SIZE // 2, SIZE // 2)) == RED
    left, top, right, bottom = Image.eval(picture.getchannel("G"), lambda v: 255 - v).getbbox() or (
        0,
        0,
        0,
        0,
    )
    assert abs((right - left) - box[0]) <= 1
    assert abs((bottom - top) - box[1]) <= 1
    assert min(left, top) >= MARGIN - 1


def test_aliases_lead_to_the_icon_and_ink_is_dark(icons: IconSet) -> None:
    assert icons.svg("rouge") == icons.svg("red")
    assert icons.names >= {"red", "rouge", "rot"}
    assert INK in icons.svg("ink")


def test_unknown_and_broken_icons_are_named(icons: IconSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'made' has no icon 'blue'"):
        icons.svg("blue")
    with pytest.raises(DataError, match="made:broken"):
        render_all(["made:broken"], {"made": icons}, tmp_path, progress=False)
    assert list(tmp_path.rglob("*.png")) == []


def test_render_all_draws_only_what_is_missing(icons: IconSet, tmp_path: Path) -> None:
    kept = image_path(tmp_path, "made:red")
    kept.parent.mkdir()
    kept.write_bytes(b"mine")
    render_all(["made:red", "made:tall", "made:tall"], {"made": icons}, tmp_path, progress=False)
    assert kept.read_bytes() == b"mine"
    assert sorted(p.name for p in kept.parent.iterdir()) == ["red.png", "tall.png"]
    render_all([], {}, tmp_path, progress=False)


def test_without_resvg_the_error_says_what_to_install(
    icons: IconSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingDependencyError, match=r"mimic-engine\[demo\]"):
        render(icons.svg("red"))


def test_unreadable_icon_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "icons.json"
    with pytest.raises(DataError, match=r"icons\.json"):
        IconSet.open("made", path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="'made'"):
        IconSet.open("made", path)
