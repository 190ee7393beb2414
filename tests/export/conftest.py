"""Tiny models, exported once: BERT + ViT in every precision, CLIP with masked padding and concatenation."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.export.to_onnx import EXPORTED, ExportOptions, export_model
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic


@pytest.fixture(scope="session")
def bert_vit(tiny_checkpoint: Path) -> Mimic:
    return load_checkpoint(tiny_checkpoint).model


@pytest.fixture(scope="session")
def bert_vit_folder(bert_vit: Mimic, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bert_vit") / "model"
    export_model(bert_vit, tiny_checkpoint / "tokenizer.json", out, ExportOptions(EXPORTED))
    return out


@pytest.fixture(scope="session")
def masked_clip(tmp_path_factory: pytest.TempPathFactory) -> Mimic:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ends = {"eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 49}
    text = tower | ends | {"vocab_size": 50, "hidden_size": 16, "max_position_embeddings": 20}
    vision = tower | {"hidden_size": 12, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folder)
    model = Mimic.build(
        ModelConfig(
            TextConfig(max_length=7, pairing="literal"),
            ImageConfig(size=32),
            EncoderConfig("clip", "clip", str(folder), str(folder)),
            MatcherConfig(hidden=8, vision="concat", mask_padding=True),
        )
    ).eval()
    with torch.no_grad():
        for p in model.matcher.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


@pytest.fixture(scope="session")
def masked_clip_folder(
    masked_clip: Mimic, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("masked_clip") / "model"
    options = ExportOptions(("fp32", "fp16", "bf16"))
    export_model(masked_clip, tiny_checkpoint / "tokenizer.json", out, options)
    return out
