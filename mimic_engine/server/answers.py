"""From a body to a query, and from a result to an answer: options and defaults, nil, what is left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mimic_engine.errors import InvalidInputError
from mimic_engine.server.service import Query
from mimic_engine.types import Candidate, LinkResult, Mention
from mimic_engine.wire import (
    BatchBody,
    CandidateAnswer,
    LinkAnswer,
    MentionBody,
    OptionFields,
    ScoreBody,
)

_NOTHING = OptionFields()


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer shows: unit scores or not; the nil verdict by a threshold, or none."""

    return_parts: bool = True
    nil_threshold: float | None = None

    def __call__(self, result: LinkResult) -> LinkAnswer:
        """Write the answer."""
        answer = LinkAnswer(
            candidates=[self._candidate(c) for c in result.candidates],
            text_truncated=result.text_truncated,
            has_image=result.has_image,
            mode=result.mode,
            entities_scored=result.entities_scored,
            tokens=result.tokens,
        )
        if self.nil_threshold is not None:
            answer.nil_threshold = self.nil_threshold
            answer.nil = result.candidates[0].score < self.nil_threshold
        return answer

    def _candidate(self, c: Candidate) -> CandidateAnswer:
        units = c.units if self.return_parts else None
        return CandidateAnswer(id=c.id, name=c.name, score=c.score, units=units, explanation=c.explanation)


def read_mention(
    body: MentionBody, own_threshold: float | None, shared: BatchBody | None = None
) -> tuple[Query, Shape]:
    """Give the query and the shape of its answer; ``own_threshold`` is the model's, where it has one.

    Raises
    ------
    InvalidInputError
        If nil is asked for without a threshold anywhere, or the threshold is not finite.
    """
    pick = _Picker(body, shared or _NOTHING)
    chosen = pick("filter")
    query = Query(
        Mention(body.mention, body.sentence, body.image),
        top_k=pick("top_k"),
        ids=None if chosen is None else chosen.ids,
        types=None if chosen is None else chosen.types,
        mode=pick("mode"),
        explain=bool(pick("explain")),
        image_url=body.image_url,
    )
    threshold = _threshold(pick("nil"), pick("nil_threshold"), own_threshold)
    return query, Shape(pick("return_parts") is not False, threshold)


def read_score(body: ScoreBody) -> tuple[Query, Shape]:
    """Give the query that scores every candidate, and the shape of its answer."""
    query = Query(
        Mention(body.mention, body.sentence, body.image),
        ids=body.candidates,
        explain=bool(body.explain),
        score_all=True,
        image_url=body.image_url,
    )
    return query, Shape(body.return_parts is not False)


def in_order(answer: LinkAnswer, ids: list[str]) -> LinkAnswer:
    """The same answer with its candidates in the order of their ids as asked for."""
    by_id = {c.id: c for c in answer.candidates}
    answer.candidates = [by_id[id_] for id_ in ids]
    return answer


class _Picker:
    """An option as the mention gives it, else as the batch does."""

    def __init__(self, own: OptionFields, shared: OptionFields) -> None:
        self._own, self._shared = own, shared

    def __call__(self, name: str) -> Any:
        own = getattr(self._own, name)
        return getattr(self._shared, name) if own is None else own


def _threshold(nil: bool | None, given: float | None, own: float | None) -> float | None:
    if given is not None and not math.isfinite(given):
        raise InvalidInputError(f"nil_threshold: must be finite, got {given}", field="nil_threshold")
    if nil is False or (nil is None and given is None):
        return None
    if given is None and own is None:
        raise InvalidInputError(
            "nil: this model has no threshold of its own (mimic-engine calibrate); give nil_threshold",
            field="nil",
        )
    return own if given is None else given
