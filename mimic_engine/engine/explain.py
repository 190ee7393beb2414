"""Explanation of a score: what each unit gave, and the tokens that TGLU attended to (equation 7).

Works on the folded arrays of the few entities that were returned, with the readable formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mimic_engine.kernels.reference import column_mean_ref
from mimic_engine.types import (
    Array,
    Candidate,
    EntityArrays,
    Explanation,
    LinkResult,
    MentionArrays,
    TokenSpan,
)


def explain_result(
    result: LinkResult, tokens: Sequence[TokenSpan], mention: MentionArrays, entities: EntityArrays
) -> LinkResult:
    """Give the result with its tokens and an :class:`Explanation` in each of its K candidates.

    Parameters
    ----------
    result : of one mention.
    tokens : the T real tokens of its text, which stand before any padding.
    mention : its folded arrays, one row.
    entities : token queries of the candidates, float32, K rows in their order.
    """
    attention = attention_of(mention, entities)  # (K, L)
    candidates = tuple(
        _explain_one(candidate, len(tokens), None if attention is None else attention[k])
        for k, candidate in enumerate(result.candidates)
    )
    return replace(result, candidates=candidates, tokens=tuple(tokens))


def attention_of(mention: MentionArrays, entities: EntityArrays) -> Array | None:
    """Mean attention of K entities' tokens to one mention's tokens, (K, L); None in a model without TGLU."""
    if mention.tglu_key is None or entities.tglu_query is None:
        return None
    mean = column_mean_ref(
        entities.tglu_query, mention.tglu_key, mention.tglu_key_mask, entities.tglu_token_weight
    )  # (1, K, L)
    return mean[0].astype("float32")  # (K, L)


def _explain_one(candidate: Candidate, tokens: int, attention: Array | None) -> Candidate:
    """Explain a candidate by its row (L,) of the attention."""
    contributions = {name: score / len(candidate.units) for name, score in candidate.units.items()}
    if attention is None:
        return replace(candidate, explanation=Explanation(contributions, None, None))
    shown = tuple(map(float, attention[:tokens]))
    explanation = Explanation(contributions, shown, float(attention[tokens:].sum()))
    return replace(candidate, explanation=explanation)
