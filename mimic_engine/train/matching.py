"""In-batch scores for training: those of the matcher, without the work that is the same for many pairs.

Only the (weighted) mean over entity tokens of the attention matrix enters
TGLU's score, so it is computed in cache-sized blocks and reduced to (B, N, L);
where padding is masked, mentions and entities of similar length go together
and padding costs nothing. VDLU is scored in its closed form
(:mod:`mimic_engine.model.fold`). Same scores and gradients as
:class:`mimic_engine.model.units.Matcher` to rounding, in a fraction of its
time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mimic_engine.model.fold import fold_key_role, fold_query_role
from mimic_engine.model.folded_scorer import dual
from mimic_engine.model.units import TGLU, VDLU, Dual, Features, Matcher, MatcherScores, Side

LENGTH_GROUPS = 4  # of entities, each cut to its longest text
BLOCK_VALUES = 1 << 18  # attention values at a time: 1 MB in float32, which stays in a core's cache
KEPT_BYTES = 256 << 20  # of attention kept for the way back by one call; beyond, it is computed again


def batch_scores(matcher: Matcher, mention: Features, entity: Features) -> MatcherScores:
    """Scores of B mentions against N entities, (B, N) each; equals ``matcher(mention, entity)``."""
    men, ent = matcher.normalise(mention), matcher.normalise(entity)
    units = {}
    for name in matcher.config.units:
        if name == "tglu":
            units[name] = tglu_scores(matcher.tglu, men, ent)
        elif name == "vdlu":
            units[name] = vdlu_scores(matcher.vdlu, men, ent)
        else:
            units[name] = getattr(matcher, name)(men, ent)
    return MatcherScores(torch.stack(list(units.values())).mean(0), units)


def vdlu_scores(unit: VDLU, mention: Side, entity: Side) -> Tensor:
    """Scores (B, N) of the vision unit (equations 10 to 14)."""
    to_mention = _dual_scores(unit.dual_ent2men, entity, mention).T  # (B, N)
    to_entity = _dual_scores(unit.dual_men2ent, mention, entity)  # (B, N)
    return (to_mention + to_entity) / 2


def _dual_scores(unit: Dual, query: Side, key: Side) -> Tensor:
    """One direction, (A, K), of A query-side rows against K key-side rows."""
    beta = unit.fc.weight @ unit.add_layer_norm.bias + unit.fc.bias  # (D,)
    centred = beta - beta.mean()  # (D,)
    asked = fold_query_role(unit, query.image_cls)
    answer = fold_key_role(unit, key.image_cls, key.image_tokens)
    gate_bias = unit.gate_fc(beta)[0]
    return dual(*asked, *answer, gate_bias, centred @ centred, unit.layer_norm.eps)


def tglu_scores(unit: TGLU, mention: Side, entity: Side) -> Tensor:
    """Scores (B, N) of the text unit (equations 6 to 9)."""
    query = unit.fc_query(entity.text_tokens)  # (N, L, D)
    query = query / math.sqrt(query.shape[-1])
    key = unit.fc_key(mention.text_tokens)  # (B, L, D)
    value = unit.fc_value(mention.text_tokens)  # (B, L, D)
    weight = unit.token_weight(entity.text_mask)  # (N, L)
    if unit.mask_padding:
        mean = _masked_column_mean(query, key, mention.text_mask, weight, entity.text_mask)  # (B, N, L)
    else:
        mean = _column_mean(query, key, torch.ones_like(mention.text_mask), weight)  # (B, N, L)
    context = mean @ value  # (B, N, D)
    g2l = torch.einsum("nd,bnd->bn", unit.fc_cls(entity.text_cls), unit.layer_norm(context))  # (B, N)
    return (mention.text_cls @ entity.text_cls.T + g2l) / 2


def _masked_column_mean(
    query: Tensor, key: Tensor, mask: Tensor, weight: Tensor, entity_mask: Tensor
) -> Tensor:
    """As :func:`_column_mean`, with padding left out of groups of entities of similar length."""
    lengths = _lengths(entity_mask)  # (N,)
    order = lengths.argsort(stable=True)  # (N,)
    parts = []
    for rows in order.tensor_split(min(LENGTH_GROUPS, len(order))):
        cut = int(lengths[rows[-1]])
        parts.append(_column_mean(query[rows, :cut], key, mask, weight[rows, :cut]))
    return torch.cat(parts, 1)[:, order.argsort()]  # (B, N, Lm)


def _lengths(mask: Tensor) -> Tensor:
    """Tokens of each row up to its last real one, at least 1; (R,)."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).clamp(min=1)


def _column_mean(query: Tensor, key: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Typed call of :class:`_ColumnMean`."""
    return _ColumnMean.apply(query, key, mask, weight)  # type: ignore[no-untyped-call]


def _attention(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Softmax rows (T, b, m) of T entity tokens (T, D) against keys (b, m, D) of some mentions."""
    logits = (query @ key.flatten(0, 1).T).view(len(query), *mask.shape)  # (T, b, m)
    if not mask.all():
        logits.masked_fill_(mask == 0, float("-inf"))
    return logits.softmax(-1)


def _blocks(mask: Tensor, tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Mentions (b,) of similar length, and that of the longest: blocks of ``tokens`` x b x length values."""
    lengths = _lengths(mask)  # (B,)
    order = lengths.argsort(stable=True, descending=True)
    start = 0
    while start < len(order):
        length = int(lengths[order[start]])
        stop = start + max(1, BLOCK_VALUES // (tokens * length))
        yield order[start:stop], length
        start = stop


class _ColumnMean(torch.autograd.Function):
    """Weighted mean over entity tokens of the attention rows; (B, N, Lm)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        """``query`` (N, Le, D) scaled, ``key`` (B, Lm, D), ``mask`` (B, Lm) 1 = attend; weights (N, Le)."""
        flat = query.flatten(0, 1)  # (N Le, D)
        out = query.new_zeros(len(key), len(query), key.shape[1])  # (B, N, Lm)
        kept: list[Tensor] = []
        keep = len(flat) * key.shape[0] * key.shape[1] * query.element_size() <= KEPT_BYTES
        for rows, length in _blocks(mask, len(flat)):
            attention = _attention(flat, key[rows, :length], mask[rows, :length])  # (N Le, b, m)
            mean = weight[:, None] @ attention.view(*weight.shape, -1)  # (N, 1, b m)
            out[rows, :, :length] = mean.view(len(query), len(rows), length).transpose(0, 1)
            if keep:
                kept.append(attention)
        ctx.save_for_backward(query, key, mask, weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of ``query`` and ``key``; the weights are not trained."""
        query, key, mask, weight, *kept = ctx.saved_tensors
        flat, share = query.flatten(0, 1), weight.reshape(-1, 1)  # (N Le, D), (N Le, 1)
        weighted = flat * share  # (N Le, D)
        to_query, to_key = torch.zeros_like(flat), torch.zeros_like(key)
        for i, (rows, length) in enumerate(_blocks(mask, len(flat))):
            keys = key[rows, :length]  # (b, m, D)
            attention = kept[i] if kept else _attention(flat, keys, mask[rows, :length])  # (N Le, b, m)
            grad = grads[0][rows, :, :length].transpose(0, 1)[:, None]  # (N, 1, b, m)
            # d mean / d logits_ij = weight_i p_ij (grad_j - sum_j p_ij grad_j); weight_i is applied outside
            to_logits = (attention.view(*weight.shape, *grad.shape[2:]) * grad).view_as(attention)
            to_logits.addcmul_(attention, to_logits.sum(-1, keepdim=True), value=-1)  # (N Le, b, m)
            to_logits = to_logits.flatten(1)  # (N Le, b m)
            to_query.addmm_(to_logits, keys.flatten(0, 1))
            to_key[rows, :length] = (to_logits.T @ weighted).view_as(keys)
        return (to_query * share).view_as(query), to_key, None, None
