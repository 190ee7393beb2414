"""The GPU scan as the engine uses it: opened, warmed up, its failures told apart, and rebuilt after one.

The search itself is :mod:`mimic_engine.scoring.cuda`. The entities' arrays stay
mapped on the host as well: a rebuild copies them anew, and explanations read them.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mimic_engine.errors import DeviceError
from mimic_engine.faults import device_faults
from mimic_engine.scoring.cuda import CudaScan
from mimic_engine.scoring.cuda_memory import Placement
from mimic_engine.scoring.passes import MENTIONS_PER_PASS, CodeBook
from mimic_engine.scoring.scan import TopK
from mimic_engine.scoring.segments import Segments
from mimic_engine.scoring.topk import TieKey
from mimic_engine.types import MODES, EntityArrays, FoldConstants, MentionArrays, Mode

WARM_MENTIONS = tuple(
    range(1, MENTIONS_PER_PASS + 1)
)  # kernels are compiled for sizes that divide differently
WARM_TOP_K = (1, 10, 50, 100)  # lists of 16, 32, 64 and 128 candidates

Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]


class CudaRanker:
    """A :class:`~mimic_engine.scoring.ranker.Ranker` on a GPU; safe to use from one thread at a time.

    Parameters
    ----------
    segments : folded entities, memory-mapped or not, row numbers running on from one to the next.
    constants : of the model that folded them.
    device : "cuda", "cuda:1"...; "cpu" runs under Triton's interpreter alone.
    tie_key, codes, placement : as of :class:`~mimic_engine.scoring.cuda.CudaScan`.

    Raises
    ------
    MissingDependencyError
        If there is no CUDA device.
    EngineError
        If the index does not fit in the device's memory.
    """

    threads = 1

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        constants: FoldConstants,
        *,
        device: str = "cuda",
        tie_key: TieKey | None = None,
        codes: CodeBook | None = None,
        placement: Placement = "auto",
    ) -> None:
        self._segments = Segments(segments)
        self._constants, self._device, self._placement = constants, device, placement
        self._tie_key, self._codes = tie_key, codes
        self._scan: CudaScan | None = self._open()
        self.scorer_name = self._scan.scorer_name

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        return MODES if self._codes is not None else tuple(m for m in MODES if m != "coded")

    def search(
        self,
        mentions: MentionArrays,
        k: int,
        *,
        mode: Mode = "certified",
        rows: _Rows | None = None,
        allowed: Mask | None = None,
        rerank: int | None = None,
    ) -> TopK:
        """The k best entities of each mention, as ``CudaScan.search``; DeviceError if the device fails."""
        with device_faults("scan"):
            return self.opened.search(mentions, k, mode=mode, rows=rows, allowed=allowed, rerank=rerank)

    def ranks(
        self, mentions: MentionArrays, gold: _Rows, *, allowed: Mask | None = None
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,)."""
        with device_faults("scan"):
            return self.opened.ranks(mentions, gold, allowed=allowed)

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """What TGLU's attention needs of n rows: token queries (n, L, D) float32, and their weights."""
        return self._segments.token_queries(rows)

    def over(
        self, segments: Sequence[EntityArrays], tie_key: TieKey | None, codes: CodeBook | None = None
    ) -> CudaRanker:
        """A ranker of other entities; both lie on the device until the old one goes."""
        return CudaRanker(
            segments,
            self._constants,
            device=self._device,
            tie_key=tie_key,
            codes=codes,
            placement=self._placement,
        )

    def warm_up(self, mention: MentionArrays, allowed: Mask | None) -> int:
        """Search with every number of mentions and length of list, in every mode; the number of searches.

        ``mention`` is one, and copied.
        """
        most = len(self) if allowed is None else int(np.count_nonzero(allowed))
        top_ks = sorted({min(k, most) for k in WARM_TOP_K})
        few = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        for count in WARM_MENTIONS:
            mentions = mention.take([0] * count)
            for k in top_ks:
                for mode in self.modes:
                    self.search(mentions, k, mode=mode, allowed=allowed)
            self.search(mentions, 1, rows=few[:1])
        return len(WARM_MENTIONS) * (len(top_ks) * len(self.modes) + 1)

    def rebuild(self) -> None:
        """Free the index on the device and copy it there anew; errors as of opening."""
        self._scan = None
        gc.collect()  # tensors go with the objects, before the new ones ask for their memory
        if torch.cuda.is_available():
            with device_faults("scan"):
                torch.cuda.empty_cache()
        self._scan = self._open()

    def close(self) -> None:
        """Nothing to stop; device memory goes with the object."""

    @property
    def opened(self) -> CudaScan:
        """The scan on the device, another after every rebuild; DeviceError where it could not be rebuilt."""
        if self._scan is None:
            raise DeviceError("scan: the index is not on the device since it failed", reason="no index")
        return self._scan

    def _open(self) -> CudaScan:
        with device_faults("scan"):
            return CudaScan(
                self._segments.arrays,
                self._constants,
                device=self._device,
                tie_key=self._tie_key,
                codes=self._codes,
                placement=self._placement,
            )
