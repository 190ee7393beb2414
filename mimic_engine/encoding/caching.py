"""A featurizer that remembers: what was seen before is neither decoded nor encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mimic_engine.encoding.base import EncoderSession, Featurizer, PreparedMention
from mimic_engine.encoding.cache import EncodingCache, FoldedMention, Key, image_key, mention_key
from mimic_engine.images import ImagePreprocessor
from mimic_engine.text import TextPreprocessor, mention_pair
from mimic_engine.types import ImageFeatures, Mention, MentionArrays


@dataclass(frozen=True, slots=True)
class _Remembered(PreparedMention):
    """A prepared mention with what is known of it: all, its picture, or under which keys it is to be kept."""

    key: Key | None = None
    picture_key: Key | None = None
    folded: FoldedMention | None = None
    picture: ImageFeatures | None = field(default=None)

    @property
    def has_image(self) -> bool:
        """Whether the mention has a picture."""
        return self.picture_key is not None or self.pixels is not None


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
        """Tokenise and decode what is not remembered; errors as in :meth:`Featurizer.prepare`."""
        key = mention_key(mention)
        if key is None:
            return super().prepare(mention, spans=spans)
        where = self._text.spans(mention) if spans else None
        picture_key = image_key(mention.image) if isinstance(mention.image, bytes) else None
        if folded := self.cache.mention(key):
            return _Remembered(folded.tokens, None, where, key, picture_key, folded)
        tokens = self._text([mention_pair(mention)])
        picture = None if picture_key is None else self.cache.image(picture_key)
        pixels = None
        if picture is None and mention.image is not None:
            pixels = self.images(mention.image)
        return _Remembered(tokens, pixels, where, key, picture_key, None, picture)

    def fold_prepared(self, mentions: Sequence[PreparedMention]) -> MentionArrays:
        """Folded arrays of B prepared mentions: those remembered, and the others encoded together."""
        known = {i: m.folded for i, m in enumerate(mentions) if isinstance(m, _Remembered) and m.folded}
        fresh = [i for i in range(len(mentions)) if i not in known]
        rows: dict[int, MentionArrays] = {i: folded.arrays for i, folded in known.items()}
        if fresh:
            arrays = super().fold_prepared([mentions[i] for i in fresh])
            for n, i in enumerate(fresh):
                rows[i] = MentionArrays(**{name: a[n : n + 1].copy() for name, a in arrays.items()})
                self._keep(mentions[i], rows[i])
        ordered = [dict(rows[i].items()) for i in range(len(mentions))]
        return MentionArrays(**{n: np.concatenate([one[n] for one in ordered]) for n in ordered[0]})

    def _keep(self, mention: PreparedMention, arrays: MentionArrays) -> None:
        if isinstance(mention, _Remembered) and mention.key is not None:
            self.cache.put_mention(mention.key, FoldedMention(mention.tokens, arrays))

    def _image_features(self, mentions: Sequence[PreparedMention]) -> ImageFeatures:
        features = super()._image_features(mentions)
        for i, mention in enumerate(mentions):
            if not isinstance(mention, _Remembered) or mention.picture_key is None:
                continue
            if mention.picture is not None:
                features.cls[i], features.tokens[i] = mention.picture.cls[0], mention.picture.tokens[0]
            else:
                row = slice(i, i + 1)
                self.cache.put_image(
                    mention.picture_key, features.cls[row].copy(), features.tokens[row].copy()
                )
        return features
