"""An upper bound of TGLU's global-local score for 3 % of its cost, in readable NumPy: the cone bound.

Everything else in a total score is a few inner products a pair; only the
global-local score (equation 8) needs the attention of L x L tokens. This bound
of it makes the certified scan possible: entities are scored exactly in
descending bound until the k-th best exact score reaches the next bound.

**Theorem.** Let v_j be the centred value rows of a mention, z_j = v_j / |v_j|
those that are not zero, u an entity's centred global vector, and w_j >= 0 any
attention weights, z = sum_j w_j v_j. For every x >= 0 and every unit vector a
with a.z_j > 0 for all j, with

    y = u - sum_j x_j z_j,    kappa = max(0, max_j (y.z_j) / (a.z_j)),

    u.z <= |sum_j x_j z_j + kappa a| |z|.

*Proof.* (y - kappa a).z_j = y.z_j - kappa a.z_j <= 0 for all j by the choice
of kappa, and z is a non-negative combination of the z_j, so
(y - kappa a).z <= 0. Hence u.z = (y - kappa a).z + (sum_j x_j z_j + kappa a).z
<= (sum_j x_j z_j + kappa a).z, and Cauchy-Schwarz bounds the rest. []

The layer norm of the context divides by sqrt(|z|^2 / D + eps) >= |z| / sqrt(D), so

    g2l = u.z / sqrt(|z|^2 / D + eps) + bias <= sqrt(D) |sum_j x_j z_j + kappa a| + bias

(the right side is never below ``bias``, which covers u.z < 0). The bound is
tight where sum_j x_j z_j is the projection of u on the cone of the z_j, that
is, where x minimises |u - sum_j x_j z_j|; one sweep of non-negative
Gauss-Seidel from zero comes close. Any x is safe, so rounding of x is no
matter. The squared norm is x'Gx + 2 kappa x'Za + kappa^2 with G = Z Z'.

Where no a has a.z_j > 0 for all j (the cone is not pointed, or nearly so), the
bound is |u|. It is also never above |u|.

**Rounding.** With unit rows, t = Z u is off by at most gamma |u|, y.z_j by
gamma (|u| + sum x), where gamma is a small multiple of (D + 2 L) times the
machine epsilon; these enter kappa and the squared norm below. The score that
is bounded is itself rounded: its context is off by gamma sum_j w_j |v_j|, while
|z| >= a.z >= margin sum_j w_j |v_j| with margin = min_j a.z_j, so u.z / |z| is
off by gamma |u| / margin, which the last term covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimic_engine.kernels.reference import Floats, scores_with_ref
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

MIN_MARGIN = 1e-2  # cones flatter than this are treated as not pointed
_AXIS_STEPS = 60


@dataclass(frozen=True, slots=True)
class Cone:
    """The cone spanned by one mention's centred value rows; J rows, those that are not zero.

    ``axis_products`` is None where the cone is not pointed.
    """

    rows: NDArray[np.float64]  # (J, D), unit
    gram: NDArray[np.float64]  # (J, J)
    axis_products: NDArray[np.float64] | None  # (J,), each at least MIN_MARGIN


def cone_of(value: Floats, mask: Floats | None = None) -> Cone:
    """The cone of one mention's value rows.

    Parameters
    ----------
    value : (L, D), each row centred over D
    mask : (L,), 0 = padding that nothing attends to, or None
    """
    rows = value.astype(np.float64)
    if mask is not None:
        rows = rows[mask > 0]
    norms = np.linalg.norm(rows, axis=1)  # (L,)
    kept = ~(norms == 0)  # NaN stays, and shows in the bound
    rows = rows[kept] / norms[kept, None]  # (J, D)
    gram = rows @ rows.T  # (J, J)
    return Cone(rows, gram, _axis_products(gram))


def _axis_products(gram: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """a.z_j of the unit axis a that leaves the largest margin, or None where the margin is too small.

    The axis points to the shortest vector in the convex hull of the z_j; a few
    Frank-Wolfe steps with exact line search come near it, and any axis is safe.
    """
    count = len(gram)
    if not count:
        return None
    share = np.full(count, 1 / count)  # (J,), a point of the hull
    products = gram @ share  # (J,): z_j . point
    for _ in range(_AXIS_STEPS):
        square = float(share @ products)
        nearest = int(np.argmin(products))
        towards = float(gram[nearest, nearest] - 2 * products[nearest] + square)  # |z_nearest - point|^2
        gain = square - float(products[nearest])
        if gain <= 1e-6 * square or towards <= 0:
            break
        step = min(1.0, gain / towards)
        share *= 1 - step
        share[nearest] += step
        products = gram @ share
    length = math.sqrt(max(float(share @ products), 0.0))
    if length <= MIN_MARGIN or float(products.min()) < MIN_MARGIN * length:
        return None
    return np.asarray(products / length)


def cone_norm_bound(cone: Cone, u: Floats, sweeps: int = 1) -> Floats:
    """Bound of u.z / |z| over the cone, (N,), at most |u| and valid in floating point.

    Parameters
    ----------
    cone : of one mention
    u : (N, D), entities' centred global vectors; the dtype that the work is done in
    sweeps : of Gauss-Seidel over the cone's rows
    """
    width, count = u.shape[1], len(cone.rows)
    gamma = (width + 2 * count + 8) * float(np.finfo(u.dtype).eps)
    length = np.sqrt(np.einsum("nd,nd->n", u, u)) * (1 + gamma)  # (N,)
    if cone.axis_products is None:
        return np.asarray(length * (1 + gamma))
    gram = cone.gram.astype(u.dtype)  # (J, J)
    axis = cone.axis_products.astype(u.dtype)  # (J,)
    target = cone.rows.astype(u.dtype) @ u.T  # (J, N)
    rest = target.copy()  # (J, N): z_j . y
    x = np.zeros_like(target)  # (J, N)
    for _ in range(sweeps):
        for j in range(count):
            new = np.maximum(0, x[j] + rest[j])  # (N,); gram[j, j] is 1
            rest -= gram[j][:, None] * (new - x[j])
            x[j] = new
    total = x.sum(0)  # (N,)
    slack = gamma * (length + total)  # (N,)
    kappa = np.maximum(0, ((rest + slack) / axis[:, None]).max(0))  # (N,)
    square = np.einsum("jn,jn->n", x, target - rest) + slack * total  # (N,)
    square = square + 2 * kappa * (axis @ x) + kappa * kappa
    exact_side = gamma * (1 + 1 / float(axis.min()))
    bound = np.sqrt(np.maximum(square, 0)) * (1 + gamma) + exact_side * length
    # NaN would pass both minimum and maximum unseen: keep it.
    return np.asarray(np.where(np.isnan(square), square, np.minimum(bound, length * (1 + gamma))))


def g2l_bound_ref(cones: list[Cone], entity: EntityArrays, constants: FoldConstants, like: Floats) -> Floats:
    """Upper bound of ``g2l_ref`` for B cones and N entities, (B, N), in the dtype of ``like``."""
    assert entity.tglu_cls is not None and entity.tglu_bias is not None
    u = entity.tglu_cls.astype(like.dtype, copy=False)  # (N, D)
    bound = np.stack([cone_norm_bound(cone, u) for cone in cones])  # (B, N)
    return np.asarray(math.sqrt(constants.width) * bound + entity.tglu_bias)


def bounds_ref(
    cones: list[Cone] | None, mention: MentionArrays, entity: EntityArrays, constants: FoldConstants
) -> Floats:
    """Upper bounds of the total scores, (B, N); the totals themselves where TGLU is off (``cones`` None)."""
    g2l = None
    if cones is not None:
        assert mention.tglu_value is not None
        g2l = g2l_bound_ref(cones, entity, constants, mention.tglu_value)
    return scores_with_ref(g2l, mention, entity, constants).total


def cones_of(mention: MentionArrays) -> list[Cone] | None:
    """The cones of B mentions; None where TGLU is off."""
    if mention.tglu_value is None:
        return None
    masks = mention.tglu_key_mask
    return [cone_of(v, None if masks is None else masks[b]) for b, v in enumerate(mention.tglu_value)]
