"""Encoders: text and images to global and local features (section 3.2 of the paper).

``clip`` is what the published code uses; a :class:`PairEncoder` joins any
BERT-like text encoder with a ViT-like or EfficientNet-Lite0 image encoder, and
its widths are theirs. The image projections (``image_cls_fc``,
``image_tokens_fc``) belong to the encoder, as in the published checkpoints.
Backbones give raw features; an encoder gives what the matcher takes.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mimic_engine.config import EncoderConfig
from mimic_engine.errors import MissingDependencyError, ModelError


class Vectors(NamedTuple):
    """A global vector (B, W) and local vectors (B, L or P, W') of each input."""

    cls: Tensor
    tokens: Tensor


class BertText(nn.Module):
    """A BERT-like text encoder; the global vector is [CLS] or the mean over real tokens."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.width = self.token_width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Vectors:
        """Token ids (B, L) int64 to Vectors (B, W), (B, L, W)."""
        tokens = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state  # (B, L, W)
        if self.pooling == "cls":
            return Vectors(tokens[:, 0], tokens)
        mask = attention_mask.to(tokens.dtype)[..., None]  # (B, L, 1)
        return Vectors((tokens * mask).sum(1) / mask.sum(1).clamp(min=1), tokens)


class VitImage(nn.Module):
    """A ViT-like image encoder; the global vector is [CLS], the local ones are all P tokens with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.width = self.token_width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, pixels: Tensor) -> Vectors:
        """Pixels (B, 3, S, S) to Vectors (B, W), (B, P, W)."""
        tokens = self.model(pixel_values=pixels).last_hidden_state  # (B, P, W)
        return Vectors(tokens[:, 0], tokens)


class EfficientNetImage(nn.Module):
    """EfficientNet-Lite0; its 7 x 7 feature map gives 49 local vectors and, averaged, the global one."""

    width = token_width = 1280

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Vectors:
        """Pixels (B, 3, 224, 224) to Vectors (B, 1280), (B, 49, 1280)."""
        grid = self.model.extract_features(pixels)  # type: ignore[operator]  # (B, 1280, 7, 7)
        return Vectors(grid.mean((2, 3)), grid.flatten(2).transpose(1, 2))


class Encoder(nn.Module, ABC):
    """Both backbones and the image projections to the interaction width D."""

    text_width: int
    text_token_width: int

    def __init__(self, image_width: int, image_token_width: int, hidden: int) -> None:
        super().__init__()
        self.image_cls_fc = nn.Linear(image_width, hidden)
        self.image_tokens_fc = nn.Linear(image_token_width, hidden)

    @abstractmethod
    def text_backbone(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Vectors:
        """Global (B, T) and local (B, L, token width) text features."""

    @abstractmethod
    def image_backbone(self, pixels: Tensor) -> Vectors:
        """Raw global and local image features, before the projections."""

    def project_image(self, raw: Vectors) -> Vectors:
        """Raw image features to width D: (B, D), (B, P, D)."""
        return Vectors(self.image_cls_fc(raw.cls), self.image_tokens_fc(raw.tokens))


class ClipEncoder(Encoder):
    """A CLIP model, as published: ``text_embeds`` and ``image_embeds`` with the last hidden states."""

    def __init__(self, clip: nn.Module, hidden: int) -> None:
        config = clip.config
        super().__init__(config.projection_dim, config.vision_config.hidden_size, hidden)  # type: ignore[union-attr, arg-type]
        self.clip = clip
        self.text_width = int(config.projection_dim)  # type: ignore[union-attr, arg-type]
        self.text_token_width = int(config.text_config.hidden_size)  # type: ignore[union-attr, arg-type]

    def text_backbone(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Vectors:  # noqa: ARG002
        """Global (B, T), L2-normalised, and local (B, L, token width) text features."""
        out = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)  # type: ignore[operator]
        cls = self.clip.text_projection(out.pooler_output)  # type: ignore[operator]
        return Vectors(cls / cls.norm(dim=-1, keepdim=True), out.last_hidden_state)

    def image_backbone(self, pixels: Tensor) -> Vectors:
        """Global (B, G), L2-normalised, and local (B, P, W) image features, these without post-layernorm."""
        out = self.clip.vision_model(pixel_values=pixels)  # type: ignore[operator]
        cls = self.clip.visual_projection(out.pooler_output)  # type: ignore[operator]
        return Vectors(cls / cls.norm(dim=-1, keepdim=True), out.last_hidden_state)


class PairEncoder(Encoder):
    """A text encoder and an image encoder that were not trained together."""

    def __init__(self, text: BertText, image: VitImage | EfficientNetImage, hidden: int) -> None:
        super().__init__(image.width, image.token_width, hidden)
        self.text = text
        self.image = image
        self.text_width, self.text_token_width = text.width, text.token_width

    def text_backbone(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Vectors:
        """Global (B, T) and local (B, L, T) text features."""
        return self.text(input_ids, attention_mask, token_type_ids)

    def image_backbone(self, pixels: Tensor) -> Vectors:
        """Raw global and local image features."""
        return self.image(pixels)


def build_encoder(config: EncoderConfig, hidden: int, *, pretrained: bool = True) -> Encoder:
    """Build the encoder that ``config`` names.

    Parameters
    ----------
    config : families and sources; a source is a local folder, a weights file or a hub id.
    hidden : width D of the image projections.
    pretrained : False builds the architecture alone (its config must be local), for a checkpoint to fill.

    Raises
    ------
    ModelError
        If a source cannot be read or the families do not go together.
    MissingDependencyError
        If EfficientNet-Lite0 is asked for and its package is not installed.
    """
    if "clip" in (config.text, config.image):
        if config.text != config.image:
            raise ModelError(
                f"encoder: text={config.text!r} and image={config.image!r}: clip encodes both or neither"
            )
        return ClipEncoder(_hugging_face("CLIPModel", config.text_source, pretrained), hidden)
    text = BertText(_hugging_face("AutoModel", config.text_source, pretrained), config.text_pooling)
    image = (
        VitImage(_hugging_face("AutoModel", config.image_source, pretrained))
        if config.image == "vit"
        else EfficientNetImage(_efficientnet(config.image_source, pretrained))
    )
    return PairEncoder(text, image, hidden)


def _hugging_face(class_name: str, source: str, pretrained: bool) -> nn.Module:
    import transformers

    options = {} if class_name == "CLIPModel" else {"add_pooling_layer": False}
    try:
        if pretrained:
            with _quiet_loading():
                model, loaded = getattr(transformers, class_name).from_pretrained(
                    source, output_loading_info=True, **options
                )
            if loaded["missing_keys"]:
                raise ModelError(f"encoder source {source!r}: lacks weights {sorted(loaded['missing_keys'])}")
            return model
        config = transformers.AutoConfig.from_pretrained(source)
        if class_name == "CLIPModel":
            return transformers.CLIPModel(config)
        return transformers.AutoModel.from_config(config, **options)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"encoder source {source!r}: cannot be loaded as {class_name}: {error}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers from printing a table of weights that are left out on purpose (the pooler's)."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _efficientnet(weights: str, pretrained: bool) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependencyError(
            "image encoder 'efficientnet-lite0' needs the package efficientnet-lite-pytorch: "
            "pip install 'mimic-engine[demo]'"
        ) from error
    if not pretrained:
        return EfficientNet.from_name("efficientnet-lite0")
    if not Path(weights).is_file():
        raise ModelError(f"encoder image_source: no weights file at {weights!r}")
    net = EfficientNet.from_name("efficientnet-lite0")
    try:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"encoder image_source {weights!r}: no EfficientNet-Lite0 weights: {error}"
        ) from error
    return net
