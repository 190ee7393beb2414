"""Readers while the index changes under them: every snapshot is whole, and old ones may go at any time."""

from __future__ import annotations

import threading

import pytest

from mimic_engine.errors import IndexFormatError
from mimic_engine.index import store
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import Entity
from tests.index.changes import upsert

GROUP = 5

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def index(tiny, tmp_path) -> Index:
    build_index(
        tiny.WordFold(),
        tiny.knowledge_base(30),
        tmp_path / "kb",
        segment_rows=8,
        centroids=5,
        threads=1,
        progress=False,
    )
    return upsert(Index.open(tmp_path / "kb"), group(0), tiny.WordFold())


def group(version: int) -> list[Entity]:
    """Five entities that always change together."""
    return [Entity(f"g{member}", f"version {version}") for member in range(GROUP)]


def test_a_query_never_sees_half_a_change(tiny, index):
    """A writer replaces, deletes and compacts; readers rank all entities of whatever snapshot is newest."""
    fold, mentions = tiny.WordFold(), tiny.random_mentions(2)
    failures, done, queries, generations = [], threading.Event(), [0, 0, 0], set()

    def read(number: int) -> None:
        seen, mine = index, 0
        try:
            while not done.is_set():
                seen = seen.snapshot() if number else Index.open(index.path)
                assert seen.manifest.generation >= mine
                mine = seen.manifest.generation
                generations.add(mine)
                check(seen)
                queries[number] += 1
        except BaseException as error:
            failures.append(error)

    def check(seen: Index) -> None:
        kernels = BlockKernels(NumpyScorer(fold.constants), fold.constants)
        scan = Scan(seen.segments, kernels, threads=1, tie_key=seen.ids, codes=seen.codes)
        found = scan.search(mentions, len(seen), mode="coded", allowed=seen.alive)
        scan.close()
        for rows in found.rows:
            ids = seen.ids(rows)
            members = [i for i in ids if i.startswith("g")]
            versions = {n for i, n in zip(ids, seen.names(rows), strict=True) if i.startswith("g")}
            assert len(set(ids)) == len(ids) == len(seen)
            assert len(members) in (0, GROUP) and len(versions) == (1 if members else 0)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for reader in readers:
        reader.start()
    try:
        with IndexWriter(index, fold, keep_snapshots=1) as writer:
            for version in range(1, 41):
                writer.upsert(group(version))
                if version % 3 == 0:
                    writer.delete([f"g{member}" for member in range(GROUP)])
                if version % 7 == 0:
                    writer.compact(segment_rows=10)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not failures and min(queries) > 0 and len(generations) > 3


@pytest.fixture
def losing_race(tiny, index, monkeypatch):
    """The next two times that a manifest is read, its snapshot is compacted away before its files are opened."""
    real, versions = store.read_snapshot, iter((1, 2))

    def read_then_change(path, generation=None):
        manifest = real(path, generation)
        version = next(versions, None)
        if version is not None:
            monkeypatch.setattr(store, "read_snapshot", real)
            with IndexWriter(index, tiny.WordFold()) as writer:
                writer.upsert(group(version))
                writer.compact(segment_rows=100)
            monkeypatch.setattr(store, "read_snapshot", read_then_change)
        return manifest

    monkeypatch.setattr(store, "read_snapshot", read_then_change)


@pytest.mark.usefixtures("losing_race")
def test_a_snapshot_that_goes_while_it_is_opened_is_opened_anew(index):
    opened = Index.open(index.path)
    assert opened.names(opened.rows(["g0"])) == ["version 2"]
    assert opened.manifest.generation == index.manifest.generation + 4


@pytest.mark.usefixtures("losing_race")
def test_an_old_snapshot_that_goes_while_it_is_opened_is_named(index):
    with pytest.raises(IndexFormatError, match=r"snapshot 2 is not kept; there are \[\d+\]"):
        Index.open(index.path, generation=2)


def test_damage_is_not_taken_for_a_change(index):
    file = index.path / "segments" / "00001" / "ids.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IndexFormatError, match=r"ids\.safetensors: damaged"):
        Index.open(index.path)
