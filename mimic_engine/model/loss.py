"""The unit-consistent loss (section 3.4, equations 19 to 21): in-batch cross-entropy of total and units."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mimic_engine.model.matcher import MatcherScores


def unit_consistent_loss(
    scores: MatcherScores, unit_losses: Collection[str] | None = None, target: Tensor | None = None
) -> dict[str, Tensor]:
    """Cross-entropies of B mentions over their candidates, by name; their sum is the training loss.

    Parameters
    ----------
    scores : (B, N) each; without ``target`` the entity of mention b is column b.
    unit_losses : units whose own loss is added to the overall one; all that are on by default.
    target : (B,) int64, gold column of each mention.

    Returns
    -------
    dict with "total" first (L_O of the paper) and one entry per chosen unit (L_T, L_V, L_C).
    """
    if target is None:
        target = torch.arange(scores.total.shape[0], device=scores.total.device)
    chosen = scores.units if unit_losses is None else {u: scores.units[u] for u in unit_losses}
    return {name: cross_entropy(s.float(), target) for name, s in {"total": scores.total, **chosen}.items()}
