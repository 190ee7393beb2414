"""The passes over any :class:`~mimic_engine.scan.base.Scorer` of blocks, and the exported graph as one.

For installations without the compiled kernels (:mod:`mimic_engine.scan.cpu`) and for models in training:
several times slower, without a bound pass. Stored rows are widened to float32 into buffers that each
thread reuses; estimates are those of ``kernels/coded_tglu_ref.py``. No torch here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.encoding.graph_names import ENTITY, MENTION, SCORER, TOTAL
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.kernels.coded_tglu_ref import coded_context_ref, tables_ref
from mimic_engine.kernels.reference import normed_ref, scores_with_ref
from mimic_engine.scan.base import Codes, Rows, Scorer
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays, Scores

_ROWS = 64  # a whole number of the tiles of every matrix product

# Float16 to float32 by their bits.
_MANTISSA_SHIFT = 23 - 10  # float32 has 23 bits of mantissa, float16 has 10
_SIGN_AND_REST = np.int32(np.uint32(0x8FFFE000).astype(np.int32))  # sign, 5 exponent and 10 mantissa bits
_REBIAS = np.float32(2.0 ** (127 - 15))  # exponent biases


@dataclass(frozen=True)
class PreparedMentions:
    """B mentions, and what the passes need beyond them: made when first asked for."""

    mentions: MentionArrays
    centroids: Array | None  # (C, D)

    @property
    def count(self) -> int:
        """B."""
        return self.mentions.rows

    @cached_property
    def tables(self) -> Array:
        """Attended values of a token on each centroid, (B, C, D)."""
        assert self.centroids is not None
        return tables_ref(self.mentions, self.centroids).astype(np.float32, copy=False)


class BlockKernels:
    """:class:`~mimic_engine.scan.base.ScanKernels` over a scorer of float32 blocks.

    Parameters
    ----------
    scorer : scores one block; called from several threads at once.
    constants : of the model.
    """

    # Sums in another order differ by some 2e-5 where totals reach 40.
    rounding = 1e-5
    # In NumPy the bound waits for the threads of its BLAS: several times as long as scoring every entity.
    bounds = None

    def __init__(self, scorer: Scorer, constants: FoldConstants) -> None:
        self._scorer, self._constants = scorer, constants
        self._scratch = threading.local()
        self.name = scorer.name
        self.pairs_per_block = scorer.pairs_per_block

    def prepare(self, mentions: MentionArrays, centroids: Array | None = None) -> PreparedMentions:
        """Keep the mentions; the rest is made when a pass needs it."""
        return PreparedMentions(mentions, centroids)

    def take(self, prepared: PreparedMentions, rows: Sequence[int]) -> PreparedMentions:
        """Some of the mentions as a batch of their own."""
        return PreparedMentions(prepared.mentions.take(rows), prepared.centroids)

    def totals(self, prepared: PreparedMentions, entities: EntityArrays, rows: Rows, out: Array) -> None:
        """Write exact total scores, (B, n)."""
        out[:] = self.scores(prepared, entities, rows).total

    def scores(self, prepared: PreparedMentions, entities: EntityArrays, rows: Rows) -> Scores:
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

    def estimates(
        self, prepared: PreparedMentions, entities: EntityArrays, codes: Codes, rows: slice, out: Array
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


class OnnxScorer:
    """Scores a block with the exported graph, one core a call.

    Safe to call from several threads at once, which is how the scan uses more
    cores: ONNX Runtime releases the interpreter lock while it runs.
    """

    name = "onnx"
    pairs_per_block = 512  # fewer pay for the dispatch of its many small operators

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "fp32", verify: bool = True) -> Self:
        """Open the scorer graph of an exported model folder.

        Raises
        ------
        ModelError
            If the graph is missing, damaged, or was not exported in that precision.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        return cls(OnnxGraph.open(folder, manifest, SCORER, precision, threads=1, verify=verify))

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores of B mentions against N entities, (B, N) float32.

        Half-precision entity arrays are widened first; a caller that scores many
        blocks widens them into buffers of its own.
        """
        feeds = {MENTION + name: array for name, array in mentions.items()}
        feeds |= {ENTITY + name: array.astype(np.float32, copy=False) for name, array in entities.items()}
        if 0 in (mentions.rows, entities.rows):
            empty = np.empty((mentions.rows, entities.rows), np.float32)
            return Scores(empty, {name: empty for name in self._graph.outputs if name != TOTAL})
        out = self._graph.run(feeds)
        total = out.pop(TOTAL)
        return Scores(total, out)


def widen_into(half: NDArray[np.float16], out: Array) -> None:
    """Write finite float16 values to ``out``, float32 and contiguous, of the same shape; exact.

    Five times faster than NumPy's own conversion, which is scalar. The bits are
    put where float32 has them: the value is then 2**-112 of what it should be,
    and one multiplication mends exponents and subnormals alike. An infinity
    would become 65,536; an index holds none.
    """
    bits = out.view(np.int32)
    np.copyto(bits, half.view(np.int16))  # the sign is copied into the upper half
    np.left_shift(bits, _MANTISSA_SHIFT, out=bits)
    np.bitwise_and(bits, _SIGN_AND_REST, out=bits)
    np.multiply(out, _REBIAS, out=out)
