"""Linking as all its routes do it: from bodies to results within the deadline, from results to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from mimic_engine import wire
from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.server import errors
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.requests import LinkRequest, link_request, score_request, timeout_s, while_connected
from mimic_engine.server.service import LinkService
from mimic_engine.types import LinkResult
from mimic_engine.wire import BatchBody, CandidateAnswer, LinkAnswer, MentionBody, ScoreBody

if TYPE_CHECKING:
    from starlette.requests import Request

    from mimic_engine.server.middleware import Trace

Asked = LinkRequest | MimicError  # a mention, or what was wrong with it already


class Linking:
    """The way of a mention through the service, counted."""

    def __init__(self, service: LinkService, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics

    def read(self, raw: bytes | msgspec.Raw, shared: BatchBody | None = None) -> Asked:
        """Read one mention of several: what is wrong with it is its own."""
        try:
            body = wire.decode_mention(raw)
        except InvalidInputError as error:
            return error
        if shared is not None:
            shared.lend(body)
        return self.check(body)

    def check(self, body: MentionBody | ScoreBody) -> Asked:
        """Hold a mention against the limits."""
        service = self.service
        try:
            if isinstance(body, ScoreBody):
                return score_request(body, service.settings)
            return link_request(body, service.settings, service.linker)
        except InvalidInputError as error:
            return error

    async def answer_one(
        self, request: Request, body: MentionBody | ScoreBody, timeout_ms: float | None
    ) -> LinkAnswer:
        """Answer one mention, or raise its error."""
        [answer] = await self.answer(request, [self.check(body)], timeout_ms)
        if isinstance(answer, MimicError):
            raise answer
        return answer

    async def answer(
        self, request: Request, asked: Sequence[Asked], timeout_ms: float | None
    ) -> list[LinkAnswer | MimicError]:
        """Answer every mention, or raise where it concerns them all."""
        trace: Trace = request.state.trace
        deadline = trace.started + timeout_s(timeout_ms, self.service.settings)
        work = self.service.link(asked, deadline, trace.parts_ms)
        results = await while_connected(request, work)
        self.metrics.prepare_s.observe(trace.parts_ms["prepare"] / 1e3)
        return [self.shaped(one, result) for one, result in zip(asked, results, strict=True)]

    def shaped(self, asked: Asked, result: LinkResult | MimicError) -> LinkAnswer | MimicError:
        """Count the outcome, and give the result the shape that was asked for."""
        if isinstance(result, MimicError):
            self.metrics.count_outcome(errors.classify(result)[1])
            return result
        assert isinstance(asked, LinkRequest)
        self.metrics.count_outcome("ok")
        return link_answer(asked, result)


def link_answer(asked: LinkRequest, result: LinkResult) -> LinkAnswer:
    """Write the result as a caller asked to see it."""
    answer = LinkAnswer(
        candidates=[
            CandidateAnswer(
                id=c.id,
                name=c.name,
                score=c.score,
                probability=c.probability,
                units=c.units if asked.return_parts else None,
                explanation=c.explanation,
            )
            for c in result.candidates
        ],
        text_truncated=result.text_truncated,
        has_image=result.has_image,
        mode=result.mode,
        entities_scored=result.entities_scored,
        nil_probability=result.nil_probability,
        tokens=result.tokens,
    )
    if asked.nil_threshold is not None:
        answer.nil_threshold = asked.nil_threshold
        answer.nil = result.candidates[0].score < asked.nil_threshold
    return answer
