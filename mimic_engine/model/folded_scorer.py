"""The folded scores as a PyTorch module: what is exported as the scorer graph.

Same formulas as ``kernels/reference.py``, written with matrix products only
(no einsum), which ONNX Runtime runs about twice as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_engine.model.units import MatcherScores
from mimic_engine.types import FoldConstants


def tglu(mention: dict[str, Tensor], entity: dict[str, Tensor], eps: float) -> Tensor:
    """TGLU from folded arrays, (B, N)."""
    query, key = entity["tglu_query"], mention["tglu_key"]  # (N, Le, D), (B, Lm, D)
    (rows, tokens, width), (batch, key_tokens, _) = query.shape, key.shape
    keys = key.reshape(batch * key_tokens, width)  # (B Lm, D): one wide product, faster than B narrow ones
    logits = (query.reshape(rows * tokens, width) @ keys.T).unflatten(1, (batch, key_tokens))  # (N Le, B, Lm)
    if "tglu_key_mask" in mention:
        logits = logits + (1 - mention["tglu_key_mask"]) * torch.finfo(logits.dtype).min / 2
    attention = logits.softmax(-1).reshape(rows, tokens, batch * key_tokens)  # (N, Le, B Lm)
    if "tglu_token_weight" in entity:
        column_mean = (entity["tglu_token_weight"][:, None] @ attention)[:, 0]  # (N, B Lm)
    else:
        column_mean = attention.mean(1)  # (N, B Lm)
    column_mean = column_mean.unflatten(1, (batch, key_tokens)).transpose(0, 1)  # (B, N, Lm)
    context = column_mean @ mention["tglu_value"]  # (B, N, D)
    variance = (context * context).mean(-1)  # (B, N)
    projected = (context * entity["tglu_cls"]).sum(-1)  # (B, N)
    g2l = projected * torch.rsqrt(variance + eps) + entity["tglu_bias"]  # (B, N)
    g2g = mention["text_cls"] @ entity["text_cls"].T  # (B, N)
    return (g2g + g2l) / 2


def dual(
    query: Tensor,
    q: Tensor,
    key: Tensor,
    k: Tensor,
    gate_bias: float | Tensor,
    bias_norm: float | Tensor,
    eps: float,
) -> Tensor:
    """One direction of VDLU for A query rows (A, 3, D), (A, 7) and K key rows (K, 3, D), (K, 7); (A, K)."""
    width = query.shape[-1]
    by_query = query.transpose(0, 1)  # (3, A, D)
    by_key = key.permute(1, 2, 0)  # (3, D, K)
    u, cq, aq = by_query[0], by_query[1], by_query[2]  # (A, D)
    cv, av, kk = by_key[0], by_key[1], by_key[2]  # (D, K)
    qs, ks = q.T[:, :, None], k.T[:, None, :]  # (7, A, 1), (7, 1, K)
    rstd = torch.rsqrt((qs[2] + ks[0] + 2 * (cq @ cv)) / width + eps)  # (A, K)
    gate = torch.tanh(rstd * (qs[3] + ks[1]) + gate_bias)  # (A, K)
    x_u = gate * (rstd * (qs[0] + u @ av) + qs[1]) + u @ kk  # (A, K)
    mixed_mixed = qs[4] + ks[2] + 2 * (aq @ av)  # (A, K)
    mixed_k = aq @ kk + ks[4]  # (A, K)
    x_x = (
        gate * gate * (rstd * rstd * mixed_mixed + 2 * rstd * (qs[5] + ks[3]) + bias_norm)
        + 2 * gate * (rstd * mixed_k + ks[5])
        + ks[6]
    )  # (A, K)
    return x_u * torch.rsqrt(x_x / width + eps) + qs[6]


class FoldedScorer(nn.Module):
    """Scores of B mentions against N entities from their folded arrays, by name."""

    def __init__(self, constants: FoldConstants) -> None:
        super().__init__()
        self.constants = constants

    def _vdlu(self, mention: dict[str, Tensor], entity: dict[str, Tensor]) -> Tensor:
        c = self.constants
        to_mention = dual(
            entity["vdlu_query"],
            entity["vdlu_query_scalars"],
            mention["vdlu_key"],
            mention["vdlu_key_scalars"],
            c.gate_bias[0],
            c.bias_norm[0],
            c.layer_norm_eps,
        ).T  # (B, N)
        to_entity = dual(
            mention["vdlu_query"],
            mention["vdlu_query_scalars"],
            entity["vdlu_key"],
            entity["vdlu_key_scalars"],
            c.gate_bias[1],
            c.bias_norm[1],
            c.layer_norm_eps,
        )  # (B, N)
        return (to_mention + to_entity) / 2

    def forward(self, mention: dict[str, Tensor], entity: dict[str, Tensor]) -> MatcherScores:
        """Total and unit scores, (B, N) each."""
        units: dict[str, Tensor] = {}
        for name in self.constants.units:
            if name == "tglu":
                units[name] = tglu(mention, entity, self.constants.layer_norm_eps)
            elif name == "vdlu":
                units[name] = self._vdlu(mention, entity)
            else:
                units[name] = mention[name] @ entity[name].T  # (B, N)
        return MatcherScores(torch.stack(list(units.values())).mean(0), units)
