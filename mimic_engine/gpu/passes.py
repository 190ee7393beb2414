"""The passes of a scan on a GPU: kernel launches over a device index, nothing fetched, nothing waited for.

Holds the workspace that the passes write to. Which pass answers what is
decided in :mod:`mimic_engine.gpu.scan`. A total here is
``mean of the units = (g2g/2 + vision + CMFU) / units + g2l / (2 units)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.errors import EngineError
from mimic_engine.gpu.index import QUERY, Chunk, DeviceIndex
from mimic_engine.gpu.terms import DeviceTerms
from mimic_engine.kernels.coded_tglu import coded_table, coded_tglu, table_shape
from mimic_engine.kernels.cone_bound import Cones, cone_axes, cone_bound
from mimic_engine.kernels.gated_units import GlobalMentions, gated_units, global_entities, pack_globals
from mimic_engine.kernels.stream_topk import NOTHING, key_room, survivors, top_keys, unpack_keys
from mimic_engine.kernels.tglu_attention import TextMentions, pack_text, tglu_attention
from mimic_engine.types import Array, FoldConstants, MentionArrays

FIRST = 64  # entities with the highest bounds, scored before a threshold is known
SURVIVOR_SHARE = 32  # a 32nd of the entities of a chunk may survive; more are scored densely
LEAST_SURVIVORS = 1024


@dataclass(frozen=True, slots=True)
class DeviceMentions:
    """B mentions as the kernels read them, and what is added to their scores: None for nothing."""

    batch: int
    text: TextMentions | None  # None where TGLU is off
    globals: GlobalMentions
    cones: Cones | None = None
    table: Tensor | None = None  # (B, C, pitch)
    terms: DeviceTerms | None = None


@dataclass(frozen=True, slots=True)
class DeviceShortList:
    """Candidates of B mentions on the device: rows (B, K), how many count (B,), and entities scored (B,).

    ``overflow`` (B,) counts survivors that had no room: such a mention must be scored densely.
    """

    rows: Tensor  # int32
    scores: Tensor  # float32, -inf where there is none
    counts: Tensor  # int32
    scored: Tensor  # int64
    overflow: Tensor  # int64


@dataclass(frozen=True, slots=True)
class ShortList:
    """Candidates of B mentions on the host, K each, and the parts of their scores.

    The names are those of the result arrays that a captured search writes.
    """

    rows: NDArray[np.int32]  # (B, K)
    first: Array  # (B, K) the scores that they are listed by
    counts: NDArray[np.int32]  # (B,) how many of the K there are
    scored: NDArray[np.int64]  # (B,) entities scored exactly
    overflow: NDArray[np.int64]  # (B,) survivors that had no room
    parts: Array  # (3, B, K) g2g, vision, CMFU
    g2l: Array  # (B, K)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]], mentions: int) -> Self:
        """The first ``mentions`` rows of result arrays, copied."""
        first = {n: a[:, :mentions] if n == "parts" else a[:mentions] for n, a in arrays.items()}
        return cls(**{name: np.array(array) for name, array in first.items()})


class DevicePasses:
    """Kernel launches of one model over one index.

    Parameters
    ----------
    index : entities on the device.
    constants : of the model.
    batch : mentions of a pass at most.
    chunk_rows : entities scored at a time: bounds the (B, rows) float32 scores.
    rounding : two computations of one total differ by at most this times 1 + |total|, terms apart.
    """

    def __init__(
        self,
        index: DeviceIndex,
        constants: FoldConstants,
        batch: int,
        chunk_rows: int,
        rounding: float,
    ) -> None:
        self.index = index
        self.constants = constants
        self.rounding = rounding
        self.chunk_rows = min(chunk_rows, index.rows)
        self._eps = constants.layer_norm_eps
        self._factor = 0.5 / len(constants.units)
        vectors = [
            t for name, t in index.arrays.items() if name in ("text_cls", "cmfu", "concat", "vdlu_query")
        ]
        self._stored = vectors[0].dtype
        self._room_for_survivors = max(LEAST_SURVIVORS, self.chunk_rows // SURVIVOR_SHARE)
        self._scores = self._new((batch, self.chunk_rows), torch.float32)  # (B, n)
        self._room = self._new((batch, 0), torch.int64)

    @property
    def workspace(self) -> tuple[Tensor, ...]:
        """Tensors written by launches besides their outputs: a captured launch needs these very tensors."""
        return self._scores, self._room

    # -- mentions --------------------------------------------------------------------------------------

    def mentions(
        self,
        mentions: MentionArrays | Mapping[str, Tensor],
        *,
        cones: bool,
        centroids: Tensor | None,
        terms: DeviceTerms | None = None,
    ) -> DeviceMentions:
        """Copy B mentions to the device, if they are not there, and prepare what the passes need of them."""
        if isinstance(mentions, MentionArrays):
            mentions = {name: torch.from_numpy(a).to(self.index.device) for name, a in mentions.items()}
        arrays, batch = mentions, len(next(iter(mentions.values())))
        text = None
        if "tglu_key" in arrays and QUERY in self.index.arrays:
            stored = self.index.arrays[QUERY].dtype
            text = pack_text(
                arrays["tglu_key"],
                arrays["tglu_value"],
                arrays.get("tglu_key_mask"),
                torch.float16 if stored == torch.int8 else stored,
            )
        packed = DeviceMentions(batch, text, pack_globals(arrays, self._stored), terms=terms)
        if text is None:
            return packed
        made, table = None, None
        if cones:
            made = Cones.empty(text, self.index.arrays["tglu_cls"].dtype)
            cone_axes(text, made)
        if centroids is not None:
            table = self._new(table_shape(text, len(centroids)), torch.float16)
            coded_table(text, centroids, table)
        return DeviceMentions(batch, text, packed.globals, made, table, terms)

    # -- one number a pair -----------------------------------------------------------------------------

    def totals(self, mentions: DeviceMentions, chunk: Chunk) -> Tensor:
        """Exact totals of a chunk, (B, n), in the workspace."""
        out = self._cheap(mentions, chunk)
        if mentions.text is not None:
            arrays = chunk.arrays
            tglu_attention(
                mentions.text, arrays[QUERY], arrays["tglu_cls"], arrays["tglu_bias"], out,
                scale=arrays.get("tglu_query_scale"), weight=arrays.get("tglu_token_weight"), base=out,
                eps=self._eps, factor=self._factor,
            )  # fmt: skip
        return _with_terms(out, mentions, chunk)

    def bounds(self, mentions: DeviceMentions, chunk: Chunk) -> Tensor:
        """Upper bounds of the totals of a chunk, (B, n), in the workspace."""
        out = self._cheap(mentions, chunk)
        if mentions.cones is not None:
            cone_bound(
                mentions.cones, chunk.arrays["tglu_cls"], chunk.arrays["tglu_bias"], out,
                base=out, factor=self._factor,
            )  # fmt: skip
        return _with_terms(out, mentions, chunk)

    def estimates(self, mentions: DeviceMentions, chunk: Chunk) -> Tensor:
        """The totals of a chunk as the codes give them, (B, n), in the workspace."""
        out = self._cheap(mentions, chunk)
        if mentions.text is not None:
            assert mentions.table is not None and chunk.codes is not None
            coded_tglu(
                mentions.text, mentions.table, chunk.codes, chunk.arrays["tglu_cls"],
                chunk.arrays["tglu_bias"], out, weight=chunk.weight, base=out, eps=self._eps,
                factor=self._factor,
            )  # fmt: skip
        return _with_terms(out, mentions, chunk)

    def listed(self, mentions: DeviceMentions, rows: Tensor, counts: Tensor, out: Tensor) -> None:
        """Exact totals of the listed rows (B, n) of each mention; beyond the counts they mean nothing."""
        arrays = self.index.arrays
        gated_units(mentions.globals, global_entities(arrays), self.constants, out, rows=rows, counts=counts)
        if mentions.text is not None:
            self._listed_attention(mentions.text, rows, counts, out, base=out, factor=self._factor)
        if mentions.terms is not None:
            mentions.terms.add_to_listed(out, rows)

    def units(self, mentions: DeviceMentions, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """g2g, vision and CMFU (3, B, n), and g2l (B, n), of the listed rows; zero where nothing counts."""
        arrays = self.index.arrays
        parts = torch.zeros((3, *rows.shape), device=rows.device)
        gated_units(
            mentions.globals,
            global_entities(arrays),
            self.constants,
            parts,
            rows=rows,
            counts=counts,
            units=True,
        )
        g2l = torch.zeros(rows.shape, device=rows.device)
        if mentions.text is not None:
            self._listed_attention(mentions.text, rows, counts, g2l, base=None, factor=1.0)
        return parts, g2l

    # -- the best of all -------------------------------------------------------------------------------

    def exact(
        self, mentions: DeviceMentions, k: int, allowed: Tensor | None, candidates: int
    ) -> DeviceShortList:
        """The k (a power of two) best by exact totals."""
        best = self._no_keys(mentions.batch, k)
        for chunk in self.index.chunks(self.chunk_rows, queries=mentions.text is not None):
            self._keep(best, self.totals(mentions, chunk), chunk, allowed, finite=True)
        return self._shortlist(best, self._full(mentions.batch, candidates), self._full(mentions.batch, 0))

    def coded(self, mentions: DeviceMentions, k: int, allowed: Tensor | None) -> DeviceShortList:
        """The k (a power of two) best by the codes, scored exactly."""
        best = self._no_keys(mentions.batch, k)
        for chunk in self.index.chunks(self.chunk_rows, queries=False):
            self._keep(best, self.estimates(mentions, chunk), chunk, allowed, finite=True)
        rows, scores, counts = self._unpacked(best)
        return DeviceShortList(rows, scores, counts, counts.long(), self._full(mentions.batch, 0))

    def certified(
        self, mentions: DeviceMentions, rank: int, k: int, allowed: Tensor | None
    ) -> DeviceShortList:
        """The k (a power of two) best, of which the first ``rank`` are proved, by bounds and exact totals.

        Chunk by chunk: score those with the highest bounds, then every other whose
        bound reaches the exact score in ``rank`` of all chunks so far.
        """
        batch = mentions.batch
        rounding = self.rounding  # of a score alone: |score| is at most |total| + the largest of the terms
        if mentions.terms is not None:
            rounding *= 1 + mentions.terms.largest
        best = self._no_keys(batch, k)
        scored, overflow = self._full(batch, 0), self._full(batch, 0)
        first = self._no_keys(batch, max(FIRST, k))
        for chunk in self.index.chunks(self.chunk_rows, queries=False):
            bounds = self.bounds(mentions, chunk)
            first.fill_(NOTHING)
            self._keep(first, bounds, chunk, allowed, finite=False)
            rows, _, counts = self._unpacked(first)
            self._score_and_keep(mentions, best, rows, counts)
            scored += counts
            more = self._new((batch, self._room_for_survivors), torch.int32)
            survivors(
                bounds, best, rank, first, more, counts, offset=chunk.start, rounding=rounding,
                allowed=_part(allowed, chunk),
            )  # fmt: skip
            overflow += (counts - more.shape[1]).clamp_(min=0)
            self._score_and_keep(mentions, best, more, counts.clamp(max=more.shape[1]))
            scored += counts
        return self._shortlist(best, scored, overflow)

    def among(self, mentions: DeviceMentions, rows: Tensor, k: int) -> DeviceShortList:
        """The k (a power of two) best of ``rows`` (M,) int32, by exact totals."""
        best = self._no_keys(mentions.batch, k)
        for start in range(0, len(rows), self.chunk_rows):
            part = rows[start : start + self.chunk_rows].expand(mentions.batch, -1)  # (B, n)
            counts = self._full(mentions.batch, part.shape[1]).int()
            self._score_and_keep(mentions, best, part, counts)
        return self._shortlist(best, self._full(mentions.batch, len(rows)), self._full(mentions.batch, 0))

    # -- parts -----------------------------------------------------------------------------------------

    def _cheap(self, mentions: DeviceMentions, chunk: Chunk) -> Tensor:
        out = self._scores[: mentions.batch, : chunk.rows]
        gated_units(mentions.globals, global_entities(chunk.arrays), self.constants, out)
        return out

    def _listed_attention(
        self,
        text: TextMentions,
        rows: Tensor,
        counts: Tensor,
        out: Tensor,
        *,
        base: Tensor | None,
        factor: float,
    ) -> None:
        arrays = self.index.arrays
        tglu_attention(
            text, arrays[QUERY], arrays["tglu_cls"], arrays["tglu_bias"], out,
            scale=arrays.get("tglu_query_scale"), weight=arrays.get("tglu_token_weight"), base=base,
            rows=rows, counts=counts, eps=self._eps, factor=factor,
        )  # fmt: skip

    def _score_and_keep(self, mentions: DeviceMentions, best: Tensor, rows: Tensor, counts: Tensor) -> None:
        totals = self._new(tuple(rows.shape), torch.float32)
        self.listed(mentions, rows, counts, totals)
        top_keys(totals, best, self._keys(best, rows.shape[1]), rows=rows, counts=counts)

    def _keep(
        self, best: Tensor, scores: Tensor, chunk: Chunk, allowed: Tensor | None, *, finite: bool
    ) -> None:
        room = self._keys(best, chunk.rows)
        top_keys(scores, best, room, offset=chunk.start, allowed=_part(allowed, chunk), finite=finite)

    def _keys(self, best: Tensor, entities: int) -> Tensor:
        """Room for the keys of ``entities`` scores a mention; grows once and stays."""
        batch, needed = best.shape[0], key_room(entities, best.shape[1])
        if self._room.shape[0] < batch or self._room.shape[1] < needed:
            self._room = self._new(
                (max(batch, self._room.shape[0]), max(needed, self._room.shape[1])), torch.int64
            )
        return self._room[:batch]

    def _unpacked(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self._new(tuple(keys.shape), torch.int32)
        scores = self._new(tuple(keys.shape), torch.float32)
        counts = self._new((keys.shape[0],), torch.int32)
        unpack_keys(keys, rows, scores, counts)
        return rows, scores, counts

    def _shortlist(self, best: Tensor, scored: Tensor, overflow: Tensor) -> DeviceShortList:
        return DeviceShortList(*self._unpacked(best), scored, overflow)

    def _no_keys(self, batch: int, k: int) -> Tensor:
        return torch.full((batch, k), NOTHING, dtype=torch.int64, device=self.index.device)

    def _full(self, batch: int, value: int) -> Tensor:
        return torch.full((batch,), value, dtype=torch.int64, device=self.index.device)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=self.index.device)
        except torch.OutOfMemoryError as error:
            size = dtype.itemsize
            for side in shape:
                size *= side
            raise EngineError(
                f"device memory: no room for {size / 2**20:.0f} MiB of workspace {shape}; "
                "fewer chunk_rows or a smaller batch need less"
            ) from error


def _with_terms(scores: Tensor, mentions: DeviceMentions, chunk: Chunk) -> Tensor:
    """Add the mentions' terms to the scores (B, n) of a chunk, in place."""
    if mentions.terms is not None:
        mentions.terms.add_to_block(scores, chunk.start)
    return scores


def _part(allowed: Tensor | None, chunk: Chunk) -> Tensor | None:
    return None if allowed is None else allowed[chunk.start : chunk.stop]
