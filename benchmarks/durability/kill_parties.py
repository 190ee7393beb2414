"""The two processes of ``benchmarks.durability.kill``: a writer to be killed, a reader, and what they share.

Entities come in groups that are always changed together, each with one version
in its name, and every folded array follows from id and name. So whoever opens
the index can tell whether a change is there, whole, and with its own arrays.

    python -m benchmarks.durability.kill_parties writer INDEX SEED FIRST_VERSION
    python -m benchmarks.durability.kill_parties reader INDEX
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import MODES, Array, Entity, EntityArrays, FoldConstants, MentionArrays

GROUPS, MEMBERS, UNCHANGED = 10, 4, 20
CENTROIDS = 8
TOKENS, WIDTH = 3, 8
_SHAPES = {
    "text_cls": (5,),
    "tglu_query": (TOKENS, WIDTH),
    "tglu_cls": (WIDTH,),
    "tglu_bias": (),
    "cmfu": (WIDTH,),
}

Versions = Mapping[int, int]  # of every group that is there


class HashFold:
    """Folded arrays that follow from id and name; small enough to change an index in milliseconds."""

    constants = FoldConstants(WIDTH, ("tglu", "cmfu"))
    model_hash = "6b696c6c" * 8

    def entities(self, batch: Sequence[Entity], /) -> EntityArrays:
        """Fold a batch."""
        rows = [folded(e.id, e.name) for e in batch]
        return EntityArrays(**{name: np.stack([row[name] for row in rows]) for name in _SHAPES})


@lru_cache(maxsize=4096)
def folded(id_: str, name: str) -> dict[str, Array]:
    """The float32 arrays of one entity."""
    seed = hashlib.sha256(f"{id_}|{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    return {n: np.asarray(rng.normal(size=shape), np.float32) for n, shape in _SHAPES.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """What the writer says before it makes a change; ``group`` and ``version`` are 0 for a compaction."""

    kind: str  # "upsert", "delete" or "compact"
    group: int
    version: int

    def apply(self, versions: Versions) -> Versions:
        """The groups and their versions after the change."""
        rest = {g: v for g, v in versions.items() if g != self.group}
        if self.kind == "upsert":
            return rest | {self.group: self.version}
        return rest if self.kind == "delete" else versions

    def is_in(self, versions: Versions, later: Sequence[Change]) -> bool:
        """Whether the change, or one that came later for the same group, is what ``versions`` show."""
        if self.kind == "compact":
            return True
        last = [c for c in (self, *later) if c.kind != "compact" and c.group == self.group][-1]
        return versions.get(self.group) == (last.version if last.kind == "upsert" else None)


def build(path: Path) -> None:
    """An index of entities that stay as they are; with codes."""
    entities = [Entity(f"stays/{i}", f"version {i}") for i in range(UNCHANGED)]
    build_index(
        HashFold(),
        lambda: entities,
        path,
        segment_rows=7,
        centroids=CENTROIDS,
        threads=1,
        progress=False,
    )


def group_ids(group: int) -> list[str]:
    """Ids of the entities of one group."""
    return [f"group {group}/{member}" for member in range(MEMBERS)]


def versions_of(index: Index) -> dict[int, int]:
    """The version of every group that is there.

    Raises
    ------
    AssertionError
        If a group is not whole or not of one version, an entity that stays is missing, or an
        array is not the one of its entity.
    """
    alive = np.arange(index.row_count) if index.alive is None else np.flatnonzero(index.alive)
    names = dict(zip(index.ids(alive), index.names(alive), strict=True))
    assert len(names) == len(alive) == len(index), f"{len(alive)} rows, {len(names)} ids, {len(index)} alive"
    versions = {}
    for group in range(GROUPS):
        found = {names.pop(i) for i in group_ids(group) if i in names}
        whole = [i for i in group_ids(group) if index.find([i])[0] >= 0]
        assert len(whole) in (0, MEMBERS) and len(found) <= 1, (
            f"half a change: group {group}, {whole} {found}"
        )
        if found:
            versions[group] = int(found.pop().removeprefix("version "))
    assert sorted(names) == sorted(f"stays/{i}" for i in range(UNCHANGED)), f"left: {sorted(names)}"
    _check_arrays(index)
    return versions


def _check_arrays(index: Index) -> None:
    for number, arrays in enumerate(index.segments):
        where = index.segment_rows(number)
        rows = range(where.start, where.stop)
        expected = [folded(i, n) for i, n in zip(index.ids(rows), index.names(rows), strict=True)]
        for name, values in arrays.items():
            wanted = np.stack([row[name] for row in expected]).astype(values.dtype)
            assert np.array_equal(values, wanted), f"segment {number}: {name} is not that of its entities"


def write(path: Path, seed: int, version: int) -> None:
    """Change the index until killed: say what comes, do it, say that it is done."""
    rng = random.Random(seed)
    with IndexWriter(Index.open(path), HashFold(), keep_snapshots=3, batch_size=3) as writer:
        while True:
            change = _draw(rng, writer.index, version)
            print(json.dumps({"begin": asdict(change)}), flush=True)
            if change.kind == "upsert":
                name = f"version {version}"
                writer.upsert([Entity(i, name) for i in group_ids(change.group)])
            elif change.kind == "delete":
                writer.delete(group_ids(change.group))
            else:
                writer.compact(segment_rows=rng.choice((5, 11, 64)))
            generation = writer.index.manifest.generation
            print(json.dumps({"done": asdict(change), "generation": generation}), flush=True)
            version += 1


def _draw(rng: random.Random, index: Index, version: int) -> Change:
    kind = rng.choices(("upsert", "delete", "compact"), (6, 3, 1))[0]
    group = rng.randrange(GROUPS)
    if kind == "compact":
        return Change(kind, -1, 0)
    there = index.find(group_ids(group)[:1])[0] >= 0
    return Change(kind if there else "upsert", group, version)


def read(path: Path) -> dict[str, int]:
    """Query the newest snapshot again and again until standard input ends; returns what was done.

    Raises
    ------
    AssertionError
        If a snapshot is not whole, or an answer is not of live entities, each once.
    """
    rng = np.random.default_rng(0)
    shapes = {"text_cls": (5,), "tglu_key": (2, WIDTH), "tglu_value": (2, WIDTH), "cmfu": (WIDTH,)}
    mentions = MentionArrays(**{n: rng.normal(size=(1, *s)).astype(np.float32) for n, s in shapes.items()})
    index, queries, opened, generations = Index.open(path), 0, 1, set[int]()
    while not select.select([sys.stdin], [], [], 0)[0]:
        before = index.manifest.generation
        if queries % 3:
            index = index.snapshot()
        else:
            index, opened = Index.open(path), opened + 1
        assert index.manifest.generation >= before, f"went back from {before}"
        generations.add(index.manifest.generation)
        versions_of(index)
        _query(index, mentions, MODES[queries % len(MODES)])
        queries += 1
    return {"queries": queries, "opened": opened, "snapshots": len(generations)}


def _query(index: Index, mentions: MentionArrays, mode: str) -> None:
    kernels = BlockKernels(NumpyScorer(HashFold.constants), HashFold.constants)
    scan = Scan(index.segments, kernels, threads=1, tie_key=index.ids, codes=index.codes)
    try:
        found = scan.search(mentions, len(index), mode=mode, allowed=index.alive)  # type: ignore[arg-type]
    finally:
        scan.close()
    ids = index.ids(found.rows[0])
    assert len(set(ids)) == len(index) and index.rows(ids).tolist() == found.rows[0].tolist()


def main(role: str, path: str, *numbers: str) -> None:
    """Be the writer or the reader."""
    if role == "writer":
        write(Path(path), *(int(n) for n in numbers))
    else:
        print(json.dumps(read(Path(path))))


if __name__ == "__main__":
    main(*sys.argv[1:])
