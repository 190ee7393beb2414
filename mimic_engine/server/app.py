"""The HTTP application: routes over :class:`LinkService`, and nothing that computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import mimic_engine
from mimic_engine.errors import (
    InvalidInputError,
    MimicError,
    NotReadyError,
    TooLargeError,
    UnknownEntityError,
)
from mimic_engine.server import docs, errors, page, pictures, schemas
from mimic_engine.server.auth import AuthMiddleware, Keys
from mimic_engine.server.errors import describe, error_response, json_response
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.middleware import Trace, TraceMiddleware
from mimic_engine.server.schemas import BatchBody, BatchResult, EntityBody, HealthBody, LinkBody, MentionBody
from mimic_engine.server.service import LinkerLike, LinkService, Query
from mimic_engine.server.settings import Settings
from mimic_engine.types import LinkResult, Mention

T = TypeVar("T")


def create_app(
    linker: LinkerLike, settings: Settings | None = None, *, examples: Sequence[Mention] = ()
) -> FastAPI:
    """Build the application around a linker and start its device thread, which warms up first.

    ``examples`` are mentions that the page offers to try. The service is reachable as
    ``app.state.service``; the application's shutdown closes it.
    """
    settings = settings or Settings()
    keys = Keys.read(settings)
    metrics = Metrics()
    service = LinkService(linker, settings, metrics.on_batch)
    _watch(metrics, service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="mimic_engine",
        version=mimic_engine.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.metrics = service, metrics
    errors.install(app)
    app.add_middleware(AuthMiddleware, keys=keys)
    app.add_middleware(
        TraceMiddleware,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        access_log=settings.access_log,
        leaving=lambda: service.leaving,
    )
    _add_link_routes(app, service, metrics)
    _add_read_routes(app, service)
    _add_probe_routes(app, service, metrics)
    pictures.install(app, service, examples)
    page.install(app)
    docs.install(app)
    return app


def _watch(metrics: Metrics, service: LinkService) -> None:
    metrics.watch("mimic_queue_length", "Mentions in preparation or waiting", lambda: service.batcher.waiting)
    metrics.watch("mimic_ready", "1 when ready", lambda: float(service.unready_reason is None))
    metrics.watch(
        "mimic_device_busy_seconds", "Age of the batch on the device", lambda: service.batcher.busy_s
    )
    metrics.watch("mimic_index_entities", "Entities in the index", lambda: len(service.linker.index))


# -- linking ------------------------------------------------------------------------------------------


def _add_link_routes(app: FastAPI, service: LinkService, metrics: Metrics) -> None:
    async def answer(
        request: Request, queries: list[Query | MimicError], timeout_ms: float | None
    ) -> list[LinkResult | MimicError]:
        trace: Trace = request.state.trace
        deadline = trace.started + _timeout_ms(timeout_ms, service.settings) / 1e3
        answers = await _while_connected(request, service.link(queries, deadline, trace.parts_ms))
        metrics.prepare_s.observe(trace.parts_ms["prepare"] / 1e3)
        for each in answers:
            outcome = errors.classify(each)[1] if isinstance(each, MimicError) else "ok"
            metrics.mentions.labels(outcome).inc()
        return answers

    @app.post("/v1/link", tags=["linking"], **docs.LINK)
    async def link(request: Request) -> Response:
        """Rank the entities for one mention."""
        body = await _read_link(request, service.settings)
        [result] = await answer(request, [_query(body)], body.timeout_ms)
        if isinstance(result, MimicError):
            raise result
        return json_response(result)

    @app.post("/v1/link:batch", tags=["linking"], **docs.BATCH)
    async def link_batch(request: Request) -> Response:
        """Rank the entities for several mentions; each gets a result or an error of its own."""
        _expect_json(request)
        body = schemas.decode_batch(await request.body())
        limit = service.settings.max_mentions
        if not body.mentions:
            raise InvalidInputError("mentions: must not be empty", field="mentions")
        if len(body.mentions) > limit:
            message = f"mentions: at most {limit} (max_mentions), got {len(body.mentions)}"
            raise TooLargeError(message, field="mentions")
        results = await answer(request, [_batch_query(raw, body) for raw in body.mentions], body.timeout_ms)
        return json_response(
            BatchResult(
                [
                    describe(result, f"mentions[{i}]")[1] if isinstance(result, MimicError) else result
                    for i, result in enumerate(results)
                ]
            )
        )


def _query(body: MentionBody, shared: BatchBody | None = None) -> Query:
    top_k, candidates = body.top_k, body.candidates
    if shared is not None:
        top_k = shared.top_k if top_k is None else top_k
        candidates = shared.candidates if candidates is None else candidates
    return Query(Mention(body.mention, body.sentence, body.image), top_k, candidates)


def _batch_query(raw: Any, shared: BatchBody) -> Query | MimicError:
    try:
        return _query(schemas.decode_mention(raw), shared)
    except InvalidInputError as error:
        return error


def _timeout_ms(asked: float | None, settings: Settings) -> float:
    if asked is None:
        return settings.timeout_ms
    if not 0 < asked <= settings.max_timeout_ms:
        limit = settings.max_timeout_ms
        raise InvalidInputError(
            f"timeout_ms: must be above 0, at most {limit:g}, got {asked:g}", field="timeout_ms"
        )
    return asked


async def _read_link(request: Request, settings: Settings) -> LinkBody:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        _expect_json(request)
        return schemas.decode_link(await request.body())
    fields: list[tuple[str, str]] = []
    image: bytes | None = None
    limits = {"max_fields": 8 + settings.max_candidates, "max_part_size": 4 * settings.max_text_chars}
    try:
        async with request.form(max_files=1, **limits) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    fields.append((name, value))
                elif name == "image":
                    image = await value.read()
                else:
                    raise InvalidInputError(f"{name}: the only file a form may hold is image", field=name)
    except (HTTPException, FormParserError) as error:
        raise InvalidInputError(f"body: not a valid form: {getattr(error, 'detail', error)}") from error
    return schemas.form_to_body(fields, image)


def _expect_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):
        accepted = "application/json, or multipart/form-data for /v1/link"
        raise HTTPException(415, f"content-type must be {accepted}; got {kind!r}")


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, or cancel it when the client goes away."""
    task = asyncio.current_task()
    assert task is not None
    finished = left = False

    def leave(_: object) -> None:
        nonlocal left
        if not finished and not watch.cancelled():
            left = True
            task.cancel()

    watch = asyncio.ensure_future(request.receive())  # the body has been read: next comes the disconnect
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise HTTPException(499, "the client has gone away") from None
        raise
    finally:
        finished = True
        watch.cancel()


# -- reading ------------------------------------------------------------------------------------------


def _add_read_routes(app: FastAPI, service: LinkService) -> None:
    @app.get("/v1/entities/{entity_id:path}", tags=["index"], **docs.ENTITY)
    async def entity(entity_id: str) -> Response:
        """Give what the index holds about one entity."""
        index = service.linker.index
        try:
            found = index.entity(int(index.rows([entity_id])[0]))
        except UnknownEntityError as error:
            return json_response(describe(error)[1], 404)
        return json_response(
            EntityBody(found.id, found.name, found.description, found.type, len(found.images))
        )

    @app.get("/v1/info", tags=["service"], **docs.INFO)
    async def info() -> Response:
        """Describe the model, the index and the limits of this service."""
        settings = service.settings
        limits = settings.model_dump(include=set(docs.PUBLIC_LIMITS))
        return json_response(
            {
                "version": mimic_engine.__version__,
                "model_hash": service.linker.model_hash,
                "entities": len(service.linker.index),
                "limits": limits,
                "linker": dict(service.linker.info()),
            }
        )


# -- probes -------------------------------------------------------------------------------------------


def _add_probe_routes(app: FastAPI, service: LinkService, metrics: Metrics) -> None:
    @app.get("/health/live", tags=["service"], **docs.HEALTH)
    async def live() -> Response:
        """Fail when only a restart helps: the device thread has died."""
        if service.batcher.failure is not None:
            return error_response(NotReadyError(f"not live: {service.batcher.state.value}"))
        return json_response(HealthBody("live"))

    @app.get("/health/ready", tags=["service"], **docs.HEALTH)
    async def ready() -> Response:
        """Fail while warming up, while draining, and when the device thread is dead or stuck."""
        if reason := service.unready_reason:
            return error_response(NotReadyError(f"not ready: {reason}"))
        return json_response(HealthBody("ready"))

    @app.get("/metrics", tags=["service"], response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)
