"""Streaming top-k on the GPU: the best of each mention kept while blocks of scores come and go.

A candidate is one 64-bit key: the score's bits, made to sort as integers, above
the complement of the row number. Larger keys are better, and of equal scores
the smaller row comes first. Scores of a block of entities are reduced to K keys
a tile, tiles are merged with each other and with the best so far until K are
left: the (B, N) matrix is never stored whole. Also here: keys back to rows and
scores, and the rows whose upper bound reaches the k-th best score.

A score that is not finite sorts above all others, so that it shows; a row that
is not allowed gets no key. K is a power of two. The twin is ``top_keys_ref``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimic_engine.errors import InvalidInputError
from mimic_engine.kernels.tiles import power_of_two

NOTHING = -(2**63)  # key of no candidate
MAX_K = 1024
_NOTHING = tl.constexpr(NOTHING)


@triton.jit
def _pack(score, row, FINITE: tl.constexpr):
    """Key of a float32 score and a row number, int64."""
    sane = (score < float("inf")) & (score > float("-inf")) if FINITE else score == score
    bits = tl.where(sane, score, 0.0).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    bits = tl.where(sane, bits, 0x7FC00000)  # a NaN that sorts above infinity
    return (bits.to(tl.int64) << 32) | (row.to(tl.int64) ^ 0xFFFFFFFF)


@triton.jit
def _score(keys):
    """The float32 score of a key; -infinity of no candidate."""
    bits = (keys >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(keys == _NOTHING, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def _row(keys):
    """The row number of a key."""
    return ((keys & 0xFFFFFFFF) ^ 0xFFFFFFFF).to(tl.int32)


@triton.jit(do_not_specialize=["entities", "offset", "stride", "row_stride", "key_stride"])
def top_keys_kernel(
    scores, allowed, rows, counts, keys, entities, offset, stride, row_stride, key_stride,
    BLOCK: tl.constexpr, K: tl.constexpr, HAS_ALLOWED: tl.constexpr, LISTED: tl.constexpr,
    FINITE: tl.constexpr,
):  # fmt: skip
    """Program (tile of scores, mention): its K best keys, behind the best so far."""
    mention = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < entities
    row = i
    if LISTED:
        real = real & (i < tl.load(counts + mention))
        row = tl.load(rows + mention.to(tl.int64) * row_stride + i, mask=real, other=0)
    if HAS_ALLOWED:
        real = real & (tl.load(allowed + row, mask=real, other=0) != 0)
    score = tl.load(scores + mention.to(tl.int64) * stride + i, mask=real, other=0.0)
    key = tl.where(real, _pack(score, row + offset, FINITE), _NOTHING)
    best = tl.topk(key, K)
    at = mention.to(tl.int64) * key_stride + (1 + tl.program_id(0)) * K + tl.arange(0, K)
    tl.store(keys + at, best)


@triton.jit(do_not_specialize=["total", "key_stride", "out_stride"])
def merge_keys_kernel(
    keys, out, total, key_stride, out_stride, BLOCK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Program (tile of keys, mention): its K best."""
    mention = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + mention * key_stride + i, mask=i < total, other=_NOTHING)
    best = tl.topk(key, K)
    tl.store(out + mention * out_stride + tl.program_id(0) * K + tl.arange(0, K), best)


@triton.jit(do_not_specialize=["offset", "key_stride", "row_stride"])
def unpack_keys_kernel(
    keys, rows, scores, counts, offset, key_stride, row_stride, K: tl.constexpr,
):  # fmt: skip
    """Program: one mention's keys as rows, scores and their number."""
    mention = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, K)
    key = tl.load(keys + mention * key_stride + i)
    some = key != _NOTHING
    tl.store(rows + mention * row_stride + i, tl.where(some, _row(key) - offset, 0))
    tl.store(scores + mention * row_stride + i, _score(key))
    tl.store(counts + mention, tl.sum(some.to(tl.int32), axis=0))


@triton.jit(
    do_not_specialize=[
        "entities",
        "offset",
        "stride",
        "row_stride",
        "rank",
        "best_stride",
        "first_stride",
        "last",
    ]
)
def survivors_kernel(
    bounds, allowed, best, first, rows, counts,
    entities, offset, stride, row_stride, rank, best_stride, first_stride, last, rounding,
    BLOCK: tl.constexpr, HAS_ALLOWED: tl.constexpr,
):  # fmt: skip
    """Program (tile of bounds, mention): rows whose bound reaches the score in ``rank`` of the best.

    Rows among the ``first`` (keys of bounds, down to rank ``last``) have been scored and are left out.
    """
    mention = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < entities
    if HAS_ALLOWED:
        real = real & (tl.load(allowed + row, mask=real, other=0) != 0)
    bound = tl.load(bounds + mention * stride + row, mask=real, other=0.0)
    least = _score(tl.load(best + mention * best_stride + rank))
    least = tl.where(least > float("-inf"), least - rounding * (1.0 + tl.abs(least)), least)
    scored = tl.load(first + mention * first_stride + last)
    wanted = real & (bound >= least) & (_pack(bound, row + offset, False) < scored)
    number = wanted.to(tl.int32)
    total = tl.sum(number, axis=0)
    if total == 0:
        return
    start = tl.atomic_add(counts + mention, total)
    at = start + tl.cumsum(number, axis=0) - 1
    tl.store(rows + mention * row_stride + at, row + offset, mask=wanted & (at < row_stride))


def key_room(entities: int, k: int) -> int:
    """Keys a mention that :func:`top_keys` needs room for, for blocks of ``entities`` scores."""
    side = check_k(k)
    tiles = 1 + triton.cdiv(max(1, entities), _block(side))
    return side * (tiles + triton.cdiv(tiles * side, _block(side)))


def check_k(k: int) -> int:
    """The power of two at least k; InvalidInputError above :data:`MAX_K`."""
    if not 1 <= k <= MAX_K:
        raise InvalidInputError(f"k: the GPU keeps 1 to {MAX_K} candidates, got {k}", field="top_k")
    return max(16, power_of_two(k))


def _block(k: int) -> int:
    return max(1024, 4 * k)


def top_keys(
    scores: Tensor,
    best: Tensor,
    room: Tensor,
    *,
    offset: int = 0,
    allowed: Tensor | None = None,
    rows: Tensor | None = None,
    counts: Tensor | None = None,
    finite: bool = True,
) -> None:
    """Merge the candidates of a block of scores into the ``best`` (B, K) keys, sorted from high to low.

    Parameters
    ----------
    scores : (B, n) float32.
    best : (B, K) int64 keys so far, ``NOTHING`` where none; replaced.
    room : (B, at least ``key_room(n, K)``) int64, overwritten.
    offset : added to row numbers.
    allowed : (rows,) uint8, 0 = not a candidate, or None.
    rows, counts : (B, n) int32 rows of the scores, and how many count, (B,) int32; column numbers if absent.
    finite : whether infinities too sort above all others, as something to be reported.
    """
    batch, entities = scores.shape
    k = best.shape[1]
    runtime, constants = top_arguments(
        scores, best, room, offset=offset, allowed=allowed, rows=rows, counts=counts, finite=finite
    )
    room[:, :k].copy_(best)
    tiles = triton.cdiv(entities, constants["BLOCK"])
    top_keys_kernel[(tiles, batch)](**runtime, **constants)
    total, source, spare = (1 + tiles) * k, room, room[:, (1 + tiles) * k :]
    while True:
        parts = triton.cdiv(total, constants["BLOCK"])
        target = best if parts == 1 else spare
        runtime, options = merge_arguments(source, target, total, k)
        merge_keys_kernel[(parts, batch)](**runtime, **options)
        if parts == 1:
            return
        source, spare, total = spare, source, parts * k


def top_arguments(
    scores: Tensor,
    best: Tensor,
    room: Tensor,
    *,
    offset: int,
    allowed: Tensor | None,
    rows: Tensor | None,
    counts: Tensor | None,
    finite: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first kernel's run-time arguments and its constants with the launch options."""
    k = best.shape[1]
    runtime = {
        "scores": scores, "allowed": room if allowed is None else allowed,
        "rows": room if rows is None else rows, "counts": room if counts is None else counts, "keys": room,
        "entities": scores.shape[1], "offset": offset, "stride": scores.stride(0),
        "row_stride": 0 if rows is None else rows.stride(0), "key_stride": room.stride(0),
    }  # fmt: skip
    constants = {
        "BLOCK": _block(k), "K": k, "HAS_ALLOWED": allowed is not None, "LISTED": rows is not None,
        "FINITE": finite, "num_warps": 4 if k <= 256 else 8, "num_stages": 1,
    }  # fmt: skip
    return runtime, constants


def merge_arguments(
    source: Tensor, target: Tensor, total: int, k: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The merging kernel's run-time arguments and its constants with the launch options."""
    runtime = {
        "keys": source, "out": target, "total": total,
        "key_stride": source.stride(0), "out_stride": target.stride(0),
    }  # fmt: skip
    return runtime, {"BLOCK": _block(k), "K": k, "num_warps": 4 if k <= 256 else 8, "num_stages": 1}


def unpack_keys(keys: Tensor, rows: Tensor, scores: Tensor, counts: Tensor, *, offset: int = 0) -> None:
    """Write the rows (less ``offset``), scores and number of (B, K) keys.

    Parameters
    ----------
    keys : (B, K) int64, sorted.
    rows, scores : (B, K) int32 and float32, of equal strides; 0 and -infinity where there is no candidate.
    counts : (B,) int32.
    """
    runtime, constants = unpack_arguments(keys, rows, scores, counts, offset=offset)
    unpack_keys_kernel[(keys.shape[0],)](**runtime, **constants)


def unpack_arguments(
    keys: Tensor, rows: Tensor, scores: Tensor, counts: Tensor, *, offset: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The unpacking kernel's run-time arguments and its constants with the launch options."""
    runtime = {
        "keys": keys, "rows": rows, "scores": scores, "counts": counts, "offset": offset,
        "key_stride": keys.stride(0), "row_stride": rows.stride(0),
    }  # fmt: skip
    return runtime, {"K": keys.shape[1], "num_warps": 4, "num_stages": 1}


def survivors(
    bounds: Tensor,
    best: Tensor,
    k: int,
    first: Tensor,
    rows: Tensor,
    counts: Tensor,
    *,
    offset: int = 0,
    rounding: float = 0.0,
    allowed: Tensor | None = None,
) -> None:
    """List the rows whose bound reaches the k-th best score and that have not been scored yet.

    Parameters
    ----------
    bounds : (B, n) float32.
    best : (B, K) int64 keys of exact scores, sorted.
    k : the rank in ``best`` to reach, from 1.
    first : (B, M) int64 keys of the M highest bounds, sorted, of the same block: scored already.
    rows : (B, room) int32; what does not fit is counted and not listed.
    counts : (B,) int32, set to 0 and then to the number of survivors.
    offset : of the block's rows.
    rounding : two computations of one score differ by at most this times 1 + |score|.
    allowed : (n,) uint8, 0 = not a candidate, or None.
    """
    counts.zero_()
    runtime, constants = survivor_arguments(
        bounds, best, k, first, rows, counts, offset=offset, rounding=rounding, allowed=allowed
    )
    grid = (triton.cdiv(bounds.shape[1], constants["BLOCK"]), bounds.shape[0])
    survivors_kernel[grid](**runtime, **constants)


def survivor_arguments(
    bounds: Tensor,
    best: Tensor,
    k: int,
    first: Tensor,
    rows: Tensor,
    counts: Tensor,
    *,
    offset: int,
    rounding: float,
    allowed: Tensor | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The survivors kernel's run-time arguments and its constants with the launch options."""
    runtime = {
        "bounds": bounds, "allowed": counts if allowed is None else allowed, "best": best, "first": first,
        "rows": rows, "counts": counts,
        "entities": bounds.shape[1], "offset": offset, "rounding": rounding, "stride": bounds.stride(0),
        "row_stride": rows.stride(0), "rank": k - 1, "best_stride": best.stride(0),
        "first_stride": first.stride(0), "last": first.shape[1] - 1,
    }  # fmt: skip
    return runtime, {"BLOCK": 1024, "HAS_ALLOWED": allowed is not None, "num_warps": 4, "num_stages": 1}


def top_keys_ref(scores: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The readable twin: rows and scores (B, k) of the best, ties by row; finite scores."""
    open_ = scores if allowed is None else scores.masked_fill(allowed == 0, float("-inf"))
    order = torch.sort(open_, dim=1, descending=True, stable=True).indices[:, :k]  # (B, k)
    return order, open_.gather(1, order)
