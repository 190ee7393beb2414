"""Entity metadata on disk: a table of all that is known of them, the lookup from id to row, kept images.

The table and the lookup are files of a segment, Arrow and safetensors; no folded
array is in them. Of an image given as a path or URL the table keeps the text, of
one given as bytes a name made of its hash.

Images that came as bytes may be kept beside an index, in ``INDEX/pictures/HEX`` where
HEX is the sha256 of the bytes, so that people can look at them; the model reads
none. A build keeps none; whoever changes an index may. They are no part of a
snapshot: an image that is not there is one that cannot be shown, nothing more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import fsync_file, write_atomic
from mimic_engine.index.arrays import read_array_file, write_array_file
from mimic_engine.types import Entity, ImageSource

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.string()), nullable=False),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
        pa.field("popularity", pa.float64()),  # null: unknown
    ]
)
_ROWS_A_BATCH = 1024  # fixed: the file's bytes do not depend on how the build was cut
_KEPT = "pictures"
_PREFIX = "sha256:"
_KEPT_NAME = re.compile(_PREFIX + "([0-9a-f]{64})")


class EntityTableWriter:
    """Writes ``entities.arrow`` in record batches of fixed size, whatever pieces arrive."""

    def __init__(self, path: Path) -> None:
        self._sink = path.open("wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._pending: list[tuple[str, str, str, str, list[str], tuple[str, ...], float | None]] = []

    def write(self, entities: Iterable[Entity]) -> None:
        """Append entities."""
        for entity in entities:
            images = [image_name(image) for image in entity.images]
            texts = (entity.id, entity.name, entity.description, entity.type)
            popularity = None if entity.popularity is None else float(entity.popularity)
            self._pending.append((*texts, images, entity.aliases, popularity))
            if len(self._pending) == _ROWS_A_BATCH:
                self._write_pending()

    def finish(self) -> None:
        """Write the rest and the footer, flushed to the disk."""
        if self._pending:
            self._write_pending()
        self._writer.close()
        fsync_file(self._sink)
        self._sink.close()

    def close(self) -> None:
        """Give the file up, finished or not."""
        self._sink.close()

    def _write_pending(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        self._pending = []


def read_entity_table(path: Path, *, verify: bool) -> pa.Table:
    """Map ``entities.arrow``, nothing copied; with ``verify`` every offset and value is checked.

    Raises
    ------
    IndexFormatError
        If the file is not an Arrow file of our schema, or its content is damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if table.schema != SCHEMA:
            raise ValueError(f"columns {table.schema.names}, expected {SCHEMA.names} and their types")
        table.validate(full=verify)
        if verify:
            _check_values(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IndexFormatError(f"{path}: not a valid entity table: {error}") from error
    return table


def _check_values(table: pa.Table) -> None:
    """Raise ``ValueError`` where a value is missing that must be there, or a popularity is no popularity."""
    for field in SCHEMA:
        column = table.column(field.name)
        values = column if not pa.types.is_list(field.type) else pc.list_flatten(column)
        if not field.nullable and (column.null_count or values.null_count):
            raise ValueError(f"column {field.name}: a value is null")
    popularity = table.column("popularity").drop_null()
    if not pc.all(pc.and_(pc.is_finite(popularity), pc.greater_equal(popularity, 0)), min_count=0).as_py():
        raise ValueError("column popularity: a value is no number from 0 on")


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of blake2b of every id, (n,), as the lookup files store them."""
    digests = [hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids]
    return np.frombuffer(b"".join(digests), "<u8")


def write_lookup(path: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the sorted hashes and their rows. ``hashes`` (n,) are in row order."""
    order = np.argsort(hashes, kind="stable")
    write_array_file(path, {"hash": hashes[order], "row": order.astype("<u4")})


class IdLookup:
    """From id hashes to candidate rows of one segment, by binary search in the mapped file."""

    def __init__(self, path: Path, rows: int, *, verify: bool) -> None:
        arrays = read_array_file(path)
        dtypes = {name: value.dtype.str for name, value in arrays.items()}
        if dtypes != {"hash": "<u8", "row": "<u4"} or any(v.shape != (rows,) for v in arrays.values()):
            raise IndexFormatError(f"{path}: not a lookup of {rows} rows: {dtypes}")
        self.hashes, self._rows = arrays["hash"], arrays["row"]
        if np.any(self._rows >= rows):
            raise IndexFormatError(f"{path}: a row is not under {rows}")
        if verify and np.any(self.hashes[:-1] > self.hashes[1:]):
            raise IndexFormatError(f"{path}: the hashes are not sorted")

    def candidates(self, hashes: NDArray[np.uint64]) -> list[NDArray[np.uint32]]:
        """For every hash of ``hashes`` (n,) the rows that have it: none, one, or several on a collision."""
        low = np.searchsorted(self.hashes, hashes, "left")
        high = np.searchsorted(self.hashes, hashes, "right")
        return [self._rows[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def image_name(image: ImageSource) -> str:
    """Name of an image in the table: its path or URL, or ``sha256:HEX`` of its bytes."""
    return _PREFIX + hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else str(image)


def image_path(folder: Path, name: str) -> Path | None:
    """The file of the image that an entity calls ``name``; None where this machine cannot have one."""
    if not name.startswith(_PREFIX):
        return None if "://" in name else Path(name)
    kept = _KEPT_NAME.fullmatch(name)
    path = None if kept is None else folder / _KEPT / kept[1]
    return path if path is not None and path.is_file() else None


def keep_image(folder: Path, data: bytes) -> None:
    """Keep the bytes beside an index; when this returns they are on the disk. Raises ``OSError``."""
    path = folder / _KEPT / image_name(data).removeprefix(_PREFIX)
    if not path.is_file():
        write_atomic(path, data)


def drop_images(folder: Path, wanted: Iterable[str]) -> None:
    """Remove the kept images that nobody calls by one of these names. Raises ``OSError``."""
    kept = {name.removeprefix(_PREFIX) for name in wanted}
    for path in (folder / _KEPT).glob("*"):
        if path.name not in kept:
            path.unlink()
