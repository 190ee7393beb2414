"""The folded scores in readable NumPy: the twin that every fast scorer is tested against.

Inputs are the folded arrays of :mod:`mimic_engine.types`; the folding itself
and the derivation of VDLU's closed form are in ``mimic_engine/model/fold.py``.
Works in the dtype of the mention arrays (float32 or float64); half-precision
entity vectors are widened to it. Nothing here is fast on purpose.

Axes: B mentions, N entities, L tokens, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays, Scores

Floats = NDArray[np.floating]


def column_mean_ref(query: Floats, key: Floats, key_mask: Floats | None, weight: Floats | None) -> Floats:
    """Weighted mean over entity tokens of softmax rows: all that TGLU needs of its attention (equation 7).

    Parameters
    ----------
    query : (N, Le, D), already divided by sqrt(D)
    key : (B, Lm, D)
    key_mask : (B, Lm), 0 = padding, or None for no mask
    weight : (N, Le), rows summing to 1, or None for the plain mean

    Returns
    -------
    (B, N, Lm); each row is non-negative and sums to 1.
    """
    logits = np.einsum("nid,bjd->bnij", query, key, optimize=True)  # (B, N, Le, Lm)
    if key_mask is not None:
        logits = np.where(key_mask[:, None, None, :] > 0, logits, -np.inf)  # (B, N, Le, Lm)
    exp = np.exp(logits - logits.max(-1, keepdims=True))  # (B, N, Le, Lm)
    attention = exp / exp.sum(-1, keepdims=True)  # (B, N, Le, Lm)
    if weight is None:
        return np.asarray(attention.mean(2))  # (B, N, Lm)
    return np.einsum("bnij,ni->bnj", attention, weight, optimize=True)  # (B, N, Lm)


def g2l_ref(mention: MentionArrays, entity: EntityArrays, constants: FoldConstants) -> Floats:
    """TGLU's global-local score, (B, N): entity cls against its context in the mention (equations 7, 8)."""
    assert mention.tglu_key is not None and mention.tglu_value is not None
    attention = column_mean_ref(
        query_ref(entity, mention.tglu_key),
        mention.tglu_key,
        mention.tglu_key_mask,
        entity.tglu_token_weight,
    )  # (B, N, L)
    context = np.einsum(
        "bnj,bjd->bnd", attention, mention.tglu_value, optimize=True
    )  # (B, N, D), centred over D
    return normed_ref(context, entity, constants)


def query_ref(entity: EntityArrays, like: Floats) -> Floats:
    """Token queries (N, L, D) in the dtype of ``like``, whatever they are stored in."""
    assert entity.tglu_query is not None
    query = _widen(entity.tglu_query, like)  # (N, L, D)
    if entity.tglu_query_scale is None:
        return query
    return query * _widen(entity.tglu_query_scale, like)[..., None]


def normed_ref(context: Floats, entity: EntityArrays, constants: FoldConstants) -> Floats:
    """Layer norm of contexts (B, N, D), centred over D, times the entities' global vectors; (B, N)."""
    assert entity.tglu_cls is not None and entity.tglu_bias is not None
    variance = (context * context).mean(-1)  # (B, N)
    projected = np.einsum("bnd,nd->bn", context, _widen(entity.tglu_cls, context))  # (B, N)
    return np.asarray(projected / np.sqrt(variance + constants.layer_norm_eps) + entity.tglu_bias)


def tglu_ref(mention: MentionArrays, entity: EntityArrays, g2l: Floats) -> Floats:
    """TGLU, (B, N): the mean of the global-global and the given global-local scores (equations 6 and 9)."""
    assert mention.text_cls is not None and entity.text_cls is not None
    g2g = mention.text_cls @ _widen(entity.text_cls, mention.text_cls).T  # (B, N)
    return np.asarray((g2g + g2l) / 2)


def dual_ref(
    query: Floats,
    query_scalars: Floats,
    key: Floats,
    key_scalars: Floats,
    gate_bias: float,
    bias_norm: float,
    eps: float,
) -> Floats:
    """One direction of VDLU for A query rows and K key rows, (A, K), by its closed form.

    Parameters
    ----------
    query, query_scalars : (A, 3, D), (A, 7); see ``QueryRole`` in ``mimic_engine/model/fold.py``
    key, key_scalars : (K, 3, D), (K, 7); see ``KeyRole``
    gate_bias, bias_norm : constants of the gate and squared norm of the centred bias
    eps : of both layer norms
    """
    width = query.shape[-1]
    u, cq, aq = query[:, 0], query[:, 1], query[:, 2]  # (A, D) each
    cv, av, k = key[:, 0], key[:, 1], key[:, 2]  # (K, D) each
    aq_u, u_beta, cq_cq, aq_gate, aq_aq, aq_beta, offset = (query_scalars[:, i, None] for i in range(7))
    cv_cv, av_gate, av_av, av_beta, av_k, k_beta, k_k = (key_scalars[None, :, i] for i in range(7))
    rstd = 1 / np.sqrt((cq_cq + cv_cv + 2 * (cq @ cv.T)) / width + eps)  # (A, K)
    gate = np.tanh(rstd * (aq_gate + av_gate) + gate_bias)  # (A, K)
    x_u = gate * (rstd * (aq_u + u @ av.T) + u_beta) + u @ k.T  # (A, K)
    mixed_mixed = aq_aq + av_av + 2 * (aq @ av.T)  # (A, K)
    mixed_k = aq @ k.T + av_k  # (A, K)
    x_x = (
        gate**2 * (rstd**2 * mixed_mixed + 2 * rstd * (aq_beta + av_beta) + bias_norm)
        + 2 * gate * (rstd * mixed_k + k_beta)
        + k_k
    )  # (A, K)
    return np.asarray(x_u / np.sqrt(x_x / width + eps) + offset)


def vdlu_ref(mention: MentionArrays, entity: EntityArrays, constants: FoldConstants) -> Floats:
    """VDLU, (B, N): the mean of the duals entity -> mention and mention -> entity (equations 10 to 14)."""
    assert mention.vdlu_query is not None and mention.vdlu_query_scalars is not None
    assert mention.vdlu_key is not None and mention.vdlu_key_scalars is not None
    assert entity.vdlu_query is not None and entity.vdlu_query_scalars is not None
    assert entity.vdlu_key is not None and entity.vdlu_key_scalars is not None
    to_mention = dual_ref(
        _widen(entity.vdlu_query, mention.vdlu_key),
        entity.vdlu_query_scalars,
        mention.vdlu_key,
        mention.vdlu_key_scalars,
        constants.gate_bias[0],
        constants.bias_norm[0],
        constants.layer_norm_eps,
    ).T  # (B, N)
    to_entity = dual_ref(
        mention.vdlu_query,
        mention.vdlu_query_scalars,
        _widen(entity.vdlu_key, mention.vdlu_query),
        entity.vdlu_key_scalars,
        constants.gate_bias[1],
        constants.bias_norm[1],
        constants.layer_norm_eps,
    )  # (B, N)
    return np.asarray((to_mention + to_entity) / 2)


def cmfu_ref(mention: MentionArrays, entity: EntityArrays) -> Floats:
    """CMFU, (B, N): an inner product of fused vectors (equations 15 to 18)."""
    assert mention.cmfu is not None and entity.cmfu is not None
    return np.asarray(mention.cmfu @ _widen(entity.cmfu, mention.cmfu).T)


def concat_ref(mention: MentionArrays, entity: EntityArrays) -> Floats:
    """The concatenation unit that replaces VDLU in an ablation, (B, N)."""
    assert mention.concat is not None and entity.concat is not None
    return np.asarray(mention.concat @ _widen(entity.concat, mention.concat).T)


def scores_ref(mention: MentionArrays, entity: EntityArrays, constants: FoldConstants) -> Scores:
    """Total (mean of the units that are on) and unit scores, (B, N) each."""
    g2l = g2l_ref(mention, entity, constants) if "tglu" in constants.units else None
    return scores_with_ref(g2l, mention, entity, constants)


def scores_with_ref(
    g2l: Floats | None, mention: MentionArrays, entity: EntityArrays, constants: FoldConstants
) -> Scores:
    """Scores as :func:`scores_ref` gives them, with other global-local scores (B, N) instead of TGLU's.

    The total grows with ``g2l``: an upper bound of it gives one of the total, an estimate an estimate.
    ``g2l`` is None where TGLU is off.
    """
    units: dict[str, Floats] = {}
    if g2l is not None:
        units["tglu"] = tglu_ref(mention, entity, g2l)
    if "vdlu" in constants.units:
        units["vdlu"] = vdlu_ref(mention, entity, constants)
    if "concat" in constants.units:
        units["concat"] = concat_ref(mention, entity)
    if "cmfu" in constants.units:
        units["cmfu"] = cmfu_ref(mention, entity)
    total = sum(units.values(), start=np.zeros(1)) / len(units)
    return Scores(np.asarray(total, dtype=next(iter(units.values())).dtype), units)


class NumpyScorer:
    """:func:`scores_ref` as a scorer of blocks: the twin of the exported graph's and PyTorch's."""

    name = "numpy"
    pairs_per_block = 128

    def __init__(self, constants: FoldConstants) -> None:
        self._constants = constants

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32."""
        return scores_ref(mentions, entities, self._constants)


def _widen(stored: Floats, like: Floats) -> Floats:
    """``stored`` in the dtype that the sums are done in."""
    return stored.astype(like.dtype, copy=False)
