"""All of a score but TGLU's global-local part, in one pass over the entities on the GPU; (B, N) out.

For a mention b and an entity n, from the folded vectors of both sides
(``mimic_engine/model/fold.py``; twins ``vdlu_ref``, ``cmfu_ref``, ``concat_ref``
and g2g of ``tglu_ref`` in ``kernels/reference.py``):

    g2g  = <text_cls_b, text_cls_n>                                  (equation 6)
    VDLU = mean of two closed forms of five inner products each      (equations 10 to 14)
    CMFU = <cmfu_b, cmfu_n>                                          (equations 15 to 18)
    out  = (g2g / 2 + VDLU + CMFU) / units

(or <concat_b, concat_n> in place of VDLU, as in the ablation).

No inner product reaches memory. A program takes a tile of entities and one of
mentions (``Tile.rows`` x ``Tile.mentions``) and reads each entity vector once.
Entity vectors are used exactly as stored: the mention's float32 vectors are
split into two float16 (three bfloat16) terms whose products are summed in
float32; float32 storage takes tensor-core products in three tf32 parts.
Dense over all entities, or over rows listed for each mention. With
``units=True`` the parts are written one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimic_engine.kernels.tiles import Tile
from mimic_engine.types import FoldConstants

TERMS = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 1}  # of a float32 number, in the storage type
PARTS = ("g2g", "vision", "cmfu")  # order of the unit scores; vision is VDLU or the concatenation unit
TILE = Tile(rows=64, mentions=16, warps=4, stages=3)  # 32 mentions would spill: five sums a pair at once
CANDIDATES = (TILE, Tile(32, 16, 4, 3), Tile(64, 16, 4, 2))


@dataclass(frozen=True, slots=True)
class GlobalMentions:
    """Vectors of B mentions in TERMS terms each, and their scalars; None where a unit is off."""

    batch: int
    text: Tensor | None  # (TERMS, B, T)
    query: Tensor | None  # (TERMS, B, 3, D)
    query_scalars: Tensor | None  # (B, 7) float32
    key: Tensor | None  # (TERMS, B, 3, D)
    key_scalars: Tensor | None  # (B, 7) float32
    concat: Tensor | None  # (TERMS, B, D)
    cmfu: Tensor | None  # (TERMS, B, D)


@dataclass(frozen=True, slots=True)
class GlobalEntities:
    """Stored vectors of N entities on the device; absent parts belong to units that are off."""

    text: Tensor | None  # (N, T)
    query: Tensor | None  # (N, 3, D)
    query_scalars: Tensor | None  # (N, 7) float32
    key: Tensor | None  # (N, 3, D)
    key_scalars: Tensor | None  # (N, 7) float32
    concat: Tensor | None  # (N, D)
    cmfu: Tensor | None  # (N, D)


def split_terms(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` (...) float32 as a sum of few numbers of ``dtype``, (TERMS, ...)."""
    terms, rest = [], values.float()
    for _ in range(TERMS[dtype]):
        terms.append(rest.to(dtype))
        rest = rest - terms[-1].float()
    return torch.stack(terms).contiguous()


@triton.jit
def _entity_tile(vectors, entity, alive, k, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr):
    """Values k of a vector of each entity, (ROWS, STEP)."""
    at = vectors + entity[:, None] * STRIDE + OFFSET + k[None, :]
    return tl.load(at, mask=alive[:, None] & (k[None, :] < WIDTH), other=0.0)


@triton.jit
def _mention_tile(vectors, mention, live, k, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr):
    """Values k of a vector of each mention, (STEP, MENTIONS)."""
    at = vectors + mention[None, :] * STRIDE + OFFSET + k[:, None]
    return tl.load(at, mask=live[None, :] & (k[:, None] < WIDTH), other=0.0)


@triton.jit
def _inner(entities, mentions, entity, alive, mention, live, batch,
           ROWS: tl.constexpr, MENTIONS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
           TERMS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Inner products of one vector a side, (ROWS, MENTIONS)."""
    total = tl.zeros((ROWS, MENTIONS), tl.float32)
    for start in range(0, WIDTH, STEP):
        k = start + tl.arange(0, STEP)
        e = _entity_tile(entities, entity, alive, k, WIDTH, 0, WIDTH)
        for t in tl.static_range(TERMS):
            m = _mention_tile(mentions + t * batch * WIDTH, mention, live, k, WIDTH, 0, WIDTH)
            total = tl.dot(e, m, total, input_precision=PRECISION)
    return total


@triton.jit
def _scalar(scalars, index, alive, SLOT: tl.constexpr):
    return tl.load(scalars + index * 7 + SLOT, mask=alive, other=0.0)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _dual(entities, entity_scalars, mentions, mention_scalars, entity, alive, mention, live, batch,
          gate_bias, bias_norm, eps, ROWS: tl.constexpr, MENTIONS: tl.constexpr, D: tl.constexpr,
          STEP: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
          ENTITY_IS_QUERY: tl.constexpr):  # fmt: skip
    """One direction of VDLU by its closed form, (ROWS, MENTIONS)."""
    u_av = tl.zeros((ROWS, MENTIONS), tl.float32)
    u_k = tl.zeros((ROWS, MENTIONS), tl.float32)
    cq_cv = tl.zeros((ROWS, MENTIONS), tl.float32)
    aq_av = tl.zeros((ROWS, MENTIONS), tl.float32)
    aq_k = tl.zeros((ROWS, MENTIONS), tl.float32)
    for start in range(0, D, STEP):
        k = start + tl.arange(0, STEP)
        e0 = _entity_tile(entities, entity, alive, k, 3 * D, 0, D)
        e1 = _entity_tile(entities, entity, alive, k, 3 * D, D, D)
        e2 = _entity_tile(entities, entity, alive, k, 3 * D, 2 * D, D)
        for t in tl.static_range(TERMS):
            at = mentions + t * batch * 3 * D
            m0 = _mention_tile(at, mention, live, k, 3 * D, 0, D)
            m1 = _mention_tile(at, mention, live, k, 3 * D, D, D)
            m2 = _mention_tile(at, mention, live, k, 3 * D, 2 * D, D)
            if ENTITY_IS_QUERY:  # e = u, cq, A_q; m = cv, A_v, k
                u_av = tl.dot(e0, m1, u_av, input_precision=PRECISION)
                u_k = tl.dot(e0, m2, u_k, input_precision=PRECISION)
                cq_cv = tl.dot(e1, m0, cq_cv, input_precision=PRECISION)
                aq_av = tl.dot(e2, m1, aq_av, input_precision=PRECISION)
                aq_k = tl.dot(e2, m2, aq_k, input_precision=PRECISION)
            else:  # e = cv, A_v, k; m = u, cq, A_q
                u_av = tl.dot(e1, m0, u_av, input_precision=PRECISION)
                u_k = tl.dot(e2, m0, u_k, input_precision=PRECISION)
                cq_cv = tl.dot(e0, m1, cq_cv, input_precision=PRECISION)
                aq_av = tl.dot(e1, m2, aq_av, input_precision=PRECISION)
                aq_k = tl.dot(e2, m2, aq_k, input_precision=PRECISION)
    if ENTITY_IS_QUERY:
        qs, qi, ql, ks, ki, kl = entity_scalars, entity, alive, mention_scalars, mention, live
    else:
        qs, qi, ql, ks, ki, kl = mention_scalars, mention, live, entity_scalars, entity, alive
    aq_u, u_beta, cq_cq, aq_gate = _scalar(qs, qi, ql, 0), _scalar(qs, qi, ql, 1), _scalar(qs, qi, ql, 2), _scalar(qs, qi, ql, 3)  # fmt: skip  # noqa: E501
    aq_aq, aq_beta, offset = _scalar(qs, qi, ql, 4), _scalar(qs, qi, ql, 5), _scalar(qs, qi, ql, 6)
    cv_cv, av_gate, av_av, av_beta = _scalar(ks, ki, kl, 0), _scalar(ks, ki, kl, 1), _scalar(ks, ki, kl, 2), _scalar(ks, ki, kl, 3)  # fmt: skip  # noqa: E501
    av_k, k_beta, k_k = _scalar(ks, ki, kl, 4), _scalar(ks, ki, kl, 5), _scalar(ks, ki, kl, 6)
    if ENTITY_IS_QUERY:
        aq_u, u_beta, cq_cq, aq_gate = aq_u[:, None], u_beta[:, None], cq_cq[:, None], aq_gate[:, None]
        aq_aq, aq_beta, offset = aq_aq[:, None], aq_beta[:, None], offset[:, None]
        cv_cv, av_gate, av_av, av_beta = cv_cv[None, :], av_gate[None, :], av_av[None, :], av_beta[None, :]
        av_k, k_beta, k_k = av_k[None, :], k_beta[None, :], k_k[None, :]
    else:
        aq_u, u_beta, cq_cq, aq_gate = aq_u[None, :], u_beta[None, :], cq_cq[None, :], aq_gate[None, :]
        aq_aq, aq_beta, offset = aq_aq[None, :], aq_beta[None, :], offset[None, :]
        cv_cv, av_gate, av_av, av_beta = cv_cv[:, None], av_gate[:, None], av_av[:, None], av_beta[:, None]
        av_k, k_beta, k_k = av_k[:, None], k_beta[:, None], k_k[:, None]
    rstd = 1.0 / tl.sqrt((cq_cq + cv_cv + 2.0 * cq_cv) / D + eps)
    gate = _tanh(rstd * (aq_gate + av_gate) + gate_bias)
    x_u = gate * (rstd * (aq_u + u_av) + u_beta) + u_k
    mixed = aq_aq + av_av + 2.0 * aq_av
    x_x = (gate * gate * (rstd * rstd * mixed + 2.0 * rstd * (aq_beta + av_beta) + bias_norm)
           + 2.0 * gate * (rstd * (aq_k + av_k) + k_beta) + k_k)  # fmt: skip
    return x_u / tl.sqrt(x_x / D + eps) + offset


@triton.jit(do_not_specialize=["entities", "mentions", "stride", "row_stride", "part_stride"])
def gated_units_kernel(
    e_text, e_query, e_query_scalars, e_key, e_key_scalars, e_concat, e_cmfu,
    m_text, m_query, m_query_scalars, m_key, m_key_scalars, m_concat, m_cmfu,
    rows, counts, out, entities, mentions, stride, row_stride, part_stride,
    gate_bias_0, gate_bias_1, bias_norm_0, bias_norm_1, eps, scale,
    T: tl.constexpr, D: tl.constexpr, CONCAT: tl.constexpr, CMFU: tl.constexpr, STEP: tl.constexpr,
    TERMS: tl.constexpr, ROWS: tl.constexpr, MENTIONS: tl.constexpr, PRECISION: tl.constexpr,
    UNITS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Program (mention block, entity block), mentions fastest; widths of 0 mean that a unit is off."""
    blocks = mentions if LISTED else tl.cdiv(mentions, MENTIONS)
    first_mention = (tl.program_id(0) % blocks) * (1 if LISTED else MENTIONS)
    first = (tl.program_id(0) // blocks) * ROWS
    j = tl.arange(0, MENTIONS)
    mention = first_mention + j
    live = mention < mentions
    i = first + tl.arange(0, ROWS)
    count = entities
    if LISTED:  # the other columns of the tile are idle
        live = j == 0
        count = tl.minimum(tl.load(counts + first_mention), entities)
        if first >= count:
            return
    alive = i < count
    if LISTED:
        entity = tl.load(rows + first_mention * row_stride + i, mask=alive, other=0).to(tl.int64)
    else:
        entity = i.to(tl.int64)
    to = mention[None, :].to(tl.int64) * stride + i[:, None]
    write = alive[:, None] & live[None, :]
    total = tl.zeros((ROWS, MENTIONS), tl.float32)
    if T > 0:
        g2g = _inner(
            e_text, m_text, entity, alive, mention, live, mentions, ROWS, MENTIONS, T, 64, TERMS, PRECISION
        )
        total += 0.5 * g2g
        if UNITS:
            tl.store(out + to, g2g, mask=write)
    if D > 0:
        forth = _dual(e_query, e_query_scalars, m_key, m_key_scalars, entity, alive, mention, live, mentions,
                      gate_bias_0, bias_norm_0, eps,
                      ROWS, MENTIONS, D, STEP, TERMS, PRECISION, True)  # fmt: skip
        back = _dual(e_key, e_key_scalars, m_query, m_query_scalars, entity, alive, mention, live, mentions,
                     gate_bias_1, bias_norm_1, eps,
                     ROWS, MENTIONS, D, STEP, TERMS, PRECISION, False)  # fmt: skip
        vdlu = 0.5 * (forth + back)
        total += vdlu
        if UNITS:
            tl.store(out + part_stride + to, vdlu, mask=write)
    if CONCAT > 0:
        concat = _inner(e_concat, m_concat, entity, alive, mention, live, mentions,
                        ROWS, MENTIONS, CONCAT, STEP, TERMS, PRECISION)  # fmt: skip
        total += concat
        if UNITS:
            tl.store(out + part_stride + to, concat, mask=write)
    if CMFU > 0:
        cmfu = _inner(e_cmfu, m_cmfu, entity, alive, mention, live, mentions,
                      ROWS, MENTIONS, CMFU, STEP, TERMS, PRECISION)  # fmt: skip
        total += cmfu
        if UNITS:
            tl.store(out + 2 * part_stride + to, cmfu, mask=write)
    if not UNITS:
        tl.store(out + to, total * scale, mask=write)


def pack_globals(mentions: Mapping[str, Tensor], dtype: torch.dtype) -> GlobalMentions:
    """The fields of ``MentionArrays`` on the device, float32, split for entity vectors of ``dtype``."""

    def split(name: str) -> Tensor | None:
        return split_terms(mentions[name], dtype) if name in mentions else None

    return GlobalMentions(
        batch=next(iter(mentions.values())).shape[0],
        text=split("text_cls"),
        query=split("vdlu_query"),
        query_scalars=mentions.get("vdlu_query_scalars"),
        key=split("vdlu_key"),
        key_scalars=mentions.get("vdlu_key_scalars"),
        concat=split("concat"),
        cmfu=split("cmfu"),
    )


def global_entities(entities: Mapping[str, Tensor]) -> GlobalEntities:
    """The fields of ``EntityArrays`` on the device that this kernel reads."""
    return GlobalEntities(
        text=entities.get("text_cls"),
        query=entities.get("vdlu_query"),
        query_scalars=entities.get("vdlu_query_scalars"),
        key=entities.get("vdlu_key"),
        key_scalars=entities.get("vdlu_key_scalars"),
        concat=entities.get("concat"),
        cmfu=entities.get("cmfu"),
    )


def gated_units(
    mentions: GlobalMentions,
    entities: GlobalEntities,
    constants: FoldConstants,
    out: Tensor,
    *,
    rows: Tensor | None = None,
    counts: Tensor | None = None,
    units: bool = False,
    tile: Tile = TILE,
) -> None:
    """Write the totals less TGLU's global-local part, (B, n), or the parts one by one, (3, B, n), to ``out``.

    Parameters
    ----------
    mentions, entities : of :func:`pack_globals` and :func:`global_entities`, of the same storage type.
    constants : of the model.
    out : (B, n) float32, or (3, B, n) in the order of :data:`PARTS`; n = N, or the lists' length.
    rows, counts : (B, n) int32 rows of each mention, and how many of them count, (B,) int32; or neither.
    units : write the parts; those of units that are off are left as they are.
    tile : launch options; entities and mentions of a tile.
    """
    runtime, fixed = arguments(
        mentions, entities, constants, out, rows=rows, counts=counts, units=units, tile=tile
    )
    across = mentions.batch if rows is not None else triton.cdiv(mentions.batch, fixed["MENTIONS"])
    grid = (across * triton.cdiv(runtime["entities"], fixed["ROWS"]),)
    gated_units_kernel[grid](**runtime, **fixed)


def arguments(
    mentions: GlobalMentions,
    entities: GlobalEntities,
    constants: FoldConstants,
    out: Tensor,
    *,
    rows: Tensor | None,
    counts: Tensor | None,
    units: bool,
    tile: Tile,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's run-time arguments and its constants with the launch options."""
    names = ("text", "query", "query_scalars", "key", "key_scalars", "concat", "cmfu")
    pairs = {name: (getattr(entities, name), getattr(mentions, name)) for name in names}
    off = {name for name, (e, m) in pairs.items() if e is None or m is None}

    def width(name: str) -> int:
        return 0 if name in off else pairs[name][0].shape[-1]

    runtime = {f"e_{name}": out if name in off else e for name, (e, _) in pairs.items()}
    runtime |= {f"m_{name}": out if name in off else m for name, (_, m) in pairs.items()}
    runtime |= {
        "rows": out if rows is None else rows, "counts": out if counts is None else counts, "out": out,
        "entities": out.shape[-1], "mentions": mentions.batch, "stride": out.stride(-2),
        "row_stride": 0 if rows is None else rows.stride(0), "part_stride": out.stride(0) if units else 0,
        "gate_bias_0": constants.gate_bias[0], "gate_bias_1": constants.gate_bias[1],
        "bias_norm_0": constants.bias_norm[0], "bias_norm_1": constants.bias_norm[1],
        "eps": constants.layer_norm_eps, "scale": 1.0 / len(constants.units),
    }  # fmt: skip
    stored = next(e.dtype for name, (e, _) in pairs.items() if name not in off and "scalars" not in name)
    fixed = {
        "T": width("text"), "D": width("query"), "CONCAT": width("concat"), "CMFU": width("cmfu"),
        "STEP": 16 if stored == torch.float32 else 32, "TERMS": TERMS[stored],
        "ROWS": tile.rows, "MENTIONS": tile.mentions,
        "PRECISION": "tf32x3" if stored == torch.float32 else "tf32", "UNITS": units,
        "LISTED": rows is not None, "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    return runtime, fixed
