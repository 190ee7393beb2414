"""Mentions that are published with candidates to choose among, instead of a whole knowledge base.

Two layouts, each a JSON list, told apart by their records:

- MIMIC's mentions (see :mod:`mimic_engine.data.mimic_format`) with ``candidates``, a list of QIDs or of
  objects with ``qid``;
- WikiDiverse's ``*_w_10cands.json``: rows of caption, image's URL, mention, its type, the text before
  it and after it, the gold entity's Wikipedia URL or ``nil``, the candidates' URLs or titles, topic, start
  and end. Titles are matched with the names of entities, where a single entity has the name. An image
  lies in ``mention_image`` under the MD5 of its name in the URL, an SVG as PNG.

What the knowledge base at hand lacks is counted, not an error: published candidates are drawn from all of
Wikidata. A mention whose answer is not among its candidates stays, for whoever chooses among them misses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import msgspec

from mimic_engine.data.images import ReadCounts
from mimic_engine.data.mimic_format import NIL, image_folder, json_records
from mimic_engine.types import Entity, LabelledMention, Mention


class _Qid(msgspec.Struct):
    qid: str


class _MimicRecord(msgspec.Struct):
    id: int | str
    sentence: str
    mentions: str
    answer: str
    imgPath: str | None
    candidates: list[str | _Qid]


class _WikiDiverseRow(msgspec.Struct, array_like=True):
    caption: str
    image: str | None
    mention: str
    kind: Any
    before: Any
    after: Any
    entity: str
    candidates: list[str]


@dataclass(frozen=True, slots=True)
class MentionWithCandidates:
    """A mention, its answer (empty where the knowledge base lacks it), and ids of entities to choose among.

    ``candidates`` are in the file's order, each once, and all in the knowledge base; there may be none.
    """

    labelled: LabelledMention
    candidates: tuple[str, ...]


@dataclass(slots=True)
class CandidateCounts(ReadCounts):
    """Counts of what a reader of candidates has passed so far."""

    candidates: int = 0  # given out
    repeated_candidates: int = 0  # named more than once for a mention
    unknown_candidates: int = 0  # not in the knowledge base
    unknown_answers: int = 0  # mentions whose answer is not in the knowledge base


def read_with_candidates(
    path: Path,
    entities: Iterable[Entity],
    *,
    images: Path | None = None,
    counts: CandidateCounts | None = None,
) -> Iterator[MentionWithCandidates]:
    """Mentions of a file in either layout, in file order; those answered ``nil`` are counted and left out.

    Parameters
    ----------
    path : the file.
    entities : the knowledge base.
    images : folder that holds ``mention_image``; by default the file's or the one around it.
    counts : is added to as mentions are drawn.

    Raises
    ------
    DataError
        If the file cannot be read, or a record is of neither layout; names file and record.
    """
    counts = CandidateCounts() if counts is None else counts
    known = _KnownEntities(entities)
    root = image_folder(path.parent, "mention_image", images)
    for number, (_, record) in enumerate(json_records(path, _decode)):
        answer, candidates, image = _parts(record)
        if answer.lower() == NIL and known.id(answer) is None:
            counts.nil_skipped += 1
            continue
        there = counts.add([root / image] if image else [])
        entity_id = known.id(answer) or ""
        counts.unknown_answers += not entity_id
        labelled = _labelled(record, number, there[0] if there else None, entity_id)
        yield MentionWithCandidates(labelled, known.ids(candidates, counts))


def _decode(item: msgspec.Raw) -> _MimicRecord | _WikiDiverseRow:
    if bytes(item).lstrip().startswith(b"["):
        return msgspec.json.decode(item, type=_WikiDiverseRow)
    return msgspec.json.decode(item, type=_MimicRecord)


class _KnownEntities:
    """Entities by id and, where a name is one entity's alone, by name."""

    def __init__(self, entities: Iterable[Entity]) -> None:
        self._ids: set[str] = set()
        self._names: dict[str, str | None] = {}
        for entity in entities:
            self._ids.add(entity.id)
            name = _title(entity.name)
            self._names[name] = None if name in self._names else entity.id

    def id(self, text: str) -> str | None:
        """The id that a file means by an id, a Wikipedia URL or a title; None for none or several."""
        return text if text in self._ids else self._names.get(_title(text))

    def ids(self, texts: Iterable[str], counts: CandidateCounts) -> tuple[str, ...]:
        """Ids of the candidates that are known, each once."""
        ids: dict[str, None] = {}
        for text in texts:
            one = self.id(text)
            counts.unknown_candidates += one is None
            counts.repeated_candidates += one in ids
            if one is not None:
                ids[one] = None
        counts.candidates += len(ids)
        return tuple(ids)


def _title(text: str) -> str:
    """A Wikipedia title, from a URL (whose beginning is damaged in places) or as it is."""
    return unquote(text.strip().rpartition("/wiki/")[2]).replace("_", " ")


def _parts(record: _MimicRecord | _WikiDiverseRow) -> tuple[str, list[str], str]:
    """Answer and candidates as the file names them, and the name of the image's file or nothing."""
    if isinstance(record, _MimicRecord):
        candidates = [one if isinstance(one, str) else one.qid for one in record.candidates]
        return record.answer, candidates, record.imgPath or ""
    return record.entity, record.candidates, _image_name(record.image or "")


def _image_name(url: str) -> str:
    name = url.rpartition("/")[2]
    suffix = PurePosixPath(name).suffix
    digest = hashlib.md5(name.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return digest + (".png" if suffix.lower() == ".svg" else suffix) if name else ""


def _labelled(
    record: _MimicRecord | _WikiDiverseRow, number: int, image: Path | None, answer: str
) -> LabelledMention:
    if isinstance(record, _MimicRecord):
        return LabelledMention(Mention(record.mentions, record.sentence, image), answer, str(record.id))
    return LabelledMention(Mention(record.mention, record.caption, image), answer, str(number))
