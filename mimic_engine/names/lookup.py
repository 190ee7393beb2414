"""Lookup of the entities that share something with a mention's surface, and what they share.

The cost follows the forms that share a word or enough trigrams with the surface, not the forms there are:
posting lists are read, rarest first, and those that cannot lift a form over its threshold alone are not.
The features are defined in :mod:`mimic_engine.names.features`, which has the readable twin. The search of
a segment is compiled (``kernels/cpu/names.cpp``) where the kernels are installed, else
:mod:`mimic_engine.names.search`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import MissingDependencyError
from mimic_engine.names.features import LEAST_CHARS, LEAST_WORDS, NameFeatures
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.search import Floats, Mask, NameQuery, NumpySearch, ranges
from mimic_engine.names.text import gram_codes, normal_form, word_hashes, words

_MODULE = "mimic_engine.kernels._cpu"


class NameLookup:
    """The names of one snapshot of an index; it never changes. Safe to share between threads.

    Parameters
    ----------
    segments : forms of every segment, rows running on from one to the next.
    rows : of every segment.
    alive : (N,) False for rows of deleted entities, whose forms do not count; None where there are none.
    compiled : search with the compiled kernels; by default where they are installed.
    """

    def __init__(
        self,
        segments: Sequence[FormArrays],
        rows: Sequence[int],
        alive: Mask | None = None,
        *,
        compiled: bool | None = None,
    ) -> None:
        starts = [0, *itertools.accumulate(rows)]
        self._segments = [
            _Segment(forms, slice(a, b), None if alive is None else alive[a:b])
            for forms, (a, b) in zip(segments, itertools.pairwise(starts), strict=True)
        ]
        self.forms = sum(s.living for s in self._segments)
        self._hashes, counts = _document_frequency(self._segments)
        self._idf = np.log(1 + self.forms / (1 + counts))  # (V,) float64
        library = _library() if compiled is None or compiled else None
        if compiled and library is None:
            raise MissingDependencyError("names: this installation holds no compiled kernels")
        for segment in self._segments:
            segment.open(self._idf[np.searchsorted(self._hashes, segment.arrays.word_hash)], library)

    def idf(self, word: str) -> float:
        """Weight of a word of a normal form."""
        return float(self._weights(word_hashes([word]))[0])

    def features(self, surface: str, text: str = "") -> NameFeatures:
        """The features of all entities that share something with the surface.

        Parameters
        ----------
        surface : the mention, as it was written.
        text : the text around it, for the feature ``context``.
        """
        normal = normal_form(surface)
        if not normal:
            return NameFeatures.none()
        own = word_hashes(words(normal))
        query = NameQuery(
            normal.encode("utf-8", "surrogatepass"),
            own,
            self._weights(own) ** 2,
            np.unique(word_hashes(words(normal_form(text)))),
            gram_codes(normal),
        )
        parts = [segment.features(query) for segment in self._segments]
        return NameFeatures(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in NameFeatures.__slots__)
        )

    def find(self, prefix: str, limit: int) -> list[tuple[int, str]]:
        """Rows and normal forms that begin with the normal form of ``prefix``, by form, then row."""
        normal = normal_form(prefix).encode("utf-8", "surrogatepass")
        found = [hit for segment in self._segments for hit in segment.find(normal, limit)]
        found.sort(key=lambda hit: (hit[1], hit[0]))
        return [(row, form.decode("utf-8", "surrogatepass")) for row, form in found[:limit]]

    def _weights(self, hashes: NDArray[np.uint64]) -> Floats:
        """Weights of words by hash; one that no form holds has the greatest."""
        at = np.minimum(np.searchsorted(self._hashes, hashes), max(0, len(self._hashes) - 1))
        if not len(self._hashes):
            return np.full(len(hashes), math.log(1 + self.forms))
        known = self._hashes[at] == hashes
        return np.where(known, self._idf[at], math.log(1 + self.forms))


class _Segment:
    """One segment's forms, and the search over them."""

    def __init__(self, arrays: FormArrays, rows: slice, alive: Mask | None) -> None:
        self.arrays = arrays
        self._start, self._rows = rows.start, rows.stop - rows.start
        self._alive = alive
        self._dead = np.flatnonzero(~alive[arrays.form_row]) if alive is not None else np.empty(0, np.int64)
        self.living = arrays.count - len(self._dead)
        self._search: Callable[[NameQuery, NDArray[np.int64]], tuple[NDArray[Any], ...]]

    def open(self, idf: Floats, library: Any | None) -> None:
        """Take the weights (V,) of the segment's words, which are those of the whole index."""
        if library is None:
            self._search = NumpySearch(self.arrays, self._alive, idf)
        else:
            self._search = _CompiledSearch(library, self.arrays, self._rows, self._alive, idf)

    def frequencies(self) -> NDArray[np.int64]:
        """How many living forms hold each word, (V,)."""
        counts: NDArray[np.int64] = np.diff(self.arrays.posting_offset.astype(np.int64)).astype(np.int64)
        if len(self._dead):
            at, _ = ranges(self.arrays.word_offset, self._dead)
            np.subtract.at(counts, self.arrays.form_word[at], 1)
        return counts

    def features(self, query: NameQuery) -> NameFeatures:
        """Features of the segment's entities, by their rows of the index."""
        rows, *values = self._search(query, self._equal(query.normal))
        return NameFeatures(rows + self._start, *values)

    def find(self, prefix: bytes, limit: int) -> list[tuple[int, bytes]]:
        """Rows of the index and forms with this prefix, the first ``limit`` by form."""
        found: list[tuple[int, bytes]] = []
        at = self._lower(prefix)
        while at < self.arrays.count and len(found) < limit:
            form = int(self.arrays.sorted_form[at])
            text = self.arrays.form_bytes(form)
            if not text.startswith(prefix):
                break
            row = int(self.arrays.form_row[form])
            if self._alive is None or self._alive[row]:
                found.append((self._start + row, text))
            at += 1
        return found

    def _equal(self, normal: bytes) -> NDArray[np.int64]:
        """Forms that are equal to a normal form, ascending."""
        low = at = self._lower(normal)
        while at < self.arrays.count and self.arrays.form_bytes(int(self.arrays.sorted_form[at])) == normal:
            at += 1
        return np.sort(self.arrays.sorted_form[low:at]).astype(np.int64)

    def _lower(self, text: bytes) -> int:
        """How many forms come before a text."""
        low, high = 0, self.arrays.count
        while low < high:
            middle = (low + high) // 2
            if self.arrays.form_bytes(int(self.arrays.sorted_form[middle])) < text:
                low = middle + 1
            else:
                high = middle
        return low


class _CompiledSearch:
    """The search of a segment by ``kernels/cpu/names.cpp``, the interpreter lock released."""

    def __init__(self, library: Any, arrays: FormArrays, rows: int, alive: Mask | None, idf: Floats) -> None:
        living = None if alive is None else alive.view(np.uint8)
        self._table = library.NameTable(arrays.items(), living, rows, np.ascontiguousarray(idf))

    def __call__(self, query: NameQuery, equal: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        found: tuple[NDArray[Any], ...] = self._table.look_up(
            query.words.tolist(),
            query.squares.tolist(),
            query.norm,
            query.context.tolist(),
            query.grams.tolist(),
            equal.tolist(),
            LEAST_WORDS,
            LEAST_CHARS,
        )
        return found


def _library() -> Any | None:
    """The compiled kernels; None where this installation has none."""
    try:
        return import_module(_MODULE)
    except ImportError:
        return None


def _document_frequency(segments: Sequence[_Segment]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of all words, ascending, and how many living forms hold each."""
    if len(segments) == 1:
        return segments[0].arrays.word_hash, segments[0].frequencies()
    hashes = np.unique(np.concatenate([s.arrays.word_hash for s in segments]))
    counts = np.zeros(len(hashes), np.int64)
    for segment in segments:
        counts[np.searchsorted(hashes, segment.arrays.word_hash)] += segment.frequencies()
    return hashes, counts
