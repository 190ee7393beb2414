"""Normal forms of names, their words and their character trigrams.

Two names are the same name when their normal forms are equal: Unicode NFKC, case folding,
accents of Latin, Greek and Cyrillic letters dropped, every run of punctuation and space one
space, and a bracketed disambiguator at the end left out ("Jordan (country)" is "jordan").
A name without a letter or digit ("!!!") keeps its signs.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GRAM = 3  # characters of a gram
EDGE = "\x02"  # stands before and after a normal form, so that its ends are grams of their own

_DISAMBIGUATOR = re.compile(r"(?<=\S)\s*\([^()]*\)\s*$")
_ASCII_BREAKS = re.compile(r"[^0-9a-z]+")
_ACCENTED_SCRIPTS_END = 0x530  # Latin, Greek and Cyrillic end here; other scripts' marks are letters
_WORD_CATEGORIES = "LMN"  # letters, marks, numbers


def normal_form(name: str) -> str:
    """The normal form of a name; empty only where the name holds nothing but spaces and controls."""
    text = unicodedata.normalize("NFKC", name).casefold()
    bare = _DISAMBIGUATOR.sub("", text)
    return _folded(bare) or _folded(text) or " ".join(_printable(text).split())


def words(normal: str) -> tuple[str, ...]:
    """The different words of a normal form, in their order."""
    return tuple(dict.fromkeys(normal.split()))


def grams(normal: str) -> frozenset[str]:
    """The different character trigrams of a normal form, its edges marked."""
    marked = f"{EDGE}{normal}{EDGE}"
    return frozenset(marked[i : i + GRAM] for i in range(len(marked) - GRAM + 1))


def word_hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of blake2b of every text, (n,)."""
    return np.array([word_hash(t) for t in texts], np.uint64)


@lru_cache(maxsize=1 << 16)
def word_hash(text: str) -> int:
    """The first 8 bytes of blake2b of a text, as an unsigned number."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def gram_codes(normal: str) -> NDArray[np.uint64]:
    """The trigrams of a normal form as numbers of 63 bits, each once and ascending; (n,)."""
    return np.unique(packed(code_points(f"{EDGE}{normal}{EDGE}")))


def code_points(text: str) -> NDArray[np.uint64]:
    """The code points of a text, (n,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def packed(points: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every run of three code points as one number, (n - 2,); a code point has 21 bits."""
    return (points[:-2] << np.uint64(42)) | (points[1:-1] << np.uint64(21)) | points[2:]


def _folded(text: str) -> str:
    """Words of a case-folded text without accents, one space between them."""
    if text.isascii():
        return _ASCII_BREAKS.sub(" ", text).strip()
    kept = (c if unicodedata.category(c)[0] in _WORD_CATEGORIES else " " for c in _without_accents(text))
    return " ".join("".join(kept).split())


def _without_accents(text: str) -> str:
    kept: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFD", text):
        if not unicodedata.combining(char):
            base = char
        elif not base or ord(base) < _ACCENTED_SCRIPTS_END or unicodedata.category(base)[0] not in "LN":
            continue
        kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept))


def _printable(text: str) -> str:
    """A text without controls, and without marks, which here have no letter to stand on."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c)[0] not in "CM")
