"""MIMIC as one module: encoder and matcher (figure 2 of the paper)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from mimic_engine.config import ModelConfig
from mimic_engine.model.encoders import Encoder, Vectors, build_encoder
from mimic_engine.model.matcher import Features, Matcher, MatcherScores


class Mimic(nn.Module):
    """Encoder and matcher; submodule names are those of the published checkpoints."""

    def __init__(self, config: ModelConfig, encoder: Encoder) -> None:
        super().__init__()
        matcher = replace(
            config.matcher, text_width=encoder.text_width, text_token_width=encoder.text_token_width
        )
        self.config = replace(config, matcher=matcher)
        self.encoder = encoder
        self.matcher = Matcher(self.config.matcher)

    @classmethod
    def build(cls, config: ModelConfig, *, pretrained: bool = True) -> Mimic:
        """Build the encoder that the config names and a freshly initialised matcher of its widths."""
        return cls(config, build_encoder(config.encoder, config.matcher.hidden, pretrained=pretrained))

    def features(self, text: Vectors, text_mask: Tensor, image: Vectors) -> Features:
        """Backbone output of R rows to what the matcher takes (images projected to width D)."""
        projected = self.encoder.project_image(image)
        return Features(text.cls, text.tokens, text_mask, projected.cls, projected.tokens)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, pixels: Tensor
    ) -> Features:
        """Token ids (R, L) int64 and pixels (R, 3, S, S) to features."""
        text = self.encoder.text_backbone(input_ids, attention_mask, token_type_ids)
        return self.features(text, attention_mask, self.encoder.image_backbone(pixels))

    def forward(self, mention: Features, entity: Features) -> MatcherScores:
        """Scores of B mentions against N entities, (B, N) each."""
        return self.matcher(mention, entity)
