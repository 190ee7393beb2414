"""The HTTP application around a linker: its layers and routes put together, and nothing that computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from mimic_engine._version import __version__
from mimic_engine.server import docs, errors, index_routes, link_routes, page, pictures, probe_routes
from mimic_engine.server.auth import AuthMiddleware, Keys
from mimic_engine.server.fetch import Fetcher
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.middleware import TraceMiddleware
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings
from mimic_engine.server.tracing import RequestTracer
from mimic_engine.types import Mention

if TYPE_CHECKING:
    from mimic_engine.engine.linker import Linker
    from mimic_engine.index_changes import IndexChanges

STREAMS = frozenset({"/v1/link:stream"})  # their bodies are never held whole


def create_app(
    linker: Linker,
    settings: Settings | None = None,
    *,
    examples: Sequence[Mention] = (),
    fetch: Fetcher | None = None,
    tracer: RequestTracer | None = None,
    writer: IndexChanges | None = None,
) -> FastAPI:
    """Build the application around a linker and start its device thread, which warms up first.

    ``examples`` are mentions that the page offers to try.
    ``writer`` changes the entities of the linker's index, where that is wanted.
    ``fetch`` gets the pictures that URLs name, ``tracer`` makes the traces; by default as the settings say.

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
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="mimic_engine",
        version=__version__,
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
        streams=STREAMS,
        tracer=tracer,
    )
    link_routes.install(app, service, metrics)
    index_routes.install(app, service)
    probe_routes.install(app, service, metrics)
    pictures.install(app, service, examples)
    page.install(app)
    docs.install(app)
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
        metrics.watch("mimic_cache_bytes", "Mentions and pictures remembered", lambda: cache.bytes)
        metrics.watch_counts(
            "mimic_cache_requests", "Asked of the cache", ("kind", "outcome"), lambda: cache.asked
        )
    metrics.watch("mimic_index_entities", "Entities in the index", lambda: len(service.linker.index))
