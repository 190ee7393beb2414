"""Tiny encoders with random weights, as local folders and as modules."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTModel

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig

HIDDEN = 8
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
IMAGE = {
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def save_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def bert_vit_config(tmp_path: Path) -> ModelConfig:
    """A model config whose BERT and ViT lie in local folders."""
    torch.manual_seed(1)
    BertModel(BertConfig(**TEXT), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    save_tokenizer(tmp_path / "bert")
    encoder = EncoderConfig("bert", "vit", str(tmp_path / "bert"), str(tmp_path / "vit"), "mean")
    return ModelConfig(TextConfig(max_length=9), ImageConfig(size=32), encoder, MatcherConfig(hidden=HIDDEN))


@pytest.fixture
def clip_config(tmp_path: Path) -> ModelConfig:
    """A model config whose CLIP lies in a local folder."""
    torch.manual_seed(2)
    text = TEXT | {"max_position_embeddings": 20, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 49}
    config = CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=10)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    save_tokenizer(tmp_path / "clip")
    encoder = EncoderConfig("clip", "clip", str(tmp_path / "clip"), str(tmp_path / "clip"))
    return ModelConfig(
        TextConfig(max_length=9, pairing="literal"),
        ImageConfig(size=32),
        encoder,
        MatcherConfig(hidden=HIDDEN),
    )
