"""The catalogue: ``entities.json`` and ``mentions.json`` -> a data set of records and rendered drawings.

An image is named ``style:icon``, by the demo's drawing styles. The id of a
mention begins with what it takes to find its entity:

===============  ============================================================
``text/``        the sentence; there is no image
``image/``       the image: the sentence fits every entity of that name
``both/``        sentence and image, each of which says something
``nil/borne/``   not in the list, though an entity bears the name
``nil/unknown/`` not in the list, nor is the name
===============  ============================================================

Which records these become is said in ``docs/formats.md``; the answer of what is not in the list is ``nil``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mimic_engine.demo.build import IMAGES
from mimic_engine.demo.render import IconSet, image_path, render_all
from mimic_engine.errors import DataError
from mimic_engine.files import write_atomic

Record = dict[str, Any]


class CatalogueEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing for sale; ``images`` are names of drawings."""

    id: str
    name: str
    aliases: tuple[str, ...]
    type: str
    images: tuple[str, ...]
    description: str | None = None


class CatalogueMention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mention; ``image`` is the name of a drawing, ``answer`` an entity's id or ``nil``."""

    id: str
    mention: str
    sentence: str
    image: str | None
    answer: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entities and mentions in the order of their files."""

    entities: tuple[CatalogueEntity, ...]
    mentions: tuple[CatalogueMention, ...]

    def drawings(self) -> Iterator[tuple[str, str]]:
        """(who names it, drawing) for every image."""
        for entity in self.entities:
            yield from ((f"entity {entity.id!r}", drawing) for drawing in entity.images)
        for mention in self.mentions:
            if mention.image is not None:
                yield f"mention {mention.id!r}", mention.image

    def styles(self) -> frozenset[str]:
        """The drawing styles that are named."""
        return frozenset(style_of(drawing) for _, drawing in self.drawings())


def style_of(drawing: str) -> str:
    """The hand that a drawing is by: ``noto:key`` -> ``noto``."""
    return drawing.partition(":")[0]


def read_catalogue() -> Catalogue:
    """The catalogue as it is kept here; DataError where a file is not as it should be."""
    return Catalogue(
        _read("entities.json", tuple[CatalogueEntity, ...]),
        _read("mentions.json", tuple[CatalogueMention, ...]),
    )


def write_catalogue(
    catalogue: Catalogue, sets: Mapping[str, IconSet], folder: Path, progress: bool = True
) -> None:
    """Write ``kb.jsonl``, ``test.jsonl`` and the images into a folder; the same bytes each time.

    Parameters
    ----------
    catalogue : what to write.
    sets : the icons of every style that it names.
    folder : is made where it is missing; an image that is there is not drawn again.
    progress : show a bar, one step an image.

    Raises
    ------
    DataError
        If there is no such drawing, or it cannot be rendered; before anything is written in the first case.
    MissingDependencyError
        If resvg-py is needed and absent.
    """
    check_drawings(catalogue, sets)
    render_all((drawing for _, drawing in catalogue.drawings()), sets, folder / IMAGES, progress)
    _write_lines(folder / "kb.jsonl", map(_entity_record, catalogue.entities))
    _write_lines(folder / "test.jsonl", map(_mention_record, catalogue.mentions))


def check_drawings(catalogue: Catalogue, sets: Mapping[str, IconSet]) -> None:
    """Raise DataError, naming entity or mention and drawing, unless every drawing exists."""
    names = {style: icons.names for style, icons in sets.items()}
    for owner, drawing in catalogue.drawings():
        style, _, icon = drawing.partition(":")
        if icon not in names.get(style, ()):
            raise DataError(f"{owner} names {drawing!r}: there is no such drawing")


def _entity_record(entity: CatalogueEntity) -> Record:
    return {**msgspec.structs.asdict(entity), "images": [_relative(drawing) for drawing in entity.images]}


def _mention_record(mention: CatalogueMention) -> Record:
    image = None if mention.image is None else _relative(mention.image)
    return {**msgspec.structs.asdict(mention), "image": image}


def _relative(drawing: str) -> str:
    return image_path(Path(IMAGES), drawing).as_posix()


def _write_lines(path: Path, rows: Iterable[Record]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


_Rows = TypeVar("_Rows")


def _read(name: str, kind: type[_Rows]) -> _Rows:
    content = resources.files(__package__).joinpath(name).read_bytes()
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise DataError(f"{name}: {error}") from error
