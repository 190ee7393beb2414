"""The matcher: layer norms on the four inputs, the units that are on, and their mean (section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic_engine.config import MatcherConfig
from mimic_engine.model.units import CMFU, TGLU, VDLU, ConcatUnit, Side


class Features(NamedTuple):
    """Encoder output of R mentions or entities, images projected to width D."""

    text_cls: Tensor  # (R, T)
    text_tokens: Tensor  # (R, L, text token width)
    text_mask: Tensor  # (R, L), 1 = real token
    image_cls: Tensor  # (R, D)
    image_tokens: Tensor  # (R, P, D)


class MatcherScores(NamedTuple):
    """Total score and the score of each unit that is on; all (B, N)."""

    total: Tensor
    units: dict[str, Tensor]


class Matcher(nn.Module):
    """MIMIC's interaction layers: scores of B mentions against N entities from their features."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.config = config
        self.text_cls_layernorm = nn.LayerNorm(config.text_width)
        self.text_tokens_layernorm = nn.LayerNorm(config.text_token_width)
        self.image_cls_layernorm = nn.LayerNorm(config.hidden)
        self.image_tokens_layernorm = nn.LayerNorm(config.hidden)
        if config.tglu:
            self.tglu = TGLU(config)
        if config.vision == "vdlu":
            self.vdlu = VDLU(config)
        if config.vision == "concat":
            self.concat = ConcatUnit(config)
        if config.cmfu:
            self.cmfu = CMFU(config)

    def normalise(self, features: Features) -> Side:
        """Layer norms on the four inputs."""
        return Side(
            self.text_cls_layernorm(features.text_cls),
            self.text_tokens_layernorm(features.text_tokens),
            features.text_mask,
            self.image_cls_layernorm(features.image_cls),
            self.image_tokens_layernorm(features.image_tokens),
        )

    def forward(self, mention: Features, entity: Features) -> MatcherScores:
        """Scores of B mentions against N entities, (B, N) each."""
        men, ent = self.normalise(mention), self.normalise(entity)
        units = {name: getattr(self, name)(men, ent) for name in self.config.units}
        return MatcherScores(torch.stack(list(units.values())).mean(0), units)
