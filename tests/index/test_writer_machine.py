"""An index as a state machine: whatever is done to it, it holds what a dictionary holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mimic_engine.errors import InvalidInputError, UnknownEntityError
from mimic_engine.index import plan
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity, EntityArrays, FoldConstants

IDS = [f"id{number}" for number in range(12)]
names = st.integers(0, 99).map("name {}".format)
contents = st.dictionaries(st.sampled_from(IDS), names, min_size=1, max_size=5)


class NameFold:
    """One array, drawn from id and name."""

    constants, model_hash = FoldConstants(3, ("cmfu",)), "ef" * 32

    def entities(self, batch):
        return EntityArrays(cmfu=np.stack([self.row(e.id, e.name) for e in batch]))

    @staticmethod
    def row(id_: str, name: str) -> np.ndarray:
        return np.array([int(id_[2:]), int(name[5:]), 1], np.float32)


def entities(content: dict[str, str]) -> list[Entity]:
    return [Entity(id_, name) for id_, name in content.items()]


class IndexMachine(RuleBasedStateMachine):
    """The writer, a reader that is some snapshots behind, and what both should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="index-machine-"))
        self.writer: IndexWriter | None = None

    @initialize(content=contents, rows=st.integers(1, 4), dtype=st.sampled_from(["float32", "float16"]))
    def build(self, content, rows, dtype):
        build_index(
            NameFold(),
            lambda: entities(content),
            self.folder / "kb",
            segment_rows=rows,
            dtype=dtype,
            progress=False,
        )
        self.content, self.generation = dict(content), 1
        self.seen = {1: dict(content)}
        self.reader = Index.open(self.folder / "kb")
        self.reopen(keep=2)

    @rule(keep=st.integers(1, 3))
    def reopen(self, keep):
        if self.writer is not None:
            self.writer.close()
        self.writer = IndexWriter(
            Index.open(self.folder / "kb"), NameFold(), keep_snapshots=keep, batch_size=2
        )

    @rule(content=contents)
    def upsert(self, content):
        change = self.writer.upsert(entities(content))
        assert change.replaced == len(content.keys() & self.content.keys())
        assert change.added == len(content) - change.replaced
        self._changed(self.content | content, change)

    @rule(ids=st.sets(st.sampled_from(IDS), min_size=1, max_size=4))
    def delete(self, ids):
        if ids - self.content.keys():
            with pytest.raises(UnknownEntityError):
                self.writer.delete(ids)
        elif ids == self.content.keys():
            with pytest.raises(InvalidInputError):
                self.writer.delete(ids)
        else:
            self._changed({i: n for i, n in self.content.items() if i not in ids}, self.writer.delete(ids))

    @rule(rows=st.integers(1, 6))
    def compact(self, rows):
        order = live_ids(self.writer.index)
        change = self.writer.compact(segment_rows=rows)
        if change.generation != self.generation:
            self._changed(self.content, change)
        assert live_ids(self.writer.index) == order and self.writer.index.alive is None
        assert len(self.writer.index.snapshots()) == 1

    @rule()
    def refresh(self):
        newest = self.reader.snapshot()
        assert newest.manifest.generation == self.generation
        assert (newest is self.reader) == (self.reader.manifest.generation == self.generation)
        self.reader = newest

    @precondition(lambda self: self.writer is not None)
    @invariant()
    def all_hold_what_they_should(self):
        for index in (self.writer.index, self.reader, Index.open(self.folder / "kb")):
            check(index, self.seen[index.manifest.generation])
        for manifest in self.reader.snapshots():
            assert manifest.count == len(self.seen[manifest.generation])
        assert verify_index(self.folder / "kb").ok

    def _changed(self, content, change) -> None:
        self.generation += 1
        self.content = self.seen[self.generation] = content
        assert (change.generation, change.entities) == (self.generation, len(content))

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.folder)


def live_ids(index: Index) -> list[str]:
    rows = range(index.row_count)
    return index.ids([row for row in rows if index.alive is None or index.alive[row]])


def check(index: Index, content: dict[str, str]) -> None:
    """Ids, names, lookups and arrays are those of ``content``, and nothing else is alive."""
    ids = live_ids(index)
    assert sorted(ids) == sorted(content) and len(index) == len(content)
    rows = index.rows(ids)
    assert index.names(rows) == [content[i] for i in ids]
    arrays = np.concatenate([s.cmfu for s in index.segments])[rows]
    np.testing.assert_array_equal(arrays, np.stack([NameFold.row(i, content[i]) for i in ids]))
    assert (index.find(IDS) >= 0).sum() == len(content)


def test_an_index_holds_what_a_dictionary_holds(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(plan, "MERGE_ROWS", 4)
    run_state_machine_as_test(
        IndexMachine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
