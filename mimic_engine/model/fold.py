"""Folding: everything that depends on one side alone, computed once (features -> folded arrays).

The folded arrays are the fields of :class:`mimic_engine.types.MentionArrays`
and :class:`~mimic_engine.types.EntityArrays`; the scores that follow from them
are written down in ``kernels/reference.py`` (NumPy) and, for export, in
:mod:`mimic_engine.model.folded_scorer` (PyTorch). Derivation of VDLU's closed form:

With a the query side and b the key side, ``c(x)`` the vector centred over D,
``W = fc.weight diag(LN1.weight)`` and ``beta = fc.weight LN1.bias + fc.bias``,

    cq = c(q), cv = c(v);  A_q = W cq, A_v = W cv
    r  = rsqrt((|cq|^2 + |cv|^2 + 2 cq.cv) / D + eps)          (LN1 of v + q)
    context = r (A_q + A_v) + beta;  g = tanh(gate_fc(context))
    x  = c(g context + k);  u = LN2.weight * LN2(q)
    score = (x.u) rsqrt(|x|^2 / D + eps) + LN2(q).LN2.bias

so a pair needs five inner products (u.A_v, u.k, cq.cv, A_q.A_v, A_q.k; A and k
centred) and, from each side, seven numbers of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic_engine.model.units import Dual, Features, Matcher, Side
from mimic_engine.types import FoldConstants


class QueryRole(NamedTuple):
    """Query side of one dual: vectors (R, 3, D) = u, cq, A_q; scalars (R, 7)."""

    vectors: Tensor
    scalars: Tensor  # A_q.u, u.beta, |cq|^2, A_q.gate, |A_q|^2, A_q.beta, LN2(q).LN2.bias


class KeyRole(NamedTuple):
    """Key side of one dual: vectors (R, 3, D) = cv, A_v, k; scalars (R, 7)."""

    vectors: Tensor
    scalars: Tensor  # |cv|^2, A_v.gate, |A_v|^2, A_v.beta, A_v.k, k.beta, |k|^2


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _mixing(dual: Dual) -> tuple[Tensor, Tensor]:
    """``W`` (D, D) and ``beta`` (D,) of one dual: LN1's affine part folded into ``fc``."""
    weight = dual.fc.weight * dual.add_layer_norm.weight  # (D, D)
    beta = dual.fc.weight @ dual.add_layer_norm.bias + dual.fc.bias  # (D,)
    return weight, beta


def fold_query_role(dual: Dual, image_cls: Tensor) -> QueryRole:
    """Fold the query side of one dual from layer-normed global image vectors (R, D)."""
    weight, beta = _mixing(dual)
    gate = dual.gate_fc.weight[0]  # (D,)
    query = dual.cls_fc(image_cls)  # (R, D)
    cq = _centred(query)  # (R, D)
    mixed = cq @ weight.T  # (R, D)
    normed = dual.layer_norm(query)  # (R, D)
    u = dual.layer_norm.weight * normed  # (R, D)
    a, b = _centred(mixed), _centred(beta)
    scalars = torch.stack(
        [
            _dot(a, u),
            _dot(b, u),
            _dot(cq, cq),
            mixed @ gate,
            _dot(a, a),
            _dot(a, b),
            normed @ dual.layer_norm.bias,
        ],
        dim=-1,
    )  # (R, 7)
    return QueryRole(torch.stack([u, cq, a], dim=1), scalars)  # (R, 3, D)


def fold_key_role(dual: Dual, image_cls: Tensor, image_tokens: Tensor) -> KeyRole:
    """Fold the key side of one dual from layer-normed global (R, D) and local (R, P, D) image vectors."""
    weight, beta = _mixing(dual)
    gate = dual.gate_fc.weight[0]  # (D,)
    key = _centred(dual.cls_fc(image_cls))  # (R, D)
    # tokens_fc is affine, so the mean over patches goes first: P times less work.
    cv = _centred(dual.tokens_fc(image_tokens.mean(-2)))  # (R, D)
    mixed = cv @ weight.T  # (R, D)
    a, b = _centred(mixed), _centred(beta)
    scalars = torch.stack(
        [_dot(cv, cv), mixed @ gate, _dot(a, a), _dot(a, b), _dot(a, key), _dot(key, b), _dot(key, key)],
        dim=-1,
    )  # (R, 7)
    return KeyRole(torch.stack([cv, a, key], dim=1), scalars)  # (R, 3, D)


class Fold(nn.Module, ABC):
    """Features of R rows of one side -> its folded arrays, by name; a side adds text part and duals."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    @abstractmethod
    def text(self, side: Side) -> dict[str, Tensor]:
        """Tensors that TGLU needs of this side, by name."""

    @abstractmethod
    def duals(self) -> tuple[Dual, Dual]:
        """The dual in which this side is the query, and the one in which it is the key."""

    def forward(
        self,
        text_cls: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor,
        image_cls: Tensor,
        image_tokens: Tensor,
    ) -> dict[str, Tensor]:
        """Shapes as in :class:`~mimic_engine.model.units.Features` and in the side's array group."""
        m = self.matcher
        side = m.normalise(Features(text_cls, text_tokens, text_mask, image_cls, image_tokens))
        out = self.text(side) if m.config.tglu else {}
        if m.config.vision == "vdlu":
            as_query, as_key = self.duals()
            query = fold_query_role(as_query, side.image_cls)
            key = fold_key_role(as_key, side.image_cls, side.image_tokens)
            out |= _vdlu_fields(query, key)
        if m.config.vision == "concat":
            out["concat"] = m.concat.side(side)  # (R, D)
        if m.config.cmfu:
            out["cmfu"] = m.cmfu.side(side)  # (R, D)
        return out


class FoldMention(Fold):
    """Features of B mentions -> the fields of ``MentionArrays``, by name."""

    def text(self, side: Side) -> dict[str, Tensor]:
        """Keys and centred values of the mention's tokens."""
        tglu = self.matcher.tglu
        out = {
            "text_cls": side.text_cls,  # (B, T)
            "tglu_key": tglu.fc_key(side.text_tokens),  # (B, L, D)
            "tglu_value": _centred(tglu.fc_value(side.text_tokens)),  # (B, L, D)
        }
        if self.matcher.config.mask_padding:
            out["tglu_key_mask"] = side.text_mask.to(side.text_cls.dtype)  # (B, L)
        return out

    def duals(self) -> tuple[Dual, Dual]:
        """Mention -> entity as the query, entity -> mention as the key."""
        return self.matcher.vdlu.dual_men2ent, self.matcher.vdlu.dual_ent2men


class FoldEntity(Fold):
    """Features of N entities -> the fields of ``EntityArrays``, by name."""

    def text(self, side: Side) -> dict[str, Tensor]:
        """Scaled queries of the entity's tokens, and its global vector with the layer norm folded in."""
        tglu = self.matcher.tglu
        cls = tglu.fc_cls(side.text_cls)  # (N, D)
        out = {
            "text_cls": side.text_cls,  # (N, T)
            "tglu_query": tglu.fc_query(side.text_tokens)
            / math.sqrt(self.matcher.config.hidden),  # (N, L, D)
        }
        if self.matcher.config.mask_padding:
            out["tglu_token_weight"] = tglu.token_weight(side.text_mask)  # (N, L)
        out["tglu_cls"] = _centred(cls * tglu.layer_norm.weight)  # (N, D)
        out["tglu_bias"] = cls @ tglu.layer_norm.bias  # (N,)
        return out

    def duals(self) -> tuple[Dual, Dual]:
        """Entity -> mention as the query, mention -> entity as the key."""
        return self.matcher.vdlu.dual_ent2men, self.matcher.vdlu.dual_men2ent


def _vdlu_fields(query: QueryRole, key: KeyRole) -> dict[str, Tensor]:
    return {
        "vdlu_query": query.vectors,
        "vdlu_query_scalars": query.scalars,
        "vdlu_key": key.vectors,
        "vdlu_key_scalars": key.scalars,
    }


def fold_constants(matcher: Matcher) -> FoldConstants:
    """The few numbers of the model that the folded scores need; computed in float64."""
    units = matcher.config.units
    if matcher.config.vision != "vdlu":
        return FoldConstants(matcher.config.hidden, units)
    gate_bias, bias_norm = [], []
    with torch.no_grad():
        for dual in (matcher.vdlu.dual_ent2men, matcher.vdlu.dual_men2ent):
            fc, norm = dual.fc.weight.double(), dual.add_layer_norm.bias.double()
            beta = fc @ norm + dual.fc.bias.double()  # (D,)
            gate_bias.append(float(beta @ dual.gate_fc.weight[0].double() + dual.gate_fc.bias.double()[0]))
            bias_norm.append(float(_dot(_centred(beta), _centred(beta))))
    return FoldConstants(
        matcher.config.hidden,
        units,
        gate_bias=(gate_bias[0], gate_bias[1]),
        bias_norm=(bias_norm[0], bias_norm[1]),
    )
