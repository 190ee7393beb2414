"""A whole model of the published shapes with random weights: CLIP encoders, matcher, export, index.

The matcher is the published one in full; the encoders may have fewer layers and
a narrower image tower, so that a smoke run is quick. What the graphs give is
compared with PyTorch and with the published loop, so random weights will do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig

from benchmarks.scan.published_inputs import Features
from benchmarks.service.engine_side import load_matcher
from mimic_engine.config import EncoderConfig, ModelConfig, TextConfig
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.index.build import build_index
from mimic_engine.model.units import Mimic
from mimic_engine.types import Entity, EntityArrays, FoldConstants, ImageFeatures, Mention, TextFeatures

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,[]"
IMAGE_SIZE = (320, 240)


@dataclass(frozen=True, slots=True)
class Towers:
    """Size of the encoders; the defaults are CLIP ViT-B/32's (text width and patches are always its)."""

    layers: int = 12
    image_width: int = 768


def build_model(folder: Path, weights: Mapping[str, Tensor], towers: Towers) -> Mimic:
    """A model with random encoders and the given matcher, in eval mode; ``folder`` keeps its CLIP config."""
    vocabulary = _vocabulary()
    width = towers.image_width
    clip = CLIPConfig(
        text_config={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": towers.layers,
            "num_attention_heads": 8,
            "vocab_size": len(vocabulary),
            "bos_token_id": vocabulary[START],
            "eos_token_id": vocabulary[END],
            "pad_token_id": vocabulary[END],
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": towers.layers,
            "num_attention_heads": width // 64,
            "patch_size": 32,
            "image_size": 224,
        },
        projection_dim=512,
    )
    clip.save_pretrained(folder)
    encoder = EncoderConfig("clip", "clip", str(folder), str(folder))
    torch.manual_seed(0)
    model = Mimic.build(ModelConfig(TextConfig(pairing="literal"), encoder=encoder), pretrained=False).eval()
    model.matcher.load_state_dict(load_matcher(weights).state_dict())
    return model


def export(model: Mimic, folder: Path, precisions: tuple[str, ...] = ("fp32",)) -> Path:
    """Export the model with a tokenizer of letters; the folder that ``Linker.open`` reads."""
    tokenizer = folder / "tokenizer.json"
    save_tokenizer(tokenizer)
    export_model(model, tokenizer, folder / "model", ExportOptions(precisions))
    return folder / "model"


def build_random_index(folded: EntityArrays, constants: FoldConstants, model_hash: str, out: Path) -> Path:
    """An index over folded arrays as they are, in their own dtype; entity n has the id ``En``."""
    dtype = "float16" if any(a.dtype == np.float16 for _, a in folded.items()) else "float32"

    def stream() -> Iterator[Entity]:
        return (Entity(f"E{row}", f"entity {row}") for row in range(folded.rows))

    build_index(_FoldedRows(folded, constants, model_hash), stream, out, dtype=dtype, progress=False)
    return out


@dataclass(frozen=True, slots=True)
class _FoldedRows:
    """Hands out rows of folded arrays as if they had just been encoded."""

    folded: EntityArrays
    constants: FoldConstants
    model_hash: str

    def entities(self, entities: Sequence[Entity]) -> EntityArrays:
        """The rows that the entities' ids name, widened."""
        rows = np.array([int(e.id[1:]) for e in entities])
        return EntityArrays(**{k: a.astype(np.float32) for k, a in self.folded.take(rows).items()})


def random_mentions(count: int, seed: int = 0) -> list[Mention]:
    """Mentions of random words, each with a noisy JPEG image."""
    rng = np.random.default_rng(seed)

    def words(many: int) -> str:
        return " ".join("".join(rng.choice(list(LETTERS[:26]), 3)) for _ in range(many))

    return [Mention(words(1), words(10), _image(rng)) for _ in range(count)]


def _image(rng: np.random.Generator) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize(IMAGE_SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def raw_features(text: TextFeatures, image: ImageFeatures) -> Features:
    """Encoder output as the published loop takes it."""
    return Features(*(torch.from_numpy(a) for a in (text.cls, text.tokens, image.cls, image.tokens)))


def _vocabulary() -> dict[str, int]:
    tokens = [UNKNOWN, *LETTERS, *("##" + letter for letter in LETTERS), START, END]
    return {token: i for i, token in enumerate(tokens)}


def save_tokenizer(path: Path) -> None:
    """A tokenizer of one token a letter, between CLIP's start and end tokens."""
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=1000))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, vocabulary[token]) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    tokenizer.save(str(path))
