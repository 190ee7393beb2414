"""A bounded memory of mentions and pictures that were encoded before; the least recently used go first.

Keys are digests of everything that the value depends on: a hit is the same mention or the same picture.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from mimic_engine.types import Array, ImageFeatures, Mention, MentionArrays, TokenBatch

MENTION, IMAGE = "mention", "image"

Key = tuple[str, bytes]  # kind, digest


@dataclass(frozen=True, slots=True)
class FoldedMention:
    """A mention as it was encoded before: its tokens, and its folded arrays of one row."""

    tokens: TokenBatch
    arrays: MentionArrays

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        tokens = self.tokens
        ids = (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids, tokens.truncated)
        return sum(a.nbytes for a in ids) + sum(a.nbytes for _, a in self.arrays.items())


def mention_key(mention: Mention) -> Key | None:
    """Key of a mention; None where its picture is a path, behind which anything may come to lie."""
    if mention.image is not None and not isinstance(mention.image, bytes):
        return None
    digest = hashlib.blake2b(digest_size=32)
    image = b"" if mention.image is None else image_key(mention.image)[1]
    for part in (*(_text(t) for t in (mention.mention, mention.sentence)), image):
        digest.update(len(part).to_bytes(8, "big") + part)
    return MENTION, digest.digest()


def image_key(image: bytes) -> Key:
    """Key of an encoded picture."""
    return IMAGE, hashlib.blake2b(image, digest_size=32).digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # what cannot be tokenised is refused later, by name


class EncodingCache:
    """Folded mentions and encoded pictures, ``max_bytes`` of them at most. Safe to use from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Key, tuple[FoldedMention | ImageFeatures, int]] = OrderedDict()
        self._bytes = 0
        self._asked: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Size of what is held."""
        return self._bytes

    @property
    def asked(self) -> Mapping[tuple[str, ...], int]:
        """How often each kind was asked for, as (kind, "hit" or "miss")."""
        with self._lock:
            return dict(self._asked)

    def mention(self, key: Key | None) -> FoldedMention | None:
        """Give the mention of this key, if it is here."""
        found = None if key is None else self._get(key)
        return found if isinstance(found, FoldedMention) else None

    def image(self, key: Key) -> ImageFeatures | None:
        """Give the features of one picture, if they are here."""
        found = self._get(key)
        return found if isinstance(found, ImageFeatures) else None

    def put_mention(self, key: Key, folded: FoldedMention) -> None:
        """Keep a mention."""
        self._put(key, folded, folded.nbytes)

    def put_image(self, key: Key, cls: Array, tokens: Array) -> None:
        """Keep the features of one picture, (1, D) and (1, P, D)."""
        self._put(key, ImageFeatures(cls, tokens), cls.nbytes + tokens.nbytes)

    def _get(self, key: Key) -> FoldedMention | ImageFeatures | None:
        with self._lock:
            found = self._entries.get(key)
            self._asked[key[0], "miss" if found is None else "hit"] += 1
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def _put(self, key: Key, value: FoldedMention | ImageFeatures, size: int) -> None:
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = value, size
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped
