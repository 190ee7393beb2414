"""The PyTorch scorer, for evaluation inside a training process."""

from __future__ import annotations

import torch

from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays, Scores


class TorchScorer:
    """Runs :class:`~mimic_engine.model.folded_scorer.FoldedScorer` on the CPU or on a CUDA device."""

    name = "torch"
    pairs_per_block = 1024  # dispatching the operators costs as much as 100 pairs, and holds the GIL

    def __init__(self, constants: FoldConstants, device: str = "cpu") -> None:
        self._scorer = FoldedScorer(constants).to(device)
        self._device = torch.device(device)

    @torch.no_grad()
    def score(self, mentions: MentionArrays, entities: EntityArrays) -> Scores:
        """Total and unit scores, (B, N) float32."""
        out = self._scorer(self._tensors(mentions), self._tensors(entities))
        return Scores(out.total.cpu().numpy(), {name: s.cpu().numpy() for name, s in out.units.items()})

    def _tensors(self, arrays: MentionArrays | EntityArrays) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(a).to(self._device) for name, a in arrays.items()}
