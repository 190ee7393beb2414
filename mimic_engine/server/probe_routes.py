"""Probes, metrics and draining; probes and metadata also as KServe's Open Inference Protocol names them."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mimic_engine._version import __version__
from mimic_engine.errors import NotReadyError
from mimic_engine.server.errors import error_response, json_response
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.service import LinkService
from mimic_engine.wire import StatusAnswer

MODEL_NAME = "mimic"  # as the Open Inference Protocol calls it


class ProbeRoutes:
    """Handlers of the probes, the metrics and the drain."""

    def __init__(self, service: LinkService, metrics: Metrics) -> None:
        self._service, self._metrics = service, metrics

    async def live(self, _: Request) -> Response:
        """Fail when only a restart helps: the device thread has died, or the device is lost."""
        batcher = self._service.batcher
        if batcher.failure is not None:
            return error_response(NotReadyError(f"not live: {batcher.queue.state.value}"))
        return json_response(StatusAnswer("live"))

    async def ready(self, _: Request) -> Response:
        """Fail while warming up, recovering or draining, and when the device thread is dead or stuck."""
        if reason := self._service.unready_reason:
            return error_response(NotReadyError(f"not ready: {reason}"))
        return json_response(StatusAnswer("ready"))

    async def prometheus(self, _: Request) -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def drain(self, _: Request) -> Response:
        """Fail readiness, refuse new work after ``drain_grace_s``, and answer when all work is done."""
        self._service.announce_leaving()
        await asyncio.sleep(self._service.settings.drain_grace_s)
        drained = await self._service.drain()
        return json_response(StatusAnswer("drained" if drained else "draining"), 200 if drained else 503)


class OpenInferenceRoutes:
    """Handlers of the routes that the Open Inference Protocol names."""

    def __init__(self, service: LinkService) -> None:
        self._service = service

    async def live(self, _: Request) -> Response:
        """Say what ``/health/live`` says."""
        alive = self._service.batcher.failure is None
        return json_response({"live": alive}, 200 if alive else 503)

    async def ready(self, _: Request) -> Response:
        """Say what ``/health/ready`` says."""
        is_ready = self._service.unready_reason is None
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def model(self, request: Request) -> Response:
        """Describe the one model; it is asked over ``/v1/link``, not by ``infer``."""
        _expect_model(request)
        tensors = [{"name": n, "datatype": "BYTES", "shape": [-1]} for n in ("mention", "sentence", "image")]
        outputs = [("id", "BYTES"), ("score", "FP32")]
        return json_response(
            {
                "name": MODEL_NAME,
                "versions": [self._service.linker.model_hash],
                "platform": "mimic_engine",
                "inputs": tensors,
                "outputs": [{"name": n, "datatype": kind, "shape": [-1, -1]} for n, kind in outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Say whether the one model is ready."""
        _expect_model(request)
        return await self.ready(request)

    async def server(self, _: Request) -> Response:
        """Describe the server."""
        return json_response({"name": "mimic_engine", "version": __version__, "extensions": []})


def _expect_model(request: Request) -> None:
    name = request.path_params["name"]
    if name != MODEL_NAME:
        raise HTTPException(404, f"there is one model, {MODEL_NAME!r}; got {name!r}")
