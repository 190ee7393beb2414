"""In-batch scores for training: those of the matcher, with TGLU's attention in cache-sized pieces.

Only the (weighted) mean over entity tokens of the attention matrix enters
TGLU's score, so the (B, N, L, L) attention is never stored: each mention's
part is computed, reduced to (N, L), and computed again on the way back. Same
scores and gradients as :class:`mimic_engine.model.units.TGLU` to rounding, in
a fraction of its time and memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mimic_engine.model.matcher import Features, Matcher, MatcherScores
from mimic_engine.model.units import TGLU, Side


def batch_scores(matcher: Matcher, mention: Features, entity: Features) -> MatcherScores:
    """Scores of B mentions against N entities, (B, N) each; equals ``matcher(mention, entity)``."""
    men, ent = matcher.normalise(mention), matcher.normalise(entity)
    units = {
        name: tglu_scores(matcher.tglu, men, ent) if name == "tglu" else getattr(matcher, name)(men, ent)
        for name in matcher.config.units
    }
    return MatcherScores(torch.stack(list(units.values())).mean(0), units)


def tglu_scores(unit: TGLU, mention: Side, entity: Side) -> Tensor:
    """Scores (B, N) of the text unit (equations 6 to 9)."""
    query = unit.fc_query(entity.text_tokens)  # (N, L, D)
    query = query / math.sqrt(query.shape[-1])
    key = unit.fc_key(mention.text_tokens)  # (B, L, D)
    value = unit.fc_value(mention.text_tokens)  # (B, L, D)
    masked = (mention.text_mask == 0) & unit.mask_padding  # (B, L)
    mean = _column_mean(query, key, masked, unit.token_weight(entity.text_mask))  # (B, N, L)
    context = mean @ value  # (B, N, D)
    g2l = torch.einsum("nd,bnd->bn", unit.fc_cls(entity.text_cls), unit.layer_norm(context))  # (B, N)
    return (mention.text_cls @ entity.text_cls.T + g2l) / 2


def _attention(query: Tensor, key: Tensor, masked: Tensor) -> Tensor:
    """Softmax rows (N, Le, Lm) of all entities (N, Le, D) against one mention's keys (Lm, D)."""
    logits = query.flatten(0, 1) @ key.T  # (N Le, Lm)
    return logits.masked_fill_(masked, float("-inf")).softmax(-1).view(*query.shape[:2], -1)


def _column_mean(query: Tensor, key: Tensor, masked: Tensor, weight: Tensor) -> Tensor:
    """Typed call of :class:`_ColumnMean`."""
    return _ColumnMean.apply(query, key, masked, weight)  # type: ignore[no-untyped-call]


class _ColumnMean(torch.autograd.Function):
    """Weighted mean over entity tokens of the attention rows; (B, N, Lm)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, masked: Tensor, weight: Tensor) -> Tensor:
        """``query`` (N, Le, D) scaled, ``key`` (B, Lm, D), ``masked`` (B, Lm) bool, ``weight`` (N, Le)."""
        ctx.save_for_backward(query, key, masked, weight)
        rows = [
            (weight[:, None] @ _attention(query, k, m))[:, 0] for k, m in zip(key, masked, strict=True)
        ]  # B times (N, Lm)
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of ``query`` and ``key``; the weights are not trained."""
        query, key, masked, weight = ctx.saved_tensors
        flat = query.flatten(0, 1)  # (N Le, D)
        to_query, to_key = torch.zeros_like(flat), torch.empty_like(key)
        for b, grad in enumerate(grads[0]):  # (N, Lm)
            attention = _attention(query, key[b], masked[b])  # (N, Le, Lm)
            # d mean / d logits_ij = weight_i p_ij (grad_j - sum_j p_ij grad_j)
            expected = attention @ grad[:, :, None]  # (N, Le, 1)
            to_logits = (attention * (grad[:, None] - expected) * weight[:, :, None]).flatten(
                0, 1
            )  # (N Le, Lm)
            to_query.addmm_(to_logits, key[b])
            to_key[b] = to_logits.T @ flat
        return to_query.view_as(query), to_key, None, None
