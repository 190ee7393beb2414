"""TGLU's global-local score from codes on the GPU: an embedding bag per entity, layer norm, dot; (B, N) out.

An entity token is known by the code of its nearest centroid alone. For a
mention b, one table row a centroid (``coded_table_kernel``):

    P_b = softmax(centroids K_b')                                (C, L)

then for an entity with codes c_i and token weights w_i

    a = sum_i w_i P_b[c_i],  z = a V_b,  g2l = u.z / sqrt(|z|^2 / D + eps) + LN.bias.fc_cls(cls)

which is TGLU with every query replaced by its centroid; no exponential a pair.
The table of probabilities rather than of contexts P_b V_b is gathered: a row is
40 halves, one cache line, and V_b is a small product at the end. Codes lie
token by token, (L, N), so that the entities of a tile read them side by side.
An estimate: the scan re-scores the best exactly. The readable twins are
``tables_ref`` and ``estimates_ref`` in ``kernels/coded_tglu_ref.py``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mimic_engine.kernels.tglu_attention import TextMentions
from mimic_engine.kernels.tiles import Tile, check_shape, cover, power_of_two

TABLE = Tile(rows=64, warps=4, stages=2)  # centroids of a program
BAG = Tile(rows=64, warps=4, stages=2)  # entities of a program
CANDIDATES = (BAG, Tile(32, 1, 4, 2), Tile(128, 1, 8, 2))


@triton.jit(do_not_specialize=["centroids"])
def coded_table_kernel(
    centre, key, key_bias, table, centroids,
    D: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    W0: tl.constexpr, W1: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (centroid block, mention): rows of P_b, columns beyond the mention's tokens zero."""
    mention = tl.program_id(1)
    c = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PITCH)
    k0 = tl.arange(0, W0)
    keys = key + (mention * COLUMNS + column[None, :]) * WIDTH
    real = column < COLUMNS
    x = tl.load(centre + c[:, None] * D + k0[None, :],
                mask=(c < centroids)[:, None] & (k0[None, :] < D), other=0.0).to(tl.float32)  # fmt: skip
    y = tl.load(keys + k0[:, None], mask=real[None, :], other=0.0).to(tl.float32)
    s = tl.dot(x, y, input_precision=PRECISION)  # (ROWS, PITCH)
    if W1 > 0:
        k1 = W0 + tl.arange(0, W1)
        x = tl.load(centre + c[:, None] * D + k1[None, :],
                    mask=(c < centroids)[:, None] & (k1[None, :] < D), other=0.0).to(tl.float32)  # fmt: skip
        y = tl.load(keys + k1[:, None], mask=real[None, :], other=0.0).to(tl.float32)
        s = tl.dot(x, y, s, input_precision=PRECISION)
    s += tl.load(key_bias + mention * COLUMNS + column, mask=real, other=float("-inf"))[None, :]
    p = tl.exp2(s - tl.max(s, axis=1)[:, None])
    p = p / tl.sum(p, axis=1)[:, None]
    to = (mention.to(tl.int64) * centroids + c[:, None]) * PITCH + column[None, :]
    tl.store(table + to, p.to(table.dtype.element_ty), mask=(c < centroids)[:, None])


@triton.jit
def _values(a, value, mention, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
            AT: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """A (ROWS, PITCH) times values AT:AT+SIZE of a mention, (ROWS, SIZE)."""
    column = tl.arange(0, PITCH)
    k = AT + tl.arange(0, SIZE)
    v = tl.load(value + (mention * COLUMNS + column[:, None]) * WIDTH + k[None, :],
                mask=(column < COLUMNS)[:, None], other=0.0)  # fmt: skip
    return tl.dot(a, v, input_precision="tf32")


@triton.jit(do_not_specialize=["entities", "stride", "code_stride", "centroids"])
def coded_tglu_kernel(
    codes, weight, table, value, cls, bias, base, out,
    entities, stride, code_stride, centroids, eps, factor,
    TOKENS: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    W0: tl.constexpr, W1: tl.constexpr, ROWS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BASE: tl.constexpr,
):  # fmt: skip
    """Program (entity block, mention); entity blocks fastest, so that a mention's table stays in cache."""
    blocks = tl.cdiv(entities, ROWS)
    mention = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    alive = i < entities
    entity = i.to(tl.int64)
    column = tl.arange(0, PITCH)
    rows = table + mention.to(tl.int64) * centroids * PITCH + column[None, :]
    a = tl.zeros((ROWS, PITCH), tl.float32)
    for token in tl.range(0, TOKENS, loop_unroll_factor=4):
        at = token * code_stride.to(tl.int64) + entity
        code = tl.load(codes + at, mask=alive, other=0).to(tl.int32)
        p = tl.load(rows + code[:, None] * PITCH, mask=(column < COLUMNS)[None, :], other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            p = p * tl.load(weight + at, mask=alive, other=0.0)[:, None]
        a += p
    k0 = tl.arange(0, W0)
    z = _values(a, value, mention, COLUMNS, WIDTH, PITCH, 0, W0)
    u = tl.load(cls + entity[:, None] * D + k0[None, :],
                mask=alive[:, None] & (k0[None, :] < D), other=0.0).to(tl.float32)  # fmt: skip
    square = tl.sum(z * z, axis=1)
    projected = tl.sum(z * u, axis=1)
    if W1 > 0:
        k1 = W0 + tl.arange(0, W1)
        z = _values(a, value, mention, COLUMNS, WIDTH, PITCH, W0, W1)
        u = tl.load(cls + entity[:, None] * D + k1[None, :],
                    mask=alive[:, None] & (k1[None, :] < D), other=0.0).to(tl.float32)  # fmt: skip
        square += tl.sum(z * z, axis=1)
        projected += tl.sum(z * u, axis=1)
    if not HAS_WEIGHT:
        square = square * (1.0 / (TOKENS * TOKENS))
        projected = projected * (1.0 / TOKENS)
    g2l = projected / tl.sqrt(square / D + eps) + tl.load(bias + entity, mask=alive, other=0.0)
    result = factor * g2l
    to = mention.to(tl.int64) * stride + i
    if HAS_BASE:
        result = tl.load(base + to, mask=alive, other=0.0) + result
    tl.store(out + to, result, mask=alive)


def table_shape(mentions: TextMentions, centroids: int) -> tuple[int, int, int]:
    """Shape of the tables of B mentions, (B, C, pitch), float16."""
    return mentions.key.shape[0], centroids, power_of_two(mentions.key.shape[1])


def coded_table(mentions: TextMentions, centroids: Tensor, table: Tensor, *, tile: Tile = TABLE) -> None:
    """Write the softmax rows of C centroids for B mentions to ``table``.

    Parameters
    ----------
    mentions : of ``pack_text``.
    centroids : (C, D) float32.
    table : (B, C, pitch) of :func:`table_shape`, float16 (or float32).
    tile : launch options; centroids of a tile.
    """
    runtime, constants = table_arguments(mentions, centroids, table, tile=tile)
    grid = (triton.cdiv(centroids.shape[0], constants["ROWS"]), mentions.key.shape[0])
    coded_table_kernel[grid](**runtime, **constants)


def table_arguments(
    mentions: TextMentions, centroids: Tensor, table: Tensor, *, tile: Tile
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table kernel's run-time arguments and its constants with the launch options."""
    width = centroids.shape[1]
    w0, w1 = cover(width, 16)
    runtime = {
        "centre": centroids, "key": mentions.key, "key_bias": mentions.key_bias, "table": table,
        "centroids": centroids.shape[0],
    }  # fmt: skip
    constants = {
        "D": width, "COLUMNS": mentions.key.shape[1], "WIDTH": mentions.key.shape[2], "PITCH": table.shape[2],
        "W0": w0, "W1": w1, "ROWS": tile.rows, "PRECISION": "tf32",
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    return runtime, constants


def coded_tglu(
    mentions: TextMentions,
    table: Tensor,
    codes: Tensor,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    weight: Tensor | None = None,
    base: Tensor | None = None,
    eps: float = 1e-5,
    factor: float = 1.0,
    tile: Tile = BAG,
) -> None:
    """Write ``base + factor * g2l``, by the codes, of B mentions and N entities to ``out``.

    Parameters
    ----------
    mentions, table : of ``pack_text`` and :func:`coded_table`.
    codes : (L, N) uint8 or uint16, token by token.
    cls, bias : (N, D) and (N,) float32.
    weight : (L, N) float32, token by token, or None for the plain mean.
    base, out : (B, N) float32 with equal strides; may be the same.
    eps : of the layer norm.
    tile : launch options; entities of a tile.
    """
    runtime, constants = arguments(
        mentions, table, codes, cls, bias, out, weight=weight, base=base, eps=eps, factor=factor, tile=tile
    )
    grid = (triton.cdiv(out.shape[1], constants["ROWS"]) * mentions.key.shape[0],)
    coded_tglu_kernel[grid](**runtime, **constants)


def arguments(
    mentions: TextMentions,
    table: Tensor,
    codes: Tensor,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    weight: Tensor | None,
    base: Tensor | None,
    eps: float,
    factor: float,
    tile: Tile,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's run-time arguments and its constants with the launch options."""
    tokens, width = codes.shape[0], cls.shape[1]
    check_shape((tokens,), width)
    w0, w1 = cover(width, 16)
    runtime = {
        "codes": codes, "weight": bias if weight is None else weight, "table": table, "value": mentions.value,
        "cls": cls, "bias": bias, "base": out if base is None else base, "out": out,
        "entities": out.shape[1], "stride": out.stride(0),
        "code_stride": codes.stride(0), "centroids": table.shape[1], "eps": eps, "factor": factor,
    }  # fmt: skip
    constants = {
        "TOKENS": tokens, "D": width, "COLUMNS": mentions.key.shape[1], "WIDTH": mentions.key.shape[2],
        "PITCH": table.shape[2], "W0": w0, "W1": w1, "ROWS": tile.rows,
        "HAS_WEIGHT": weight is not None, "HAS_BASE": base is not None,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    return runtime, constants
