"""Featurizer: from mentions and entities to folded arrays, and the contract of the session that it runs.

A session runs the graphs (encoders and folds) on one backend. The featurizer
adds preprocessing, and computes the features of a missing image only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mimic_engine.config import ImageConfig, TextConfig
from mimic_engine.encoding.buckets import RunShapes
from mimic_engine.images import ImagePreprocessor
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import (
    Array,
    Entity,
    EntityArrays,
    FoldConstants,
    ImageFeatures,
    ImageSource,
    Mention,
    MentionArrays,
    TextFeatures,
    TokenBatch,
    TokenSpan,
)


class EncoderSession(Protocol):
    """A model on one backend: encoders and folds, float32 in and out."""

    constants: FoldConstants
    model_hash: str
    text_config: TextConfig
    image_config: ImageConfig
    backend: str  # short name for logs and reports

    @property
    def shapes(self) -> RunShapes:
        """Shapes that its graphs run at, which a warm-up covers."""
        ...

    def rebuild(self) -> None:
        """Let go of the device and take it up anew, after a DeviceError; errors as of opening."""
        ...

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Token ids (B, L) to text features."""
        ...

    def encode_image(self, pixels: Array) -> ImageFeatures:
        """Pixels (B, 3, S, S) float32 to image features."""
        ...

    def fold_mentions(self, text: TextFeatures, image: ImageFeatures) -> MentionArrays:
        """Features of B mentions to folded arrays."""
        ...

    def fold_entities(self, text: TextFeatures, image: ImageFeatures) -> EntityArrays:
        """Features of N entities to folded arrays."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedMention:
    """A mention after preprocessing: token ids (one row) and pixels (3, S, S), or None without an image.

    ``spans`` says where the tokens lie in the text, for explanations.
    """

    tokens: TokenBatch
    pixels: Array | None
    spans: tuple[TokenSpan, ...] | None = None

    @property
    def has_image(self) -> bool:
        """Whether the mention has an image."""
        return self.pixels is not None


def warm_up(session: EncoderSession) -> int:
    """Run encoders and mention fold at every shape, until each is steady; the number of runs."""
    shapes, size = session.shapes, session.image_config.size
    for rows in shapes.rows:
        for _ in range(shapes.runs):
            image = session.encode_image(np.zeros((rows, 3, size, size), np.float32))
            for length in shapes.lengths:
                text = session.encode_text(blank_texts(rows, length, session.text_config.max_length))
            session.fold_mentions(text, image)
    return len(shapes.rows) * shapes.runs * (2 + len(shapes.lengths))


def blank_texts(rows: int, used: int, length: int) -> TokenBatch:
    """Texts of ``used`` real tokens, padded to ``length``."""
    mask = np.repeat((np.arange(length) < used)[None], rows, axis=0).astype(np.int64)  # (rows, L)
    return TokenBatch(mask, mask, np.zeros_like(mask), np.zeros(rows, np.bool_))  # every vocabulary has id 1


class Featurizer:
    """Preprocessing plus a session: mentions and entities in, folded arrays out.

    Parameters
    ----------
    session : the model on its backend.
    text, images : preprocessing that fits the model.
    """

    def __init__(self, session: EncoderSession, text: TextPreprocessor, images: ImagePreprocessor) -> None:
        self._session = session
        self._text = text
        self.images = images
        self._missing = session.encode_image(images.missing()[None])  # (1, D), (1, P, D)

    def warm_up(self) -> int:
        """Run the session at every shape that mentions can have; the number of runs."""
        return warm_up(self._session)

    def rebuild(self) -> None:
        """Take the device up anew, after a DeviceError; errors as of opening. On the thread that runs it."""
        self._session.rebuild()

    @property
    def session(self) -> EncoderSession:
        """The model on its backend."""
        return self._session

    @property
    def constants(self) -> FoldConstants:
        """Numbers that the scores need beyond the folded arrays."""
        return self._session.constants

    @property
    def missing(self) -> ImageFeatures:
        """Features of the missing image, of one row."""
        return self._missing

    @property
    def model_hash(self) -> str:
        """Identity of the model."""
        return self._session.model_hash

    @property
    def backend(self) -> str:
        """Name of the backend that runs encoders and folds."""
        return self._session.backend

    @property
    def max_text_tokens(self) -> int:
        """Tokens L to which every text is cut or padded."""
        return self._session.text_config.max_length

    @property
    def image_size(self) -> int:
        """Side S of the square that every image is resized to, in pixels."""
        return self._session.image_config.size

    def prepare(self, mention: Mention, *, spans: bool = False) -> PreparedMention:
        """Tokenise the text and decode the image of one mention; with ``spans``, say where tokens lie.

        Raises
        ------
        ImageError, ImageTypeError, TooLargeError
            If the image cannot be used; names the field and the limit.
        """
        pixels = None if mention.image is None else self.images(mention.image)
        tokens = self._text.mentions([mention])
        return PreparedMention(tokens, pixels, self._text.spans(mention) if spans else None)

    def fold_prepared(self, mentions: Sequence[PreparedMention]) -> MentionArrays:
        """Folded arrays of B prepared mentions."""
        tokens = TokenBatch.joined([m.tokens for m in mentions])
        image = self._image_features(mentions)
        return self._session.fold_mentions(self._session.encode_text(tokens), image)

    def _image_features(self, mentions: Sequence[PreparedMention]) -> ImageFeatures:
        return self._encode_images([m.pixels for m in mentions])

    def mentions(self, mentions: Sequence[Mention]) -> MentionArrays:
        """Folded arrays of B mentions; errors as in :meth:`prepare`."""
        return self.fold_prepared([self.prepare(m) for m in mentions])

    def entities(
        self, entities: Sequence[Entity], pixels: Sequence[Sequence[Array]] | None = None
    ) -> EntityArrays:
        """Folded arrays of N entities.

        Parameters
        ----------
        entities : names, descriptions and :meth:`images_of` each.
        pixels : (3, S, S) of each image of each entity, none for a missing one, where the caller
            has decoded the images itself (and decided about broken ones).
        """
        if pixels is None:
            pixels = [
                [self.images(image, field=f"image of entity {e.id!r}") for image in self.images_of(e)]
                for e in entities
            ]
        text = self._session.encode_text(self._text.entities(entities))
        flat: list[Array | None] = []
        for album in pixels:
            flat += album or [None]
        counts = [max(1, len(album)) for album in pixels]
        return self._session.fold_entities(text, mean_images(self._encode_images(flat), counts))

    def images_of(self, entity: Entity) -> tuple[ImageSource, ...]:
        """The images of an entity that the model takes."""
        return entity.images[: self._session.image_config.entity_pictures]

    def _encode_images(self, pixels: Sequence[Array | None]) -> ImageFeatures:
        """Image features of each row; only the rows that have an image go through the encoder."""
        cls = np.repeat(self._missing.cls, len(pixels), axis=0)  # (B, D)
        tokens = np.repeat(self._missing.tokens, len(pixels), axis=0)  # (B, P, D)
        present = [i for i, p in enumerate(pixels) if p is not None]
        if present:
            encoded = self._session.encode_image(np.stack([p for p in pixels if p is not None]))
            cls[present], tokens[present] = encoded.cls, encoded.tokens
        return ImageFeatures(cls, tokens)


def mean_images(image: ImageFeatures, counts: Sequence[int]) -> ImageFeatures:
    """Features of N entities from those of their images, ``counts[n]`` of each in turn: the means.

    The projections to width D are affine, so this is the projection of the mean of the raw features.
    """
    if len(image.cls) == len(counts):
        return image
    rows = np.array(counts, np.int64)  # (N,)
    starts, number = np.cumsum(rows) - rows, rows.astype(np.float32)  # (N,)
    cls: Array = np.add.reduceat(image.cls, starts)  # (N, D)
    tokens: Array = np.add.reduceat(image.tokens, starts)  # (N, P, D)
    return ImageFeatures(cls / number[:, None], tokens / number[:, None, None])
