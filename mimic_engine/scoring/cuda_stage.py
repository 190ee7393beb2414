"""A whole search as launches alone, from folded mentions at fixed addresses to results at fixed addresses.

What a CUDA graph can hold of a search is all of it, in every mode: the chunks of
an index are known beforehand, and a certified search counts the survivors that
had no room instead of asking the host what to do. What is left to the host is
the order of a short list, and another search for a mention that fell short
(:meth:`CudaScan.settled`), which the answer's mode then says.

Only exact searches whose token queries lie on the host cannot be captured: they
copy chunks on a stream of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from mimic_engine.scoring.cuda import SPARE, CudaScan
from mimic_engine.types import Mode

# A graph is made for one k. Requests get the first of these that is no less, and the rest is cut off.
PLACES = (10, *(2**n - SPARE for n in range(5, 11)))


def result_arrays(batch: int, room: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shapes and types of the results of B mentions: fields of ``Fetched``, K = ``room``."""
    listed, one = (batch, room), (batch,)
    return {
        "rows": (listed, np.int32),
        "first": (listed, np.float32),
        "counts": (one, np.int32),
        "scored": (one, np.int64),
        "overflow": (one, np.int64),
        "parts": ((3, *listed), np.float32),
        "g2l": (listed, np.float32),
    }


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """One kind of search: the k best in a mode, among the allowed rows (N,) uint8 on the device."""

    k: int
    mode: Mode
    rerank: int | None = None
    allowed: Tensor | None = None
    candidates: int | None = None


class SearchStage:
    """Launches one search; what it launches may be captured.

    Parameters
    ----------
    scan : over the index.
    plan : what is searched.
    mentions : folded arrays of B mentions, on the device, by name.
    results : of :func:`result_arrays`, on the device, by name.
    """

    def __init__(
        self, scan: CudaScan, plan: SearchPlan, mentions: Mapping[str, Tensor], results: Mapping[str, Tensor]
    ) -> None:
        self._scan, self._plan, self._mentions, self._results = scan, plan, mentions, results
        self._kept: tuple[Tensor, ...] = ()

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold it."""
        return self._plan.mode != "exact" or self._scan.index.placement == "device"

    def launch(self) -> None:
        """Queue the search on the current stream."""
        plan, scan = self._plan, self._scan
        prepared = scan.prepare(self._mentions, plan.mode)
        found = scan.launch(prepared, plan.k, plan.mode, plan.allowed, plan.candidates, plan.rerank)
        parts, g2l = scan.passes.units(prepared, found.rows, found.counts)
        given = {
            "rows": found.rows,
            "first": found.scores,
            "counts": found.counts,
            "scored": found.scored,
            "overflow": found.overflow,
            "parts": parts,
            "g2l": g2l,
        }
        for name, tensor in given.items():
            self._results[name].copy_(tensor)
        self._kept = scan.passes.workspace  # a later search may replace them; what was captured needs these


def allowed_rows(scan: CudaScan, allowed: np.ndarray | None) -> Tensor | None:
    """A mask (N,) on the device of the scan, as :class:`SearchPlan` takes it."""
    if allowed is None:
        return None
    return torch.from_numpy(allowed.astype(np.uint8)).to(scan.index.device)
