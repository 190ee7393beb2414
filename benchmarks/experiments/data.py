"""Data of an experiment: what is trained on, what is chosen by, what is reported, and what it is made of.

A data set without a test split has its dev split halved by a hash of the
mention ids: one half to choose by ("dev"), one to report ("test"); mentions of
one id stay together. Several data sets are joined by entity id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimic_engine.data.source import SPLITS, Dataset, open_dataset
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, ImageSource, LabelledMention

TEST, HALF_OF_DEV = "test split", "half of dev"
OVERLAP = "others"


@dataclass(frozen=True, slots=True)
class ExperimentData:
    """A data set with splits train, dev and test, and other ones to train on instead."""

    name: str
    own: Dataset  # with a split OVERLAP where there are others: of their training mentions, those it answers
    test_is: str  # TEST or HALF_OF_DEV
    others: Dataset | None = None  # joined, with splits train and dev
    other_names: tuple[str, ...] = ()

    def training(self, train_on: str) -> Dataset:
        """What a configuration trains on and is validated with.

        Raises
        ------
        DataError
            If it trains on other data sets and none was given.
        """
        if train_on == "own":
            return self.own
        if self.others is None:
            raise DataError("--others: a configuration trains on other data sets, and none is given")
        return self.others

    def tested(self, train_on: str) -> Dataset:
        """The own data set; its split "train" holds what was trained on and is answered by its entities."""
        splits = {name: self.own.splits[name] for name in SPLITS}
        return replace(self.own, splits=splits | {"train": self.own.splits[trained_split(train_on)]})

    def to_json(self) -> dict[str, Any]:
        """What was read, how many mentions each split has, and what the test is."""
        out = {"name": self.name, **self.own.report.to_json(), "test_is": self.test_is}
        out["mentions"] = {split: len(self.own.splits[split]) for split in SPLITS}
        if self.others is not None:
            out["others"] = {
                "names": list(self.other_names),
                "entities": len(self.others.entities),
                "mentions": {split: len(mentions) for split, mentions in self.others.splits.items()},
                "answered_here": len(self.own.splits[OVERLAP]),
            }
        return out

    def fingerprints(self, train_on: str) -> dict[str, str]:
        """A hash of the entities and of each split that a run reads: the same wherever the records lie.

        Raises
        ------
        DataError
            If it trains on other data sets and none was given.
        """
        own = _fingerprints(self.own, "")
        return own if train_on == "own" else own | _fingerprints(self.training(train_on), "others: ")


def open_data(folder: Path, name: str, others: Sequence[Path] = ()) -> ExperimentData:
    """Read the data set of an experiment, and the others that its configurations may train on.

    Raises
    ------
    DataError
        If a record is wrong or a split is missing; names the folder and the splits that are there.
    """
    own, test_is = with_test(_opened(folder, ("train", "dev")))
    names = tuple(other.resolve().name for other in others)
    joined = join([_opened(other, ("train", "dev")) for other in others]) if others else None
    if joined is not None:
        ids = {entity.id for entity in own.entities}
        overlap = tuple(m for m in joined.splits["train"] if m.answer in ids)
        own = replace(own, splits={**own.splits, OVERLAP: overlap})
    return ExperimentData(name, own, test_is, joined, names)


def trained_split(train_on: str) -> str:
    """The split of the own data set that says what a configuration was trained on."""
    return "train" if train_on == "own" else OVERLAP


def with_test(dataset: Dataset) -> tuple[Dataset, str]:
    """The data set with a test split, and what that is: its own, or half of its dev split.

    Raises
    ------
    DataError
        If dev is too small to be halved.
    """
    if dataset.splits.get("test"):
        return dataset, TEST
    halves: tuple[list[LabelledMention], list[LabelledMention]] = ([], [])
    for labelled in dataset.splits["dev"]:
        halves[_half(labelled)].append(labelled)
    dev, test = (tuple(half) for half in halves)
    if not dev or not test:
        raise DataError(
            f"{dataset.path}: has no test split, and its {len(dev) + len(test)} dev mentions cannot be halved"
        )
    return replace(dataset, splits={**dataset.splits, "dev": dev, "test": test}), HALF_OF_DEV


def join(datasets: Sequence[Dataset]) -> Dataset:
    """One data set of several: of entities with the same id the first one stays; splits train and dev."""
    entities: dict[str, Entity] = {}
    for dataset in datasets:
        for entity in dataset.entities:
            entities.setdefault(entity.id, entity)
    splits = {name: tuple(m for d in datasets for m in d.splits[name]) for name in ("train", "dev")}
    return replace(datasets[0], entities=tuple(entities.values()), splits=splits)


def _opened(folder: Path, needed: Sequence[str]) -> Dataset:
    dataset = open_dataset(folder)
    there = [name for name in SPLITS if dataset.splits.get(name)]
    for split in needed:
        if split not in there:
            names = ", ".join(there) or "none"
            raise DataError(f"{folder}: has no mentions in split {split!r}; splits with mentions: {names}")
    return dataset


def _half(labelled: LabelledMention) -> int:
    own = labelled.mention
    identity = labelled.id or f"{own.mention}\n{own.sentence}"
    return hashlib.sha256(identity.encode()).digest()[0] & 1


def _fingerprints(dataset: Dataset, prefix: str) -> dict[str, str]:
    digests = {f"{prefix}entities": _digest(map(_entity, dataset.entities))}
    for split in (name for name in SPLITS if name in dataset.splits):
        digests[f"{prefix}{split} mentions"] = _digest(map(_mention, dataset.splits[split]))
    return digests


def _digest(records: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _entity(entity: Entity) -> dict[str, Any]:
    images = [_file(image) for image in entity.images]
    texts = {"id": entity.id, "name": entity.name, "description": entity.description, "type": entity.type}
    return texts | {"images": images}


def _mention(labelled: LabelledMention) -> dict[str, Any]:
    own = labelled.mention
    texts = {"id": labelled.id, "answer": labelled.answer, "mention": own.mention, "sentence": own.sentence}
    return texts | {"image": None if own.image is None else _file(own.image)}


def _file(source: ImageSource) -> str:
    """An image by its bytes, or by its file's name and size: folders may be moved."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    path = Path(source)
    return f"{path.name}|{path.stat().st_size}"
