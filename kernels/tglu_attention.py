"""Fused text global-local attention on the GPU: entity tokens and mention tokens in, (B, N) scores out.

For a mention b with keys K_b, centred values V_b and an entity n with scaled
queries Q_n, u_n = centred(LN.weight * fc_cls(cls)) and its token weights w_n:

    a = sum_i w_ni softmax_j(Q_n K_b')_ij          (the column mean; equation 7)
    z = a V_b,   g2l = u_n.z / sqrt(|z|^2 / D + eps) + LN.bias.fc_cls(cls)
    out = base + factor * g2l

No attention matrix reaches memory. A program takes ENTITIES entities and
MENTIONS mentions. Entity tokens lie one after the other in memory, so tiles of
ROWS token rows cross entity boundaries and waste none; the weighted column
sums over an entity's rows are then a product with a 0/1 matrix. The columns of
a mention are cut in two powers of two (40 = 32 + 8), and so is the width.
Dense over all entities, or over rows listed for each mention. The readable
twin is ``g2l_ref`` in ``kernels/reference.py``.

Storage of queries: float16, bfloat16, float32 (tensor-core products in three
tf32 parts, near fp32), or int8 with one scale a token row. Attention weights
are rounded to half precision for the column sums unless the storage is
float32. Non-finite input gives a non-finite score: of the whole tile of
entities if it is an entity's, of that mention alone if it is a mention's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimic_engine.kernels.tiles import Tile, check_shape, cover

LOG2E = 1.4426950408889634
ENTITIES = 16  # a program: 16 x 40 token rows are 5 tiles of 128
DENSE = Tile(rows=128, mentions=4, warps=8, stages=2)
DENSE_ONE = Tile(rows=128, mentions=1, warps=4, stages=3)
LISTED = Tile(rows=128, mentions=1, warps=4, stages=3)
PRECISE = Tile(rows=64, mentions=1, warps=4, stages=2)  # float32 storage: three times the operands
PRECISE_LISTED = Tile(rows=32, mentions=1, warps=4, stages=2)
# Tiles that the report times. Registers grow with mentions x columns; the rest is left out on purpose.
CANDIDATES = (DENSE_ONE, DENSE, Tile(64, 1, 4, 4), Tile(64, 2, 4, 3), Tile(128, 2, 8, 2), Tile(128, 2, 4, 2))


@dataclass(frozen=True, slots=True)
class TextMentions:
    """Keys and values of B mentions as the kernels read them; the padded axes are zero there."""

    key: Tensor  # (B, C, W) times log2(e), dtype of the products; C, W = sums of ``cover``
    value: Tensor  # (B, C, W) float32
    key_bias: Tensor  # (B, C) float32, 0 or -inf
    tokens: int  # L of the mentions
    width: int  # D
    masked: bool  # whether some column may be masked, so that ``key_bias`` must be read


def pack_text(key: Tensor, value: Tensor, mask: Tensor | None, dtype: torch.dtype) -> TextMentions:
    """Pad (B, L, D) keys and values to the kernels' tiles and fold log2(e) into the keys.

    Parameters
    ----------
    key, value : (B, L, D) float32; value rows centred over D.
    mask : (B, L), 1 = attend, or None.
    dtype : of the products: the entity queries' own, float16 where they are int8.

    Raises
    ------
    InvalidInputError
        If L or D has no tile.
    """
    batch, tokens, width = key.shape
    check_shape((tokens,), width)
    columns, padded = sum(cover(tokens)), sum(cover(width, 16))
    keys = key.new_zeros((batch, columns, padded), dtype=dtype)  # (B, C, W)
    keys[:, :tokens, :width] = (key * LOG2E).to(dtype)
    values = value.new_zeros((batch, columns, padded), dtype=torch.float32)  # (B, C, W)
    values[:, :tokens, :width] = value
    bias = key.new_full((batch, columns), float("-inf"), dtype=torch.float32)  # (B, C)
    bias[:, :tokens] = 0.0
    if mask is not None:
        bias[:, :tokens].masked_fill_(mask <= 0, float("-inf"))
    return TextMentions(keys, values, bias, tokens, width, mask is not None or columns > tokens)


@triton.jit
def _tile_of_keys(key, first, mentions, START: tl.constexpr, COUNT: tl.constexpr,
                  MENTIONS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
                  AT: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Keys of columns START:START+COUNT of MENTIONS mentions, values AT:AT+SIZE; (SIZE, MENTIONS * COUNT)."""
    j = tl.arange(0, MENTIONS * COUNT)
    mention = first + j // COUNT
    offset = (mention * COLUMNS + START + j % COUNT) * WIDTH + AT
    k = tl.arange(0, SIZE)
    return tl.load(key + offset[None, :] + k[:, None], mask=(mention < mentions)[None, :], other=0.0)


@triton.jit
def _tile_of_bias(key_bias, first, mentions, START: tl.constexpr, COUNT: tl.constexpr,
                  MENTIONS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Additive column masks, (MENTIONS * COUNT,); 0 for mentions beyond the last."""
    j = tl.arange(0, MENTIONS * COUNT)
    mention = first + j // COUNT
    return tl.load(key_bias + mention * COLUMNS + START + j % COUNT, mask=mention < mentions, other=0.0)


@triton.jit
def _context(mean, value, mention, START: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr,
             WIDTH: tl.constexpr, AT: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Mean (ENTITIES, COUNT) times the values of one mention's columns, (ENTITIES, SIZE)."""
    k = tl.arange(0, SIZE)
    if COUNT >= 16:
        c = tl.arange(0, COUNT)
        v = tl.load(value + (mention * COLUMNS + START + c[:, None]) * WIDTH + AT + k[None, :])
        return tl.dot(mean, v, input_precision=PRECISION)
    # A product needs an inner side of 16: every second column is zero.
    c2 = tl.arange(0, 2 * COUNT)
    wide = tl.reshape(tl.join(mean, tl.zeros_like(mean)), (mean.shape[0], 2 * COUNT))
    v = tl.load(value + (mention * COLUMNS + START + c2[:, None] // 2) * WIDTH + AT + k[None, :],
                mask=c2[:, None] % 2 == 0, other=0.0)  # fmt: skip
    return tl.dot(wide, v, input_precision=PRECISION)


@triton.jit
def _of_mention(means, m, COUNT: tl.constexpr, MENTIONS: tl.constexpr):
    """Columns of mention ``m``: (ENTITIES, MENTIONS * COUNT) to (ENTITIES, COUNT)."""
    if MENTIONS == 1:
        return means
    apart = tl.reshape(means, (means.shape[0], MENTIONS, COUNT))
    mine = tl.arange(0, MENTIONS)[None, :, None] == m
    return tl.sum(tl.where(mine, apart, 0.0), axis=1)


@triton.jit(do_not_specialize=["entities", "mentions", "stride", "row_stride", "nought"])
def tglu_attention_kernel(
    query, scale, weight, cls, bias, key, value, key_bias, rows, counts, base, out,
    entities, mentions, stride, row_stride, nought, eps, factor,
    TOKENS: tl.constexpr, D: tl.constexpr,
    C0: tl.constexpr, C1: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
    ENTITIES: tl.constexpr, ROWS: tl.constexpr, MENTIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_KEY_BIAS: tl.constexpr,
    HAS_BASE: tl.constexpr, LISTED: tl.constexpr, PRECISION: tl.constexpr, CONTEXT: tl.constexpr,
    FRESH_KEYS: tl.constexpr,
):  # fmt: skip
    """Program (mention block, entity block); mentions vary fastest, so that queries stay in the L2 cache.

    ``nought`` is 0, which the compiler does not know.
    """
    COLUMNS: tl.constexpr = C0 + C1
    WIDTH: tl.constexpr = W0 + W1
    blocks = tl.cdiv(mentions, MENTIONS)
    first_mention = (tl.program_id(0) % blocks) * MENTIONS
    first = (tl.program_id(0) // blocks) * ENTITIES
    count = entities
    if LISTED:
        count = tl.minimum(tl.load(counts + first_mention), entities)
        if first >= count:
            return
    work = key.dtype.element_ty  # of the products
    half = tl.float32 if work == tl.float32 else tl.float16  # of the attention weights

    if not FRESH_KEYS:
        key00 = _tile_of_keys(key, first_mention, mentions, 0, C0, MENTIONS, COLUMNS, WIDTH, 0, W0)
        if W1 > 0:
            key01 = _tile_of_keys(key, first_mention, mentions, 0, C0, MENTIONS, COLUMNS, WIDTH, W0, W1)
        if C1 > 0:
            key10 = _tile_of_keys(key, first_mention, mentions, C0, C1, MENTIONS, COLUMNS, WIDTH, 0, W0)
            if W1 > 0:
                key11 = _tile_of_keys(key, first_mention, mentions, C0, C1, MENTIONS, COLUMNS, WIDTH, W0, W1)
    if HAS_KEY_BIAS:
        bias0 = _tile_of_bias(key_bias, first_mention, mentions, 0, C0, MENTIONS, COLUMNS)
        if C1 > 0:
            bias1 = _tile_of_bias(key_bias, first_mention, mentions, C0, C1, MENTIONS, COLUMNS)

    mean0 = tl.zeros((ENTITIES, MENTIONS * C0), tl.float32)
    if C1 > 0:
        mean1 = tl.zeros((ENTITIES, MENTIONS * C1), tl.float32)
    k0 = tl.arange(0, W0)
    k1 = W0 + tl.arange(0, W1 if W1 > 0 else 16)
    for start in range(0, ENTITIES * TOKENS, ROWS):
        r = start + tl.arange(0, ROWS)  # token rows of this block of entities
        local = r // TOKENS
        inside = (local < ENTITIES) & (first + local < count)
        if LISTED:
            entity = tl.load(rows + first_mention * row_stride + first + local, mask=inside, other=0)
            token = entity.to(tl.int64) * TOKENS + r % TOKENS
        else:
            token = first.to(tl.int64) * TOKENS + r
        if FRESH_KEYS:  # hoisted, their parts would fill the registers
            fresh = key + start * nought
            key00 = _tile_of_keys(fresh, first_mention, mentions, 0, C0, MENTIONS, COLUMNS, WIDTH, 0, W0)
            if W1 > 0:
                key01 = _tile_of_keys(fresh, first_mention, mentions, 0, C0, MENTIONS, COLUMNS, WIDTH, W0, W1)
            if C1 > 0:
                key10 = _tile_of_keys(fresh, first_mention, mentions, C0, C1, MENTIONS, COLUMNS, WIDTH, 0, W0)
                if W1 > 0:
                    key11 = _tile_of_keys(
                        fresh, first_mention, mentions, C0, C1, MENTIONS, COLUMNS, WIDTH, W0, W1
                    )
        at = query + token[:, None] * D
        q0 = tl.load(at + k0[None, :], mask=inside[:, None] & (k0[None, :] < D), other=0).to(work)
        s0 = tl.dot(q0, key00, input_precision=PRECISION)  # (ROWS, MENTIONS * C0)
        if C1 > 0:
            s1 = tl.dot(q0, key10, input_precision=PRECISION)
        if W1 > 0:
            q1 = tl.load(at + k1[None, :], mask=inside[:, None] & (k1[None, :] < D), other=0).to(work)
            s0 = tl.dot(q1, key01, s0, input_precision=PRECISION)
            if C1 > 0:
                s1 = tl.dot(q1, key11, s1, input_precision=PRECISION)
        if HAS_SCALE:
            row_scale = tl.load(scale + token, mask=inside, other=0.0)
            s0 = s0 * row_scale[:, None]
            if C1 > 0:
                s1 = s1 * row_scale[:, None]
        if HAS_KEY_BIAS:
            s0 = s0 + bias0[None, :]
            if C1 > 0:
                s1 = s1 + bias1[None, :]
        p0 = tl.reshape(s0, (ROWS, MENTIONS, C0))
        highest = tl.max(p0, axis=2)  # (ROWS, MENTIONS)
        if C1 > 0:
            p1 = tl.reshape(s1, (ROWS, MENTIONS, C1))
            highest = tl.maximum(highest, tl.max(p1, axis=2))
        p0 = tl.exp2(p0 - highest[:, :, None])
        total = tl.sum(p0, axis=2)  # (ROWS, MENTIONS)
        if C1 > 0:
            p1 = tl.exp2(p1 - highest[:, :, None])
            total = total + tl.sum(p1, axis=2)
        share = 1.0 / total
        if HAS_WEIGHT:
            share = share * tl.load(weight + token, mask=inside, other=0.0)[:, None]
        own = (tl.arange(0, ENTITIES)[:, None] == local[None, :]).to(half)  # (ENTITIES, ROWS)
        p0 = tl.reshape(p0 * share[:, :, None], (ROWS, MENTIONS * C0)).to(half)
        mean0 = tl.dot(own, p0, mean0, input_precision=PRECISION)
        if C1 > 0:
            p1 = tl.reshape(p1 * share[:, :, None], (ROWS, MENTIONS * C1)).to(half)
            mean1 = tl.dot(own, p1, mean1, input_precision=PRECISION)

    i = first + tl.arange(0, ENTITIES)
    alive = i < count
    if LISTED:
        entity = tl.load(rows + first_mention * row_stride + i, mask=alive, other=0).to(tl.int64)
    else:
        entity = i.to(tl.int64)
    at = cls + entity[:, None] * D
    u0 = tl.load(at + k0[None, :], mask=alive[:, None] & (k0[None, :] < D), other=0.0).to(tl.float32)
    if W1 > 0:
        u1 = tl.load(at + k1[None, :], mask=alive[:, None] & (k1[None, :] < D), other=0.0).to(tl.float32)
    offset = tl.load(bias + entity, mask=alive, other=0.0)
    for m in tl.static_range(MENTIONS):
        mention = tl.minimum(first_mention + m, mentions - 1)
        a0 = _of_mention(mean0, m, C0, MENTIONS)
        z = _context(a0, value, mention, 0, C0, COLUMNS, WIDTH, 0, W0, CONTEXT)  # (ENTITIES, W0)
        if C1 > 0:
            a1 = _of_mention(mean1, m, C1, MENTIONS)
            z += _context(a1, value, mention, C0, C1, COLUMNS, WIDTH, 0, W0, CONTEXT)
        square = tl.sum(z * z, axis=1)
        projected = tl.sum(z * u0, axis=1)
        if W1 > 0:
            z = _context(a0, value, mention, 0, C0, COLUMNS, WIDTH, W0, W1, CONTEXT)  # (ENTITIES, W1)
            if C1 > 0:
                z += _context(a1, value, mention, C0, C1, COLUMNS, WIDTH, W0, W1, CONTEXT)
            square += tl.sum(z * z, axis=1)
            projected += tl.sum(z * u1, axis=1)
        if not HAS_WEIGHT:
            square = square * (1.0 / (TOKENS * TOKENS))
            projected = projected * (1.0 / TOKENS)
        g2l = projected / tl.sqrt(square / D + eps) + offset
        result = factor * g2l
        to = (first_mention + m).to(tl.int64) * stride + i
        write = alive & (first_mention + m < mentions)
        if HAS_BASE:
            result = tl.load(base + to, mask=write, other=0.0) + result
        tl.store(out + to, result, mask=write)


def tglu_attention(
    mentions: TextMentions,
    query: Tensor,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    scale: Tensor | None = None,
    weight: Tensor | None = None,
    base: Tensor | None = None,
    rows: Tensor | None = None,
    counts: Tensor | None = None,
    eps: float = 1e-5,
    factor: float = 1.0,
    tile: Tile | None = None,
) -> None:
    """Write ``base + factor * g2l`` of B mentions and n entities to ``out``.

    Parameters
    ----------
    mentions : of :func:`pack_text`.
    query, scale : (N, L, D); int8 comes with ``scale`` (N, L) float32.
    cls, bias : (N, D) and (N,) float32.
    weight : (N, L) float32, rows summing to 1, or None for the plain mean.
    base, out : (B, n) float32 with equal strides; n = N, or the lists' length; may be the same.
    rows, counts : (B, n) int32 rows of each mention, and how many of them count, (B,) int32; or neither.
    eps : of the layer norm.
    tile : launch options; token rows and mentions of a tile.
    """
    runtime, constants = arguments(
        mentions, query, cls, bias, out, scale=scale, weight=weight, base=base, rows=rows, counts=counts,
        eps=eps, factor=factor, tile=tile,
    )  # fmt: skip
    blocks = triton.cdiv(runtime["entities"], ENTITIES)
    grid = (blocks * triton.cdiv(runtime["mentions"], constants["MENTIONS"]),)
    tglu_attention_kernel[grid](**runtime, **constants)


def arguments(
    mentions: TextMentions,
    query: Tensor,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    scale: Tensor | None,
    weight: Tensor | None,
    base: Tensor | None,
    rows: Tensor | None,
    counts: Tensor | None,
    eps: float,
    factor: float,
    tile: Tile | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's run-time arguments and its constants with the launch options."""
    batch, (_, tokens, width) = mentions.key.shape[0], query.shape
    check_shape((tokens,), width)
    exact = mentions.key.dtype == torch.float32
    if tile is None:
        dense = PRECISE if exact else DENSE if batch > 1 else DENSE_ONE
        tile = dense if rows is None else PRECISE_LISTED if exact else LISTED
    c0, c1 = cover(mentions.tokens)
    w0, w1 = cover(width, 16)
    runtime = {
        "query": query, "scale": bias if scale is None else scale,
        "weight": bias if weight is None else weight,
        "cls": cls, "bias": bias, "key": mentions.key, "value": mentions.value,
        "key_bias": mentions.key_bias, "rows": bias if rows is None else rows,
        "counts": bias if counts is None else counts, "base": out if base is None else base, "out": out,
        "entities": out.shape[1], "mentions": batch, "stride": out.stride(0),
        "row_stride": 0 if rows is None else rows.stride(0), "nought": 0, "eps": eps, "factor": factor,
    }  # fmt: skip
    constants = {
        "TOKENS": tokens, "D": width, "C0": c0, "C1": c1, "W0": w0, "W1": w1, "ENTITIES": ENTITIES,
        "ROWS": tile.rows, "MENTIONS": 1 if rows is not None else tile.mentions,
        "HAS_SCALE": scale is not None, "HAS_WEIGHT": weight is not None, "HAS_KEY_BIAS": mentions.masked,
        "HAS_BASE": base is not None, "LISTED": rows is not None,
        "PRECISION": "tf32x3" if exact else "tf32", "CONTEXT": "tf32x3", "FRESH_KEYS": exact,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    return runtime, constants
