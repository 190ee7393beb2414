"""Input of the GPU report: synthetic features around shared vectors, folded on the device, with codes.

Random weights in the published shapes. Texts are sequences over a vocabulary of
2,000 vectors with noise, so that token queries cluster and sentences share
words; a mention is a noisy copy of its gold entity. Nothing here is real text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.scan.published_inputs import CLIP_PATCHES, TEXT_LENGTH, Features, Widths, random_weights
from mimic_engine.config import MatcherConfig
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.units import Matcher
from mimic_engine.scan.base import Codes
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays

VOCABULARY = 2_000
HALF = frozenset({"text_cls", "tglu_query", "tglu_cls", "vdlu_query", "vdlu_key", "cmfu"})
_FOLD_ROWS = 2_048
_SAMPLE = 200_000  # token queries that centroids are found with


@dataclass(frozen=True, slots=True)
class Book:
    """Centroids (C, D) and codes (N, L) of one segment."""

    centroids: Array
    segments: tuple[Codes, ...]


@dataclass(frozen=True, slots=True)
class World:
    """A model with random weights and the vectors that its texts and pictures are made of."""

    matcher: Matcher
    weights: dict[str, Tensor]
    constants: FoldConstants
    words: Tensor  # (VOCABULARY, T)
    device: torch.device
    seed: int

    @classmethod
    def make(cls, device: torch.device, seed: int) -> World:
        """Weights and vocabulary on ``device``."""
        weights = random_weights(seed=seed)
        widths = Widths.of(weights)
        matcher = Matcher(MatcherConfig(widths.text_cls, widths.text_tokens, widths.tglu))
        state = {k.removeprefix("matcher."): v for k, v in weights.items() if k.startswith("matcher.")}
        matcher.load_state_dict(matcher.state_dict() | state)
        generator = torch.Generator(device).manual_seed(seed)
        words = torch.randn(VOCABULARY, widths.text_tokens, device=device, generator=generator)
        weights = {name: value.to(device) for name, value in weights.items()}
        return cls(matcher.eval().to(device), weights, fold_constants(matcher), words, device, seed)

    def entities(self, start: int, stop: int) -> Features:
        """Raw features of entities start:stop, always the same for the same rows of a block of 2,048."""
        parts = [self._block(block) for block in range(start // _FOLD_ROWS, -(-stop // _FOLD_ROWS))]
        offset = start // _FOLD_ROWS * _FOLD_ROWS
        whole = _cat(parts)
        return whole.block(start - offset, stop - offset)

    def mentions(self, gold: Tensor, seed: int) -> Features:
        """Noisy copies of the entities ``gold`` (B,): a third of what they are is noise."""
        generator = torch.Generator(self.device).manual_seed(seed)
        own = [self.entities(int(g), int(g) + 1) for g in gold]
        whole = _cat(own)

        def noisy(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, device=self.device, generator=generator)
            return x + 0.5 * noise

        return Features(*(noisy(getattr(whole, n)) for n in _FIELDS))

    def _block(self, number: int) -> Features:
        g = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + number)
        n = _FOLD_ROWS

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device, generator=g)

        ids = torch.randint(0, VOCABULARY, (n, TEXT_LENGTH), device=self.device, generator=g)
        tokens = self.words[ids] + 0.3 * normal(n, TEXT_LENGTH, self.words.shape[1])  # (n, L, T)
        picture = normal(n, 1, 96)
        image = picture + normal(n, CLIP_PATCHES, 96)
        return Features(
            tokens.mean(1) * 3 + 0.3 * normal(n, 512), tokens, picture[:, 0] + 0.3 * normal(n, 96), image
        )


_FIELDS = ("text_cls", "text_tokens", "image_cls", "image_tokens")


def _cat(parts: list[Features]) -> Features:
    return Features(*(torch.cat([getattr(p, n) for p in parts]) for n in _FIELDS))


@torch.no_grad()
def fold_entities(world: World, n: int, dtype: str) -> EntityArrays:
    """N entities as an index stores them: "float32", "float16", or "int8" token queries."""
    fold, out = FoldEntity(world.matcher), dict[str, np.ndarray]()
    for start in range(0, n, _FOLD_ROWS):
        part = world.entities(start, min(start + _FOLD_ROWS, n))
        for name, value in _stored(fold(*_inputs(part)), dtype).items():
            if name not in out:
                out[name] = np.empty((n, *value.shape[1:]), value.cpu().numpy().dtype)
            out[name][start : start + len(value)] = value.cpu().numpy()
    return EntityArrays(**out)


@torch.no_grad()
def fold_mentions(world: World, gold: Tensor, seed: int) -> MentionArrays:
    """Mentions of the entities ``gold``, folded."""
    folded = FoldMention(world.matcher)(*_inputs(world.mentions(gold, seed)))
    return MentionArrays(**{name: value.cpu().numpy() for name, value in folded.items()})


def _inputs(features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask = torch.ones(
        features.text_tokens.shape[:2], device=features.text_tokens.device
    )  # nothing is padding
    return features.text_cls, features.text_tokens, mask, features.image_cls, features.image_tokens


def _stored(folded: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    if dtype == "float32":
        return folded
    out = {n: v.half() if n in HALF else v for n, v in folded.items()}
    if dtype == "int8":
        query = folded["tglu_query"]
        scale = query.abs().amax(-1) / 127  # (n, L)
        out["tglu_query"] = (query / scale[..., None]).round().to(torch.int8)
        out["tglu_query_scale"] = scale
    return out


@torch.no_grad()
def cluster(world: World, entities: EntityArrays, count: int) -> Book:
    """C centroids by five rounds of k-means on a sample, and the codes of all tokens."""
    assert entities.tglu_query is not None
    rows = max(1, _SAMPLE // entities.tglu_query.shape[1])
    sample = torch.from_numpy(entities.tglu_query[:rows]).to(world.device).float().flatten(0, 1)  # (T, D)
    generator = torch.Generator(world.device).manual_seed(world.seed)
    centroids = sample[torch.randint(len(sample), (count,), device=world.device, generator=generator)].clone()
    for _ in range(5):
        own = _nearest(sample, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, own, sample)
        number = torch.bincount(own, minlength=count)[:, None]
        centroids = torch.where(number > 0, sums / number.clamp(min=1), centroids)
    codes = np.empty(entities.tglu_query.shape[:2], np.uint8 if count <= 256 else np.uint16)
    for start in range(0, entities.rows, _FOLD_ROWS):
        block = torch.from_numpy(entities.tglu_query[start : start + _FOLD_ROWS]).to(world.device).float()
        own = _nearest(block.flatten(0, 1), centroids).view(block.shape[:2])
        codes[start : start + len(block)] = own.cpu().numpy()
    return Book(centroids.cpu().numpy(), (codes,))


def _nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    return (vectors @ centroids.T - (centroids * centroids).sum(1) / 2).argmax(1)
