"""Encoders and folds on ONNX Runtime, against PyTorch eager with the same threads in the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from benchmarks.scan.published_loop import published_scores
from benchmarks.scan.published_model import random_mentions, raw_features
from benchmarks.service.engine_side import TOLERANCES
from mimic_engine.images import ImagePreprocessor
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.text import TextPreprocessor, mention_pair
from mimic_engine.types import Array, ImageFeatures, TextFeatures, TokenBatch

if TYPE_CHECKING:
    from benchmarks.conftest import BenchModel, BenchSize, Note, SecondsOf

# Two float32 implementations of up to twelve layers; features are of order 1.
CLOSE = 1e-3


@pytest.fixture(scope="module")
def tokens(model: BenchModel, bench_size: BenchSize) -> TokenBatch:
    preprocess = TextPreprocessor.open(model.onnx.tokenizer_json, model.onnx.text_config)
    return preprocess([mention_pair(m) for m in random_mentions(bench_size.rows)])


@pytest.fixture(scope="module")
def pixels(model: BenchModel, bench_size: BenchSize) -> Array:
    preprocess = ImagePreprocessor(model.onnx.image_config)
    mentions = random_mentions(bench_size.rows)
    return np.stack([preprocess(m.image) for m in mentions if m.image is not None])


@pytest.fixture(scope="module")
def features(bench_size: BenchSize) -> tuple[TextFeatures, ImageFeatures]:
    """Random encoder output of one batch."""
    rng, rows = np.random.default_rng(4), bench_size.rows

    def normal(*shape: int) -> Array:
        return rng.standard_normal((rows, *shape), np.float32)

    text = TextFeatures(normal(512), normal(40, 512), np.ones((rows, 40), np.float32))
    return text, ImageFeatures(normal(96), normal(50, 96))


def test_text_encoder(
    benchmark: Any,
    compare: Note,
    seconds_of: SecondsOf,
    model: BenchModel,
    tokens: TokenBatch,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    expected = model.torch.encode_text(tokens)
    baseline_s = seconds_of(lambda: model.torch.encode_text(tokens))
    found = benchmark(model.onnx.encode_text, tokens)
    assert_allclose(found.cls, expected.cls, rtol=CLOSE, atol=CLOSE)
    assert_allclose(found.tokens, expected.tokens, rtol=CLOSE, atol=CLOSE)
    compare(baseline_s=baseline_s, texts=len(found.cls))


def test_image_encoder(
    benchmark: Any,
    compare: Note,
    seconds_of: SecondsOf,
    model: BenchModel,
    pixels: Array,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    expected = model.torch.encode_image(pixels)
    baseline_s = seconds_of(lambda: model.torch.encode_image(pixels))
    found = benchmark(model.onnx.encode_image, pixels)
    assert_allclose(found.cls, expected.cls, rtol=CLOSE, atol=CLOSE)
    assert_allclose(found.tokens, expected.tokens, rtol=CLOSE, atol=CLOSE)
    compare(baseline_s=baseline_s, images=len(found.cls))


@pytest.mark.parametrize("side", ["mention", "entity"])
def test_fold(
    benchmark: Any,
    compare: Note,
    seconds_of: SecondsOf,
    model: BenchModel,
    weights: dict[str, Tensor],
    features: tuple[TextFeatures, ImageFeatures],
    threads: int,
    side: str,
) -> None:
    """A fold is right when what it gives scores as the published loop does on the raw features."""
    torch.set_num_threads(threads)
    name = {"mention": "fold_mentions", "entity": "fold_entities"}[side]
    baseline_s = seconds_of(lambda: getattr(model.torch, name)(*features))
    folded = benchmark(getattr(model.onnx, name), *features)
    mentions = folded if side == "mention" else model.torch.fold_mentions(*features)
    entities = folded if side == "entity" else model.torch.fold_entities(*features)
    raw = raw_features(*features)
    expected = published_scores(weights, raw, raw)
    found = scores_ref(mentions, entities, model.onnx.constants)
    for unit, scores in {"total": found.total, **found.units}.items():
        # A unit is up to three times the size of the total, and so is its rounding.
        assert_allclose(scores, expected[unit].numpy(), rtol=0, atol=3 * TOLERANCES["float32"])
    compare(baseline_s=baseline_s, rows=len(raw))
