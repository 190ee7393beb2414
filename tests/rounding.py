"""How far a float32 computation may be off, whatever library and instruction set it runs on.

A float32 sum of n products, added up in any order, is the exact sum of products whose factors are off by a
share of at most n u, u = 2^-24 the unit roundoff (Higham, "Accuracy and Stability of Numerical Algorithms",
section 3.1), and of about sqrt(n) u where the roundings are independent (Higham and Mary 2019, "A New
Approach to Probabilistic Rounding Error Analysis"). So what float32 gives lies among what exact arithmetic
gives for inputs that are off by as much. Here float64 stands for exact arithmetic, every input is moved by
that share up or down at random, and the largest change that is seen is the bound: it knows the dtype, the
number of terms, and through the computation itself the magnitudes and how far they cancel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mimic_engine.model.units import Mimic

Arrays = Mapping[str, NDArray[np.float64]]
Module = TypeVar("Module", bound=torch.nn.Module)

UNIT = 2.0**-24  # roundoff of float32
STEPS = 32  # operations beside the longest sum: square roots, exponentials, norms, gates
DRAWS = 8


def bound(run: Callable[[np.random.Generator | None], Arrays], draws: int = DRAWS) -> dict[str, float]:
    """Largest change of each result of ``run``, given what its inputs are moved by: nothing, or a draw."""
    exact = run(None)
    moved = [run(np.random.default_rng(draw)) for draw in range(draws)]
    return {name: max(float(np.abs(m[name] - x).max()) for m in moved) for name, x in exact.items()}


def shares(shape: tuple[int, ...], terms: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Factors of values that take part in sums of ``terms`` terms: one, a little more or a little less."""
    return 1 + UNIT * np.sqrt(terms + STEPS) * draw.choice([-1.0, 1.0], shape)


def moved_weights(model: Module, terms: int, draw: np.random.Generator | None) -> Module:
    """A copy in float64, every weight moved by ``draw``."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for weights in model.parameters() if draw is not None else ():
            weights *= torch.from_numpy(shares(tuple(weights.shape), terms, draw))
    return model


def model_bound(
    model: Mimic, terms: int, run: Callable[[Mimic], Mapping[str, torch.Tensor]]
) -> dict[str, float]:
    """Bound of what ``run`` computes with a model that it is given in float64."""

    @torch.no_grad()
    def once(draw: np.random.Generator | None) -> Arrays:
        return {name: value.numpy() for name, value in run(moved_weights(model, terms, draw)).items()}

    return bound(once)
