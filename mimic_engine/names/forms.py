"""The surface forms of a segment's entities, as arrays that are mapped and never copied.

F forms of the segment's rows, each entity's different normal forms in the order of its name and aliases;
V words and G trigrams among them. ``*_offset`` says where the entries of item i lie: from [i] to [i + 1].

==================  ===========  ==================================================================
``form_row``        (F,) u4      row of the segment that bears the form, ascending
``text_offset``     (F + 1,) u8  into ``text``
``text``            (bytes,) u1  normal forms in UTF-8
``sorted_form``     (F,) u4      forms in the order of their bytes, then of their numbers
``word_offset``     (F + 1,) u8  into ``form_word``
``form_word``       (W,) u4      the words of every form, in their order in it
``word_hash``       (V,) u8      hash of every word, ascending; a word's number is its place here
``posting_offset``  (V + 1,) u8  into ``posting``
``posting``         (W,) u4      forms that hold the word, ascending
``gram_count``      (F,) u2      trigrams of the form
``gram_code``       (G,) u8      code of every trigram, ascending
``gram_offset``     (G + 1,) u8  into ``gram_posting``
``gram_posting``    (P,) u4      forms that hold the trigram, ascending
==================  ===========  ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mimic_engine.names.text import EDGE, GRAM, code_points, normal_form, packed, word_hash, words

U2, U4, U8 = (np.dtype(code) for code in ("<u2", "<u4", "<u8"))
DTYPES = {
    **{"form_row": U4, "text_offset": U8, "text": np.dtype("u1"), "sorted_form": U4},
    **{"word_offset": U8, "form_word": U4, "word_hash": U8, "posting_offset": U8, "posting": U4},
    **{"gram_count": U2, "gram_code": U8, "gram_offset": U8, "gram_posting": U4},
}


@dataclass(frozen=True, slots=True)
class FormArrays:
    """The arrays of one segment; see the module for shapes and dtypes."""

    form_row: NDArray[np.uint32]
    text_offset: NDArray[np.uint64]
    text: NDArray[np.uint8]
    sorted_form: NDArray[np.uint32]
    word_offset: NDArray[np.uint64]
    form_word: NDArray[np.uint32]
    word_hash: NDArray[np.uint64]
    posting_offset: NDArray[np.uint64]
    posting: NDArray[np.uint32]
    gram_count: NDArray[np.uint16]
    gram_code: NDArray[np.uint64]
    gram_offset: NDArray[np.uint64]
    gram_posting: NDArray[np.uint32]

    @property
    def count(self) -> int:
        """Forms F."""
        return len(self.form_row)

    def items(self) -> dict[str, NDArray[Any]]:
        """Arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def form_bytes(self, form: int) -> bytes:
        """The normal form of one form, in UTF-8."""
        return self.text[int(self.text_offset[form]) : int(self.text_offset[form + 1])].tobytes()

    @classmethod
    def of(cls, names: Iterable[Sequence[str]]) -> Self:
        """The forms of entities, given the name and aliases of each in row order."""
        rows: list[int] = []
        normals: list[str] = []
        for row, own in enumerate(names):
            different = dict.fromkeys(normal for name in own if (normal := normal_form(name)))
            normals += different
            rows += [row] * len(different)
        return cls(form_row=np.array(rows, U4), **_texts(normals), **_words(normals), **_grams(normals))

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], rows: int, *, verify: bool) -> Self:
        """Arrays as a file gives them, checked so that no lookup can leave them.

        Parameters
        ----------
        arrays : by name.
        rows : of the segment.
        verify : check what takes a pass over all entries, too.

        Raises
        ------
        ValueError
            If an array is missing or not known, has another dtype or shape; with ``verify`` also if an
            entry points outside another array or stands out of order, or a form is no UTF-8.
        """
        if set(arrays) != set(DTYPES):
            raise ValueError(f"arrays {sorted(arrays)}, expected {sorted(DTYPES)}")
        for name, dtype in DTYPES.items():
            if (value := arrays[name]).dtype != dtype or value.ndim != 1:
                raise ValueError(f"array {name}: {value.dtype} {value.shape}, expected {dtype} of one axis")
        self = cls(**arrays)
        self._check_shapes()
        if verify:
            self._check_entries(rows)
        return self

    def _check_shapes(self) -> None:
        forms, entries = self.count, len(self.form_word)
        expected = {
            "text_offset": forms + 1,
            "sorted_form": forms,
            "word_offset": forms + 1,
            "posting": entries,
            "posting_offset": len(self.word_hash) + 1,
            "gram_count": forms,
            "gram_offset": len(self.gram_code) + 1,
        }
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"array {name}: {len(getattr(self, name))} entries, expected {length}")
        for offset, target in (
            ("text_offset", self.text),
            ("word_offset", self.form_word),
            ("posting_offset", self.posting),
            ("gram_offset", self.gram_posting),
        ):
            ends = getattr(self, offset)
            if ends[0] != 0 or ends[-1] != len(target):
                raise ValueError(f"array {offset}: runs from {ends[0]} to {ends[-1]}, not 0 to {len(target)}")
        if np.any(self.word_offset[1:] <= self.word_offset[:-1]):  # read whole, not entry by entry
            raise ValueError("array word_offset: does not ascend, each once")

    def _check_entries(self, rows: int) -> None:
        for name in ("text_offset", "posting_offset", "gram_offset", "form_row"):
            values = getattr(self, name)
            if np.any(values[1:] < values[:-1]):
                raise ValueError(f"array {name}: does not ascend")
        for name in ("word_hash", "gram_code"):
            values = getattr(self, name)
            if np.any(values[1:] <= values[:-1]):
                raise ValueError(f"array {name}: does not ascend, each once")
        for name, limit in (
            ("form_row", rows),
            ("sorted_form", self.count),
            ("form_word", len(self.word_hash)),
            ("posting", self.count),
            ("gram_posting", self.count),
        ):
            values = getattr(self, name)
            if len(values) and int(values.max()) >= limit:
                raise ValueError(f"array {name}: {int(values.max())} is not under {limit}")
        for name, offset in (("posting", self.posting_offset), ("gram_posting", self.gram_offset)):
            if not _ascends_in_runs(getattr(self, name), offset):
                raise ValueError(f"array {name}: does not ascend within an item's entries")
        self._check_texts()

    def _check_texts(self) -> None:
        """Raise ``ValueError`` unless every form is UTF-8, and ``sorted_form`` puts them in order."""
        self.text.tobytes().decode("utf-8", "surrogatepass")
        first = self.text[self.text_offset[:-1][self.text_offset[:-1] < self.text_offset[1:]]]
        if np.any((first & 0xC0) == 0x80):
            raise ValueError("array text_offset: a form begins within a character")
        buffers = [None, pa.py_buffer(self.text_offset), pa.py_buffer(self.text)]
        texts = pa.LargeBinaryArray.from_buffers(pa.large_binary(), self.count, buffers)
        texts = texts.take(pa.array(self.sorted_form))
        before, after = texts[:-1], texts[1:]
        rising = self.sorted_form[:-1] < self.sorted_form[1:]
        ordered = pc.or_(pc.less(before, after), pc.and_(pc.equal(before, after), pa.array(rising)))
        if not pc.all(ordered, min_count=0).as_py():
            raise ValueError("array sorted_form: is not the order of the forms")


def _ascends_in_runs(values: NDArray[np.uint32], offset: NDArray[np.uint64]) -> bool:
    """Whether the entries of every item, from ``offset[i]`` to ``offset[i + 1]``, ascend, each once."""
    rises = np.ones(len(values) + 1, np.bool_)
    rises[1:-1] = values[1:] > values[:-1]
    rises[offset.astype(np.int64)] = True
    return bool(rises.all())


def _texts(normals: Sequence[str]) -> dict[str, NDArray[Any]]:
    encoded = [n.encode("utf-8", "surrogatepass") for n in normals]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)  # stable: equal ones by number
    return {
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "text_offset": _offsets(np.fromiter(map(len, encoded), np.int64, len(encoded))),
        "sorted_form": np.array(order, U4),
    }


def _words(normals: Sequence[str]) -> dict[str, NDArray[Any]]:
    hashes: list[int] = []
    counts: list[int] = []
    for normal in normals:
        own = words(normal)
        hashes += [word_hash(w) for w in own]
        counts.append(len(own))
    vocabulary, number = np.unique(np.array(hashes, U8), return_inverse=True)
    form = np.repeat(np.arange(len(normals), dtype=U4), counts)  # (W,)
    return {
        "word_offset": _offsets(np.array(counts, np.int64)),
        "form_word": number.astype(U4),
        "word_hash": vocabulary,
        "posting_offset": _offsets(np.bincount(number, minlength=len(vocabulary))),
        "posting": form[np.argsort(number, kind="stable")],
    }


def _grams(normals: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Trigrams of all forms at once: every run of three code points that does not cross two forms."""
    marked = [f"{EDGE}{n}{EDGE}" for n in normals]
    lengths = np.fromiter(map(len, marked), np.int64, len(marked))
    windows = np.maximum(0, lengths - GRAM + 1)
    points = code_points("".join(marked))
    starts = np.cumsum(lengths) - lengths
    form = np.repeat(np.arange(len(normals), dtype=np.int64), windows)  # one entry a window
    at = np.arange(len(form)) - np.repeat(np.cumsum(windows) - windows, windows) + np.repeat(starts, windows)
    codes = packed(points)[at] if len(points) >= GRAM else np.empty(0, U8)
    order = np.lexsort((form, codes))
    codes, form = codes[order], form[order]
    first = np.ones(len(codes), np.bool_)
    first[1:] = (codes[1:] != codes[:-1]) | (form[1:] != form[:-1])
    codes, form = codes[first], form[first]
    different, counts = np.unique(codes, return_counts=True)
    return {
        "gram_count": np.minimum(np.bincount(form, minlength=len(normals)), np.iinfo(U2).max).astype(U2),
        "gram_code": different.astype(U8),
        "gram_offset": _offsets(counts),
        "gram_posting": form.astype(U4),
    }


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(U8)
