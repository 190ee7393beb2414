"""The coded pass in readable NumPy: the twin that every fast coded pass is tested against.

The softmax row of an entity token depends on its query vector alone (equation
7 of the paper). With the query vectors of all entities clustered around C
centroids, a token is one code, and a mention needs one table of C rows: what a
token that lies on the centroid attends to. The context of an entity is then the
mean of L table rows instead of an attention of its own; all else is exact. The
estimate is the exact score where every query vector is a centroid.

Clustering and codes are made in :mod:`mimic_engine.index.codes.read`. Works in the
dtype of the mention arrays, as :mod:`mimic_engine.kernels.reference` does.

Axes: B mentions, N entities, L tokens, C centroids, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.kernels.reference import column_mean_ref, normed_ref, scores_with_ref
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays, Scores

Floats = NDArray[np.floating]
Codes = NDArray[np.integer[Any]]


def tables_ref(mention: MentionArrays, centroids: Floats) -> Floats:
    """Attended values of a token on each centroid: softmax(centroids K^T) V, (B, C, D), centred over D.

    Parameters
    ----------
    mention : ``tglu_key`` and ``tglu_value`` (B, L, D), perhaps ``tglu_key_mask`` (B, L)
    centroids : (C, D), divided by sqrt(D) as the query vectors are
    """
    assert mention.tglu_key is not None and mention.tglu_value is not None
    queries = centroids.astype(mention.tglu_key.dtype, copy=False)[:, None]  # (C, 1, D): one token each
    attention = column_mean_ref(queries, mention.tglu_key, mention.tglu_key_mask, None)  # (B, C, L)
    return np.einsum("bcj,bjd->bcd", attention, mention.tglu_value, optimize=True)  # (B, C, D)


def coded_context_ref(tables: Floats, codes: Codes, weight: Floats | None) -> Floats:
    """Mean over the tokens of the table rows that their codes name, (B, N, D).

    Parameters
    ----------
    tables : (B, C, D)
    codes : (N, L), each below C
    weight : (N, L), rows summing to 1, or None for the plain mean
    """
    rows = tables.take(codes, axis=1)  # (B, N, L, D)
    if weight is None:
        return np.asarray(rows.mean(2))  # (B, N, D)
    return np.einsum("bnld,nl->bnd", rows, weight, optimize=True)  # (B, N, D)


def estimates_ref(
    mention: MentionArrays,
    entity: EntityArrays,
    codes: Codes,
    centroids: Floats,
    constants: FoldConstants,
) -> Scores:
    """Scores with TGLU's context taken from the codes, (B, N) each; ``entity.tglu_query`` is not read.

    Parameters
    ----------
    mention, entity, constants : as in ``scores_ref``; the units must hold "tglu"
    codes : (N, L), the centroid of every entity token
    centroids : (C, D)
    """
    context = coded_context_ref(tables_ref(mention, centroids), codes, entity.tglu_token_weight)
    return scores_with_ref(normed_ref(context, entity, constants), mention, entity, constants)
