"""Fixtures shared by all tests: a tiny matcher, a tiny exported model with an index, real data."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import entity_stream
from mimic_engine.index.build import build_index
from mimic_engine.model.checkpoint import load_checkpoint, save_checkpoint, tokenizer_json_text
from mimic_engine.model.units import Features, Matcher, Mimic
from tests.alike import TwinsAlone

MakeFeatures = Callable[..., Features]

KERNELS = "mimic_engine.kernels._cpu"
TINY_ENTITIES = 13
TINY_TEXT_TOKENS = 9


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--isa``: the compiled kernels of a slower machine."""
    parser.addoption(
        "--isa",
        help="run as where this is the fastest instruction set of the compiled kernels (avx512, avx2, portable), "
        "or as where there are none of them (none); not in the processes that a test starts",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is collected: which sets there are says which tests there are."""
    isa = config.getoption("isa")
    if isa == "none":
        sys.modules[KERNELS] = None
    elif isa is not None:
        library = importlib.import_module(KERNELS)
        known = library.instruction_sets()
        if isa not in known:
            raise pytest.UsageError(f"--isa: {isa!r} is not one of {known} on this machine")
        library.instruction_sets = lambda: known[known.index(isa) :]


@pytest.fixture
def mel_data() -> Path:
    """Folder of the real entity-linking data sets, or a skip."""
    folder = os.environ.get("MIMIC_MEL_DATA")
    if not folder:
        pytest.skip("MIMIC_MEL_DATA is not set: no real data set to read")
    return Path(folder)


@pytest.fixture
def make_features() -> MakeFeatures:
    """Random features of R rows for a matcher config; at least one real token a row."""

    def make(
        config: MatcherConfig,
        rows: int,
        *,
        tokens: int = 7,
        patches: int = 5,
        seed: int = 0,
        dtype=torch.float64,
    ) -> Features:
        g = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        lengths = torch.randint(1, tokens + 1, (rows, 1), generator=g)
        return Features(
            random(rows, config.text_width),
            random(rows, tokens, config.text_token_width),
            (torch.arange(tokens)[None] < lengths).long(),
            random(rows, config.hidden),
            random(rows, patches, config.hidden),
        )

    return make


@pytest.fixture
def make_matcher() -> Callable[..., Matcher]:
    """A matcher in float64 whose layer norms and biases are not at their initial values."""

    def make(config: MatcherConfig, seed: int = 0, dtype=torch.float64) -> Matcher:
        torch.manual_seed(seed)
        matcher = Matcher(config).to(dtype).eval()
        with torch.no_grad():
            for p in matcher.parameters():
                p += 0.2 * torch.randn_like(p)
        return matcher

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all weights: a random BERT and ViT of two layers, all units on."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    torch.manual_seed(11)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = BertConfig(vocab_size=50, hidden_size=16, initializer_range=0.4, **layers)
    vit = ViTConfig(hidden_size=12, image_size=32, patch_size=16, initializer_range=0.4, **layers)
    BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "bert")
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "vit")
    _save_letter_tokenizer(folder / "bert" / "tokenizer.json")
    config = ModelConfig(
        TextConfig(max_length=TINY_TEXT_TOKENS),
        ImageConfig(size=32),
        EncoderConfig("bert", "vit", str(folder / "bert"), str(folder / "vit"), "mean"),
        MatcherConfig(hidden=8),
    )
    model = Mimic.build(config).eval()
    with torch.no_grad():
        for p in model.matcher.parameters():
            p += 0.3 * torch.randn_like(p)
    tokenizer_json = tokenizer_json_text(str(folder / "bert"))
    save_checkpoint(model, folder / "checkpoint", tokenizer_json=tokenizer_json)
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported in fp32: a folder that ``Linker.open`` reads."""
    from mimic_engine.export.to_onnx import ExportOptions, export_model

    checkpoint = load_checkpoint(tiny_checkpoint)
    out = tmp_path_factory.mktemp("tiny_model") / "model"
    export_model(checkpoint.model, checkpoint.tokenizer_json, out, ExportOptions(("fp32",)))
    return out


@pytest.fixture(scope="session")
def tiny_kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 entities, two thirds with a picture; ``E99`` and ``E05`` differ in their ids alone."""
    folder = tmp_path_factory.mktemp("tiny_kb")
    rng = np.random.default_rng(5)
    records = []
    for row in range(TINY_ENTITIES - 1):
        letters = rng.choice(list("abcdefghij"), 6)
        record = {
            "id": f"E{row:02}",
            "name": f"{letters[0]} {letters[1]}",
            "description": " ".join(letters[2:]),
        }
        if row % 3:
            save_noise(folder / f"{row}.png", seed=row)
            record["images"] = [f"{row}.png"]
        records.append(record)
    records.insert(2, {**records[5], "id": "E99"})  # before its twin, but behind it by id
    (folder / "kb.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return folder / "kb.jsonl"


@pytest.fixture(scope="session")
def tiny_index(tiny_model: Path, tiny_kb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny knowledge base, folded by the tiny model: float32, three segments."""
    out = tmp_path_factory.mktemp("tiny_index") / "index"
    source = TwinsAlone(open_featurizer(tiny_model, threads=1), BrokenImages("error"))
    stream = entity_stream(tiny_kb)
    build_index(source, stream, out, dtype="float32", batch_size=4, segment_rows=5, progress=False)
    return out


@pytest.fixture(scope="session")
def tiny_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that belongs to a mention, of another size than the model's."""
    path = tmp_path_factory.mktemp("tiny_picture") / "mention.png"
    save_noise(path, seed=99, size=(37, 23))
    return path


def save_noise(path: Path, *, seed: int, size: tuple[int, int] = (32, 32)) -> None:
    """Write a picture of 4 x 4 random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path)


def _save_letter_tokenizer(path: Path) -> None:
    """A tokenizer that knows the letters a to j, in BERT's pair encoding."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(path))
