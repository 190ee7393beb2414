"""The passes of a scan over any :class:`~mimic_engine.scoring.base.Scorer`, with bounds and codes in NumPy.

Works wherever NumPy does, with the exported scorer graph for the exact part;
the compiled kernels (:mod:`mimic_engine.scoring.cpu`) do the same several times
faster. Stored rows are widened to float32 into buffers that each thread reuses.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mimic_engine.kernels.coded_ref import coded_context_ref, tables_ref
from mimic_engine.kernels.cone_bound import Cone, bounds_ref, cones_of
from mimic_engine.kernels.reference import normed_ref, scores_with_ref
from mimic_engine.scoring.base import Codes, Rows, Scorer
from mimic_engine.scoring.half import widen_into
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays, Scores

_ROWS = 64  # a whole number of the tiles of every matrix product


@dataclass(frozen=True)
class Prepared:
    """B mentions, and what the passes need beyond them: made when first asked for."""

    mentions: MentionArrays
    centroids: Array | None  # (C, D)

    @cached_property
    def cones(self) -> list[Cone] | None:
        """The cones of the value rows, for the bounds."""
        return cones_of(self.mentions)

    @cached_property
    def tables(self) -> Array:
        """What a token on each centroid attends to, (B, C, D)."""
        assert self.centroids is not None
        return tables_ref(self.mentions, self.centroids).astype(np.float32, copy=False)


class BlockKernels:
    """:class:`~mimic_engine.scoring.base.ScanKernels` over a scorer of float32 blocks.

    Parameters
    ----------
    scorer : scores one block; called from several threads at once.
    constants : of the model.
    """

    # Sums in another order differ by some 2e-5 where totals reach 40.
    rounding = 1e-5

    def __init__(self, scorer: Scorer, constants: FoldConstants) -> None:
        self._scorer, self._constants = scorer, constants
        self._scratch = threading.local()
        self.name = scorer.name
        self.pairs_per_block = scorer.pairs_per_block

    def prepare(self, mentions: MentionArrays, centroids: Array | None = None) -> Prepared:
        """Keep the mentions; the rest is made when a pass needs it."""
        return Prepared(mentions, centroids)

    def totals(self, prepared: Prepared, entities: EntityArrays, rows: Rows, out: Array) -> None:
        """Write exact total scores, (B, n)."""
        out[:] = self.scores(prepared, entities, rows).total

    def scores(self, prepared: Prepared, entities: EntityArrays, rows: Rows) -> Scores:
        """Total and unit scores, (B, n) each.

        Rows given by number are scored in blocks of one size, so that the sums of
        a pair do not depend on how many others are asked for with it.
        """
        if isinstance(rows, slice):
            return self._scorer.score(prepared.mentions, self._float32(entities, rows))
        parts = [
            self._scorer.score(
                prepared.mentions, self._float32(entities, np.resize(rows[i : i + _ROWS], _ROWS))
            )
            for i in range(0, len(rows), _ROWS)
        ]
        return _joined(parts, len(rows))

    def bounds(self, prepared: Prepared, entities: EntityArrays, rows: slice, out: Array) -> None:
        """Write upper bounds of the totals, (B, n)."""
        block = self._float32(entities, rows, without_tokens=True)
        out[:] = bounds_ref(prepared.cones, prepared.mentions, block, self._constants)

    def estimates(
        self, prepared: Prepared, entities: EntityArrays, codes: Codes, rows: slice, out: Array
    ) -> None:
        """Write the totals as the codes give them, (B, n)."""
        block = self._float32(entities, rows, without_tokens=True)
        context = coded_context_ref(prepared.tables, codes[rows], block.tglu_token_weight)  # (B, n, D)
        g2l = normed_ref(context, block, self._constants)  # (B, n)
        out[:] = scores_with_ref(g2l, prepared.mentions, block, self._constants).total

    def _float32(self, entities: EntityArrays, rows: Rows, *, without_tokens: bool = False) -> EntityArrays:
        """The rows as float32, in this thread's buffers where they were stored otherwise."""
        stored = {name: array for name, array in entities.items() if name != "tglu_query_scale"}
        if without_tokens:
            stored.pop("tglu_query", None)
        wide = {name: self._widened(name, array[rows]) for name, array in stored.items()}
        if entities.tglu_query_scale is not None and not without_tokens:
            wide["tglu_query"] *= entities.tglu_query_scale[rows][..., None]
        return EntityArrays(**wide)

    def _widened(self, name: str, array: Array) -> Array:
        if array.dtype == np.float32:
            return array
        buffers: dict[str, Array] = self._scratch.__dict__
        buffer = buffers.get(name)
        if buffer is None or len(buffer) < len(array) or buffer.shape[1:] != array.shape[1:]:
            buffer = buffers[name] = np.empty(array.shape, np.float32)
        view = buffer[: len(array)]
        if array.dtype == np.float16:
            widen_into(array.view(np.float16), view)
        else:
            np.copyto(view, array)
        return view


def _joined(parts: list[Scores], count: int) -> Scores:
    """The first ``count`` columns of the scores of several blocks."""
    total = np.concatenate([p.total for p in parts], axis=1)[:, :count]  # (B, n)
    units = {n: np.concatenate([p.units[n] for p in parts], axis=1)[:, :count] for n in parts[0].units}
    return Scores(total, units)
