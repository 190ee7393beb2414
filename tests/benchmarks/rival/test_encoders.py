"""The rival's encoders: vectors of the backbones themselves, each item once, in the order that was asked."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from benchmarks.rival.encoders import IMAGES, Encoders, entity_text, mention_text, unit
from benchmarks.rival.encoders import _by_run as by_run
from mimic_engine.base import fetch_encoders
from mimic_engine.config import EncoderConfig
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.encoders import build_encoder
from mimic_engine.types import Entity, Mention

TEXTS = ["Rome in Rome is a city.", "a", "Rome in Rome is a city.", "word " * 300]


@pytest.fixture
def files():
    folder = os.environ.get("MIMIC_DEMO_CACHE")
    if not folder:
        pytest.skip("MIMIC_DEMO_CACHE (a folder that `python -m mimic_engine.demo` filled) is not set")
    return fetch_encoders(Path(folder), progress=False)


@pytest.mark.slow
def test_vectors_are_those_of_the_backbones_and_are_kept(files, tmp_path):
    encoders = Encoders(files, tmp_path, 1)
    found = encoders.cached_texts(TEXTS, "texts")
    tokenizer = AutoTokenizer.from_pretrained(str(files.minilm), model_max_length=128)
    tokens = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    model = AutoModel.from_pretrained(str(files.minilm)).eval()
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    np.testing.assert_allclose(found, unit(((states * mask).sum(1) / mask.sum(1)).numpy()), atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(Encoders(files, tmp_path, 1).cached_texts(TEXTS, "texts"), found)
    _check_images(encoders, files, tmp_path)


def _check_images(encoders, files, folder):
    path = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)).save(path)
    config = EncoderConfig("bert", "efficientnet-lite0", str(files.minilm), str(files.efficientnet), "mean")
    model = build_encoder(config, hidden=1).eval()
    with torch.no_grad():
        pooled = model.image_backbone(torch.from_numpy(ImagePreprocessor(IMAGES)(path))[None]).cls
    np.testing.assert_allclose(encoders.cached_images([path], "images"), unit(pooled.numpy()), atol=1e-5)
    assert encoders.images([]).shape == (0, pooled.shape[1])


def test_texts_of_both_sides():
    assert mention_text(Mention("Rome", "about {Rome}")) == "Rome in about {Rome}"
    assert entity_text(Entity("a", "Rome", "a city")) == "Rome: a city"
    assert entity_text(Entity("a", "Rome")) == "Rome"


def test_items_are_encoded_once_each_and_come_back_in_order():
    items = ["x" * (i * 7 % 40) for i in range(90)]
    asked = []

    def encode(some):
        asked.extend(some)
        return np.array([[len(s), 1] for s in some], np.float32)

    found = by_run(items, len, 2, encode, None)
    assert found[:, 0].tolist() == [len(s) for s in items]
    assert sorted(asked) == sorted(set(items))
    assert by_run([], len, 2, encode, None).shape == (0, 2)


def test_zeros_have_no_direction():
    np.testing.assert_allclose(unit(np.array([[3, 4], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]], atol=1e-7)
