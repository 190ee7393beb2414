"""Where named arrays lie in one piece of memory, so that one copy moves them all.

A :class:`Layout` is shapes and offsets alone; it allocates nothing. A
:class:`Placed` is an array at a fixed address, as libraries take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mimic_engine.errors import InvalidInputError

ALIGNMENT = 256  # bytes; what CUDA's own allocator gives, and TensorRT asks for

Bytes = NDArray[np.uint8]
Spec = tuple[tuple[int, ...], DTypeLike]  # shape and type


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a layout."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int  # bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Placed:
    """An array at an address that does not change; ``native`` is the object of the library that owns it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    native: Any = None


class Layout:
    """Named arrays one behind the other, each aligned.

    Parameters
    ----------
    arrays : shape and type by name, in the order in which they lie.

    Examples
    --------
    >>> Layout({"ids": ((2, 3), "int64"), "mask": ((2,), "float32")}).size_bytes
    512
    """

    def __init__(self, arrays: Mapping[str, Spec]) -> None:
        self.fields: dict[str, Field] = {}
        offset = 0
        for name, (shape, dtype) in arrays.items():
            field = Field(tuple(shape), np.dtype(dtype), offset)
            self.fields[name] = field
            offset += -(-field.size_bytes // ALIGNMENT) * ALIGNMENT
        self.size_bytes = offset

    def views(self, memory: Bytes) -> dict[str, NDArray[Any]]:
        """The arrays as views of host memory that begins with them.

        Raises
        ------
        InvalidInputError
            If the memory is too small.
        """
        self.check(memory.nbytes)
        return {
            name: memory[f.offset : f.offset + f.size_bytes].view(f.dtype).reshape(f.shape)
            for name, f in self.fields.items()
        }

    def placed(self, address: int) -> dict[str, Placed]:
        """The arrays in memory that begins at an address."""
        return {name: Placed(address + f.offset, f.shape, f.dtype) for name, f in self.fields.items()}

    def check(self, size_bytes: int) -> None:
        """Raise InvalidInputError if memory of this size does not hold the arrays."""
        if size_bytes < self.size_bytes:
            raise InvalidInputError(f"memory: {size_bytes} bytes, the arrays take {self.size_bytes}")
