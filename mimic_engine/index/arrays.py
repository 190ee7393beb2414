"""Array files: safetensors, written row by row, read as memory maps.

The format is the public one (8-byte little-endian header length, JSON header,
data), so any safetensors library reads our files. We write it ourselves because
a build streams: the header is written once the shapes are known, the rows as
they are folded. We read it ourselves to check every number before a byte is
trusted, and to get views without a copy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.files import fsync_file, parse_json

_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_PREFIX_BYTES = 8
_ALIGN_BYTES = 64
_HEADER_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name, element type and shape of one array of a file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the array's data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Placed:
    spec: ArraySpec
    offset: int  # from the start of the file, bytes


class ArrayFileWriter:
    """A safetensors file of known shapes whose rows arrive in pieces.

    ``create`` writes header and length; ``reopen`` continues a file that
    ``create`` began with the same specs. Rows are on disk after ``sync``. Writes
    go through the file, not through a map: a full disk is an error and not a
    signal, and memory does not grow with the file.
    """

    def __init__(self, path: Path, mode: str, placed: Sequence[_Placed]) -> None:
        self._file = path.open(mode)
        self._placed = {p.spec.name: p for p in placed}

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec]) -> Self:
        """Start a new file (replaces one that is there) of full length, all zeros."""
        header, placed, size_bytes = _plan(specs)
        writer = cls(path, "w+b", placed)
        try:
            writer._file.write(header)
            writer._file.truncate(size_bytes)
        except BaseException:
            writer.close()
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path, specs: Sequence[ArraySpec]) -> Self:
        """Continue a file; :class:`IndexFormatError` if header or length are not those of ``specs``."""
        header, placed, size_bytes = _plan(specs)
        try:
            length = path.stat().st_size
            with path.open("rb") as file:
                same = file.read(len(header)) == header
        except OSError as error:
            raise IndexFormatError(f"{path}: cannot be continued: {error}") from error
        if length != size_bytes or not same:
            raise IndexFormatError(
                f"{path}: cannot be continued: {length} bytes, expected {size_bytes} and this build's header"
            )
        return cls(path, "r+b", placed)

    def write(self, name: str, row: int, rows: NDArray[Any]) -> None:
        """Write ``rows`` (n, ...), of the array's dtype and trailing shape, from row number ``row`` on."""
        spec, offset = self._placed[name].spec, self._placed[name].offset
        if rows.dtype != spec.dtype or rows.shape[1:] != spec.shape[1:] or row + len(rows) > spec.shape[0]:
            raise ValueError(f"array {name}: rows {row}+{rows.shape} {rows.dtype} do not fit in {spec}")
        row_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        self._file.seek(offset + row * row_bytes)
        self._file.write(np.ascontiguousarray(rows).data)

    def sync(self) -> None:
        """Flush everything written so far to the disk."""
        fsync_file(self._file)

    def close(self) -> None:
        """Close the file; without ``sync`` nothing is promised to be on disk."""
        self._file.close()


def write_array_file(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write whole arrays as one file, flushed to the disk."""
    writer = ArrayFileWriter.create(path, [ArraySpec(n, a.dtype, a.shape) for n, a in arrays.items()])
    try:
        for name, array in arrays.items():
            writer.write(name, 0, array)
        writer.sync()
    finally:
        writer.close()


def read_array_file(path: Path) -> dict[str, NDArray[Any]]:
    """Map a safetensors file: read-only views by name, nothing copied.

    Raises
    ------
    IndexFormatError
        If the file is missing, or its length, header, dtypes, shapes or offsets
        are not exactly right; names the file and what is wrong.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < _PREFIX_BYTES:
                raise ValueError(f"{size_bytes} bytes; a safetensors file has at least {_PREFIX_BYTES}")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        placed = _parse(buffer, size_bytes)
    except FileNotFoundError:
        raise IndexFormatError(f"{path}: file is missing") from None
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{path}: not a valid array file: {error}") from error
    return {
        p.spec.name: np.frombuffer(buffer, p.spec.dtype, math.prod(p.spec.shape), p.offset).reshape(
            p.spec.shape
        )
        for p in placed
    }


def _plan(specs: Sequence[ArraySpec]) -> tuple[bytes, list[_Placed], int]:
    """Header bytes, place of every array, and file length. Wide types come first, so that all are aligned."""
    ordered = sorted(specs, key=lambda s: -s.dtype.itemsize)
    entries: dict[str, object] = {}
    offsets, end = [], 0
    for spec in ordered:
        begin, end = end, end + spec.size_bytes
        offsets.append(begin)
        entries[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_PREFIX_BYTES + len(text)) % _ALIGN_BYTES)
    header = len(text).to_bytes(_PREFIX_BYTES, "little") + text
    placed = [_Placed(s, len(header) + o) for s, o in zip(ordered, offsets, strict=True)]
    return header, placed, len(header) + end


def _parse(buffer: mmap.mmap, size_bytes: int) -> list[_Placed]:
    length = int.from_bytes(buffer[:_PREFIX_BYTES], "little")
    limit = min(size_bytes - _PREFIX_BYTES, _HEADER_LIMIT_BYTES)
    if length > limit:
        raise ValueError(f"header length {length} is over {limit}")
    header = parse_json(buffer[_PREFIX_BYTES : _PREFIX_BYTES + length])
    if not isinstance(header, dict):
        raise ValueError("header is not a JSON object")
    start = _PREFIX_BYTES + length
    placed = [_parse_entry(name, entry, start) for name, entry in header.items()]
    end = start
    for p in sorted(placed, key=lambda p: (p.offset, p.spec.size_bytes)):
        if p.offset != end:
            raise ValueError(f"array {p.spec.name} begins at byte {p.offset}, expected {end}")
        end += p.spec.size_bytes
    if end != size_bytes:
        raise ValueError(f"the arrays end at byte {end}, the file at {size_bytes}")
    return placed


def _parse_entry(name: str, entry: Any, start: int) -> _Placed:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {name}: keys are not dtype, shape, data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"array {name}: dtype {entry['dtype']!r} is not one of {sorted(_DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise ValueError(f"array {name}: shape or data_offsets are not lists of numbers >= 0")
    spec = ArraySpec(name, dtype, tuple(shape))
    if offsets[1] - offsets[0] != spec.size_bytes:
        raise ValueError(
            f"array {name}: offsets {offsets} do not span the {spec.size_bytes} bytes of its shape"
        )
    if (start + offsets[0]) % dtype.itemsize:
        raise ValueError(f"array {name}: data is not aligned to {dtype.itemsize} bytes")
    return _Placed(spec, start + offsets[0])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
