"""Scores far enough apart to be ranked alike by every way of computing them in float32, on any machine."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from mimic_engine.model.units import Features, Matcher

Rows = NDArray[np.int64]
Exact = NDArray[np.float64]

# Two float32 computations of one score differ by no more than each is off. How far one of them is off is
# measured, here, against float64; another adds up in another order and may be off by a few times as much.
# Two scores change places only if both move: a gap beyond twice that is safe, and this leaves room for five.
ROUNDINGS = 10


def assert_apart(single: NDArray[np.float32], exact: Exact, gold: Rows | None = None) -> None:
    """No rounding changes the order of a mention's scores, (B, N), or the rank of its ``gold`` row, (B,)."""
    rounding = np.abs(single - exact).max()
    if gold is None:
        gaps = np.diff(np.sort(exact, axis=1), axis=1)  # (B, N - 1)
    else:
        others = np.arange(exact.shape[1]) != gold[:, None]  # (B, N)
        gaps = np.abs(exact - np.take_along_axis(exact, gold[:, None], 1))[others]
    assert gaps.min(initial=np.inf) > ROUNDINGS * rounding, "rounding would decide a rank: draw other values"


@torch.no_grad()
def exact_scores(matcher: Matcher, mentions: Features, entities: Features, gold: Rows | None = None) -> Exact:
    """Total scores (B, N) of the unfolded matcher in float64, which float32 ranks alike."""
    wide = [Features(*(t.double() if t.is_floating_point() else t for t in f)) for f in (mentions, entities)]
    exact: Exact = copy.deepcopy(matcher).double()(*wide).total.numpy()
    assert_apart(matcher(mentions, entities).total.numpy(), exact, gold)
    return exact
