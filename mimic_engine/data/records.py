"""Reader of one's own records: entities and mentions in JSON Lines or Parquet, streamed.

Entities: ``id``, ``name``, and optionally ``description``, ``images`` (a list or
one string), ``type``, ``aliases`` (a list) and ``popularity``. Mentions: ``mention``,
``sentence``, and optionally ``image``, ``answer`` (an entity id) and ``id``. Null means absent, other fields
are ignored. Image paths are relative to the file's folder. Never more than a
block of records is in memory; of the rest only the ids, to notice one that comes twice.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mimic_engine.data.images import ReadCounts
from mimic_engine.errors import DataError
from mimic_engine.names.valid import name_fault
from mimic_engine.types import Entity, LabelledMention, Mention

SUFFIXES = (".jsonl", ".parquet")
NIL = "nil"
PARQUET_BLOCK_ROWS = 4096


class _EntityRecord(msgspec.Struct):
    id: str
    name: str
    description: str | None = None
    images: list[str] | str | None = None
    type: str | None = None
    aliases: list[str] | None = None
    popularity: float | None = None
    image: object = None  # a likely slip for "images"; refused rather than lost


class _MentionRecord(msgspec.Struct):
    mention: str
    sentence: str
    image: str | None = None
    answer: str | None = None
    id: str | int | None = None
    images: object = None  # a likely slip for "image"; refused rather than lost


_Record = TypeVar("_Record", _EntityRecord, _MentionRecord)


def read_entities(
    path: Path, *, images: Path | None = None, counts: ReadCounts | None = None
) -> Iterator[Entity]:
    """Entities of a ``.jsonl`` or ``.parquet`` file, one at a time, in file order.

    Parameters
    ----------
    path : the file.
    images : folder that image paths are relative to; by default the file's own.
    counts : is added to as entities are drawn.

    Raises
    ------
    DataError
        If the file cannot be read, a field is missing or of the wrong type, a name is
        empty or a popularity below 0, or an id is empty or comes twice; names file and line (or row).
    """
    counts = ReadCounts() if counts is None else counts
    base = _base(path, images)
    seen: set[str] = set()
    for place, record in _records(path, _EntityRecord):
        if record.image is not None:
            raise DataError(f"{place}: entities name their images in 'images', not in 'image'")
        if not record.id:
            raise DataError(f"{place}: id is empty")
        _refuse_twice(seen, record.id, place)
        if fault := name_fault(record.name, record.aliases or (), record.popularity):
            raise DataError(f"{place}: {fault}")
        named = [record.images] if isinstance(record.images, str) else record.images or []
        there = counts.add(base / name for name in named if name)
        yield Entity(
            record.id,
            record.name,
            record.description or "",
            there,
            record.type or "",
            tuple(record.aliases or ()),
            record.popularity,
        )


def read_mentions(
    path: Path,
    *,
    entity_ids: Container[str] | None = None,
    images: Path | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[LabelledMention]:
    """Mentions of a ``.jsonl`` or ``.parquet`` file, one at a time, in file order.

    Parameters
    ----------
    path : the file.
    entity_ids : ids that an answer may have; every mention must then have an
        answer, and those answered ``nil`` are counted and left out. Without it
        answers are optional (empty where absent) and not checked.
    images : folder that image paths are relative to; by default the file's own.
    counts : is added to as mentions are drawn.

    Raises
    ------
    DataError
        If the file cannot be read, a field is missing or of the wrong type, an
        id comes twice, or an answer is unknown; names file and line (or row).
    """
    counts = ReadCounts() if counts is None else counts
    base = _base(path, images)
    seen: set[str] = set()
    for place, record in _records(path, _MentionRecord):
        if record.images is not None:
            raise DataError(f"{place}: mentions name their image in 'image', not in 'images'")
        if record.id is not None:
            _refuse_twice(seen, str(record.id), place)
        if entity_ids is not None and _is_nil(record, entity_ids, place):
            counts.nil_skipped += 1
            continue
        there = counts.add([base / record.image] if record.image else [])
        mention = Mention(record.mention, record.sentence, there[0] if there else None)
        yield LabelledMention(mention, record.answer or "", "" if record.id is None else str(record.id))


def _is_nil(record: _MentionRecord, entity_ids: Container[str], place: str) -> bool:
    if record.answer is None:
        raise DataError(f"{place}: field 'answer' is missing")
    if record.answer in entity_ids:
        return False
    if record.answer.lower() == NIL:
        return True
    raise DataError(f"{place}: answer {record.answer!r} is not in the knowledge base")


def _refuse_twice(seen: set[str], record_id: str, place: str) -> None:
    if record_id in seen:
        raise DataError(f"{place}: id {record_id!r} comes twice")
    seen.add(record_id)


def _base(path: Path, images: Path | None) -> Path:
    if images is not None and not images.is_dir():
        raise DataError(f"images folder {images}: is not a folder")
    return path.parent if images is None else images


def _records(path: Path, kind: type[_Record]) -> Iterator[tuple[str, _Record]]:
    """Every record with its place for messages ("FILE:LINE" or "FILE: row R", counted from 1)."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    return _json_lines(path, kind) if path.suffix == ".jsonl" else _parquet_rows(path, kind)


def _json_lines(path: Path, kind: type[_Record]) -> Iterator[tuple[str, _Record]]:
    decoder = msgspec.json.Decoder(kind)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.isspace() or not text:
                    continue
                place = f"{path}:{number}"
                try:
                    record = decoder.decode(text)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise DataError(f"{place}: {error}") from error
                yield place, record
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _parquet_rows(path: Path, kind: type[_Record]) -> Iterator[tuple[str, _Record]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, kind, set(file.schema_arrow.names))
            for block in file.iter_batches(batch_size=PARQUET_BLOCK_ROWS, columns=columns):
                for row in block.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", _convert(row, kind, f"{path}: row {number}")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read after row {number} ({error})") from error


def _columns(path: Path, kind: type[_Record], there: set[str]) -> list[str]:
    """The columns to read: all of the record's that the file has."""
    fields = msgspec.structs.fields(kind)
    missing = [f.name for f in fields if f.required and f.name not in there]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing; it has {sorted(there)}")
    return [f.name for f in fields if f.name in there]


def _convert(row: dict[str, object], kind: type[_Record], place: str) -> _Record:
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: {error}") from error
