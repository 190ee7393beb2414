"""A data set or a knowledge base opened, whatever its format.

A data set is a folder in MIMIC's published format, or one of own records:
``kb.jsonl`` or ``kb.parquet`` and a ``train`` / ``dev`` / ``test`` file of either kind.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimic_engine.data import mimic_format, records
from mimic_engine.data.images import ReadCounts
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention

SPLITS = ("train", "dev", "test")
KB = "kb"


@dataclass(frozen=True, slots=True)
class DataReport:
    """Report of a reading, of what was not there too: counts of the entities and of each split."""

    entities: ReadCounts
    splits: Mapping[str, ReadCounts]

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [_line("entities", self.entities)]
        lines += [_line(f"{name} mentions", counts) for name, counts in self.splits.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A knowledge base and labelled mentions; every answer is an id of ``entities``."""

    path: Path
    entities: tuple[Entity, ...]
    splits: Mapping[str, tuple[LabelledMention, ...]]
    report: DataReport


class EntityStream:
    """Streams a knowledge base from its start at each call; ``counts`` are of the latest call.

    Parameters
    ----------
    path : a ``.jsonl`` or ``.parquet`` file, a ``kb_entity.json``, or the folder of a data set.
    images : as in :func:`open_dataset`.

    Raises
    ------
    DataError
        If the path is none of these.
    """

    def __init__(self, path: str | Path, *, images: Path | None = None) -> None:
        self.path = _kb_path(Path(path))
        self.counts = ReadCounts()
        self._images = images

    def __call__(self) -> Iterator[Entity]:
        """Entities in file order; errors as in the readers."""
        self.counts = ReadCounts()
        if self.path.name == mimic_format.ENTITY_FILE:
            return mimic_format.read_entities(self.path.parent, images=self._images, counts=self.counts)
        return records.read_entities(self.path, images=self._images, counts=self.counts)


def entity_stream(path: str | Path, *, images: Path | None = None) -> EntityStream:
    """A knowledge base as a function that gives its entities anew at each call (:class:`EntityStream`)."""
    return EntityStream(path, images=images)


def open_dataset(
    path: str | Path, *, splits: Sequence[str] | None = None, images: Path | None = None
) -> Dataset:
    """Read a data set of either format into memory.

    Parameters
    ----------
    path : its folder.
    splits : the splits to read; by default all of train, dev and test that are there.
    images : folder of the images: what holds ``kb_image`` and ``mention_image`` in MIMIC's
        format, what image paths are relative to in own records.

    Raises
    ------
    DataError
        If the folder is of neither format, a named split is not there, or a
        record is wrong; names file and record.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"data set {folder}: is not a folder")
    stream = EntityStream(folder, images=images)
    entities = tuple(stream())
    ids = {entity.id for entity in entities}
    names = _splits_there(folder) if splits is None else list(splits)
    counts = {name: ReadCounts() for name in names}
    mentions = {name: tuple(_mentions(folder, name, ids, images, counts[name])) for name in names}
    return Dataset(folder, entities, mentions, DataReport(stream.counts, counts))


def _mentions(
    folder: Path, split: str, ids: Container[str], images: Path | None, counts: ReadCounts
) -> Iterator[LabelledMention]:
    if mimic_format.is_mimic_folder(folder):
        return mimic_format.read_mentions(folder, split, entity_ids=ids, images=images, counts=counts)
    file = _own_file(folder, split)
    return records.read_mentions(file, entity_ids=ids, images=images, counts=counts)


def _splits_there(folder: Path) -> list[str]:
    if mimic_format.is_mimic_folder(folder):
        return [name for name in SPLITS if mimic_format.has_split(folder, name)]
    return [name for name in SPLITS if _own_files(folder, name)]


def _kb_path(path: Path) -> Path:
    """The file that holds the entities of a knowledge base or data set."""
    if path.is_dir():
        return path / mimic_format.ENTITY_FILE if mimic_format.is_mimic_folder(path) else _own_file(path, KB)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if path.name != mimic_format.ENTITY_FILE and path.suffix not in records.SUFFIXES:
        raise DataError(
            f"{path}: not a knowledge base; the name must be {mimic_format.ENTITY_FILE} "
            f"or end in one of {', '.join(records.SUFFIXES)}"
        )
    return path


def _own_files(folder: Path, stem: str) -> list[Path]:
    return [folder / (stem + suffix) for suffix in records.SUFFIXES if (folder / (stem + suffix)).is_file()]


def _own_file(folder: Path, stem: str) -> Path:
    files = _own_files(folder, stem)
    if len(files) != 1:
        there = " and ".join(f.name for f in files) or "neither"
        wanted = " or ".join(stem + suffix for suffix in records.SUFFIXES)
        also = f" (nor {mimic_format.ENTITY_FILE})" if stem == KB and not files else ""
        raise DataError(f"{folder}: one file {wanted} is needed, found {there}{also}")
    return files[0]


def _line(name: str, counts: ReadCounts) -> str:
    line = f"{name}: {counts.records:,}, {counts.with_image:,} with image"
    line += f", {counts.missing_images:,} images missing"
    return line + (f", {counts.nil_skipped:,} nil skipped" if counts.nil_skipped else "")
