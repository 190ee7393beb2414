"""Calibration of scores: how sure the model is of its best candidate, and how often it is right when it is.

Confidence is the probability of the best candidate: a softmax over the K best total scores, divided by a
temperature that is fitted on "dev". The threshold below which nothing is answered is another matter:
see :mod:`mimic_engine.calibration.nil`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments.probes.base import folded, mentions_of, scanning
from benchmarks.experiments.probes.temperature import (
    Floats,
    fit_temperature,
    mean_nll,
    probabilities,
)
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.scan.scan import Scan
from mimic_engine.train.corpus import Split
from mimic_engine.types import MentionArrays

FITTED_ON = "dev"
BINS = 15
SHARES = tuple(i / 10 for i in range(1, 11))
OUTSIDE = (
    "a mention whose gold entity is not among the k best is left out of the fit and of the likelihood, and is"
    " wrong in everything else"
)


class Ranked(NamedTuple):
    """The K best candidates of M mentions, and where the gold ones are."""

    scores: Floats  # (M, K), best first
    gold: NDArray[np.int64]  # (M,), the gold entity's position, or -1

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the best candidate is the gold one, (M,)."""
        return self.gold == 0

    @property
    def within(self) -> Ranked:
        """The mentions whose gold entity is among the K."""
        kept = self.gold >= 0
        return Ranked(self.scores[kept], self.gold[kept])


def calibration(run: TrainedRun, split: str, *, k: int = 100, bins: int = BINS) -> dict[str, Any]:
    """Fit a temperature on "dev" and measure what it does to the confidences of a split.

    Parameters
    ----------
    run, split : the trained run, and the split that is measured.
    k : candidates in the softmax; all where there are fewer.
    bins : of equal size, over which confidence and accuracy are compared.

    Returns
    -------
    dict
        ``temperature`` (None where no finite one is best: then there is no ``after``); ``fit`` and
        ``measured``: the mentions of each and those whose gold entity is among the k best; ``outside``: what
        becomes of the others; ``before`` and ``after``: see :func:`_reliability`.

    Raises
    ------
    InvalidInputError
        If the split, or "dev", was not read or has no mentions.
    """
    both = [mentions_of(run, name) for name in (FITTED_ON, split)]
    arrays = [folded(run, mentions.records) for mentions in both]
    with scanning(run) as scan:
        candidates = min(k, len(scan))
        dev, own = (_rank(scan, *part, candidates) for part in zip(arrays, both, strict=True))
    temperature = fit_temperature(*dev.within)
    return {
        "temperature": temperature,
        "k": candidates,
        "outside": OUTSIDE,
        "fit": {"split": FITTED_ON} | _counts(dev),
        "measured": {"split": split} | _counts(own),
        "before": _reliability(own, 1.0, bins),
        "after": None if temperature is None else _reliability(own, temperature, bins),
    }


def expected_calibration_error(
    confidence: Floats, right: NDArray[np.bool_], bins: int = BINS
) -> tuple[float, list[dict[str, float | int]]]:
    """Expected calibration error over bins of equal size, and the bins from least to most confident.

    Parameters
    ----------
    confidence : (M,), between 0 and 1, M at least 1.
    right : (M,), whether the answer is right.
    bins : fewer where there are fewer mentions.
    """
    order = np.argsort(confidence, kind="stable")
    points: list[dict[str, float | int]] = [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(right[part].mean()),
            "mentions": len(part),
        }
        for part in np.array_split(order, min(bins, len(order)))
    ]
    gaps = [abs(p["accuracy"] - p["confidence"]) * p["mentions"] for p in points]
    return sum(gaps) / len(order), points


def risk_coverage(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float | int]]:
    """Accuracy of the most confident share of M answers, for each tenth; (M,) and (M,), M at least 1."""
    order = np.argsort(-confidence, kind="stable")
    reached = np.cumsum(right[order]) / np.arange(1, len(order) + 1)  # (M,)
    counts = [max(1, round(share * len(order))) for share in SHARES]
    return [
        {"share": share, "mentions": count, "accuracy": float(reached[count - 1])}
        for share, count in zip(SHARES, counts, strict=True)
    ]


def _rank(scan: Scan, arrays: MentionArrays, mentions: Split, k: int) -> Ranked:
    best = scan.search(arrays, k)
    gold = best.rows == mentions.gold[:, None]  # (M, K)
    return Ranked(best.scores.astype(np.float64), np.where(gold.any(1), gold.argmax(1), -1))


def _counts(ranked: Ranked) -> dict[str, int]:
    return {"mentions": len(ranked.gold), "gold_among_k": len(ranked.within.gold)}


def _reliability(ranked: Ranked, temperature: float, bins: int) -> dict[str, Any]:
    """Figures at one temperature.

    ``confidence`` and ``accuracy`` are means, ``ece`` the expected calibration error, ``bins`` its points,
    ``risk_coverage`` the accuracy of the most confident shares, and ``nll`` the mean negative log-likelihood
    in nats (None where no gold entity is among the k best).
    """
    confidence = probabilities(ranked.scores, temperature)[:, 0]  # (M,)
    error, points = expected_calibration_error(confidence, ranked.right, bins)
    within = ranked.within
    return {
        "confidence": float(confidence.mean()),
        "accuracy": float(ranked.right.mean()),
        "ece": error,
        "nll": mean_nll(within.scores, within.gold, temperature) if len(within.gold) else None,
        "bins": points,
        "risk_coverage": risk_coverage(confidence, ranked.right),
    }
