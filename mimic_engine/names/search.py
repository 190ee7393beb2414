"""Search of one segment's forms in NumPy: what runs where no compiled kernels are installed.

Posting lists are read rarest first; a list that cannot lift a form over a threshold alone is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.names.features import LEAST_CHARS, LEAST_WORDS
from mimic_engine.names.forms import FormArrays

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NameQuery:
    """A mention as a search needs it."""

    normal: bytes  # normal form of the surface
    words: NDArray[np.uint64]  # hashes of its words, in their order
    squares: Floats  # of their weights
    context: NDArray[np.uint64]  # hashes of the text's words
    grams: NDArray[np.uint64]  # codes of its trigrams, each once

    @property
    def norm(self) -> float:
        """Root of the sum of the squares."""
        return math.sqrt(sum(self.squares.tolist()))


class NumpySearch:
    """The search of a segment.

    Parameters
    ----------
    arrays : forms of the segment.
    alive : (rows,) False for rows of deleted entities; None where there are none.
    idf : (V,) weights of the segment's words.
    """

    def __init__(self, arrays: FormArrays, alive: Mask | None, idf: Floats) -> None:
        self._arrays = arrays
        self._alive = alive
        self._idf = idf
        self._most_grams = int(arrays.gram_count.max(initial=0))

    def __call__(self, query: NameQuery, equal: Rows) -> tuple[NDArray[Any], ...]:
        """Rows of the segment, ascending, and their features in the order of ``FEATURES``, (n,) each.

        ``equal`` are the forms that are the surface, ascending.
        """
        by_words = self._sharing_words(query)
        by_chars, dice = self._sharing_chars(query)
        forms = np.union1d(by_words, by_chars)  # (n,) ascending, so their rows ascend
        exact, cosine, chars, context = (np.zeros(len(forms)) for _ in range(4))
        at = np.searchsorted(forms, by_words)
        cosine[at], context[at] = self._word_features(by_words, query)
        chars[np.searchsorted(forms, by_chars)] = dice
        exact[np.isin(forms, equal)] = 1.0
        keep = (cosine > 0) | (chars > 0)
        return self._by_row(forms[keep], [v[keep] for v in (exact, cosine, chars, context)])

    def _by_row(self, forms: Rows, values: Sequence[Floats]) -> tuple[NDArray[Any], ...]:
        """The best of every row over its forms."""
        rows = self._arrays.form_row[forms].astype(np.int64)
        if self._alive is not None:
            living = self._alive[rows]
            rows, values = rows[living], [v[living] for v in values]
        first = np.flatnonzero(np.diff(rows, prepend=-1))  # where a row's forms begin
        if not len(rows):
            return rows, *(np.empty(0, np.float32) for _ in values)
        return rows[first], *(np.maximum.reduceat(v, first).astype(np.float32) for v in values)

    def _sharing_words(self, query: NameQuery) -> Rows:
        """Forms that hold a word without which no cosine reaches the threshold, ascending."""
        squares, norm = query.squares, query.norm
        order = np.argsort(-squares, kind="stable")  # the weightiest first
        left = (
            np.sqrt(np.cumsum(squares[order][::-1])[::-1]) / norm
        )  # the cosine that these and the rest allow
        needed = order[left >= LEAST_WORDS * (1 - 1e-9)]
        lists = _postings(
            self._arrays.word_hash, self._arrays.posting_offset, self._arrays.posting, query.words[needed]
        )
        return np.unique(np.concatenate(lists)).astype(np.int64) if lists else np.empty(0, np.int64)

    def _word_features(self, forms: Rows, query: NameQuery) -> tuple[Floats, Floats]:
        """Cosine and context of n forms, (n,) each."""
        if not len(forms):
            return np.empty(0), np.empty(0)
        at, first = ranges(self._arrays.word_offset, forms)
        word = self._arrays.form_word[at]  # (entries,)
        idf = self._idf[word]
        ours = np.isin(word, self._numbers(query.words))
        around = np.isin(word, self._numbers(query.context))
        squares = idf**2
        shared = np.add.reduceat(np.where(ours, squares, 0.0), first)
        norm = np.sqrt(np.add.reduceat(squares, first)) * query.norm
        cosine = np.minimum(1.0, shared / norm)
        cosine[cosine < LEAST_WORDS] = 0.0
        rest = np.add.reduceat(np.where(ours, 0.0, idf), first)
        said = np.add.reduceat(np.where(around & ~ours, idf, 0.0), first)
        context = np.divide(said, rest, out=np.zeros(len(forms)), where=(rest > 0) & (cosine > 0))
        return cosine, np.minimum(1.0, context)

    def _numbers(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Numbers of the words with these hashes that the segment knows."""
        return _known(self._arrays.word_hash, hashes)

    def _sharing_chars(self, query: NameQuery) -> tuple[Rows, Floats]:
        """Forms whose trigrams are like the query's, ascending, and Dice's coefficient."""
        ours = len(query.grams)
        least = math.ceil(
            ours * LEAST_CHARS / (2 - LEAST_CHARS) - 1e-9
        )  # shared by every form over the threshold
        known = _known(self._arrays.gram_code, query.grams)
        missing = ours - len(known)
        if len(known) < least or least > self._most_grams:
            return np.empty(0, np.int64), np.empty(0)
        offset = self._arrays.gram_offset
        sizes = (offset[known + 1] - offset[known]).astype(np.int64)
        known = known[np.argsort(sizes, kind="stable")]  # rarest first
        read = max(0, ours - least + 1 - missing)
        lists = [self._arrays.gram_posting[int(offset[g]) : int(offset[g + 1])] for g in known[:read]]
        forms, counts = np.unique(np.concatenate(lists), return_counts=True)
        others = known[read:]
        theirs = self._arrays.gram_count[forms].astype(np.int64)
        may = 2 * (counts + len(others)) >= LEAST_CHARS * (ours + theirs) - 1e-9
        forms, counts, theirs = forms[may], counts[may], theirs[may]
        for gram in others:
            counts += _contains(self._arrays.gram_posting[int(offset[gram]) : int(offset[gram + 1])], forms)
        dice = 2 * counts / (ours + theirs)
        near = dice >= LEAST_CHARS
        return forms[near].astype(np.int64), dice[near]


def _known(sorted_keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places of those of ``wanted`` that are among the keys, in their order."""
    if not len(sorted_keys):
        return np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return at[sorted_keys[at] == wanted]


def _postings(
    keys: NDArray[np.uint64],
    offset: NDArray[np.uint64],
    posting: NDArray[np.uint32],
    wanted: NDArray[np.uint64],
) -> list[NDArray[np.uint32]]:
    return [posting[int(offset[i]) : int(offset[i + 1])] for i in _known(keys, wanted)]


def ranges(offset: NDArray[np.uint64], items: Rows) -> tuple[Rows, Rows]:
    """Entries of n items, one run after the other, and where each run begins; no item is empty."""
    begin = offset[items].astype(np.int64)
    lengths = offset[items + 1].astype(np.int64) - begin
    first = np.cumsum(lengths) - lengths
    return np.repeat(begin - first, lengths) + np.arange(int(lengths.sum())), first


def _contains(ascending: NDArray[np.uint32], wanted: NDArray[np.uint32]) -> Mask:
    at = np.minimum(np.searchsorted(ascending, wanted), max(0, len(ascending) - 1))
    return ascending[at] == wanted if len(ascending) else np.zeros(len(wanted), np.bool_)
