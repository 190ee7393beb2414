"""Weights of VDLU's gate: how much of an image it lets in, for pairs of a mention and an entity.

Equation 13 of the paper: tanh of a linear layer over the context of a pair, one number in each of the two
directions, between -1 and 1. At 0 the gate is closed: patches take no part, and the pair's score is that of
the two global image vectors, which nothing shuts out. Computed from folded arrays; the derivation is in
:mod:`mimic_engine.model.fold`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays

QUANTILES = (5, 25, 50, 75, 95)  # per cent


def gate_weights(
    mentions: MentionArrays, entities: EntityArrays, constants: FoldConstants
) -> dict[str, Array]:
    """Gate of each of R pairs, mention r with entity r, in each direction; (R,) each.

    The mentions and entities must have VDLU's arrays.
    """
    assert mentions.vdlu_query is not None and mentions.vdlu_query_scalars is not None
    assert mentions.vdlu_key is not None and mentions.vdlu_key_scalars is not None
    assert entities.vdlu_query is not None and entities.vdlu_query_scalars is not None
    assert entities.vdlu_key is not None and entities.vdlu_key_scalars is not None
    eps = constants.layer_norm_eps
    to_mention, to_entity = constants.gate_bias
    return {
        "entity to mention": _gate(
            entities.vdlu_query,
            entities.vdlu_query_scalars,
            mentions.vdlu_key,
            mentions.vdlu_key_scalars,
            to_mention,
            eps,
        ),
        "mention to entity": _gate(
            mentions.vdlu_query,
            mentions.vdlu_query_scalars,
            entities.vdlu_key,
            entities.vdlu_key_scalars,
            to_entity,
            eps,
        ),
    }


def distribution(weights: Array) -> dict[str, Any]:
    """Mean, mean of the absolute values, standard deviation and quantiles (per cent) of (R,) weights."""
    levels = np.percentile(weights.astype(np.float64), QUANTILES)
    return {
        "mean": float(weights.mean(dtype=np.float64)),
        "mean_absolute": float(np.abs(weights).mean(dtype=np.float64)),
        "std": float(weights.std(dtype=np.float64)),
        "quantiles": {str(q): float(level) for q, level in zip(QUANTILES, levels, strict=True)},
    }


def _gate(
    query: Array, query_scalars: Array, key: Array, key_scalars: Array, bias: float, eps: float
) -> Array:
    """Gate (R,) of one dual; vectors (R, 3, D) and scalars (R, 7) are those of ``QueryRole``, ``KeyRole``."""
    cross = np.einsum("rd,rd->r", query[:, 1], key[:, 0])  # (R,) cq.cv
    squared = query_scalars[:, 2] + key_scalars[:, 0] + 2 * cross  # (R,) |cq + cv|^2
    rstd = 1 / np.sqrt(squared / query.shape[-1] + eps)  # (R,)
    return np.tanh(rstd * (query_scalars[:, 3] + key_scalars[:, 1]) + bias)
