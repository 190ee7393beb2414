"""Encoders of the rival: texts and images to unit vectors, by the backbones that the demo has.

MiniLM with mean pooling and EfficientNet-Lite0 with average pooling, both before any projection of ours, as
ONNX graphs that are exported once. Equal texts are encoded once and have equal bits: their scores tie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from mimic_engine.base.model import EncoderFiles
from mimic_engine.config import EncoderConfig, ImageConfig
from mimic_engine.encoding.graph_names import CLS, IDS, IMAGE_ENCODER, MASK, PIXELS, TEXT_ENCODER, TEXT_INPUTS
from mimic_engine.encoding.onnx import CPU, cpu_options, open_session
from mimic_engine.export.graphs import BATCH, Graph, export_fp32
from mimic_engine.files import replace_file, sha256_of
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.encoders import Encoder, build_encoder
from mimic_engine.train.corpus import image_identity
from mimic_engine.types import Array, Entity, ImageSource, Mention

LENGTH = 128  # tokens, those that the tokenizer of MiniLM itself cuts to
# Of six ways to write both into one text, the best but for noise on dev mentions of all sets.
MENTION_TEXT = "{mention} in {sentence}"
ENTITY_TEXT = "{name}: {description}"  # the name alone where there is no description
IMAGES = ImageConfig(size=224, rescale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
ROWS = 32  # of a run

T = TypeVar("T")


def mention_text(mention: Mention) -> str:
    """The text that stands for a mention in its sentence."""
    return MENTION_TEXT.format(mention=mention.mention, sentence=mention.sentence)


def entity_text(entity: Entity) -> str:
    """The text that stands for an entity."""
    if not entity.description:
        return entity.name
    return ENTITY_TEXT.format(name=entity.name, description=entity.description)


class _Text(nn.Module):
    """Token ids (B, L) to the mean of their states, (B, T)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.encoder.text_backbone(input_ids, attention_mask, token_type_ids).cls


class _Image(nn.Module):
    """Pixels (B, 3, S, S) to the mean of the feature map, (B, G)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.image_backbone(pixels).cls


class Encoders:
    """Both encoders, ready to run.

    Parameters
    ----------
    files : the weights.
    cache : folder for the graphs and for vectors.
    threads : cores that one run may use.
    """

    def __init__(self, files: EncoderFiles, cache: Path, threads: int) -> None:
        sources = (files.minilm / "model.safetensors", files.minilm / "tokenizer.json", files.efficientnet)
        self.model_hash = hashlib.sha256("|".join(map(sha256_of, sources)).encode()).hexdigest()
        self.cache = cache / f"rival-{self.model_hash[:12]}"
        self.cache.mkdir(parents=True, exist_ok=True)
        if not all((self.cache / f"{name}.onnx").exists() for name in (TEXT_ENCODER, IMAGE_ENCODER)):
            _export(files, self.cache)
        self._text, self._image = (
            _open(self.cache / f"{name}.onnx", threads) for name in (TEXT_ENCODER, IMAGE_ENCODER)
        )
        self._tokenizer = Tokenizer.from_file(str(files.minilm / "tokenizer.json"))
        self._tokenizer.enable_truncation(LENGTH)
        self._tokenizer.enable_padding()  # to the longest of a run
        self._images = ImagePreprocessor(IMAGES)
        self.text_width, self.image_width = (
            int(s.get_outputs()[0].shape[1]) for s in (self._text, self._image)
        )

    def texts(self, texts: Sequence[str], *, progress: str | None = None) -> Array:
        """Unit vectors (n, T) of texts, of similar length a run."""
        return _by_run(texts, len, self.text_width, self._some_texts, progress)

    def images(self, images: Sequence[ImageSource], *, progress: str | None = None) -> Array:
        """Unit vectors (n, G) of images; errors as of decoding one."""
        return _by_run(images, lambda _: 0, self.image_width, self._some_images, progress)

    def cached_texts(self, texts: Sequence[str], name: str) -> Array:
        """:meth:`texts`, kept in the cache under a name and the texts themselves."""
        return self._cached(name, texts, lambda: self.texts(texts, progress=name))

    def cached_images(self, images: Sequence[ImageSource], name: str) -> Array:
        """:meth:`images`, kept in the cache under a name and what the images are."""
        return self._cached(
            name, [image_identity(i) for i in images], lambda: self.images(images, progress=name)
        )

    def _cached(self, name: str, keys: Sequence[str], make: Callable[[], Array]) -> Array:
        digest = hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).hexdigest()
        path = self.cache / f"{name}-{digest[:16]}.npy"
        if not path.exists():
            with replace_file(path) as partial, partial.open("wb") as file:
                np.save(file, make())
        vectors: Array = np.load(path)
        return vectors

    def _some_texts(self, texts: Sequence[str]) -> Array:
        found = self._tokenizer.encode_batch_fast(list(texts))
        ids, mask = (np.array([getattr(e, n) for e in found], np.int64) for n in ("ids", "attention_mask"))
        feeds = {IDS: ids, MASK: mask, TEXT_INPUTS[2]: np.zeros_like(ids)}
        return unit(self._text.run([CLS], feeds)[0])

    def _some_images(self, images: Sequence[ImageSource]) -> Array:
        pixels = np.stack([self._images(image) for image in images])
        return unit(self._image.run([CLS], {PIXELS: pixels})[0])


def unit(rows: Array) -> Array:
    """Rows (n, W) at length 1; zeros stay zeros."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)  # (n, 1)
    return np.asarray(rows / np.where(length > 0, length, 1), np.float32)


def _by_run(
    items: Sequence[T],
    size: Callable[[T], int],
    width: int,
    encode: Callable[[Sequence[T]], Array],
    progress: str | None,
) -> Array:
    """Vectors (n, width) of items; equal ones are encoded once, those of similar size together."""
    different = sorted(dict.fromkeys(items), key=size)
    starts = range(0, len(different), ROWS)
    runs = tqdm(starts, desc=progress, unit="run", disable=progress is None, mininterval=10)
    parts = [np.empty((0, width), np.float32), *(encode(different[i : i + ROWS]) for i in runs)]
    number = {item: i for i, item in enumerate(different)}
    rows: Array = np.concatenate(parts)[[number[item] for item in items]]
    return rows


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    return open_session(path, cpu_options(threads), [(CPU, {})])


def _export(files: EncoderFiles, folder: Path) -> None:
    """Write both backbones as ONNX graphs."""
    config = EncoderConfig("bert", "efficientnet-lite0", str(files.minilm), str(files.efficientnet), "mean")
    encoder = build_encoder(config, hidden=1).eval()
    ids, mask = (torch.ones(3, LENGTH, dtype=torch.int64) for _ in range(2))
    mask[:, LENGTH // 2 :] = 0
    texts = dict(zip(TEXT_INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))
    pixels = {PIXELS: torch.zeros(3, 3, IMAGES.size, IMAGES.size)}
    for graph in (
        Graph(TEXT_ENCODER, _Text(encoder).eval(), texts, (CLS,), dict.fromkeys(texts, BATCH), LENGTH),
        Graph(IMAGE_ENCODER, _Image(encoder).eval(), pixels, (CLS,), {PIXELS: BATCH}),
    ):
        with replace_file(folder / f"{graph.name}.onnx") as partial:
            onnx.save(export_fp32(graph), partial)
