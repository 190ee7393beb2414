"""The routes that link: one mention, a batch, a stream, and scores of explicit candidates."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from mimic_engine import wire
from mimic_engine.errors import InvalidInputError, MimicError, TooLargeError
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.linking import Linking
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.requests import NDJSON, expect_type, read_json, read_link, timeout_s
from mimic_engine.server.service import LinkService
from mimic_engine.server.stream import StreamedLinks
from mimic_engine.wire import BatchAnswer, ErrorBody, LinkAnswer


class LinkRoutes:
    """Handlers of the linking routes."""

    def __init__(self, service: LinkService, metrics: Metrics) -> None:
        self._settings, self._linking = service.settings, Linking(service, metrics)

    async def link(self, request: Request) -> Response:
        """Rank the entities for one mention."""
        body = await read_link(request, self._settings)
        return json_response(await self._linking.answer_one(request, body, body.timeout_ms))

    async def score(self, request: Request) -> Response:
        """Score the given entities for one mention, each of them, in the order given."""
        body = wire.decode_score(await read_json(request))
        answer = await self._linking.answer_one(request, body, body.timeout_ms)
        by_id = {candidate.id: candidate for candidate in answer.candidates}
        answer.candidates = [by_id[id_] for id_ in body.candidates]
        return json_response(answer)

    async def link_batch(self, request: Request) -> Response:
        """Rank the entities for several mentions; each gets a result or an error of its own."""
        body = wire.decode_batch(await read_json(request))
        limit = self._settings.max_mentions
        if not body.mentions:
            raise InvalidInputError("mentions: must not be empty", field="mentions")
        if len(body.mentions) > limit:
            message = f"mentions: at most {limit} (max_mentions), got {len(body.mentions)}"
            raise TooLargeError(message, field="mentions")
        asked = [self._linking.read(raw, body) for raw in body.mentions]
        answers = await self._linking.answer(request, asked, body.timeout_ms)
        return json_response(BatchAnswer([_written(a, f"mentions[{i}]") for i, a in enumerate(answers)]))

    async def link_stream(self, request: Request) -> Response:
        """Rank the entities for any number of mentions: one JSON object a line, answered in order.

        No more is read than can be worked on: send and receive at the same time, or no more lines in one
        request than ``stream_window``.
        """
        expect_type(request, NDJSON)
        asked_ms = _number(request.query_params.get("timeout_ms"), "timeout_ms")
        return StreamedLinks(request, self._linking, timeout_s(asked_ms, self._settings))


def _number(text: str | None, field: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise InvalidInputError(f"{field}: must be a number, got {text!r}", field=field) from error


def _written(answer: LinkAnswer | MimicError, prefix: str) -> LinkAnswer | ErrorBody:
    return describe(answer, prefix)[1] if isinstance(answer, MimicError) else answer
