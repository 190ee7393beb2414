"""Explanation of a score: what each unit gave, and the tokens that TGLU attended to (equation 7).

Works on the folded arrays of the few entities that were returned, with the readable formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mimic_engine.kernels.reference import column_mean_ref
from mimic_engine.scan.terms import NAME, PRIOR
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
    result: LinkResult,
    tokens: Sequence[TokenSpan],
    mention: MentionArrays,
    entities: EntityArrays,
    matched: Sequence[str | None],
) -> LinkResult:
    """Give the result with its tokens and an :class:`Explanation` in each of its K candidates.

    Parameters
    ----------
    result : of one mention.
    tokens : the T real tokens of its text, which stand before any padding.
    mention : its folded arrays, one row.
    entities : token queries of the candidates, float32, K rows in their order.
    matched : the name of each that shares most with the mention.
    """
    attention = attention_of(mention, entities)  # (K, L)
    candidates = tuple(
        _explain_one(candidate, len(tokens), None if attention is None else attention[k], matched[k])
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


def contributions(units: Mapping[str, float]) -> dict[str, float]:
    """Shares of a total: the model's units count by their mean, names and prior as they are."""
    model = sum(name not in (NAME, PRIOR) for name in units)
    return {name: score if name in (NAME, PRIOR) else score / model for name, score in units.items()}


def _explain_one(
    candidate: Candidate, tokens: int, attention: Array | None, matched: str | None
) -> Candidate:
    """Explain a candidate by its row (L,) of the attention."""
    shares = contributions(candidate.units)
    if attention is None:
        return replace(candidate, explanation=Explanation(shares, None, None, matched))
    shown = tuple(map(float, attention[:tokens]))
    explanation = Explanation(shares, shown, float(attention[tokens:].sum()), matched)
    return replace(candidate, explanation=explanation)
