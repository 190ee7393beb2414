"""Validation of a knowledge base before it is built: counted, checked, fingerprinted. Nothing is encoded.

Memory: 16 bytes an entity (40 at the end, for a moment), for the search of duplicate ids.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mimic_engine.errors import DataError
from mimic_engine.index.entities import image_name
from mimic_engine.names.valid import name_fault
from mimic_engine.types import Entity

EntityStream = Callable[[], Iterable[Entity]]  # called once a pass; every pass gives the same entities

_ID_DIGEST_BYTES = 16


def validate_entities(entities: EntityStream, *, progress: bool) -> Fingerprint:
    """Read the whole stream once and check it.

    Returns
    -------
    Fingerprint
        Of all entities, in order.

    Raises
    ------
    DataError
        If there is no entity, an id is empty or occurs twice, a field cannot be stored, or a name,
        an alias or a popularity is not what they may be (:mod:`mimic_engine.names.valid`).
    """
    fingerprint = Fingerprint()
    digests = bytearray()
    for entity in tqdm(entities(), desc="check", unit=" entities", disable=not progress):
        fingerprint.add(entity)
        digests += hashlib.blake2b(entity.id.encode(), digest_size=_ID_DIGEST_BYTES).digest()
    if not fingerprint.count:
        raise DataError("the knowledge base holds no entities; an index needs at least 1")
    if duplicate := _first_duplicate(digests):
        first, second = duplicate
        entity = next(islice(entities(), second, None))
        raise DataError(
            f"knowledge base: id {entity.id!r} occurs twice, in records {first + 1} and {second + 1}"
        )
    return fingerprint


class Fingerprint:
    """Running hash over all fields of entities; checks each of them on the way.

    Attributes
    ----------
    count : entities added so far
    """

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.blake2b(digest_size=32)

    def add(self, entity: Entity) -> None:
        """Take in the next entity; :class:`DataError` naming record and field if it cannot be stored."""
        self.count += 1
        texts = [entity.id, entity.name, entity.description, entity.type]
        for field, value in zip(("id", "name", "description", "type"), texts, strict=True):
            if not isinstance(value, str):
                raise DataError(f"{self._where(entity)}: {field} is {type(value).__name__}, expected text")
        if not entity.id:
            raise DataError(f"knowledge base record {self.count}: id is empty")
        if not isinstance(entity.aliases, list | tuple):
            raise DataError(
                f"{self._where(entity)}: aliases is {type(entity.aliases).__name__}, expected a tuple"
            )
        if fault := name_fault(entity.name, entity.aliases, entity.popularity):
            raise DataError(f"{self._where(entity)}: {fault}")
        for image in entity.images:
            if not isinstance(image, bytes | str | Path):
                raise DataError(
                    f"{self._where(entity)}: an image is {type(image).__name__}, expected bytes or path"
                )
        texts += [image_name(image) for image in entity.images]
        texts += entity.aliases
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"{self._where(entity)}: text is not valid Unicode: {error}") from error
        for count in (len(entity.images), len(entity.aliases)):
            self._digest.update(count.to_bytes(4, "little"))
        for data in encoded:
            self._digest.update(len(data).to_bytes(8, "little"))
            self._digest.update(data)
        known = entity.popularity is not None
        self._digest.update(struct.pack("<?d", known, entity.popularity or 0.0))

    def hexdigest(self) -> str:
        """Hash over everything added so far."""
        return self._digest.hexdigest()

    def _where(self, entity: Entity) -> str:
        return f"knowledge base record {self.count} (id {entity.id!r})"


def _first_duplicate(digests: bytearray) -> tuple[int, int] | None:
    """Rows (0-based) of the first digest that repeats an earlier one."""
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)  # (N, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # (N,), stable: equal digests in row order
    ordered = halves[order]
    repeats = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    if not len(repeats):
        return None
    at = min(repeats.tolist(), key=lambda i: int(order[i + 1]))
    return int(order[at]), int(order[at + 1])
