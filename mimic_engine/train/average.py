"""An exponential moving average of the weights in training, which is validated and kept as the best.

Not in the paper. The average starts without a bias towards the first weights
(as Adam's moments are corrected, Kingma and Ba 2015): after step t it is the
mean of the weights after steps 1 to t, each weighed ``decay ** (t - step)``.
Only trained parameters are averaged; running statistics of batch norms are
those of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's trained parameters.

    Parameters
    ----------
    model : whose parameters that require gradients are averaged.
    decay : at least 0 and less than 1; about the last 1 / (1 - decay) steps count.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)  # of the newest weights; 1 at first
        for name, mean in self._mean.items():
            mean.lerp_(self._live[name], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(own)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` reads: steps taken in, and the average."""
        return {"steps": self._steps, "mean": self._mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._steps = int(state["steps"])
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self._live.items():
            p.copy_(weights[name])
