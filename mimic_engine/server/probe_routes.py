"""Probes, metrics and draining; probes and metadata also as KServe's Open Inference Protocol names them."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mimic_engine._version import __version__
from mimic_engine.errors import NotReadyError
from mimic_engine.server import docs
from mimic_engine.server.errors import error_response, json_response
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.service import LinkService
from mimic_engine.wire import StatusAnswer

MODEL_NAME = "mimic"  # as the Open Inference Protocol calls it


def install(app: FastAPI, service: LinkService, metrics: Metrics) -> None:
    """Add the routes."""

    @app.get("/health/live", tags=["service"], **docs.HEALTH)
    async def live() -> Response:
        """Fail when only a restart helps: the device thread has died, or the device is lost."""
        if service.batcher.failure is not None:
            return error_response(NotReadyError(f"not live: {service.batcher.queue.state.value}"))
        return json_response(StatusAnswer("live"))

    @app.get("/health/ready", tags=["service"], **docs.HEALTH)
    async def ready() -> Response:
        """Fail while warming up, recovering or draining, and when the device thread is dead or stuck."""
        if reason := service.unready_reason:
            return error_response(NotReadyError(f"not ready: {reason}"))
        return json_response(StatusAnswer("ready"))

    @app.get("/metrics", tags=["service"], response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/admin/drain", tags=["admin"], **docs.DRAIN)
    async def drain() -> Response:
        """Fail readiness, refuse new work after ``drain_grace_s``, and answer when all work is done."""
        service.announce_leaving()
        await asyncio.sleep(service.settings.drain_grace_s)
        drained = await service.drain()
        return json_response(StatusAnswer("drained" if drained else "draining"), 200 if drained else 503)

    _add_open_inference(app, service)


def _add_open_inference(app: FastAPI, service: LinkService) -> None:
    @app.get("/v2/health/live", tags=["open inference"], **docs.V2_LIVE)
    async def live() -> Response:
        """Say what ``/health/live`` says."""
        alive = service.batcher.failure is None
        return json_response({"live": alive}, 200 if alive else 503)

    async def ready() -> Response:
        """Say what ``/health/ready`` says."""
        is_ready = service.unready_reason is None
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/v2/models/{name}", tags=["open inference"], **docs.MODEL)
    async def model(name: str) -> Response:
        """Describe the one model; it is asked over ``/v1/link``, not by ``infer``."""
        _expect_model(name)
        tensors = [{"name": n, "datatype": "BYTES", "shape": [-1]} for n in ("mention", "sentence", "image")]
        outputs = [("id", "BYTES"), ("score", "FP32")]
        return json_response(
            {
                "name": MODEL_NAME,
                "versions": [service.linker.model_hash],
                "platform": "mimic_engine",
                "inputs": tensors,
                "outputs": [{"name": n, "datatype": kind, "shape": [-1, -1]} for n, kind in outputs],
            }
        )

    @app.get("/v2/models/{name}/ready", tags=["open inference"], **docs.MODEL_READY)
    async def model_ready(name: str) -> Response:
        """Say whether the one model is ready."""
        _expect_model(name)
        return await ready()

    @app.get("/v2", tags=["open inference"], **docs.INFO)
    async def server() -> Response:
        """Describe the server."""
        return json_response({"name": "mimic_engine", "version": __version__, "extensions": []})

    app.get("/v2/health/ready", tags=["open inference"], **docs.V2_READY)(ready)


def _expect_model(name: str) -> None:
    if name != MODEL_NAME:
        raise HTTPException(404, f"there is one model, {MODEL_NAME!r}; got {name!r}")
