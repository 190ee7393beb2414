"""The HTTP application around a linker: its layers and its route table, and nothing that computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware import Middleware

from mimic_engine.server import docs, errors, page
from mimic_engine.server.auth import AuthMiddleware, Keys
from mimic_engine.server.docs import Endpoint
from mimic_engine.server.fetch import Fetcher
from mimic_engine.server.images import ImageRoutes
from mimic_engine.server.index_routes import IndexRoutes
from mimic_engine.server.link_routes import LinkRoutes
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.middleware import TraceMiddleware
from mimic_engine.server.probe_routes import OpenInferenceRoutes, ProbeRoutes
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.server.tracing import RequestTracer
from mimic_engine.types import Mention

if TYPE_CHECKING:
    from mimic_engine.engine.linker import Linker
    from mimic_engine.index_changes import IndexChanges

STREAM = "/v1/link:stream"  # its bodies are never held whole


class _Rest(PathConvertor):
    """The rest of a path, whatever it holds: ids may have slashes and line breaks in them."""

    regex = "(?s:.+)"  # Starlette's ``path`` stops at a line break


register_url_convertor("rest", _Rest())


def route_table(service: LinkService, metrics: Metrics, examples: Sequence[Mention]) -> list[Endpoint]:
    """Every route of the service: method, path, handler, description."""
    links, index, probes = LinkRoutes(service, metrics), IndexRoutes(service), ProbeRoutes(service, metrics)
    v2, images = OpenInferenceRoutes(service), ImageRoutes(service, examples)
    return [
        Endpoint("POST", "/v1/link", links.link, docs.LINK),
        Endpoint("POST", "/v1/score", links.score, docs.SCORE),
        Endpoint("POST", "/v1/link:batch", links.link_batch, docs.BATCH),
        Endpoint("POST", STREAM, links.link_stream, docs.STREAM),
        Endpoint("GET", "/v1/entities/{entity_id:rest}", index.entity, docs.ENTITY),
        Endpoint("PUT", "/v1/entities/{entity_id:rest}", index.put_entity, docs.PUT_ENTITY),
        Endpoint("DELETE", "/v1/entities/{entity_id:rest}", index.delete_entity, docs.DELETE_ENTITY),
        Endpoint("GET", "/v1/info", index.info, docs.INFO),
        Endpoint("POST", "/admin/index:reload", index.reload, docs.RELOAD),
        Endpoint("GET", "/health/live", probes.live, docs.HEALTH),
        Endpoint("GET", "/health/ready", probes.ready, docs.HEALTH),
        Endpoint("GET", "/metrics", probes.prometheus, docs.METRICS),
        Endpoint("POST", "/admin/drain", probes.drain, docs.DRAIN),
        Endpoint("GET", "/v2/health/live", v2.live, docs.V2_LIVE),
        Endpoint("GET", "/v2/health/ready", v2.ready, docs.V2_READY),
        Endpoint("GET", "/v2/models/{name}", v2.model, docs.MODEL),
        Endpoint("GET", "/v2/models/{name}/ready", v2.model_ready, docs.MODEL_READY),
        Endpoint("GET", "/v2", v2.server, docs.SERVER),
        Endpoint("GET", "/v1/images/{entity_id:rest}", images.entity_image, docs.IMAGE),
        Endpoint("GET", "/v1/examples", images.list_examples, docs.EXAMPLES),
        Endpoint("GET", "/v1/examples/{number}/image", images.example_image, docs.EXAMPLE_IMAGE),
    ]


def create_app(
    linker: Linker,
    settings: Settings | None = None,
    *,
    examples: Sequence[Mention] = (),
    fetch: Fetcher | None = None,
    tracer: RequestTracer | None = None,
    writer: IndexChanges | None = None,
) -> Starlette:
    """Build the application around a linker and start its device thread, which warms up first.

    ``examples`` are mentions that the page offers to try.
    ``writer`` changes the entities of the linker's index, where that is wanted.
    ``fetch`` gets the images that URLs name, ``tracer`` makes the traces; by default as the settings say.

    The service is reachable as ``app.state.service``; the application's shutdown closes it.

    Raises
    ------
    InvalidInputError
        If a file of keys cannot be used.
    MissingDependencyError
        If traces are asked for and OpenTelemetry is not installed.
    """
    settings = settings or Settings()
    keys, tracer = Keys.read(settings), tracer or RequestTracer.open(settings)
    metrics = Metrics()
    service = LinkService(linker, settings, metrics.on_batch, fetch=fetch, writer=writer)
    _watch(metrics, service)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    trace = Middleware(
        TraceMiddleware,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        access_log=settings.access_log,
        leaving=lambda: service.leaving,
        streams=frozenset({STREAM}),
        tracer=tracer,
    )
    table = route_table(service, metrics, examples)
    app = Starlette(
        routes=[*table, *page.routes(), *docs.routes(table)],
        middleware=[trace, Middleware(AuthMiddleware, keys=keys)],
        exception_handlers=errors.HANDLERS,
        lifespan=lifespan,
    )
    app.state.service, app.state.metrics = service, metrics
    return app


def _watch(metrics: Metrics, service: LinkService) -> None:
    batcher = service.batcher
    metrics.watch("mimic_queue_length", "Mentions in preparation or waiting", lambda: batcher.queue.waiting)
    metrics.watch("mimic_ready", "1 when ready", lambda: float(service.unready_reason is None))
    metrics.watch("mimic_device_busy_seconds", "Age of the batch on the device", lambda: batcher.busy_s)
    metrics.watch_counts(
        "mimic_device_recoveries",
        "Device errors after which the device came back",
        (),
        lambda: {(): batcher.recoveries},
    )
    if (cache := service.linker.cache) is not None:
        metrics.watch("mimic_cache_bytes", "Mentions and images remembered", lambda: cache.bytes)
        metrics.watch_counts(
            "mimic_cache_requests", "Asked of the cache", ("kind", "outcome"), lambda: cache.asked
        )
    metrics.watch("mimic_index_entities", "Entities in the index", lambda: len(service.linker.index))
