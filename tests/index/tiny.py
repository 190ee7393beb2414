"""A small deterministic fold (arrays drawn from a hash of every entity), and a build process around it.

Run as a program it builds an index slowly, so that a test can kill it:
``python tiny.py OUT COUNT SEGMENT_ROWS BATCH DELAY_MS`` prints the first row of every batch it folds.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimic_engine.index import build
from mimic_engine.index.store import Index
from mimic_engine.types import Entity, EntityArrays, FoldConstants, MentionArrays

CONSTANTS = FoldConstants(8, ("tglu", "vdlu", "cmfu"), gate_bias=(0.1, -1 / 3), bias_norm=(2.5, 1e-17))
SHAPES = {
    "text_cls": (6,),
    "tglu_query": (5, 8),
    "tglu_token_weight": (5,),
    "tglu_cls": (8,),
    "tglu_bias": (),
    "vdlu_query": (3, 8),
    "vdlu_query_scalars": (7,),
    "vdlu_key": (3, 8),
    "vdlu_key_scalars": (7,),
    "cmfu": (8,),
}


def entity(row: int) -> Entity:
    """Entity number ``row``: texts of varying length, no image or one as path or bytes, 0 to 3 aliases."""
    images = ((), (f"images/{row}.jpg",), (bytes([row % 256]) * 9, "second.png"))[row % 3]
    aliases = tuple(f"Alias {row % 6} of {n}" for n in range(row % 4))
    popularity = (None, 0.0, row / 7)[row % 3]
    return Entity(
        f"Q{row * 7}",
        f"name {row} é",
        "text " * (row % 5),
        images,
        "type" * (row % 2),
        aliases,
        popularity,
    )


def knowledge_base(count: int) -> Callable[[], Iterator[Entity]]:
    """A stream of ``count`` entities that can be read again."""
    return lambda: (entity(row) for row in range(count))


class HashFold:
    """Folded arrays that depend on every entity's fields alone."""

    constants = CONSTANTS
    model_hash = "ab" * 32

    def __init__(self, on_batch: Callable[[Sequence[Entity]], None] = lambda batch: None) -> None:
        self.on_batch = on_batch

    def entities(self, batch: Sequence[Entity]) -> EntityArrays:
        self.on_batch(batch)
        rows = [self.row(e) for e in batch]
        return EntityArrays(**{name: np.stack([r[name] for r in rows]) for name in SHAPES})

    @staticmethod
    def row(e: Entity) -> dict[str, np.ndarray]:
        seed = hashlib.sha256(f"{e.id}|{e.name}|{e.description}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
        return {name: np.asarray(rng.normal(size=shape), dtype=np.float32) for name, shape in SHAPES.items()}


class MaskedFold(HashFold):
    """With token weights as a masked model has them: 1/n for the first n tokens, 0 for those behind."""

    def entities(self, batch: Sequence[Entity]) -> EntityArrays:
        arrays = dict(super().entities(batch).items())
        real = np.array([[1 + len(e.description) % 5] for e in batch])  # (n, 1)
        arrays["tglu_token_weight"] = ((np.arange(5) < real) / real).astype(np.float32)
        return EntityArrays(**arrays)


def coded_index(out: Path, count: int, fold: HashFold | None = None, **options: Any) -> Index:
    """Build an index with codes (6 centroids unless ``options`` say otherwise) and open it."""
    options = {"centroids": 6, "threads": 1} | options
    build.build_index(fold or MaskedFold(), knowledge_base(count), out, progress=False, **options)
    return Index.open(out)


def stored_queries(rows: int, seed: int = 0, weight: bool = False) -> EntityArrays:
    """Token queries (rows, 5, 8) as a segment stores them; with ``weight`` each token counts 0 or 1."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2, (rows, 5)).astype(np.float32) if weight else None
    return EntityArrays(
        tglu_query=rng.normal(size=(rows, 5, 8)).astype(np.float16), tglu_token_weight=weights
    )


class WordFold(HashFold):
    """The same, without the unit whose arrays must fit together: any random mention can be scored."""

    constants = FoldConstants(8, ("tglu", "cmfu"))
    model_hash = "cd" * 32

    def entities(self, batch: Sequence[Entity]) -> EntityArrays:
        arrays = super().entities(batch).items()
        return EntityArrays(**{name: value for name, value in arrays if not name.startswith("vdlu")})


def random_mentions(count: int) -> MentionArrays:
    """Folded mentions for :class:`WordFold`."""
    rng = np.random.default_rng(count)
    shapes = {"text_cls": (6,), "tglu_key": (3, 8), "tglu_value": (3, 8), "cmfu": (8,)}
    return MentionArrays(**{n: rng.normal(size=(count, *s)).astype(np.float32) for n, s in shapes.items()})


def folded(entities: Iterable[Entity]) -> dict[str, np.ndarray]:
    """The arrays of all entities at once."""
    return dict(HashFold().entities(list(entities)).items())


def main(out: str, count: str, segment_rows: str, batch_size: str, delay_ms: str) -> None:
    build._FLUSH_ROWS = 64

    def slow(batch: Sequence[Entity]) -> None:
        print(int(batch[0].id[1:]) // 7, flush=True)
        time.sleep(float(delay_ms) / 1000)

    build.build_index(
        HashFold(slow),
        knowledge_base(int(count)),
        out,
        dtype="float32",
        batch_size=int(batch_size),
        segment_rows=int(segment_rows),
        progress=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
