"""The cone bound on the GPU: upper bounds of TGLU's global-local score without an exponential; (B, N).

The theorem, its proof and the readable twin are in ``kernels/cone_bound_ref.py``:
with unit value rows z_j of a mention, G = Z Z', an entity's u and t = Z u, any
x >= 0 and any axis a with Z a > 0 give a bound,

    sqrt(x'Gx + 2 kappa x'Za + kappa^2),    kappa = max(0, max_j (t - G x)_j / (Z a)_j).

What differs here is how x is found. A processor core sweeps over the columns,
one after the other; a tile of entities takes a few steps of accelerated
projected gradient instead, x <- max(0, y + (t - G y) / lambda), each one a small
tensor-core product. Four steps bound about as well as two sweeps. u is scaled
to length 1 first, so that half precision holds all there is: the steps may be
as rough as they like, and the last product G x, which decides, is the sum of
three half-precision ones.

``cone_axes_kernel`` prepares a mention on the device: unit rows, Gram matrix,
the axis (Gilbert's algorithm for the shortest vector in the hull of the rows)
and lambda (power iteration). Where the margin min_j a.z_j is below MARGIN the
cone counts as not pointed and the bound is |u|.

Rounding is paid for: residuals, products and lengths are moved up by more than
the split products can have lost (``SLACK``), and by what the context of
``tglu_attention`` loses, which a pointed cone amplifies by at most 1 / margin.
That the attention weights there are rounded does not matter: any weights >= 0
stay below the bound. Non-finite input gives +infinity: always scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimic_engine.kernels.gated_units import TERMS
from mimic_engine.kernels.tglu_attention import TextMentions
from mimic_engine.kernels.tiles import Tile, check_shape, cover, power_of_two

MARGIN = tl.constexpr(0.01)  # cosine of the widest cone that counts as pointed
SLACK = tl.constexpr(2e-5)  # relative; 128 float32 sums and what split products leave out, with room
HULL_STEPS = 64
STEPS = 4  # of projected gradient
ENTITIES = Tile(rows=32, warps=4, stages=2)
CANDIDATES = (ENTITIES, Tile(32, 1, 8, 2), Tile(64, 1, 8, 2))  # the last spills on sm_80


@dataclass(frozen=True, slots=True)
class Cones:
    """The cones of B mentions, L padded to the power of two S with zero directions."""

    directions: Tensor  # (TERMS, B, S, W) terms of zh_j, in the entity vectors' dtype
    gram: Tensor  # (2, B, S, S) float16 terms of G
    along: Tensor  # (B, S) float32: zh_j . a; 1 for zero directions
    numbers: Tensor  # (B, 2) float32: 1 / margin (inf = not pointed), 1 / lambda

    @classmethod
    def empty(cls, mentions: TextMentions, dtype: torch.dtype) -> Cones:
        """Room for the cones of these mentions, for entity vectors of ``dtype``."""
        batch, columns, width = mentions.value.shape
        side, new = power_of_two(columns), mentions.value.new_empty
        return cls(
            new((TERMS[dtype], batch, side, width), dtype=dtype),
            new((2, batch, side, side), dtype=torch.float16),
            new((batch, side)),
            new((batch, 2)),
        )


@triton.jit
def _store_terms(pointer, values, at, step, TERMS: tl.constexpr):
    """``values`` as a sum of TERMS numbers of the stored type; ``step`` values from one term to the next."""
    rest = values
    for t in tl.static_range(TERMS):
        term = rest.to(pointer.dtype.element_ty)
        tl.store(pointer + t * step + at, term)
        rest = rest - term.to(tl.float32)


@triton.jit(do_not_specialize=["mentions"])
def cone_axes_kernel(
    value, key_bias, directions, gram, along, numbers, mentions,
    COLUMNS: tl.constexpr, SIDE: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
    TERMS: tl.constexpr, HULL_STEPS: tl.constexpr,
):  # fmt: skip
    """Program: one mention."""
    WIDTH: tl.constexpr = W0 + W1
    mention = tl.program_id(0)
    j = tl.arange(0, SIDE)
    open_ = tl.load(key_bias + mention * COLUMNS + j, mask=j < COLUMNS, other=float("-inf")) == 0.0
    k0 = tl.arange(0, W0)
    rows = value + (mention * COLUMNS + j[:, None]) * WIDTH
    z0 = tl.load(rows + k0[None, :], mask=open_[:, None], other=0.0)
    length = tl.sum(z0 * z0, axis=1)
    if W1 > 0:
        k1 = W0 + tl.arange(0, W1)
        z1 = tl.load(rows + k1[None, :], mask=open_[:, None], other=0.0)
        length += tl.sum(z1 * z1, axis=1)
    some = length != 0.0  # true for NaN: it must show
    inverse = tl.where(some, 1.0 / tl.sqrt(tl.where(some, length, 1.0)), 0.0)
    z0 = z0 * inverse[:, None]
    step = mentions * SIDE * WIDTH
    to = (mention * SIDE + j[:, None]) * WIDTH
    _store_terms(directions, z0, to + k0[None, :], step, TERMS)
    g = tl.dot(z0, tl.trans(z0), input_precision="ieee")  # (SIDE, SIDE)
    if W1 > 0:
        z1 = z1 * inverse[:, None]
        _store_terms(directions, z1, to + k1[None, :], step, TERMS)
        g = tl.dot(z1, tl.trans(z1), g, input_precision="ieee")
    to = (mention * SIDE + j[:, None]) * SIDE + j[None, :]
    _store_terms(gram, g, to, mentions * SIDE * SIDE, 2)

    count = tl.maximum(tl.sum(some.to(tl.float32), axis=0), 1.0)
    c = tl.where(some, 1.0 / count, 0.0)  # the point of the hull, by its weights
    w = tl.sum(g * c[None, :], axis=1)  # its products with the directions
    for _ in range(HULL_STEPS):
        square = tl.sum(c * w, axis=0)
        low = tl.min(tl.where(some, w, float("inf")), axis=0)
        worst = tl.min(tl.where(some & (w == low), j, SIDE - 1), axis=0)
        gap = tl.maximum(square - low, 0.0)
        t = tl.minimum(gap / tl.maximum(square - 2.0 * low + 1.0, 1e-30), 1.0)
        column = tl.sum(tl.where(j[None, :] == worst, g, 0.0), axis=1)
        c = (1.0 - t) * c + tl.where(j == worst, t, 0.0)
        w = (1.0 - t) * w + t * column
    w = tl.sum(g * c[None, :], axis=1)
    norm = tl.sqrt(tl.maximum(tl.sum(c * w, axis=0), 1e-30))
    cosine = tl.where(some, w / norm, 1.0)
    margin = tl.min(cosine, axis=0)
    v = tl.where(some, 1.0, 0.0)
    largest = 0.0
    for _ in range(8):
        v = tl.sum(g * v[None, :], axis=1)
        largest = tl.max(tl.abs(v), axis=0)
        v = v / tl.maximum(largest, 1e-30)
    tl.store(along + mention * SIDE + j, cosine)
    tl.store(numbers + 2 * mention, tl.where(margin > MARGIN, 1.0 / tl.maximum(margin, 1e-30), float("inf")))
    tl.store(numbers + 2 * mention + 1, tl.where(largest > 0.0, 1.0 / tl.maximum(1.02 * largest, 1e-30), 0.0))


@triton.jit(do_not_specialize=["entities", "mentions", "stride"])
def cone_bound_kernel(
    cls, bias, directions, gram, along, numbers, base, out, entities, mentions, stride, factor,
    D: tl.constexpr, SIDE: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, TERMS: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr, HAS_BASE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (entity block, mention), mentions fastest."""
    WIDTH: tl.constexpr = W0 + W1
    mention = tl.program_id(0) % mentions
    i = (tl.program_id(0) // mentions) * ROWS + tl.arange(0, ROWS)
    alive = i < entities
    entity = i.to(tl.int64)
    j = tl.arange(0, SIDE)
    k0 = tl.arange(0, W0)
    u = tl.load(cls + entity[:, None] * D + k0[None, :], mask=alive[:, None] & (k0[None, :] < D), other=0.0)
    squared = tl.sum(u.to(tl.float32) * u.to(tl.float32), axis=1)
    t = tl.zeros((ROWS, SIDE), tl.float32)
    for term in tl.static_range(TERMS):
        rows = directions + ((term * mentions + mention) * SIDE + j[None, :]) * WIDTH
        t = tl.dot(u, tl.load(rows + k0[:, None]), t, input_precision=PRECISION)
    if W1 > 0:
        k1 = W0 + tl.arange(0, W1)
        u = tl.load(
            cls + entity[:, None] * D + k1[None, :], mask=alive[:, None] & (k1[None, :] < D), other=0.0
        )
        squared += tl.sum(u.to(tl.float32) * u.to(tl.float32), axis=1)
        for term in tl.static_range(TERMS):
            rows = directions + ((term * mentions + mention) * SIDE + j[None, :]) * WIDTH
            t = tl.dot(u, tl.load(rows + k1[:, None]), t, input_precision=PRECISION)
    # All of it for a vector of length 1: nothing below depends on the scale of u.
    norm = tl.sqrt(squared)
    t = t * tl.where(norm > 0.0, 1.0 / tl.where(norm > 0.0, norm, 1.0), 1.0)[:, None]
    at = gram + (mention * SIDE + j[:, None]) * SIDE + j[None, :]
    rate = tl.load(numbers + 2 * mention + 1)

    x = tl.maximum(t, 0.0)
    gx = tl.dot(x.to(tl.float16), tl.load(at))  # (ROWS, SIDE)
    spread = tl.sum(x * gx, axis=1)
    best = tl.where(spread > 0.0, tl.sum(x * t, axis=1) / tl.maximum(spread, 1e-30), 0.0)
    x = x * best[:, None]
    y = x
    gy = gx * best[:, None]
    for s in tl.static_range(STEPS):
        new = tl.maximum(y + (t - gy) * rate, 0.0)
        y = new + (new - x) * (s / (s + 3.0))
        x = new
        if s + 1 < STEPS:
            gy = tl.dot(y.to(tl.float16), tl.load(at))

    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    gx = tl.dot(high, tl.load(at + mentions * SIDE * SIDE))
    gx = tl.dot(low, tl.load(at), gx)
    gx = tl.dot(high, tl.load(at), gx)
    inverse_margin = tl.load(numbers + 2 * mention)
    towards = tl.load(along + mention * SIDE + j)
    reach = tl.sum(x, axis=1)  # at least the length of any part of sum x_j zh_j
    divisor = tl.maximum(towards - SLACK, 0.005)  # less only where the cone is not pointed
    over = tl.max((t - gx) / divisor[None, :], axis=1)
    kappa = tl.maximum(over, 0.0) * (1.0 + 2e-5) + (reach + 1.0) * SLACK * inverse_margin
    square = tl.sum(x * gx, axis=1) + reach * reach * SLACK
    leaning = tl.sum(x * towards[None, :], axis=1) + reach * SLACK
    cone = square + 2.0 * kappa * leaning + kappa * kappa
    bound = tl.where(cone < 1.0, tl.sqrt(tl.maximum(cone, 0.0)), 1.0)  # 1 also where the cone is not pointed
    amplified = tl.where(inverse_margin < float("inf"), inverse_margin, 1.0)
    bound = norm * (bound + (amplified + 1.0) * SLACK)
    upper = tl.sqrt(float(D)) * bound + tl.load(bias + entity, mask=alive, other=0.0)
    result = factor * upper
    to = mention.to(tl.int64) * stride + i
    if HAS_BASE:
        cheap = tl.load(base + to, mask=alive, other=0.0)
        result = cheap + result + (1.0 + tl.abs(cheap)) * SLACK
    result = result + 2e-6 * tl.abs(result)
    sane = (squared < float("inf")) & (tl.sum(t * t, axis=1) < float("inf")) & (square < float("inf"))
    sane = sane & (result < float("inf")) & (result > float("-inf"))
    tl.store(out + to, tl.where(sane, result, float("inf")), mask=alive)


def cone_axes(mentions: TextMentions, cones: Cones) -> None:
    """Write the cones of B mentions (of ``pack_text``) to ``cones`` (of :meth:`Cones.empty`)."""
    runtime, constants = axes_arguments(mentions, cones)
    cone_axes_kernel[(mentions.value.shape[0],)](**runtime, **constants)


def axes_arguments(mentions: TextMentions, cones: Cones) -> tuple[dict[str, Any], dict[str, Any]]:
    """The axes kernel's run-time arguments and its constants with the launch options."""
    w0, w1 = cover(mentions.width, 16)
    runtime = {
        "value": mentions.value, "key_bias": mentions.key_bias, "directions": cones.directions,
        "gram": cones.gram, "along": cones.along, "numbers": cones.numbers,
        "mentions": mentions.value.shape[0],
    }  # fmt: skip
    constants = {
        "COLUMNS": mentions.value.shape[1], "SIDE": cones.along.shape[1], "W0": w0, "W1": w1,
        "TERMS": cones.directions.shape[0], "HULL_STEPS": HULL_STEPS, "num_warps": 16, "num_stages": 1,
    }  # fmt: skip
    return runtime, constants


def cone_bound(
    cones: Cones,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    base: Tensor | None = None,
    factor: float = 1.0,
    steps: int = STEPS,
    tile: Tile = ENTITIES,
) -> None:
    """Write numbers that ``base + factor * g2l`` never exceeds, for B mentions and N entities, to ``out``.

    Parameters
    ----------
    cones : of :func:`cone_axes`.
    cls, bias : (N, D), in the dtype that the cones were made for, and (N,) float32.
    base, out : (B, N) float32 with equal strides; may be the same.
    factor : at least 0.
    steps : of projected gradient; more tighten the bound.
    tile : launch options; entities of a tile.
    """
    runtime, constants = arguments(cones, cls, bias, out, base=base, factor=factor, steps=steps, tile=tile)
    grid = (triton.cdiv(out.shape[1], constants["ROWS"]) * out.shape[0],)
    cone_bound_kernel[grid](**runtime, **constants)


def arguments(
    cones: Cones,
    cls: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    base: Tensor | None,
    factor: float,
    steps: int,
    tile: Tile,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's run-time arguments and its constants with the launch options."""
    width = cls.shape[1]
    check_shape((), width)
    w0, w1 = cover(width, 16)
    runtime = {
        "cls": cls, "bias": bias, "directions": cones.directions, "gram": cones.gram, "along": cones.along,
        "numbers": cones.numbers, "base": out if base is None else base, "out": out,
        "entities": out.shape[1], "mentions": out.shape[0], "stride": out.stride(0), "factor": factor,
    }  # fmt: skip
    constants = {
        "D": width, "SIDE": cones.along.shape[1], "W0": w0, "W1": w1, "TERMS": cones.directions.shape[0],
        "ROWS": tile.rows, "STEPS": steps, "HAS_BASE": base is not None,
        "PRECISION": "tf32x3" if cls.dtype == torch.float32 else "tf32",
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    return runtime, constants
