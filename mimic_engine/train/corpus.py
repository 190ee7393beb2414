"""A data set as arrays: token ids of every text, distinct images, and who owns which.

Entities and mentions are *records* of one table: record = one text and one
image (0 = no image). Several images of one entity are an album, which
stands in the place of one image. Entities come first (record = entity row),
then the mentions of each split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import DataError
from mimic_engine.scan.terms import NameScores
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.names import name_scorer
from mimic_engine.types import Entity, ImageSource, LabelledMention, TokenBatch

Rows = NDArray[np.int64]
Record = TypeVar("Record")
TEXTS_PER_CALL = 4096


@dataclass(frozen=True, slots=True)
class Split:
    """Mentions of one split: their records, the entity row of each gold answer, and their name scores."""

    records: Rows  # (M,)
    gold: Rows  # (M,)
    names: Sequence[NameScores] | None = None  # None: names do not count

    def take(self, chosen: Rows) -> Split:
        """Some of the mentions."""
        names = None if self.names is None else [self.names[i] for i in chosen]
        return Split(self.records[chosen], self.gold[chosen], names)


@dataclass(frozen=True, slots=True)
class Album:
    """Several images of one entity, whose features are averaged."""

    sources: tuple[ImageSource, ...]


Image = ImageSource | Album


@dataclass(frozen=True, slots=True)
class Corpus:
    """R records over T = R texts and the distinct images."""

    tokens: TokenBatch  # (R, L)
    images: tuple[Image, ...]  # image 1 is images[0]
    owners: tuple[str, ...]  # of each image: the first record that has it, for messages
    image: Rows  # (R,), 0 = none
    ids: tuple[str, ...]  # of the N entities
    names: tuple[str, ...]  # of the same
    splits: Mapping[str, Split]
    empty: int  # the record without text and image, for texts that training leaves out
    entity_pictures: int = 1  # of an entity, at most; the others are left out

    @property
    def entities(self) -> Rows:
        """Records of all entities, (N,)."""
        return np.arange(len(self.names))

    def distinct(self, records: Rows) -> tuple[Rows, Rows]:
        """Records no two of which are alike in text and image, (U,); which of them each one is, (R,)."""
        t, number = self.tokens, dict[bytes, int]()
        said = [t.input_ids[records], t.attention_mask[records], t.token_type_ids[records]]
        rows = np.concatenate([*said, self.image[records, None]], 1)  # (R, 3 L + 1)
        which = np.array([number.setdefault(row.tobytes(), len(number)) for row in rows], np.int64)
        return records[np.unique(which, return_index=True)[1]], which


def build_corpus(
    entities: Sequence[Entity],
    mentions: Mapping[str, Sequence[LabelledMention]],
    text: TextPreprocessor,
    entity_pictures: int = 1,
    *,
    names: bool = False,
) -> Corpus:
    """Tokenise all texts and number the distinct images.

    Parameters
    ----------
    entities, mentions : of which the splits' answers are entities.
    text : tokenises.
    entity_pictures : images of an entity that are used (``ImageConfig.entity_pictures`` of the model).
    names : keep the name scores of every mention.

    Raises
    ------
    DataError
        If a gold answer is not an entity.
    """
    row = {e.id: i for i, e in enumerate(entities)}
    texts = _in_calls(text.entities, entities)
    count = len(entities)
    owners = [f"entity {e.id!r}" for e in entities]
    owned: list[Image | None] = [_image(e.images[:entity_pictures]) for e in entities]
    splits = {}
    score = name_scorer(entities) if names else None
    for name, labelled in mentions.items():
        records = np.arange(count, count + len(labelled))
        count += len(labelled)
        scores = None if score is None else [score(m.mention) for m in labelled]
        splits[name] = Split(records, _gold_rows(labelled, row, name), scores)
        texts += _in_calls(text.mentions, [m.mention for m in labelled])
        owned += [m.mention.image for m in labelled]
        owners += [f"mention {m.id or i} of {name}" for i, m in enumerate(labelled)]
    texts.append(text([("", "")]))
    owned.append(None)
    owners.append("the empty record")
    images, image = _number(owned)
    first = {int(i): owner for i, owner in reversed(list(zip(image, owners, strict=True)))}
    return Corpus(
        tokens=TokenBatch.joined(texts),
        images=images,
        owners=tuple(first[i + 1] for i in range(len(images))),
        image=image,
        ids=tuple(e.id for e in entities),
        names=tuple(e.name for e in entities),
        splits=splits,
        empty=count,
        entity_pictures=entity_pictures,
    )


def image_sources(image: Image) -> tuple[ImageSource, ...]:
    """The images of an album, or the one image."""
    return image.sources if isinstance(image, Album) else (image,)


def image_identity(source: Image) -> str:
    """Identity of an image: a hash of its bytes, or path, size and time of the file."""
    if isinstance(source, Album):
        return json.dumps([image_identity(s) for s in source.sources])
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    path = Path(source).resolve()
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _gold_rows(labelled: Iterable[LabelledMention], row: Mapping[str, int], split: str) -> Rows:
    gold = []
    for i, m in enumerate(labelled):
        if m.answer not in row:
            raise DataError(f"{split}, mention {m.id or i}: answer {m.answer!r} is not an entity")
        gold.append(row[m.answer])
    return np.array(gold, dtype=np.int64)


def _image(images: tuple[ImageSource, ...]) -> Image | None:
    if not images:
        return None
    return images[0] if len(images) == 1 else Album(images)


def _number(images: Iterable[Image | None]) -> tuple[tuple[Image, ...], Rows]:
    number: dict[Image, int] = {}
    rows = [0 if image is None else number.setdefault(image, len(number) + 1) for image in images]
    return tuple(number), np.array(rows, dtype=np.int64)


def _in_calls(
    tokenise: Callable[[Sequence[Record]], TokenBatch], records: Sequence[Record]
) -> list[TokenBatch]:
    return [tokenise(records[i : i + TEXTS_PER_CALL]) for i in range(0, len(records), TEXTS_PER_CALL)]
