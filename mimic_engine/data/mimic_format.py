"""Reader of MIMIC's published data format (WikiMEL, RichpediaMEL, WikiDiverse).

A folder holds ``kb_entity.json``, optionally ``qid2id.json``, and one
``*_train.json`` / ``*_dev.json`` / ``*_test.json`` a split. Images lie in
``kb_image/`` and ``mention_image/``, inside that folder or beside it.

An entity's id is its Wikidata QID, its description is ``attr``; names are
URL-unquoted, other texts kept as they are. An entity whose first image is not
there has none, whatever the others, as in the published code, which knows the first
only. Mention ids may repeat: one photo, several mentions.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from mimic_engine.data.images import ReadCounts
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention, Mention

ENTITY_FILE = "kb_entity.json"
ID_FILE = "qid2id.json"
NIL = "nil"


class _EntityRecord(msgspec.Struct):
    id: int
    qid: str
    entity_name: str
    attr: str
    image_list: list[str]
    type: str = ""


class _MentionRecord(msgspec.Struct):
    id: int | str
    sentence: str
    mentions: str
    answer: str
    imgPath: str | None


Record = TypeVar("Record")


def is_mimic_folder(folder: Path) -> bool:
    """Whether a folder holds data in this format."""
    return (folder / ENTITY_FILE).is_file()


def read_entities(
    folder: Path, *, images: Path | None = None, counts: ReadCounts | None = None
) -> Iterator[Entity]:
    """Entities of ``kb_entity.json``, in its order.

    Parameters
    ----------
    folder : the data set.
    images : folder that holds ``kb_image``; by default the data set's or the one around it.
    counts : is added to as entities are drawn.

    Raises
    ------
    DataError
        If the file cannot be read, a field is missing or of the wrong type, a
        QID comes twice, or ``qid2id.json`` says otherwise; names file and record.
    """
    counts = ReadCounts() if counts is None else counts
    root = image_folder(folder, "kb_image", images)
    path = folder / ENTITY_FILE
    numbers = _read_numbers(folder / ID_FILE)
    seen: set[str] = set()
    for place, record in json_records(path, msgspec.json.Decoder(_EntityRecord).decode):
        if not record.qid:
            raise DataError(f"{place}: qid is empty")
        if record.qid in seen:
            raise DataError(f"{place}: qid {record.qid!r} comes twice")
        seen.add(record.qid)
        if numbers is not None and numbers.get(record.qid) != record.id:
            raise DataError(
                f"{place}: id {record.id} of {record.qid!r} is {numbers.get(record.qid)} in {ID_FILE}"
            )
        names = record.image_list if all(record.image_list[:1]) else []
        named = [root / name for name in names if name]
        first = counts.add(named[:1])
        there = first + tuple(path for path in named[1:] if first and path.is_file())
        yield Entity(record.qid, unquote(record.entity_name), record.attr, there, record.type)


def read_mentions(
    folder: Path,
    split: str,
    *,
    entity_ids: Container[str],
    images: Path | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[LabelledMention]:
    """Mentions of one split, in file order; those answered ``nil`` are counted and left out.

    Parameters
    ----------
    folder : the data set.
    split : "train", "dev" or "test".
    entity_ids : ids that an answer may have.
    images : folder that holds ``mention_image``; by default the data set's or the one around it.
    counts : is added to as mentions are drawn.

    Raises
    ------
    DataError
        If the split has no file or several, a field is missing or of the wrong
        type, or an answer is unknown; names file and record.
    """
    counts = ReadCounts() if counts is None else counts
    root = image_folder(folder, "mention_image", images)
    for place, record in json_records(split_file(folder, split), msgspec.json.Decoder(_MentionRecord).decode):
        if record.answer not in entity_ids:
            if record.answer.lower() == NIL:
                counts.nil_skipped += 1
                continue
            raise DataError(f"{place} (id {record.id!r}): answer {record.answer!r} is not in {ENTITY_FILE}")
        there = counts.add([root / record.imgPath] if record.imgPath else [])
        mention = Mention(record.mentions, record.sentence, there[0] if there else None)
        yield LabelledMention(mention, record.answer, str(record.id))


def split_file(folder: Path, split: str) -> Path:
    """The one file of a split.

    Raises
    ------
    DataError
        If there is none or more than one.
    """
    files = sorted(folder.glob(f"*_{split}.json"))
    if len(files) != 1:
        names = ", ".join(f.name for f in files) or "none"
        raise DataError(f"{folder}: one file *_{split}.json is needed for split {split!r}, found {names}")
    return files[0]


def has_split(folder: Path, split: str) -> bool:
    """Whether the data set has a file for this split."""
    return any(folder.glob(f"*_{split}.json"))


def image_folder(folder: Path, name: str, images: Path | None) -> Path:
    """The folder ``name`` of images: in ``images`` if given, else in the data set's or the one around it.

    Raises
    ------
    DataError
        If ``images`` has no such folder.
    """
    if images is not None:
        if not (images / name).is_dir():
            raise DataError(f"images folder {images}: has no folder {name}")
        return images / name
    inside = folder / name
    return inside if inside.is_dir() else folder.resolve().parent / name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _read_numbers(path: Path) -> dict[str, int] | None:
    """``qid2id.json``, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(_read(path), type=dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def json_records(path: Path, decode: Callable[[msgspec.Raw], Record]) -> Iterator[tuple[str, Record]]:
    """Every record of a JSON list, with its place for messages ("FILE: record 3", counted from 0).

    Raises
    ------
    DataError
        If the file cannot be read, is no JSON list, or ``decode`` refuses a record as msgspec does.
    """
    try:
        raw = msgspec.json.decode(_read(path), type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON list of records ({error})") from error
    for number, item in enumerate(raw):
        place = f"{path}: record {number}"
        try:
            yield place, decode(item)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{place}: {error}{_id_of(item)}") from error


def _id_of(item: msgspec.Raw) -> str:
    """The id of a record that could not be read as a whole, for the message, where it has one."""
    try:
        record = msgspec.json.decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    if not isinstance(record, dict):
        return ""
    return f" (id {record.get('qid', record.get('id'))!r})"
