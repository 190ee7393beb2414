"""Configuration of a model: text and image preprocessing, encoders, interaction units.

Plain frozen dataclasses that a checkpoint (``config.json``) and an exported
model (``manifest.json``) write and read back. Training options live in
:mod:`mimic_engine.train.config`, service options in :mod:`mimic_engine.server.settings`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mimic_engine.errors import ModelError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class TextConfig:
    """How a pair of texts (mention and sentence, or name and description) becomes token ids.

    ``pairing="literal"`` joins with the literal string `` [SEP] ``, as the
    published code feeds CLIP's tokenizer; ``"tokenizer"`` uses the tokenizer's
    own pair encoding, truncated longest first. ``pad_token=None`` leaves the choice
    to the tokenizer (see :class:`mimic_engine.text.TextPreprocessor`). Of a sentence that is too long
    ``window="start"`` reads the start, as published; ``"mention"`` what stands around the mention.
    """

    max_length: int = 40
    pairing: Literal["literal", "tokenizer"] = "tokenizer"
    pad_token: str | None = None
    window: Literal["start", "mention"] = "start"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image becomes pixels: resized to a square with LANCZOS, then ``(x * rescale - mean) / std``.

    Of an entity's images the first ``entity_pictures`` are used, and their features averaged.
    """

    size: int = 224
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    entity_pictures: int = 1

    def __post_init__(self) -> None:
        if self.entity_pictures < 1:
            raise ModelError(f"ImageConfig.entity_pictures: {self.entity_pictures} is less than 1")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Which encoders give the features.

    ``text`` / ``image`` name the family; ``text_source`` / ``image_source`` a
    local folder, a weights file (EfficientNet-Lite0) or a hub id.
    ``text_pooling`` chooses the global text vector of a BERT-like encoder.
    """

    text: Literal["clip", "bert"] = "clip"
    image: Literal["clip", "vit", "efficientnet-lite0"] = "clip"
    text_source: str = "openai/clip-vit-base-patch32"
    image_source: str = "openai/clip-vit-base-patch32"
    text_pooling: Literal["cls", "mean"] = "cls"


@dataclass(frozen=True, slots=True)
class MatcherConfig:
    """The interaction units and their widths (defaults: the published model's).

    ``vision="concat"`` replaces VDLU by a plain concatenation of the global
    features (an ablation). ``mask_padding=True`` leaves padding tokens out of
    TGLU's attention and mean; the published code does not.
    """

    text_width: int = 512
    text_token_width: int = 512
    hidden: int = 96
    tglu: bool = True
    vision: Literal["vdlu", "concat", "off"] = "vdlu"
    cmfu: bool = True
    mask_padding: bool = False

    def __post_init__(self) -> None:
        if not self.units:
            raise ModelError("MatcherConfig: every unit is off; turn on tglu, vision or cmfu")

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units that are on, in the order of the score's mean."""
        vision = {"vdlu": ("vdlu",), "concat": ("concat",), "off": ()}[self.vision]
        return (("tglu",) if self.tglu else ()) + vision + (("cmfu",) if self.cmfu else ())


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that fixes what a model computes, apart from its weights."""

    text: TextConfig = field(default_factory=TextConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of a checkpoint."""
        return asdict(self)
