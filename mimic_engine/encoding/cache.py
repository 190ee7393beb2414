"""Bounded cache of encoded mentions and images, and the featurizer that asks it before it encodes.

Keys are digests of everything that the value depends on: a hit is the same
mention or the same image. The least recently used go first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mimic_engine.encoding.featurizer import EncoderSession, Featurizer, PreparedMention
from mimic_engine.images import ImagePreprocessor
from mimic_engine.text import TextPreprocessor
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
    """Key of a mention; None where its image is a path, behind which anything may come to lie."""
    if mention.image is not None and not isinstance(mention.image, bytes):
        return None
    digest = hashlib.blake2b(digest_size=32)
    image = b"" if mention.image is None else image_key(mention.image)[1]
    for part in (*(_text(t) for t in (mention.mention, mention.sentence)), image):
        digest.update(len(part).to_bytes(8, "big") + part)
    return MENTION, digest.digest()


def image_key(image: bytes) -> Key:
    """Key of an image, by its encoded bytes."""
    return IMAGE, hashlib.blake2b(image, digest_size=32).digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # what cannot be tokenised is refused later, by name


class EncodingCache:
    """Folded mentions and features of images, ``max_bytes`` of them at most. Safe to use from any thread."""

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
        value = None if key is None else self._get(key)
        return value if isinstance(value, FoldedMention) else None

    def image(self, key: Key) -> ImageFeatures | None:
        """Give the features of one image, if they are here."""
        value = self._get(key)
        return value if isinstance(value, ImageFeatures) else None

    def put_mention(self, key: Key, folded: FoldedMention) -> None:
        """Keep a mention."""
        self._put(key, folded, folded.nbytes)

    def put_image(self, key: Key, cls: Array, tokens: Array) -> None:
        """Keep the features of one image, (1, D) and (1, P, D)."""
        self._put(key, ImageFeatures(cls, tokens), cls.nbytes + tokens.nbytes)

    def _get(self, key: Key) -> FoldedMention | ImageFeatures | None:
        with self._lock:
            entry = self._entries.get(key)
            self._asked[key[0], "miss" if entry is None else "hit"] += 1
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

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


@dataclass(frozen=True, slots=True)
class _CachedMention(PreparedMention):
    """A prepared mention, its keys, and what the cache holds of it: all, or the features of its image."""

    key: Key | None = None
    image_key: Key | None = None
    folded: FoldedMention | None = None
    image: ImageFeatures | None = None

    @property
    def has_image(self) -> bool:
        """Whether the mention has an image."""
        return self.image_key is not None or self.pixels is not None


class CachingFeaturizer(Featurizer):
    """A :class:`Featurizer` with an :class:`EncodingCache` before its encoders.

    A mention that comes again gets the arrays that it got the first time, to the bit.
    """

    def __init__(
        self, session: EncoderSession, text: TextPreprocessor, images: ImagePreprocessor, cache: EncodingCache
    ) -> None:
        super().__init__(session, text, images)
        self.cache = cache

    def prepare(self, mention: Mention, *, spans: bool = False) -> PreparedMention:
        """Tokenise and decode what is not in the cache; errors as in :meth:`Featurizer.prepare`."""
        key = mention_key(mention)
        if key is None:
            return super().prepare(mention, spans=spans)
        where = self._text.spans(mention) if spans else None
        of_image = image_key(mention.image) if isinstance(mention.image, bytes) else None
        if folded := self.cache.mention(key):
            return _CachedMention(folded.tokens, None, where, key, of_image, folded)
        tokens = self._text.mentions([mention])
        image = None if of_image is None else self.cache.image(of_image)
        pixels = None
        if image is None and mention.image is not None:
            pixels = self.images(mention.image)
        return _CachedMention(tokens, pixels, where, key, of_image, None, image)

    def fold_prepared(self, mentions: Sequence[PreparedMention]) -> MentionArrays:
        """Folded arrays of B prepared mentions: those in the cache, and the others encoded together."""
        known = {i: m.folded for i, m in enumerate(mentions) if isinstance(m, _CachedMention)}
        rows = {i: folded.arrays for i, folded in known.items() if folded}
        fresh = [i for i in range(len(mentions)) if i not in rows]
        if fresh:
            arrays = super().fold_prepared([mentions[i] for i in fresh])
            for n, i in enumerate(fresh):
                rows[i] = arrays.take([n])
                self._keep(mentions[i], rows[i])
        ordered = [dict(rows[i].items()) for i in range(len(mentions))]
        return MentionArrays(**{n: np.concatenate([one[n] for one in ordered]) for n in ordered[0]})

    def _keep(self, mention: PreparedMention, arrays: MentionArrays) -> None:
        if isinstance(mention, _CachedMention) and mention.key is not None:
            self.cache.put_mention(mention.key, FoldedMention(mention.tokens, arrays))

    def _image_features(self, mentions: Sequence[PreparedMention]) -> ImageFeatures:
        features = super()._image_features(mentions)
        for i, mention in enumerate(mentions):
            if not isinstance(mention, _CachedMention) or mention.image_key is None:
                continue
            if mention.image is not None:
                features.cls[i], features.tokens[i] = mention.image.cls[0], mention.image.tokens[0]
            else:
                cls, tokens = features.cls[i : i + 1].copy(), features.tokens[i : i + 1].copy()
                self.cache.put_image(mention.image_key, cls, tokens)
        return features
