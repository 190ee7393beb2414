"""MIMIC, as the paper defines it: the interaction units, the matcher over them, the model, the loss.

From top to bottom: what goes in and out; the units TGLU, VDLU and CMFU, each a
score of every mention against every entity (section 3.3); the matcher, which
normalises the features and takes the units' mean; encoder and matcher as one
module (figure 2); the unit-consistent loss (section 3.4).

Readable and unfolded: this is the specification that training uses and that
every fast path is measured against. What depends on one side alone is folded
in :mod:`mimic_engine.model.fold`, the backbones are in
:mod:`mimic_engine.model.encoders`. Module names are those of the published
checkpoints. Axes: B mentions, N entities, R rows of either, L tokens, P patches,
T and D widths of the text encoder and of the matcher.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mimic_engine.config import MatcherConfig, ModelConfig
from mimic_engine.model.encoders import Encoder, Vectors, build_encoder


class Features(NamedTuple):
    """Encoder output of R mentions or entities, images projected to width D."""

    text_cls: Tensor  # (R, T)
    text_tokens: Tensor  # (R, L, text token width)
    text_mask: Tensor  # (R, L), 1 = real token
    image_cls: Tensor  # (R, D)
    image_tokens: Tensor  # (R, P, D)


class Side(NamedTuple):
    """Features of R mentions or entities after the layer norms."""

    text_cls: Tensor  # (R, T)
    text_tokens: Tensor  # (R, L, text token width)
    text_mask: Tensor  # (R, L), 1 = real token
    image_cls: Tensor  # (R, D)
    image_tokens: Tensor  # (R, P, D)


class MatcherScores(NamedTuple):
    """Total score and the score of each unit that is on; all (B, N)."""

    total: Tensor
    units: dict[str, Tensor]


class TGLU(nn.Module):
    """Text-based global-local matching unit (equations 6 to 9 of the paper).

    The global-to-global score is the inner product of the global text vectors;
    the global-to-local score attends from entity tokens to mention tokens. With
    ``mask_padding`` padding tokens are left out on both sides; the published
    model includes them.
    """

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        d = config.hidden
        self.mask_padding = config.mask_padding
        self.fc_query = nn.Linear(config.text_token_width, d)
        self.fc_key = nn.Linear(config.text_token_width, d)
        self.fc_value = nn.Linear(config.text_token_width, d)
        self.fc_cls = nn.Linear(config.text_width, d)
        self.layer_norm = nn.LayerNorm(d)

    def token_weight(self, mask: Tensor) -> Tensor:
        """Weights of the mean over entity tokens (real ones, or all), each row summing to 1; (N, L)."""
        kept = (mask if self.mask_padding else torch.ones_like(mask)).to(self.fc_cls.weight.dtype)  # (N, L)
        return kept / kept.sum(-1, keepdim=True).clamp(min=1)

    def forward(self, mention: Side, entity: Side) -> Tensor:
        """Scores (B, N)."""
        query = self.fc_query(entity.text_tokens)  # (N, L, D)
        key = self.fc_key(mention.text_tokens)  # (B, L, D)
        value = self.fc_value(mention.text_tokens)  # (B, L, D)
        logits = torch.einsum("nid,bjd->bnij", query, key) / math.sqrt(query.shape[-1])  # (B, N, L, L)
        if self.mask_padding:
            padding = mention.text_mask[:, None, None, :] == 0  # (B, 1, 1, L)
            logits = logits.masked_fill(padding, float("-inf"))  # (B, N, L, L)
        attention = logits.softmax(-1)  # (B, N, L, L)
        weight = self.token_weight(entity.text_mask)  # (N, L)
        # The mean over entity tokens commutes with the product by V; taken first it saves work.
        column_mean = torch.einsum("bnij,ni->bnj", attention, weight)  # (B, N, L)
        context = torch.einsum("bnj,bjd->bnd", column_mean, value)  # (B, N, D)
        g2l = torch.einsum("nd,bnd->bn", self.fc_cls(entity.text_cls), self.layer_norm(context))  # (B, N)
        g2g = mention.text_cls @ entity.text_cls.T  # (B, N)
        return (g2g + g2l) / 2  # (B, N)


class Dual(nn.Module):
    """One direction of VDLU: a gated fusion of the query side's global vector with the key side's patches."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cls_fc = nn.Linear(hidden, hidden)
        self.tokens_fc = nn.Linear(hidden, hidden)
        self.fc = nn.Linear(hidden, hidden)
        self.gate_fc = nn.Linear(hidden, 1)
        self.add_layer_norm = nn.LayerNorm(hidden)
        self.layer_norm = nn.LayerNorm(hidden)

    def forward(self, query_cls: Tensor, key_cls: Tensor, key_tokens: Tensor) -> Tensor:
        """Scores (A, K) of A query-side rows against K key-side rows."""
        query = self.cls_fc(query_cls)  # (A, D)
        key = self.cls_fc(key_cls)  # (K, D)
        value = self.tokens_fc(key_tokens).mean(-2)  # (K, D)
        context = self.fc(self.add_layer_norm(value[None] + query[:, None]))  # (A, K, D)
        gate = torch.tanh(self.gate_fc(context))  # (A, K, 1)
        fused = self.layer_norm(gate * context + key[None])  # (A, K, D)
        return torch.einsum("akd,ad->ak", fused, self.layer_norm(query))  # (A, K)


class VDLU(nn.Module):
    """Vision-based dual matching unit (equations 10 to 14): the mean of both directions."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.dual_ent2men = Dual(config.hidden)
        self.dual_men2ent = Dual(config.hidden)

    def forward(self, mention: Side, entity: Side) -> Tensor:
        """Scores (B, N)."""
        to_mention = self.dual_ent2men(entity.image_cls, mention.image_cls, mention.image_tokens).T  # (B, N)
        to_entity = self.dual_men2ent(mention.image_cls, entity.image_cls, entity.image_tokens)  # (B, N)
        return (to_mention + to_entity) / 2  # (B, N)


class ConcatUnit(nn.Module):
    """Ablation of VDLU: global text and image vectors concatenated, projected, scored by inner product."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.text_width + config.hidden, config.hidden)

    def side(self, side: Side) -> Tensor:
        """Fused vector of each row; (R, D)."""
        return self.fc(torch.cat([side.text_cls, side.image_cls], dim=-1))  # (R, D)

    def forward(self, mention: Side, entity: Side) -> Tensor:
        """Scores (B, N)."""
        return self.side(mention) @ self.side(entity).T  # (B, N)


class CMFU(nn.Module):
    """Cross-modal fusion unit (equations 15 to 18): text attends to patches, gated, then an inner product.

    ``context_layer_norm`` is part of the published weights and takes no part in the score.
    """

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        self.text_fc = nn.Linear(config.text_width, config.hidden)
        self.image_fc = nn.Linear(config.hidden, config.hidden)
        self.gate_fc = nn.Linear(config.hidden, 1)
        self.gate_layer_norm = nn.LayerNorm(config.hidden)
        self.context_layer_norm = nn.LayerNorm(config.hidden)
        self.context_layer_norm.requires_grad_(False)

    def side(self, side: Side) -> Tensor:
        """Fused vector h of each row; (R, D)."""
        text = self.text_fc(side.text_cls)  # (R, D)
        patches = self.image_fc(side.image_tokens)  # (R, P, D)
        attention = torch.einsum("rd,rpd->rp", text, patches).softmax(-1)  # (R, P)
        context = torch.einsum("rp,rpd->rd", attention, patches)  # (R, D)
        return self.gate_layer_norm(text * torch.tanh(self.gate_fc(text)) + context)  # (R, D)

    def forward(self, mention: Side, entity: Side) -> Tensor:
        """Scores (B, N)."""
        return self.side(mention) @ self.side(entity).T  # (B, N)


class Matcher(nn.Module):
    """Interaction layers (section 3.3): the four inputs normalised, the units that are on, and their mean."""

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


class Mimic(nn.Module):
    """Encoder and matcher as one module (figure 2 of the paper)."""

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


def unit_consistent_loss(
    scores: MatcherScores, unit_losses: Collection[str] | None = None, target: Tensor | None = None
) -> dict[str, Tensor]:
    """Unit-consistent loss (equations 19 to 21): cross-entropies in the batch, whose sum is trained on.

    Parameters
    ----------
    scores : (B, N) each; without ``target`` the entity of mention b is column b.
    unit_losses : units whose own loss is added to the overall one; all that are on by default.
    target : (B,) int64, gold column of each mention.

    Returns
    -------
    dict with "total" first (L_O of the paper) and one entry per chosen unit (L_T, L_V, L_C).
    """
    if target is None:
        target = torch.arange(scores.total.shape[0], device=scores.total.device)
    chosen = scores.units if unit_losses is None else {u: scores.units[u] for u in unit_losses}
    return {name: cross_entropy(s.float(), target) for name, s in {"total": scores.total, **chosen}.items()}
