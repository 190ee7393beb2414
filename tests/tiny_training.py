"""A made-up data set with pictures, and tiny random encoders on disk: a whole training in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mimic_engine.train.config import TrainConfig

FIRST = ["anna", "bruno", "carla", "dario", "edda", "franz"]
LAST = ["stone", "rivers", "falk"]
CRAFTS = ["painter", "chemist", "sailor"]


def _words() -> list[str]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *FIRST, *LAST, *CRAFTS, "the", "of", "met", "old", "harbour", "a"]


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_words())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny random BERT (with tokenizer) and a tiny random ViT."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    bert = BertConfig(
        vocab_size=len(_words()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(root / "bert")
    _tokenizer().save(str(root / "bert" / "tokenizer.json"))
    vit = ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(root / "vit")
    return root / "bert", root / "vit"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 people (6 first names x 3 last names), each with a craft; every third without a picture."""
    root = tmp_path_factory.mktemp("data")
    people = [(f, s) for f in FIRST for s in LAST]
    kb, mentions = [], []
    for i, (first, last) in enumerate(people):
        images = [] if i % 3 == 2 else [f"{i}.png"]
        if images:
            Image.new("RGB", (20, 14), (13 * i % 256, 255 - 9 * i, 77 * i % 256)).save(root / f"{i}.png")
        craft = CRAFTS[i % 3]
        kb.append({"id": f"E{i}", "name": f"{first} {last}", "description": f"a {craft}", "images": images})
        for j, sentence in enumerate((f"{first} the old {craft}", f"the {craft} met {first} {last}")):
            image = images[0] if images and j == 0 else None
            mentions.append({"mention": first, "sentence": sentence, "image": image, "answer": f"E{i}"})
    _write(root / "kb.jsonl", kb)
    _write(root / "train.jsonl", mentions)
    _write(root / "dev.jsonl", mentions[::2])
    _write(root / "test.jsonl", mentions[1::3])
    return root


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


@pytest.fixture
def options(data: Path, encoders: tuple[Path, Path], tmp_path: Path) -> Callable[..., TrainConfig]:
    """Options of a tiny run; keyword arguments change them."""
    base = {
        "data": data,
        "out": tmp_path / "run",
        "encoder": "bert-vit",
        "text_source": str(encoders[0]),
        "image_source": str(encoders[1]),
        "max_length": 12,
        "image_size": 32,
        "batch_size": 12,
        "epochs": 2,
        "lr": 3e-3,
        "validate_every": 1,
        "encode_batch": 16,
        "device": "cpu",
        "precision": "fp32",
    }
    return lambda **changes: TrainConfig(**(base | changes))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
