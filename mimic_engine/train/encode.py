"""Records to matcher features, for training and validation; frozen encoders are cached.

Trained encoders run under autocast (bf16 where chosen); frozen ones, the
matcher and the image projections always in float32: in-batch scores are sums over several hundred
products, too coarse in bf16 for a cross-entropy. Each distinct image of a
batch is projected once, however many records share it (all that have none
share the zero image); the raw features of an album are the mean of its images'.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from mimic_engine.data.images import BrokenImages
from mimic_engine.errors import ModelError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import state_hash
from mimic_engine.model.encoders import Vectors
from mimic_engine.model.fold import FoldEntity, FoldMention
from mimic_engine.model.units import Features, Mimic
from mimic_engine.train.corpus import Corpus, Image, Rows, image_identity, image_sources
from mimic_engine.train.features import CachedFeatures, cache_key, cached_features
from mimic_engine.types import Array, EntityArrays, MentionArrays

# Weights that the raw features of a side depend on, by the start of their names in an encoder.
BACKBONE_KEYS = {"text": ("text.", "clip.text_"), "image": ("image.", "clip.vision", "clip.visual")}
LENGTH_GROUPS = 4


class RecordEncoder:
    """Features of records of a corpus under a model that may be in training.

    Parameters
    ----------
    model : on its device; which encoders are trained is given, not looked up.
    corpus : texts and images.
    images : preprocessing of images.
    train_text, train_image : encoders that run anew at each call; the others are cached.
    broken : policy for images that cannot be decoded; lists them.
    bf16 : run trained encoders under bfloat16 autocast.

    Raises
    ------
    ModelError
        If the corpus was built with another number of images an entity than the model takes.
    """

    def __init__(
        self,
        model: Mimic,
        corpus: Corpus,
        images: ImagePreprocessor,
        *,
        train_text: bool,
        train_image: bool,
        broken: BrokenImages,
        bf16: bool = False,
    ) -> None:
        wanted = model.config.image.entity_pictures
        if corpus.entity_pictures != wanted:
            raise ModelError(f"corpus: {corpus.entity_pictures} pictures an entity, the model takes {wanted}")
        self.model = model
        self.corpus = corpus
        self.broken = broken
        self._images = images
        self._train_text, self._train_image = train_text, train_image
        self._bf16 = bf16
        self._text_cache: CachedFeatures | None = None
        self._image_cache: CachedFeatures | None = None
        self._lengths = corpus.tokens.attention_mask.shape[1] - np.argmax(
            corpus.tokens.attention_mask[:, ::-1], axis=1
        )  # (R,)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def over(self, corpus: Corpus) -> RecordEncoder:
        """Give an encoder of the same texts with other images; new ones are not in its cache yet."""
        other = copy.copy(self)
        other.corpus = corpus
        if corpus.images != self.corpus.images:
            other._image_cache = None
        return other

    @property
    def trained_features(self) -> tuple[bool, bool, bool, bool, bool]:
        """Which of the ``Features`` depend on weights in training (images always: their projections)."""
        return self._train_text, self._train_text, False, True, True

    def fill_caches(self, folder: Path, *, dtype: str, batch_size: int, progress: bool) -> None:
        """Compute, or open, the features of the encoders that are not trained."""
        fill = partial(cached_features, folder, dtype=dtype, batch_size=batch_size, progress=progress)
        if not self._train_image:
            images = self.corpus.images
            key = cache_key([self._identity("image", dtype), self.broken.policy])
            names = [cache_key([what]) for what in ("", *map(image_identity, images))]
            self._image_cache = fill(key, names, self._raw_images, label="images")
        if not self._train_text:
            t = self.corpus.tokens
            key = cache_key([self._identity("text", dtype), str(t.input_ids.shape[1])])
            arrays = (t.input_ids, t.attention_mask, t.token_type_ids)
            names = [cache_key(row.tobytes() for row in rows) for rows in zip(*arrays, strict=True)]
            self._text_cache = fill(key, names, self._raw_texts, label="texts")

    def share_caches(self, other: RecordEncoder) -> None:
        """Use the features that ``other`` has cached: of the same corpus, under the same frozen encoders."""
        self._text_cache, self._image_cache = other._text_cache, other._image_cache

    def broken_images(self) -> list[str]:
        """Images that could not be decoded and were taken for missing, with their owners."""
        if self._image_cache is None:
            return sorted({f"{b.source} ({b.owner})" for b in self.broken.found})
        lost = np.flatnonzero(self._image_cache.broken) - 1
        return [f"{_name(self.corpus.images[i])} ({self.corpus.owners[i]})" for i in lost]

    def length(self, records: Rows) -> int:
        """Text length that these records need: all of L, or the longest text where padding is masked."""
        if not self.model.config.matcher.mask_padding:
            return int(self.corpus.tokens.input_ids.shape[1])
        return int(self._lengths[records].max(initial=1))

    def __call__(
        self,
        records: Rows,
        length: int | None = None,
        *,
        without_image: NDArray[np.bool_] | None = None,
        without_text: NDArray[np.bool_] | None = None,
    ) -> Features:
        """Features of R records.

        Parameters
        ----------
        records : (R,) rows of the corpus.
        length : as :meth:`length` gives it, which is the default.
        without_image : (R,), records whose image is taken for missing.
        without_text : (R,), records whose text is taken for empty.
        """
        length = self.length(records) if length is None else length
        spoken = records if without_text is None else np.where(without_text, self.corpus.empty, records)
        text, mask = self._text(spoken, length)
        chosen = self.corpus.image[records]  # (R,), 0 = the missing image
        if without_image is not None:
            chosen = np.where(without_image, 0, chosen)
        images, where = np.unique(chosen, return_inverse=True)
        image = self.model.encoder.project_image(self._image(images))
        rows = torch.from_numpy(where).to(self.device)
        return Features(text.cls, text.tokens, mask, image.cls[rows], image.tokens[rows])

    def _text(self, records: Rows, length: int) -> tuple[Vectors, Tensor]:
        tokens = self.corpus.tokens
        ids, mask, types = (
            torch.from_numpy(a[records, :length]).to(self.device)
            for a in (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)
        )  # (R, length)
        if self._text_cache is not None:
            cls, states = self._text_cache.take(records)
            return Vectors(self._tensor(cls), self._tensor(states[:, :length])), mask
        if not self.model.config.matcher.mask_padding:
            return self._encode_text(ids, mask, types), mask
        # Padding takes no part: rows of similar length go together, each group cut to its longest.
        order = np.argsort(self._lengths[records], kind="stable")
        parts = []
        for group in np.array_split(order, min(LENGTH_GROUPS, len(order))):
            cut, rows = self.length(records[group]), torch.from_numpy(group).to(self.device)
            part = self._encode_text(ids[rows, :cut], mask[rows, :cut], types[rows, :cut])
            parts.append(Vectors(part.cls, pad(part.tokens, (0, 0, 0, length - cut))))
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        return Vectors(*(torch.cat(p)[back] for p in zip(*parts, strict=True))), mask

    def _encode_text(self, ids: Tensor, mask: Tensor, types: Tensor) -> Vectors:
        with self._autocast(self._train_text):
            out = self.model.encoder.text_backbone(ids, mask, types)
        return Vectors(out.cls.float(), out.tokens.float())

    def _image(self, images: Rows) -> Vectors:
        if self._image_cache is not None:
            return Vectors(*map(self._tensor, self._image_cache.take(images)))
        albums = [self._pixels(i) for i in images]
        parts = []
        for pixels in self._tensor(np.concatenate(albums)).split(len(albums)):  # (at most R, 3, S, S)
            with self._autocast(self._train_image):
                parts.append(self.model.encoder.image_backbone(pixels))
        counts = [len(a) for a in albums]
        return Vectors(*(_means(torch.cat(p).float(), counts) for p in zip(*parts, strict=True)))

    def _pixels(self, image: int) -> Array:
        """Pixels (n, 3, S, S) of the n images of an album that can be used, or else of the missing one."""
        if image == 0:
            return self._images.missing()[None]
        sources, owner = image_sources(self.corpus.images[image - 1]), self.corpus.owners[image - 1]
        loaded = [self.broken.load(self._images, s, owner) for s in sources]
        usable = [pixels for pixels in loaded if pixels is not None]
        return np.stack(usable or [self._images.missing()])

    @torch.no_grad()
    def _raw_images(self, images: Rows) -> tuple[Array, Array, Array]:
        out = self._image(images)
        lost = {b.owner for b in self.broken.found}
        flags = [i > 0 and self.corpus.owners[i - 1] in lost for i in images]
        return out.cls.cpu().numpy(), out.tokens.cpu().numpy(), np.array(flags, np.float32)

    @torch.no_grad()
    def _raw_texts(self, records: Rows) -> tuple[Array, Array, Array]:
        out, _ = self._text(records, self.corpus.tokens.input_ids.shape[1])
        return out.cls.cpu().numpy(), out.tokens.cpu().numpy(), np.zeros(len(records), np.float32)

    def _identity(self, side: str, dtype: str) -> str:
        config = self.model.config.to_json()
        state = self.model.encoder.state_dict()
        weights = state_hash({k: v for k, v in state.items() if k.startswith(BACKBONE_KEYS[side])})
        config["image"].pop("entity_pictures")  # features of an image do not depend on what is averaged
        settings = {side: config[side], "pooling": config["encoder"]["text_pooling"]}
        if side == "text":  # masked padding is not encoded at all, see _text
            settings["mask_padding"] = config["matcher"]["mask_padding"]
        return json.dumps([side, weights, dtype, settings], sort_keys=True)

    def _autocast(self, trained: bool) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16 and trained)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@torch.no_grad()
def fold_mentions(encode: RecordEncoder, records: Rows, batch_size: int) -> MentionArrays:
    """Folded arrays of mention records."""
    return MentionArrays(**_fold(encode, FoldMention(encode.model.matcher), records, batch_size))


@torch.no_grad()
def fold_entities(encode: RecordEncoder, records: Rows, batch_size: int) -> EntityArrays:
    """Folded arrays of entity records, in memory (about 19 KB an entity)."""
    return EntityArrays(**_fold(encode, FoldEntity(encode.model.matcher), records, batch_size))


def _fold(encode: RecordEncoder, fold: nn.Module, records: Rows, batch_size: int) -> dict[str, Array]:
    """Fill preallocated arrays batch by batch, at full text length so that rows agree in shape.

    Records that are alike are folded once and have the same bits, so that their scores tie: a row's last
    bits may depend on how many others are in its batch.
    """
    out: dict[str, Array] = {}
    length = encode.corpus.tokens.input_ids.shape[1]
    distinct, which = encode.corpus.distinct(records)  # (U,), (R,)
    for rows in _batches(len(distinct), batch_size):
        alike = np.flatnonzero((rows.start <= which) & (which < rows.stop))
        for name, value in fold(*encode(distinct[rows], length)).items():
            array = value.float().cpu().numpy()
            if name not in out:
                out[name] = np.empty((len(records), *array.shape[1:]), np.float32)
            out[name][alike] = array[which[alike] - rows.start]
    return out


def _means(rows: Tensor, counts: list[int]) -> Tensor:
    """Means (R, ...) of ``counts[r]`` rows each, one after another."""
    if len(rows) == len(counts):
        return rows
    return torch.stack([part.mean(0) for part in rows.split(counts)])


def _name(image: Image) -> str:
    names = [f"{len(s)} bytes" if isinstance(s, bytes) else str(s) for s in image_sources(image)]
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _batches(rows: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, rows, batch_size):
        yield slice(start, min(start + batch_size, rows))
