"""The routes that link: one mention, a batch, a stream, and scores of explicit candidates."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from mimic_engine import wire
from mimic_engine.errors import InvalidInputError, MimicError, TooLargeError
from mimic_engine.server import docs
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.linking import Linking
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.requests import NDJSON, expect_type, read_json, read_link, timeout_s
from mimic_engine.server.service import LinkService
from mimic_engine.server.stream import StreamedLinks
from mimic_engine.wire import BatchAnswer, ErrorBody, LinkAnswer


class BareRoute(Route):
    """Stands before a route of FastAPI's that documents it, and is named in the scope as that one is.

    What FastAPI does on the way to a handler that takes the bare request (dependencies, exit stacks) costs
    more than reading the body.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as any route does."""
        match, found = super().matches(scope)
        return match, {**found, "route": self}


def install(app: FastAPI, service: LinkService, metrics: Metrics) -> None:
    """Add the routes."""
    linking = Linking(service, metrics)

    @app.post("/v1/link", tags=["linking"], **docs.LINK)
    async def link(request: Request) -> Response:
        """Rank the entities for one mention."""
        body = await read_link(request, service.settings)
        asked = linking.check(body)
        return json_response(_or_raise(await linking.answer(request, [asked], body.timeout_ms)))

    @app.post("/v1/score", tags=["linking"], **docs.SCORE)
    async def score(request: Request) -> Response:
        """Score the given entities for one mention, each of them, in the order given."""
        body = wire.decode_score(await read_json(request))
        answer = _or_raise(await linking.answer(request, [linking.check(body)], body.timeout_ms))
        by_id = {candidate.id: candidate for candidate in answer.candidates}
        answer.candidates = [by_id[id_] for id_ in body.candidates]
        return json_response(answer)

    @app.post("/v1/link:batch", tags=["linking"], **docs.BATCH)
    async def link_batch(request: Request) -> Response:
        """Rank the entities for several mentions; each gets a result or an error of its own."""
        body = wire.decode_batch(await read_json(request))
        limit = service.settings.max_mentions
        if not body.mentions:
            raise InvalidInputError("mentions: must not be empty", field="mentions")
        if len(body.mentions) > limit:
            message = f"mentions: at most {limit} (max_mentions), got {len(body.mentions)}"
            raise TooLargeError(message, field="mentions")
        asked = [linking.read(raw, body) for raw in body.mentions]
        results = await linking.answer(request, asked, body.timeout_ms)
        return json_response(BatchAnswer([_written(r, f"mentions[{i}]") for i, r in enumerate(results)]))

    @app.post("/v1/link:stream", tags=["linking"], **docs.STREAM)
    async def link_stream(request: Request) -> Response:
        """Rank the entities for any number of mentions: one JSON object a line, answered in order.

        No more is read than can be worked on: send and receive at the same time, or no more lines in one
        request than ``stream_window``.
        """
        expect_type(request, NDJSON)
        asked_ms = _number(request.query_params.get("timeout_ms"), "timeout_ms")
        return StreamedLinks(request, linking, timeout_s(asked_ms, service.settings))

    app.router.routes.insert(0, BareRoute("/v1/link", link, methods=["POST"]))


def _number(text: str | None, field: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise InvalidInputError(f"{field}: must be a number, got {text!r}", field=field) from error


def _or_raise(answers: list[LinkAnswer | MimicError]) -> LinkAnswer:
    [answer] = answers
    if isinstance(answer, MimicError):
        raise answer
    return answer


def _written(answer: LinkAnswer | MimicError, prefix: str) -> LinkAnswer | ErrorBody:
    return describe(answer, prefix)[1] if isinstance(answer, MimicError) else answer
