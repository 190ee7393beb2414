"""Single changes of an index, each by a writer of its own; give the snapshot after it."""

from __future__ import annotations

from collections.abc import Iterable

from mimic_engine.index.schema import EntityFeaturizer
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity


def upsert(index: Index, entities: Iterable[Entity], featurizer: EntityFeaturizer) -> Index:
    with IndexWriter(index, featurizer) as writer:
        writer.upsert(entities)
        return writer.index


def delete(index: Index, ids: Iterable[str]) -> Index:
    with IndexWriter(index) as writer:
        writer.delete(ids)
        return writer.index


def compact(index: Index) -> Index:
    with IndexWriter(index) as writer:
        writer.compact()
        return writer.index
