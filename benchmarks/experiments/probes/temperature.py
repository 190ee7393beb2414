"""Temperature that turns scores into probabilities: softmax(scores / temperature), fitted to gold answers.

In b = 1 / temperature the mean negative log-likelihood is convex. It has its minimum at a finite b above
zero exactly where gold scores lie above their mention's mean score on average, and not all of them are the
best; otherwise there is nothing to fit, and the fit says so.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 200


def fit_temperature(scores: Floats, gold: NDArray[np.int64]) -> float | None:
    """Fit the temperature that minimises the mean negative log-likelihood of the gold answers.

    Parameters
    ----------
    scores : (M, K) scores of the candidates of M mentions.
    gold : (M,), the column of the right one.

    Returns
    -------
    float or None
        None where the likelihood grows without end as the temperature goes to zero (every gold answer is
        the best) or to infinity (gold answers score no higher than the others), or M = 0.
    """
    if not _has_minimum(scores, gold):
        return None
    shifted = torch.from_numpy(scores - scores.max(1, keepdims=True))  # (M, K)
    target = torch.from_numpy(gold)
    # The logarithm keeps it above zero; from the spread of the scores the search is short.
    log_t = torch.tensor(math.log(float(scores.std(1).mean())), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [log_t], max_iter=STEPS, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(shifted / log_t.exp(), target)
        value.backward()
        return value

    optimiser.step(loss)
    return math.exp(log_t.item())


def probabilities(scores: Floats, temperature: float) -> Floats:
    """Softmax of (M, K) scores divided by the temperature; (M, K)."""
    return torch.from_numpy(scores / temperature).softmax(1).numpy()


def mean_nll(scores: Floats, gold: NDArray[np.int64], temperature: float) -> float:
    """Mean negative log-likelihood, in nats, of the gold columns (M,)."""
    logs = torch.from_numpy(scores / temperature).log_softmax(1).numpy()  # (M, K)
    return float(-logs[np.arange(len(gold)), gold].mean())


def _has_minimum(scores: Floats, gold: NDArray[np.int64]) -> bool:
    if not len(gold):
        return False
    own = scores[np.arange(len(gold)), gold]  # (M,)
    return bool((scores.max(1) > own).any() and (own - scores.mean(1)).mean() > 0)
