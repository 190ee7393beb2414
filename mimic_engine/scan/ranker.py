"""Contract of a scan with the engine, on whatever device: the k best entities of each mention, and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mimic_engine.scan.passes import CodeBook
from mimic_engine.scan.scan import TopK
from mimic_engine.scan.terms import NameScores, ScoreTerms
from mimic_engine.scan.topk import TieKey
from mimic_engine.types import EntityArrays, MentionArrays, Mode


class Ranker(Protocol):
    """Ranks entities for mentions, from one thread at a time: the same modes and answers on every device."""

    @property
    def scorer_name(self) -> str:
        """Short name of what scores, for logs and reports."""
        ...

    @property
    def threads(self) -> int:
        """CPU cores that a search may use."""
        ...

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        ...

    def __len__(self) -> int: ...

    def search(
        self,
        mentions: MentionArrays,
        k: int,
        *,
        mode: Mode = "certified",
        rows: NDArray[np.int64] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        rerank: int | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> TopK:
        """The k best entities of each mention; see :meth:`mimic_engine.scan.scan.Scan.search`."""
        ...

    def ranks(
        self,
        mentions: MentionArrays,
        gold: NDArray[np.int64],
        *,
        allowed: NDArray[np.bool_] | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,)."""
        ...

    def token_queries(self, rows: NDArray[np.int64]) -> EntityArrays:
        """Input of TGLU's attention from n rows: token queries (n, L, D) float32, and their weights."""
        ...

    def over(
        self,
        segments: Sequence[EntityArrays],
        tie_key: TieKey | None,
        codes: CodeBook | None = None,
        terms: ScoreTerms | None = None,
    ) -> Ranker:
        """A ranker of other entities with the same options."""
        ...

    def warm_up(self, mention: MentionArrays, allowed: NDArray[np.bool_] | None) -> int:
        """Search in every shape for which the first search prepares something; the number of searches."""
        ...

    def rebuild(self) -> None:
        """Let go of the device and take it up anew, after a DeviceError; errors as of opening."""
        ...

    def close(self) -> None:
        """Stop its threads, if it has any."""
        ...
