"""A query held against the limits of the service, before anything is prepared: what is wrong, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mimic_engine.errors import ImageError, InvalidInputError, TooLargeError
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity, LinkOptions, Mention, Mode
from mimic_engine.wire import EntityBody

DEFAULT_TOP_K = 10
MAX_ID_CHARS = 512
MAX_IMAGES = 8


class IndexLike(Protocol):
    """What the service needs of an index."""

    def __len__(self) -> int: ...

    def rows(self, ids: Sequence[str]) -> Any:
        """Rows of entity ids; UnknownEntityError names the first that is not there."""

    def select(self, ids: Sequence[str] | None = None, types: Sequence[str] | None = None) -> Any:
        """Rows with one of the ids and one of the types, None for all; InvalidInputError and its kin."""

    def entity(self, row: int) -> Entity:
        """Metadata of a row."""

    def image(self, row: int) -> Path | None:
        """File of the first picture of a row; None where there is none, or it is not on this machine."""


@dataclass(frozen=True, slots=True)
class Query:
    """One mention as a caller asked for it.

    ``score_all`` asks for every one of ``ids``, however many; ``image_url`` names a picture to fetch.
    """

    mention: Mention
    top_k: int | None = None
    ids: Sequence[str] | None = None
    types: Sequence[str] | None = None
    mode: str | None = None
    explain: bool = False
    score_all: bool = False
    image_url: str | None = None

    @property
    def restricted(self) -> bool:
        """Whether not all entities may be the answer."""
        return self.ids is not None or self.types is not None


def check_query(query: Query, settings: Settings, index: IndexLike, modes: Sequence[Mode]) -> LinkOptions:
    """Hold a query against the limits; gives the options to link it with.

    ``modes`` are those that the index can be searched in.

    Raises
    ------
    InvalidInputError, UnknownEntityError, TooLargeError, ImageError
        Naming the field, the limit and the value.
    """
    _check_texts(query.mention, settings)
    _check_image(query.mention.image, settings)
    available = len(index)
    if query.restricted:
        available = _check_filter(query, settings, index)
    ids = None if query.ids is None else tuple(query.ids)
    types = None if query.types is None else tuple(query.types)
    return LinkOptions(
        _top_k(query, settings, len(index), available),
        ids,
        types,
        _mode(query.mode, modes),
        explain=query.explain,
    )


def _mode(asked: str | None, modes: Sequence[Mode]) -> Mode:
    if asked is None:
        return LinkOptions().mode
    for mode in modes:
        if mode == asked:
            return mode
    message = f"mode: must be one of {', '.join(modes)}, which this index can answer in, got {asked!r}"
    raise InvalidInputError(message, field="mode")


def check_entity(entity_id: str, body: EntityBody, settings: Settings) -> Entity:
    """Hold an entity against the limits; gives it as the index takes it.

    Raises
    ------
    InvalidInputError, TooLargeError, ImageError
        Naming the field, the limit and the value.
    """
    if not entity_id or len(entity_id) > MAX_ID_CHARS or not entity_id.isprintable():
        message = f"id: must be 1 to {MAX_ID_CHARS} printable characters, got {len(entity_id)}"
        raise InvalidInputError(message, field="id")
    if not body.name.strip():
        raise InvalidInputError("name: must not be empty", field="name")
    for field in ("name", "description", "type"):
        length, limit = len(getattr(body, field)), settings.max_text_chars
        if length > limit:
            raise InvalidInputError(f"{field}: at most {limit} characters, got {length}", field=field)
    if len(body.images) > MAX_IMAGES:
        message = f"images: at most {MAX_IMAGES}, got {len(body.images)}"
        raise InvalidInputError(message, field="images")
    for image in body.images:
        _check_image(image, settings)
    return Entity(entity_id, body.name, body.description, tuple(body.images), body.type)


def _check_texts(mention: Mention, settings: Settings) -> None:
    for field in ("mention", "sentence"):
        length, limit = len(getattr(mention, field)), settings.max_text_chars
        if length > limit:
            raise InvalidInputError(f"{field}: at most {limit} characters, got {length}", field=field)
    if not mention.mention.strip():
        raise InvalidInputError("mention: must not be empty", field="mention")


def _check_image(image: object, settings: Settings) -> None:
    if image is None:
        return
    if not isinstance(image, bytes):  # a path would let callers read our files
        raise ImageError(f"image: must be bytes, got {type(image).__name__}", field="image")
    if not image:
        raise ImageError("image: must not be empty", field="image")
    if len(image) > settings.max_image_bytes:
        limit = settings.max_image_bytes
        raise TooLargeError(f"image: at most {limit} bytes, got {len(image)}", field="image")


def _check_filter(query: Query, settings: Settings, index: IndexLike) -> int:
    """Check ids and types; gives how many entities are left."""
    limit = settings.max_candidates
    prefix = "" if query.score_all else "filter."
    for name, texts in (("candidates" if query.score_all else "ids", query.ids), ("types", query.types)):
        if texts is not None and not 1 <= len(texts) <= limit:
            field = prefix + name
            message = f"{field}: must be 1 to {limit} (max_candidates), got {len(texts)}"
            raise InvalidInputError(message, field=field)
    try:
        return len(index.select(query.ids, query.types))
    except InvalidInputError as error:
        error.field = "candidates" if query.score_all else "filter"
        raise


def _top_k(query: Query, settings: Settings, entities: int, available: int) -> int:
    if query.score_all:
        return available
    most = min(settings.max_top_k, entities)
    top_k = min(DEFAULT_TOP_K, entities) if query.top_k is None else query.top_k
    if not 1 <= top_k <= most:
        raise InvalidInputError(
            f"top_k: must be 1 to {most} (max_top_k={settings.max_top_k}, "
            f"{entities} entities in the index), got {top_k}",
            field="top_k",
        )
    return min(top_k, available)
