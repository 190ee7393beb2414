"""The routes that link: one mention, a batch, a stream, and scores of explicit candidates."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from mimic_engine import wire
from mimic_engine.errors import InvalidInputError, MimicError, TooLargeError
from mimic_engine.server import docs, errors
from mimic_engine.server.answers import Shape, in_order, read_mention, read_score
from mimic_engine.server.bodies import NDJSON, expect_type, read_json, read_link, while_connected
from mimic_engine.server.errors import describe, json_response
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.middleware import Trace
from mimic_engine.server.service import LinkService, Query
from mimic_engine.server.settings import Settings
from mimic_engine.server.stream import StreamedLinks
from mimic_engine.types import LinkResult
from mimic_engine.wire import BatchAnswer, BatchBody, ErrorBody, LinkAnswer

Asked = tuple[Query, Shape] | MimicError  # a mention, or what was wrong with it already


class Linking:
    """What the routes share: from queries to results, within the deadline and while the client is there."""

    def __init__(self, service: LinkService, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics

    def read(self, raw: bytes | msgspec.Raw, shared: BatchBody | None = None) -> Asked:
        """Read one mention of several: what is wrong with it is its own."""
        try:
            return read_mention(wire.decode_mention(raw), self.own_threshold, shared)
        except InvalidInputError as error:
            return error

    @property
    def own_threshold(self) -> float | None:
        """The model's nil threshold, where it has one."""
        return self.service.linker.nil_threshold

    async def answer(
        self, request: Request, asked: Sequence[Asked], timeout_ms: float | None
    ) -> list[LinkAnswer | MimicError]:
        """Answer every mention, or raise where it concerns them all."""
        trace: Trace = request.state.trace
        deadline = trace.started + timeout_s(timeout_ms, self.service.settings)
        queries = [one if isinstance(one, MimicError) else one[0] for one in asked]
        work = self.service.link(queries, deadline, trace.parts_ms)
        results = await while_connected(request, work)
        self.metrics.prepare_s.observe(trace.parts_ms["prepare"] / 1e3)
        return [self.shaped(one, result) for one, result in zip(asked, results, strict=True)]

    def shaped(self, asked: Asked, result: LinkResult | MimicError) -> LinkAnswer | MimicError:
        """Count the outcome, and give the result its shape."""
        self.metrics.count_outcome(errors.classify(result)[1] if isinstance(result, MimicError) else "ok")
        if isinstance(result, MimicError) or isinstance(asked, MimicError):
            assert isinstance(result, MimicError)
            return result
        return asked[1](result)


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
        asked = read_mention(body, linking.own_threshold)
        return json_response(_or_raise(await linking.answer(request, [asked], body.timeout_ms)))

    @app.post("/v1/score", tags=["linking"], **docs.SCORE)
    async def score(request: Request) -> Response:
        """Score the given entities for one mention, each of them, in the order given."""
        body = wire.decode_score(await read_json(request))
        answer = _or_raise(await linking.answer(request, [read_score(body)], body.timeout_ms))
        return json_response(in_order(answer, body.candidates))

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


def timeout_s(asked_ms: float | None, settings: Settings) -> float:
    """How long a mention may take: as asked for, else the service's default."""
    if asked_ms is None:
        return settings.timeout_ms / 1e3
    if not 0 < asked_ms <= settings.max_timeout_ms:
        limit = settings.max_timeout_ms
        raise InvalidInputError(
            f"timeout_ms: must be above 0, at most {limit:g}, got {asked_ms:g}", field="timeout_ms"
        )
    return asked_ms / 1e3


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


def _written(answer: LinkAnswer | MimicError, place: str) -> LinkAnswer | ErrorBody:
    return describe(answer, place)[1] if isinstance(answer, MimicError) else answer
