"""Choice of the articles that become entities of the demo, and of the drawings that show them.

Article titles meet emoji labels by an exact or singular match; ``tables.json``
holds our own hand-checked facts: labels that mean something else than the
article of that name (a turkey is no country), drawings whose label has
another word (tangerine for Orange), names of places, logos of brands, and
rivals: articles without a drawing that share a name with an entity.

Four drawing styles, so that test images are by a hand unseen in training:

=========  ===================  =================  ==============================
part       things               countries          brands
=========  ===================  =================  ==============================
entity     Noto                 flag set, 4 by 3   coloured logo
train      Twemoji              Twemoji            none: only two drawings exist
dev        Fluent (flat)        flag set, square   simple-icons
test       OpenMoji             OpenMoji           simple-icons
=========  ===================  =================  ==============================

Fluent has no flags, so development mentions of countries show the square cut
of the entity's own drawing; only the test images are truly by another hand
for all countries. A brand with a single drawing keeps it as the entity's
image and its mentions have none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

SPLITS = ("train", "dev", "test")
_NOT_THINGS = (0, 1, 2, 9, None)  # emojibase groups: smileys, people, components, flags, none


@dataclass(frozen=True, slots=True)
class Tables:
    """The hand-checked facts of ``tables.json``."""

    false_friends: frozenset[str]  # emoji labels that must not match by rule
    things: Mapping[str, str]  # article title -> drawing
    places: Mapping[str, str]  # region code -> article title
    brands: Mapping[str, tuple[str | None, str | None]]  # title -> drawing of the entity, of its mentions
    rivals: tuple[str, ...]  # titles of entities without a drawing
    ambiguous: frozenset[str]  # surface forms that string matching gets wrong
    longer_names: tuple[str, ...]  # names that hold an entity's name and mean something else
    aliases: Mapping[str, tuple[str, ...]]  # title -> other names that mean it

    @classmethod
    def load(cls) -> Tables:
        """Read the table that ships with the package."""
        text = resources.files(__package__).joinpath("tables.json").read_text(encoding="utf-8")
        data = json.loads(text)
        return cls(
            false_friends=frozenset(data["false_friends"]),
            things=data["things"],
            places=data["places"],
            brands={title: (pair[0], pair[1]) for title, pair in data["brands"].items()},
            rivals=tuple(data["rivals"]),
            ambiguous=frozenset(data["ambiguous"]),
            longer_names=tuple(data["longer_names"]),
            aliases={title: tuple(names) for title, names in data["aliases"].items()},
        )


@dataclass(frozen=True, slots=True)
class DrawnArticle:
    """An article chosen as an entity: its title, type and drawings.

    ``drawings`` maps "entity", "train", "dev" and "test" to ``style:icon``;
    parts without an image are absent.
    """

    title: str
    type: str  # "thing", "country", "brand" or "other" (a rival)
    drawings: Mapping[str, str] = field(default_factory=dict)


def slug(text: str) -> str:
    """Lower-case ASCII words joined by hyphens: how icons are named, and our entity ids."""
    ascii_text = unicodedata.normalize("NFKD", text.replace("’", "").replace("'", "").replace("&", " and "))
    plain = ascii_text.encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def base_name(title: str) -> str:
    """A title without its disambiguation: ``Crane (machine)`` -> ``Crane``."""
    return re.sub(r" \([^()]*\)$", "", title)


def singulars(label: str) -> tuple[str, ...]:
    """The label itself and the singular and plural words it may stand for."""
    forms = [label]
    if label.endswith("ies"):
        forms.append(label[:-3] + "y")
    if label.endswith("es"):
        forms.append(label[:-2])
    if label.endswith("s"):
        forms.append(label[:-1])
    return (*forms, label + "s")


def match_things(titles: Iterable[str], labels: Iterable[str], tables: Tables) -> dict[str, str]:
    """Article title -> drawing, by rule and then by hand.

    A label matches only where exactly one article has its name, so a name
    shared by two articles is never matched by rule.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    known = list(titles)
    for title in known:
        by_name[slug(base_name(title))].append(title)
    matched: dict[str, str] = {}
    for label in labels:
        if label in tables.false_friends:
            continue
        titles = {title for form in singulars(slug(label)) for title in by_name.get(form, ())}
        if len(titles) == 1:
            matched[titles.pop()] = slug(label)
    matched.update({title: icon for title, icon in tables.things.items() if title in set(known)})
    return matched


def region_code(hexcode: str) -> str | None:
    """The region of a flag emoji: ``1F1EC-1F1EA`` -> ``GE``, a tag sequence -> ``GB-ENG``; else None."""
    points = [int(part, 16) for part in hexcode.split("-")]
    if len(points) == 2 and all(0x1F1E6 <= p <= 0x1F1FF for p in points):
        return "".join(chr(p - 0x1F1E6 + ord("A")) for p in points)
    tags = "".join(chr(p - 0xE0000) for p in points[1:] if 0xE0061 <= p <= 0xE007A).upper()
    return f"{tags[:2]}-{tags[2:]}" if tags else None


def match_places(titles: Iterable[str], emoji: Iterable[Mapping[str, Any]], tables: Tables) -> dict[str, str]:
    """Region code -> article title, by the label of its flag and then by hand."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for title in titles:
        if title not in tables.rivals:
            by_name[slug(base_name(title))].append(title)
    matched = {
        code: title for code, title in tables.places.items() if title in by_name[slug(base_name(title))]
    }
    for item in emoji:
        code = region_code(item["hexcode"]) if item["label"].startswith("flag: ") else None
        name = slug(item["label"].removeprefix("flag: ").replace("St. ", "Saint "))
        if code is not None and code not in matched and len(by_name[name]) == 1:
            matched[code] = by_name[name][0]
    return matched


def choose_articles(
    titles: Iterable[str],
    emoji: Iterable[Mapping[str, Any]],
    icons: Mapping[str, frozenset[str]],
    tables: Tables,
) -> tuple[DrawnArticle, ...]:
    """All entities of the demo with the drawings that exist, in the order of their ids.

    Parameters
    ----------
    titles
        Titles of all articles.
    emoji
        Records of emojibase: ``label``, ``hexcode``, ``group``.
    icons
        Names (aliases included) of every drawing style's icons.
    tables
        The facts checked by hand.
    """
    known, marks = list(titles), list(emoji)
    labels = [item["label"] for item in marks if item.get("group") not in _NOT_THINGS]
    flags = {region_code(m["hexcode"]): slug(m["label"]) for m in marks if m["label"].startswith("flag: ")}
    chosen: dict[str, DrawnArticle] = {}
    for title, icon in match_things(known, labels, tables).items():
        wanted = {"entity": "noto", "train": "twemoji", "dev": "fluent-emoji-flat", "test": "openmoji"}
        drawings = {part: f"{style}:{icon}" for part, style in wanted.items()}
        chosen[title] = DrawnArticle(title, "thing", _existing(drawings, icons))
    for code, title in match_places(known, marks, tables).items():
        flag = flags.get(code, "")
        drawings = {
            "entity": f"flag:{code.lower()}-4x3",
            "train": f"twemoji:{flag}",
            "dev": f"flag:{code.lower()}-1x1",
            "test": f"openmoji:{flag}",
        }
        chosen[title] = DrawnArticle(title, "country", _existing(drawings, icons))
    for title, (logo, glyph) in tables.brands.items():
        pair = {"entity": logo, "dev": glyph, "test": glyph}
        drawings = {part: icon for part, icon in pair.items() if icon is not None}
        chosen[title] = DrawnArticle(title, "brand", _existing(drawings, icons))
    for title in tables.rivals:
        chosen[title] = DrawnArticle(title, "other")
    return tuple(
        sorted((chosen[t] for t in set(known) & set(chosen)), key=lambda article: slug(article.title))
    )


def _existing(drawings: Mapping[str, str], icons: Mapping[str, frozenset[str]]) -> dict[str, str]:
    parts = {part: icon.split(":", 1) for part, icon in drawings.items()}
    return {part: drawings[part] for part, (style, name) in parts.items() if name in icons[style]}
