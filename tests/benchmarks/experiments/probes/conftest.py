"""A tiny run with a matcher of random weights: 18 entities, 36 training mentions, images of random patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.experiments.trained import TrainedRun
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import tokenizer_json_text
from mimic_engine.model.units import Mimic
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import build_corpus
from mimic_engine.train.encode import RecordEncoder
from tests.ranking import exact_scores

Options = Callable[..., TrainConfig]
MakeRun = Callable[..., TrainedRun]
BruteScores = Callable[..., np.ndarray]
SPLITS = ("train", "dev", "test")


@pytest.fixture
def tiny(data: Path) -> Dataset:
    """The tiny data set as it is."""
    return open_dataset(data, splits=SPLITS)


@pytest.fixture
def illustrated(tiny: Dataset, tmp_path: Path) -> Dataset:
    """The tiny data set, each entity and each mention of dev and test with an image of its own."""

    def image(name: str, seed: int) -> Path:
        colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = tmp_path / f"{name}.png"
        Image.fromarray(colours).resize((40, 26), Image.Resampling.NEAREST).save(path)
        return path

    entities = tuple(replace(e, images=(image(e.id, i),)) for i, e in enumerate(tiny.entities))
    splits = dict(tiny.splits)
    for number, split in enumerate(("dev", "test"), 1):
        splits[split] = tuple(
            replace(m, mention=replace(m.mention, image=image(f"{split}{i}", 100 * number + i)))
            for i, m in enumerate(tiny.splits[split])
        )
    return replace(tiny, entities=entities, splits=splits)


@pytest.fixture
def make_run(options: Options) -> MakeRun:
    """A run over a data set: not trained, the matcher's weights random."""

    def make(dataset: Dataset, **changes: object) -> TrainedRun:
        config = options(**changes)
        torch.manual_seed(24)  # scores that lie apart, see tests/ranking.py
        model = Mimic.build(config.model_config())
        with torch.no_grad():
            for p in (*model.matcher.parameters(), *model.encoder.image_cls_fc.parameters()):
                p += 0.4 * torch.randn_like(p)
        tokenizer = Tokenizer.from_str(tokenizer_json_text(config.model_config().encoder.text_source))
        encode = RecordEncoder(
            model,
            build_corpus(dataset.entities, dataset.splits, TextPreprocessor(tokenizer, model.config.text)),
            ImagePreprocessor(model.config.image),
            train_text=config.train_text_encoder,
            train_image=config.train_image_encoder,
            broken=BrokenImages(config.broken_images),
        )
        encode.fill_caches(config.out / "cache", dtype="float32", batch_size=16, progress=False)
        return TrainedRun(config, encode, dataset)

    return make


@pytest.fixture
def brute_scores() -> BruteScores:
    """Total scores (M, N) of mention records against all entities, by the unfolded matcher in float64."""

    @torch.no_grad()
    def score(run: TrainedRun, records: np.ndarray) -> np.ndarray:
        encode = run.encode
        encode.model.eval()
        length = encode.corpus.tokens.input_ids.shape[1]
        mentions, entities = encode(records, length), encode(encode.corpus.entities, length)
        return exact_scores(encode.model.matcher, mentions, entities)

    return score
