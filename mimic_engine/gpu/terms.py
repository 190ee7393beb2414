"""Terms of a search on the device: what :mod:`mimic_engine.scan.terms` adds, by torch's operations alone.

The order of the additions is that of the CPU's scan, ``(score + name) + prior``. Nothing here waits for the
device or depends on what the tensors hold, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.scan.terms import NameScores
from mimic_engine.types import Array

NO_ROW = np.iinfo(np.int32).max  # behind the last name score of a mention: no index holds this row


@dataclass(frozen=True, slots=True)
class DeviceTerms:
    """Terms of B mentions on the device.

    ``rows`` (B, M) int32 are ascending, each once, ``NO_ROW`` behind the last; ``scores`` (B, M) float32 are
    0 there. ``prior`` is (N,) float32 or None; no sum of terms is larger than ``largest`` in size.
    """

    rows: Tensor
    scores: Tensor
    prior: Tensor | None
    largest: float

    @classmethod
    def of(
        cls, names: Sequence[NameScores], prior: Tensor | None, largest: float, device: torch.device
    ) -> Self:
        """Copy the name scores of B mentions to the device; ``prior`` lies there."""
        shape = len(names), max(1, *(len(name.rows) for name in names))
        rows, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        write_names(names, rows, scores)
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(scores).to(device), prior, largest)

    def add_to_block(self, scores: Tensor, start: int) -> None:
        """Add to the scores (B, n) of the rows from ``start`` on, in place."""
        count = scores.shape[1]
        column = self.rows - start  # (B, M)
        inside = (column >= 0) & (column < count)
        # A name score outside the block adds 0 to some column.
        scores.scatter_add_(1, column.clamp_(0, count - 1).long(), self.scores * inside)
        if self.prior is not None:
            scores += self.prior[start : start + count]

    def add_to_listed(self, scores: Tensor, rows: Tensor) -> None:
        """Add to the scores (B, n) of listed rows (B, n) int32, in place; any number may stand for no row."""
        position = torch.searchsorted(self.rows, rows.contiguous()).clamp_(max=self.rows.shape[1] - 1)
        found = self.rows.gather(1, position) == rows
        scores += self.scores.gather(1, position) * found
        if self.prior is not None:
            scores += self.prior[rows.clamp(0, len(self.prior) - 1).long()]


def write_names(names: Sequence[NameScores], rows: NDArray[np.int32], scores: Array) -> None:
    """Write the name scores of B mentions, M at most each, to ``rows`` and ``scores`` (B, M), padded."""
    rows.fill(NO_ROW)
    scores.fill(0)
    for b, name in enumerate(names):
        rows[b, : len(name.rows)] = name.rows
        scores[b, : len(name.rows)] = name.scores
