"""Build of the demo's knowledge base and mentions from the fetched files; instant when they are built.

Writes ``kb.jsonl``, ``train.jsonl``, ``dev.jsonl``, ``test.jsonl`` and
``challenge.jsonl`` in the project's own record format, and the images, into
the cache. A stamp, written last, names what they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mimic_engine.demo.archives import ARCHIVES
from mimic_engine.demo.challenge import load_items, locate
from mimic_engine.demo.fetch import DemoFiles
from mimic_engine.demo.match import SPLITS, DrawnArticle, Tables, choose_articles, slug
from mimic_engine.demo.mentions import FoundMention, find_all, split_of, split_sentences
from mimic_engine.demo.render import IconSet, image_path, render_all
from mimic_engine.errors import DataError
from mimic_engine.files import sha256_of, write_atomic
from mimic_engine.types import Entity, LabelledMention, Mention

RECIPE = 1  # raise it when the rules change, so that older caches are built again
IMAGES = "pictures"  # another name when images are drawn in another way: existing ones are kept
STAMP = "demo.json"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoData:
    """The demo's entities and labelled mentions; images are paths of PNG files."""

    entities: tuple[Entity, ...]
    mentions: Mapping[str, tuple[LabelledMention, ...]]  # "train", "dev", "test"
    challenge: tuple[LabelledMention, ...]


def build_demo(files: DemoFiles, cache: Path, progress: bool = True) -> DemoData:
    """Build what the cache lacks and read the demo.

    The result depends on the packages and the tables alone: the same ids,
    sentences, images and splits on every machine. Interrupted, it starts
    again with the images that are still missing.

    Raises
    ------
    DataError
        If the fetched files are not what the recipe expects.
    MissingDependencyError
        If resvg-py is needed and absent.
    """
    if not _is_built(cache):
        _build(files, cache, progress)
    return read_demo(cache)


def read_demo(cache: Path) -> DemoData:
    """Read a built demo; DataError where the cache holds none."""
    stamp = cache / STAMP
    if not stamp.exists():
        raise DataError(f"{stamp}: the demo is not built here")
    entities = tuple(
        Entity(
            r["id"],
            r["name"],
            r["description"],
            tuple(cache / p for p in r["images"]),
            r["type"],
            tuple(r["aliases"]),
        )
        for r in _read_lines(cache / "kb.jsonl")
    )
    splits = {s: tuple(_mention(r, cache) for r in _read_lines(cache / f"{s}.jsonl")) for s in SPLITS}
    challenge = tuple(_mention(r, cache) for r in _read_lines(cache / "challenge.jsonl"))
    return DemoData(entities, splits, challenge)


def _build(files: DemoFiles, cache: Path, progress: bool) -> None:
    tables = Tables.load()
    wiki, emoji = _read_json(files.wiki), _read_json(files.emojibase)
    sets = {style: IconSet.open(style, path) for style, path in files.icons.items()}
    articles = choose_articles(wiki, emoji, {style: s.names for style, s in sets.items()}, tables)
    challenge = [(item.id, locate(item, wiki)) for item in load_items()]
    render_all((d for a in articles for d in a.drawings.values()), sets, cache / IMAGES, progress)
    records = {"kb": [entity_record(a, wiki[a.title], tables.aliases.get(a.title, ())) for a in articles]}
    records |= mention_records(articles, find_all(articles, wiki, tables), challenge)
    sums = {name: _write_lines(cache / f"{name}.jsonl", rows) for name, rows in records.items()}
    write_atomic(cache / STAMP, json.dumps({"recipe": fingerprint(), "files": sums}, indent=1))


def entity_record(article: DrawnArticle, page: Mapping[str, Any], aliases: Sequence[str] = ()) -> Record:
    """The record of an entity: name = title, description = short description and first sentence."""
    short = (page.get("description") or "").strip().rstrip(".")
    first = next(iter(split_sentences(page["extract"])), "")
    return {
        "id": slug(article.title),
        "name": article.title,
        "description": f"{short}. {first}" if short else first,
        "type": article.type,
        "images": [_relative(article.drawings["entity"])] if "entity" in article.drawings else [],
        "aliases": list(aliases),
    }


def mention_records(
    articles: Sequence[DrawnArticle],
    found: Iterable[FoundMention],
    challenge: Sequence[tuple[str, FoundMention]],
) -> dict[str, list[Record]]:
    """Records by split; a sentence of the challenge set is in no other.

    The image of a mention is the drawing of its entity in the split's style;
    the challenge set uses that of the test split.
    """
    drawings = {article.title: article.drawings for article in articles}
    unknown = sorted({item.title for _, item in challenge} - drawings.keys())
    if unknown:
        raise DataError(f"challenge answers that are no entity of the demo: {unknown}")
    held = {item.sentence for _, item in challenge}
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for item in found:
        if item.sentence not in held:
            split = split_of(item.sentence)
            name = f"{item.kind}/{slug(item.article)}/{item.index}/{slug(item.title)}"
            records[split].append(_mention_record(name, item, drawings[item.title].get(split)))
    records["challenge"] = [
        _mention_record(name, item, drawings[item.title].get("test")) for name, item in challenge
    ]
    return records


def _mention_record(name: str, item: FoundMention, drawing: str | None) -> Record:
    return {
        "id": name,
        "mention": item.surface,
        "sentence": item.sentence,
        "image": _relative(drawing) if drawing is not None else None,
        "answer": slug(item.title),
    }


def _relative(drawing: str) -> str:
    """Image of a drawing relative to the cache, so that a cache may be moved."""
    return image_path(Path(IMAGES), drawing).as_posix()


def _mention(record: Record, cache: Path) -> LabelledMention:
    image = cache / record["image"] if record["image"] is not None else None
    return LabelledMention(
        Mention(record["mention"], record["sentence"], image), record["answer"], id=record["id"]
    )


def fingerprint() -> str:
    """A hash of everything the records depend on: rules, tables, packages."""
    tables = [
        resources.files(__package__).joinpath(n).read_bytes() for n in ("tables.json", "challenge.json")
    ]
    packages = "".join(archive.sha256 for archive in ARCHIVES).encode()
    return hashlib.sha256(b"\0".join([str(RECIPE).encode(), *tables, packages])).hexdigest()


def _is_built(cache: Path) -> bool:
    """Whether stamp, records and images are whole and of this recipe."""
    try:
        stamp = json.loads((cache / STAMP).read_text(encoding="utf-8"))
        sums = {name: sha256_of(cache / f"{name}.jsonl") for name in stamp["files"]}
    except (OSError, ValueError, KeyError):
        return False
    if stamp["recipe"] != fingerprint() or sums != stamp["files"]:
        return False
    demo = read_demo(cache)
    mentions = [m for split in (*demo.mentions.values(), demo.challenge) for m in split]
    images = {i for e in demo.entities for i in e.images} | {m.mention.image for m in mentions} - {None}
    return all(Path(str(image)).exists() for image in images)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error


def _read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, rows: Sequence[Record]) -> str:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return sha256_of(path)
