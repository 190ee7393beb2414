"""What a scorer is: all scores of a block of mentions against a block of entities."""

from __future__ import annotations

from typing import Protocol

from mimic_engine.types import EntityArrays, MentionArrays, Scores


class Scorer(Protocol):
    """Scores float32 folded mentions against float32 folded entities; safe to call from several threads."""

    @property
    def name(self) -> str:
        """Short name for logs and reports."""
        ...

    @property
    def pairs_per_block(self) -> int:
        """Mention-entity pairs (B x N) a call: few enough for the cache, enough to hide the overhead."""
        ...

    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32, of B mentions against a block of N entities."""
        ...
